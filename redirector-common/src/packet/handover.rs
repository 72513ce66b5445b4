//! Direct server return: a packet for a backend on another node that runs redirector goes there
//! with the client's address, and that node answers the client itself. As it is, where the node is
//! on this segment, or else in a packet of this host's own.

use super::tunnel::header_len;
use super::{Environment, NextHop, Outcome, Packet, Route};
use crate::Manner;

/// The way of a packet of a flow, in the flow's manner. Where that is no longer one for the way
/// that is found, in the one that always is.
#[inline(always)]
pub(super) fn find_way<E: Environment>(
    environment: &E,
    packet: &Packet,
    len: u16,
    outcome: &mut Outcome,
) -> Route {
    let route = environment.route(packet, &outcome.translated, len, &mut outcome.next_hop);
    match outcome.manner {
        Manner::Translate => route,
        Manner::Layer2 if is_found(route) && !is_next(environment, outcome) => {
            outcome.manner = Manner::Tunnel;
            cover(packet, len, route, &mut outcome.next_hop)
        }
        Manner::Layer2 => route,
        Manner::Tunnel => cover(packet, len, route, &mut outcome.next_hop),
    }
}

/// The way of a flow's first packet, where it is to go in the manner that the outcome says: it
/// goes so if the node of the backend runs redirector, and is translated if not.
#[inline(always)]
pub(super) fn find_first_way<E: Environment>(
    environment: &E,
    packet: &Packet,
    len: u16,
    outcome: &mut Outcome,
) -> Route {
    let route = environment.route(packet, &outcome.translated, len, &mut outcome.next_hop);
    if matches!(outcome.manner, Manner::Translate) || !is_found(route) {
        return route;
    }
    if !is_next(environment, outcome) {
        let is_peer = environment.is_peer(&environment.gateway())
            || environment.is_peer(&outcome.translated.destination);
        outcome.manner = if is_peer { Manner::Tunnel } else { Manner::Translate };
    }
    match outcome.manner {
        Manner::Tunnel => cover(packet, len, route, &mut outcome.next_hop),
        Manner::Layer2 | Manner::Translate => route,
    }
}

/// Whether the neighbour on the way is known by its address.
#[inline(always)]
const fn is_found(route: Route) -> bool {
    matches!(route, Route::Via | Route::Unresolved)
}

/// Whether a packet that is to go as it is can: the next node is the one that takes it.
#[inline(always)]
fn is_next<E: Environment>(environment: &E, outcome: &Outcome) -> bool {
    matches!(outcome.manner, Manner::Layer2)
        && environment.is_peer(&environment.gateway())
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
