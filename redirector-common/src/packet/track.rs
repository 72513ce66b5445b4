//! Following a flow's state.

use super::{Environment, FlowEntry, Packet, TcpFlags};
use crate::{Direction, FlowState, Protocol};

/// Counts the packet in its half, and moves both halves where it changes the flow's state.
#[inline(always)]
pub fn track<E: Environment>(environment: &E, packet: &Packet, entry: FlowEntry, now: u64) {
    entry.count(now, packet.ip_len);
    let direction = if entry.is_reply() { Direction::Reply } else { Direction::Forward };
    let state = entry.state();
    if entry.manner().hands_over() && goes_on(state, packet, entry) {
        set_state(environment, entry, settled(packet));
        return;
    }
    if !may_change(state, direction, packet) {
        return;
    }
    let partner = environment.partner(entry);
    let partner_fin = partner.is_some_and(|partner| partner.fin_seen());
    if packet.flags.any(TcpFlags::FIN) {
        entry.set_fin_seen();
    }
    let next = next_state(state, direction, packet, partner_fin);
    if next != state {
        entry.set_state(next);
        if let Some(partner) = partner {
            partner.set_state(next);
        }
    }
}

/// Whether a packet of a flow whose replies are not seen shows that there are some: of TCP an
/// acknowledgement, of UDP one more than those that a client sends for want of an answer.
#[inline(always)]
fn goes_on(state: FlowState, packet: &Packet, entry: FlowEntry) -> bool {
    const UNANSWERED: u64 = 4;
    match state {
        FlowState::SynSent => packet.flags.acknowledges() && !packet.flags.any(TcpFlags::FIN),
        FlowState::Unreplied => entry.packets() > UNANSWERED,
        FlowState::SynReceived
        | FlowState::Established
        | FlowState::HalfClosed
        | FlowState::TimeWait
        | FlowState::Closed
        | FlowState::Replied => false,
    }
}

/// The state of a flow that goes both ways.
#[inline(always)]
const fn settled(packet: &Packet) -> FlowState {
    match packet.tuple.protocol() {
        Protocol::Tcp => FlowState::Established,
        Protocol::Udp => FlowState::Replied,
    }
}

#[inline(always)]
fn set_state<E: Environment>(environment: &E, entry: FlowEntry, state: FlowState) {
    entry.set_state(state);
    if let Some(partner) = environment.partner(entry) {
        partner.set_state(state);
    }
}

/// A quick test that spares plain packets of established flows the partner's look-up.
#[inline(always)]
fn may_change(state: FlowState, direction: Direction, packet: &Packet) -> bool {
    match packet.tuple.protocol() {
        Protocol::Udp => {
            matches!(state, FlowState::Unreplied) && matches!(direction, Direction::Reply)
        }
        Protocol::Tcp => {
            packet.flags.any(TcpFlags::SYN | TcpFlags::FIN | TcpFlags::RST)
                || matches!(state, FlowState::SynReceived)
        }
    }
}

/// The state after a packet.
#[inline(always)]
#[must_use]
pub fn next_state(
    state: FlowState,
    direction: Direction,
    packet: &Packet,
    partner_fin: bool,
) -> FlowState {
    use Direction::{Forward, Reply};
    use FlowState::{
        Closed, Established, HalfClosed, Replied, SynReceived, SynSent, TimeWait, Unreplied,
    };
    let flags = packet.flags;
    match state {
        Unreplied | Replied => match direction {
            Forward => state,
            Reply => Replied,
        },
        SynSent | SynReceived | Established | HalfClosed | TimeWait | Closed => {
            if flags.any(TcpFlags::RST) {
                return Closed;
            }
            match (state, direction) {
                // Finished flows stay so; a new SYN makes a new flow before it comes here.
                (Closed | TimeWait, _) => state,
                (_, _) if flags.any(TcpFlags::FIN) => {
                    if partner_fin {
                        TimeWait
                    } else {
                        HalfClosed
                    }
                }
                (SynSent, Reply) if flags.any(TcpFlags::SYN) && flags.any(TcpFlags::ACK) => {
                    SynReceived
                }
                (SynReceived, Forward) if !flags.any(TcpFlags::SYN) => Established,
                (SynSent | SynReceived | Established | HalfClosed, Forward | Reply)
                | (Unreplied | Replied, _) => state,
            }
        }
    }
}

/// Whether a flow is past its timeout: both of its halves are.
#[inline(always)]
pub fn is_over<E: Environment>(environment: &E, entry: FlowEntry) -> bool {
    let now = environment.now();
    entry.is_expired(now)
        && environment.partner(entry).is_none_or(|partner| partner.is_expired(now))
}
