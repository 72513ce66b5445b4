//! Direct server return: a packet for a backend on another node that runs redirector goes there
//! with the client's address, and that node answers the client itself. As it is, where the node is
//! on this segment, or else in a packet of this host's own.

use super::tunnel::header_len;
use super::{Environment, NextHop, Outcome, Packet, Route};
use crate::Manner;

/// The way of a packet in the manner that the outcome says. A flow's first packet is translated if
/// the node of its backend is not known to run redirector.
#[inline(always)]
pub(super) fn find_way<E: Environment>(
    environment: &E,
    packet: &Packet,
    len: u16,
    is_first: bool,
    outcome: &mut Outcome,
) -> Route {
    let route = environment.route(packet, &outcome.translated, len, &mut outcome.next_hop);
    match outcome.manner {
        Manner::Translate => route,
        Manner::Layer2 | Manner::Tunnel => {
            environment.settle(packet, len, is_first, route, outcome)
        }
    }
}

/// What becomes of a way that was found for a packet which is to be handed over, and in which
/// manner it is.
#[inline(always)]
pub fn settle<E: Environment>(
    environment: &E,
    packet: &Packet,
    len: u16,
    is_first: bool,
    route: Route,
    outcome: &mut Outcome,
) -> Route {
    let is_found = matches!(route, Route::Via | Route::Unresolved);
    if is_found && !is_next(environment, is_first, outcome) {
        let is_node = !is_first
            || environment.peer(&outcome.translated.destination).takes_flows()
            || environment.peer(&environment.gateway()).takes_flows();
        outcome.manner = if is_node { Manner::Tunnel } else { Manner::Translate };
    }
    match outcome.manner {
        Manner::Tunnel => cover(packet, len, route, &mut outcome.next_hop),
        Manner::Layer2 | Manner::Translate => route,
    }
}

/// Whether a packet that is to go as it is can: the next node is the one that takes it. One that is
/// no longer known to take flows keeps those that it has.
#[inline(always)]
fn is_next<E: Environment>(environment: &E, is_first: bool, outcome: &Outcome) -> bool {
    if !matches!(outcome.manner, Manner::Layer2) {
        return false;
    }
    let peer = environment.peer(&environment.gateway());
    (if is_first { peer.takes_flows() } else { peer.is_known() })
        && environment
            .interface(outcome.next_hop.ifindex)
            .is_some_and(|interface| interface.is_ours())
}

/// Leaves room for the header around the packet.
#[inline(always)]
fn cover(packet: &Packet, len: u16, route: Route, next_hop: &mut NextHop) -> Route {
    match route {
        Route::Via | Route::TooBig => {
            let overhead = header_len(packet.family()).into();
            next_hop.mtu = next_hop.mtu.saturating_sub(overhead);
            if u32::from(len) > next_hop.mtu { Route::TooBig } else { route }
        }
        Route::Unresolved | Route::Unreachable | Route::TooFar => route,
    }
}
