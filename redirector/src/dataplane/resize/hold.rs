//! Keeping flows from being opened while programs with different tables run.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use redirector_common::NodeConfig;

use super::super::gc;
use super::super::maps;
use super::super::pins::Pins;
use super::super::syscall;
use super::super::table::{ArrayTable, Table as _, TableError};

/// How long programs hold flows back at most, where nobody ends it: whoever does may be killed.
const LENGTH: Duration = Duration::from_secs(5);

/// How often it is made longer: giving a link another program waits for whoever else changes
/// interfaces, which may be seconds.
const RENEWAL: Duration = Duration::from_secs(1);

/// No flow is opened, and packets that belong to none are dropped, while this lives, and for a few
/// seconds after it was dropped.
pub(super) struct Hold {
    node: ArrayTable<NodeConfig>,
    renewing: Option<(Sender<()>, JoinHandle<()>)>,
    begun: Instant,
}

impl Hold {
    /// Begins it; from now on nobody is opening a flow.
    pub(super) fn begin(pins: &Pins) -> Result<Self, TableError> {
        let begun = Instant::now();
        let mut node = maps::node(pins)?;
        hold(&mut node)?;
        syscall::wait_for_programs();
        let mut ours = maps::node(pins)?;
        let (sender, ended) = channel::<()>();
        let renewing = thread::spawn(move || {
            while ended.recv_timeout(RENEWAL) == Err(RecvTimeoutError::Timeout) {
                if let Err(error) = hold(&mut ours) {
                    tracing::warn!(%error, "new flows are not held back any longer");
                    return;
                }
            }
        });
        Ok(Self { node, renewing: Some((sender, renewing)), begun })
    }

    /// Ends it; from now on programs use a ring of so many slots. Returns how long it was.
    pub(super) fn end(mut self, ring_slots: u32) -> Result<Duration, TableError> {
        self.stop();
        let mut settings = self.node.get(0)?;
        settings.moving_until = 0;
        settings.ring_slots = ring_slots;
        self.node.set(&0, &settings)?;
        Ok(self.begun.elapsed())
    }

    fn stop(&mut self) {
        if let Some((sender, renewing)) = self.renewing.take() {
            drop(sender);
            // It does not panic.
            let _ = renewing.join();
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Ends what somebody else has begun; for who has the turn, once all programs use the same tables.
///
/// # Errors
///
/// If the map is missing, or the kernel refuses.
pub fn release(pins: &Pins) -> Result<(), TableError> {
    let mut node = maps::node(pins)?;
    let settings = node.get(0)?;
    if settings.moving_until == 0 {
        return Ok(());
    }
    node.set(&0, &NodeConfig { moving_until: 0, ..settings })
}

fn hold(node: &mut ArrayTable<NodeConfig>) -> Result<(), TableError> {
    let length = u64::try_from(LENGTH.as_nanos()).unwrap_or(u64::MAX);
    let mut settings = node.get(0)?;
    settings.moving_until = gc::now().saturating_add(length);
    node.set(&0, &settings)
}
