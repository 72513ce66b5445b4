//! What becomes of a packet. The only maker of [`Action`]s.

use super::track::{is_over, track};
use super::{Environment, FlowEntry, NextHop, Packet, Route, new_flow};
use crate::{FlowState, PortFlags, Protocol, Reason, Tuple};

/// Where the deciding program is attached, and so what it can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Forwards and drops; hands everything else over, unchanged.
    Xdp,
    /// TC ingress: everything.
    Ingress,
}

/// An error that the sender of a packet is told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcmpError {
    /// Nothing answers at this port.
    PortUnreachable,
    /// The packet has passed too many routers.
    TimeExceeded,
    /// The packet is larger than the way ahead.
    TooBig {
        /// Largest IP packet that fits, in bytes.
        mtu: u16,
    },
}

/// What to do with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Action {
    /// To the kernel, unchanged.
    Pass(Reason),
    /// To TC ingress, unchanged: it will decide, and count.
    HandOver,
    /// Gone.
    Drop(Reason),
    /// Gone, and the sender is told.
    Reject(Reason, IcmpError),
    /// Translate, then into this host's own stack.
    Deliver(Reason, Translation),
    /// Translate, then out.
    Forward(Reason, Translation, NextHop),
}

/// The tuple that a packet leaves with, where it stands: in a flow's entry or in scratch memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation(*const Tuple);

impl Translation {
    /// Of a tuple that stays where it is while this packet is handled.
    #[inline(always)]
    #[must_use]
    pub const fn of(tuple: &Tuple) -> Self {
        Self(tuple)
    }

    /// The tuple.
    #[inline(always)]
    #[must_use]
    pub const fn tuple(&self) -> &Tuple {
        // SAFETY: `of` is only given tuples in map entries and scratch memory, both of which
        // outlive the handling of the packet.
        unsafe { &*self.0 }
    }
}

/// Decides about a packet that came in from outside. `len` is the largest IP packet that it will
/// leave as, in bytes.
#[inline(always)]
pub fn decide<E: Environment>(environment: &E, packet: &Packet, hook: Hook, len: u16) -> Action {
    let flags = environment.port_flags(packet.tuple.protocol(), packet.tuple.destination_port);
    if !flags.intersects(PortFlags::FRONTEND.union(PortFlags::SNAT)) {
        return Action::Pass(Reason::NotOurs);
    }
    if matches!(hook, Hook::Xdp)
        && (!flags.intersects(PortFlags::REMOTE.union(PortFlags::SNAT)) || packet.vlan_tags != 0)
    {
        return Action::HandOver;
    }
    if let Some(entry) = environment.flow(&packet.tuple) {
        if !begins_anew(environment, packet, entry) {
            return established(environment, packet, hook, len, entry);
        }
        environment.remove_flow(&entry.translated().reversed());
        environment.remove_flow(&packet.tuple);
    } else if !flags.intersects(PortFlags::FRONTEND) {
        return Action::Pass(Reason::NoReplyFlow);
    }
    new_flow::open(environment, packet, hook, len)
}

/// Decides about a packet that leaves this host: a local backend's reply, or none of ours.
#[inline(always)]
pub fn decide_reply<E: Environment>(environment: &E, packet: &Packet) -> Action {
    let flags = environment.port_flags(packet.tuple.protocol(), packet.tuple.source_port);
    if !flags.intersects(PortFlags::LOCAL_BACKEND) {
        return Action::Pass(Reason::NotOurs);
    }
    let Some(entry) = environment.flow(&packet.tuple) else {
        return Action::Pass(Reason::NotOurs);
    };
    if !entry.is_reply() || !entry.is_local() {
        return Action::Pass(Reason::NotOurs);
    }
    track(environment, packet, entry);
    Action::Deliver(Reason::LocalReply, Translation::of(entry.translated()))
}

/// Whether a packet that matches a half opens a new flow all the same.
#[inline(always)]
fn begins_anew<E: Environment>(environment: &E, packet: &Packet, entry: FlowEntry) -> bool {
    if entry.is_reply() {
        return false;
    }
    match packet.tuple.protocol() {
        Protocol::Tcp => {
            packet.flags.opens()
                && (matches!(entry.state(), FlowState::TimeWait | FlowState::Closed)
                    || is_over(environment, entry))
        }
        Protocol::Udp => is_over(environment, entry),
    }
}

/// Decides about a packet of a flow that is there.
#[inline(always)]
pub(super) fn established<E: Environment>(
    environment: &E,
    packet: &Packet,
    hook: Hook,
    len: u16,
    entry: FlowEntry,
) -> Action {
    if entry.is_local() {
        if matches!(hook, Hook::Xdp) {
            return Action::HandOver;
        }
        if entry.is_reply() {
            // Replies of local backends leave by TC egress; nobody outside sends them to us.
            return Action::Pass(Reason::NotOurs);
        }
        track(environment, packet, entry);
        return Action::Deliver(Reason::LocalEstablished, Translation::of(entry.translated()));
    }
    match way(environment, packet, hook, len, entry.translated()) {
        Ok(next_hop) => {
            track(environment, packet, entry);
            let reason =
                if entry.is_reply() { Reason::RemoteReply } else { Reason::RemoteEstablished };
            Action::Forward(reason, Translation::of(entry.translated()), next_hop)
        }
        Err(action) => action,
    }
}

/// The way that a packet which leaves this host again takes, if this hook can send it there.
#[inline(always)]
pub(super) fn way<E: Environment>(
    environment: &E,
    packet: &Packet,
    hook: Hook,
    len: u16,
    to: &Tuple,
) -> Result<NextHop, Action> {
    let xdp = matches!(hook, Hook::Xdp);
    let or_hand_over = |action| if xdp { Action::HandOver } else { action };
    if packet.first_fragment {
        return Err(or_hand_over(Action::Drop(Reason::FragmentNotForwarded)));
    }
    if packet.ttl <= 1 {
        let reject = Action::Reject(Reason::TtlExceeded, IcmpError::TimeExceeded);
        return Err(or_hand_over(reject));
    }
    match environment.route(packet, to, len) {
        Route::Via(next_hop) => {
            if xdp {
                let transmits = environment
                    .interface(next_hop.ifindex)
                    .is_some_and(|interface| interface.xdp_transmit());
                if next_hop.link.is_none() || !transmits {
                    return Err(Action::HandOver);
                }
            }
            Ok(next_hop)
        }
        Route::TooBig { mtu } => {
            Err(or_hand_over(Action::Reject(Reason::TooBig, IcmpError::TooBig { mtu })))
        }
        Route::Unreachable => Err(Action::Drop(Reason::NoRoute)),
    }
}
