//! Where clients are led whose backend was removed, so that they hear of it.
//!
//! A reset is believed only with the right number, which nobody here knows until the client sends
//! again. So its flow is led to a port of this host at which nobody listens, one of the first for
//! translation: the kernel answers what comes there with a reset, by the client's own numbers, and
//! TC egress gives that the frontend's address, as any answer of a program here.

use redirector_common::{
    Address, Direction, Family, Flow, FlowState, Port, PortFlags, Protocol, Tuple,
};

use super::contents::Ports;
use super::gc::FlowTable;
use super::table::TableError;

/// Ports of this host at which nobody listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeadEnd {
    /// An IPv4 address of this host, if it has one.
    pub v4: Option<Address>,
    /// An IPv6 address of this host, if it has one.
    pub v6: Option<Address>,
    /// The first port.
    pub first: u16,
    /// The last one. There are several because a client may have used one port of its own towards
    /// several frontends, and each of these connections needs an end of its own.
    pub last: u16,
}

impl DeadEnd {
    /// Flags that make TC egress look at what comes from there.
    #[must_use]
    pub fn ports(&self) -> Ports {
        let mut ports = Ports::default();
        for port in self.candidates() {
            ports.add(Protocol::Tcp, port, PortFlags::LOCAL_BACKEND);
        }
        ports
    }

    fn candidates(&self) -> impl Iterator<Item = Port> + use<> {
        (self.first..=self.last).map(Port::new)
    }

    fn address(&self, family: Family) -> Option<Address> {
        match family {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        }
    }

    /// Whether a flow whose forward half this is, and that has lost its backend, is to be led here:
    /// not if it is here already, or will soon be over anyway.
    pub(super) fn is_for(&self, key: &Tuple, flow: &Flow) -> bool {
        let address = self.address(key.source.family());
        let leads_here = address == Some(flow.translated.destination)
            && self.candidates().any(|port| port == flow.translated.destination_port);
        key.protocol() == Protocol::Tcp
            && flow.direction() == Direction::Forward
            && matches!(flow.state(), FlowState::Established | FlowState::HalfClosed)
            && address.is_some()
            && !leads_here
    }

    /// Leads a flow here. Returns both halves with their keys; nothing if the client has one at each
    /// port that would look the same.
    pub(super) fn lead(
        &self,
        table: &mut dyn FlowTable,
        key: &Tuple,
        flow: &Flow,
    ) -> Result<Option<[(Tuple, Flow); 2]>, TableError> {
        let Some(address) = self.address(key.source.family()) else {
            return Ok(None);
        };
        let client = (key.source, key.source_port);
        let mut free = None;
        for port in self.candidates() {
            let translated = Tuple::new(key.protocol(), client, (address, port));
            if table.half(&translated.reversed())?.is_none() {
                free = Some(translated);
                break;
            }
        }
        let Some(translated) = free else {
            return Ok(None);
        };
        let reply_key = translated.reversed();
        let half = |direction, translated| {
            let mut half =
                Flow::new(direction, translated, flow.service, flow.backend, true, flow.created);
            half.set_state(flow.state());
            half.last_seen = flow.last_seen;
            half
        };
        let reply = half(Direction::Reply, key.reversed());
        let mut forward = half(Direction::Forward, translated);
        (forward.packets, forward.bytes) = (flow.packets, flow.bytes);
        // What the old backend may still say has no way any more, and makes room. The answer must
        // find its own before it is provoked.
        table.remove_half(&flow.translated.reversed(), true)?;
        table.put_half(&reply_key, &reply)?;
        table.put_half(key, &forward)?;
        Ok(Some([(*key, forward), (reply_key, reply)]))
    }
}
