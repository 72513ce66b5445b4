//! Flows that make room for a new one with the same key.

use super::cached::Stale;
use super::track::{Seen, partner_of};
use super::{Environment, FlowEntry, Packet};
use crate::{FlowState, Protocol};

/// Whether a packet that matches a half might open a new flow all the same.
#[inline(always)]
pub(super) fn may_begin_anew<E: Environment>(
    environment: &E,
    packet: &Packet,
    entry: FlowEntry,
) -> bool {
    if entry.is_reply() {
        return false;
    }
    match packet.tuple.protocol() {
        Protocol::Tcp => packet.flags.opens(),
        Protocol::Udp => {
            let now = environment.now();
            entry.is_expired(now) || entry.is_unanswered_since(now)
        }
    }
}

/// Removes the flow that a packet has found which may begin anew, if it is over. Whether it was
/// removed.
#[inline(always)]
pub fn remove_over<E: Environment>(environment: &E, packet: &Packet, entry: FlowEntry) -> bool {
    let now = environment.now();
    let partner = partner_of(environment, packet, entry);
    // Two who remove flows at once may leave a half behind. Nobody would ever answer it, and it
    // would live for as long as its client tries.
    let is_over = partner.is_none_or(|partner| entry.is_expired(now) && partner.is_expired(now));
    let is_done = matches!(packet.tuple.protocol(), Protocol::Tcp)
        && (entry.state().is_finished()
            || Seen::by(entry, partner).is_finished()
            || is_abandoned(environment, entry));
    if !is_over && !is_done {
        return false;
    }
    let stale = Stale::of(&packet.tuple, entry);
    if partner.is_some() {
        environment.remove_partner(entry);
    }
    environment.remove_flow(&packet.tuple);
    stale.forget(environment);
    true
}

/// Whether a flow whose replies are not seen, and so not their end either, is over if its client
/// opens a connection. Not if that is an old SYN which was late. Nobody seems to answer one that is
/// repeated: perhaps the other node no longer takes such packets, or not yet.
#[inline(always)]
fn is_abandoned<E: Environment>(environment: &E, entry: FlowEntry) -> bool {
    const LATE: u64 = 5000;
    const REPEATED: u64 = 900;
    entry.manner().hands_over()
        && match entry.state() {
            FlowState::HalfClosed => true,
            FlowState::Established => entry.is_idle(environment.now(), LATE),
            FlowState::SynSent => entry.is_idle(environment.now(), REPEATED),
            FlowState::SynReceived
            | FlowState::TimeWait
            | FlowState::Closed
            | FlowState::Unreplied
            | FlowState::Replied => false,
        }
}
