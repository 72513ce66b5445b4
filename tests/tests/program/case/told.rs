//! What whoever watches is told of a row's packet.

use anyhow::{Result, ensure};
use redirector_common::{Event, event::Phase};

use super::{Case, Expected, compare};
use crate::given::Given;

impl Case {
    /// How the packet came and how it left, or once if it is as it came; of what is not counted,
    /// nothing.
    pub(super) fn check_told(&self, is_counted: bool, told: &[(Event, Vec<u8>)]) -> Result<()> {
        let (_, reason, _) = self.expectation();
        let phases: Vec<_> = told.iter().map(|(event, _)| event.phase()).collect();
        let expected = match &self.expected {
            _ if !is_counted => Vec::new(),
            Expected::Deliver(_, after) | Expected::Forward(_, after) => {
                vec![(Phase::Before, &self.input), (Phase::After, after)]
            }
            Expected::Pass(_) | Expected::Drop(_) | Expected::HandOver(_) => {
                vec![(Phase::Only, &self.input)]
            }
        };
        ensure!(
            phases.iter().eq(expected.iter().map(|(phase, _)| phase)),
            "told {phases:?}, expected {:?}",
            expected.iter().map(|(phase, _)| phase).collect::<Vec<_>>()
        );
        for ((event, bytes), (phase, expected)) in told.iter().zip(expected) {
            ensure!(
                event.reason() == Some(reason)
                    && event.number == told[0].0.number
                    && event.len as usize == bytes.len(),
                "{event:?} of {} bytes",
                bytes.len()
            );
            let link = 14;
            if bytes.len() < expected.len() && phase != Phase::After {
                // Out of another node's packet already.
                let came = &expected[expected.len() + link - bytes.len()..];
                compare(&bytes[link..], came)?;
            } else if phase != Phase::Before || !self.flows.iter().any(Given::is_clamped) {
                compare(bytes, expected)?;
            }
        }
        Ok(())
    }
}
