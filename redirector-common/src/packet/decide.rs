//! What becomes of a packet. The only maker of [`Decision`]s.

use super::cached::{self, Place};
use super::renewal::may_begin_anew;
use super::steer::Steering;
use super::track::track;
use super::{Environment, FlowEntry, NextHop, Packet, Route, Socket, handover, new_flow};
use crate::{Address, Manner, PortFlags, Reason, Tuple, words};

/// Where the deciding program is attached, and so what it can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Forwards and drops; hands everything else over, unchanged.
    Xdp,
    /// TC, packets that come in: everything.
    Ingress,
    /// TC, packets that leave: replies of local backends.
    Egress,
}

/// An error that the sender of a packet is told of.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcmpError {
    /// Nothing answers at this port.
    PortUnreachable,
    /// The packet has passed too many routers.
    TimeExceeded,
    /// The packet is larger than the way ahead; the next hop's MTU says how large it may be.
    TooBig,
}

/// What to do with a packet.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// To the kernel, unchanged.
    Pass,
    /// To TC ingress, unchanged: it will decide, and count.
    HandOver,
    /// Gone.
    Drop,
    /// Gone, and the sender is told; see [`Outcome::error`].
    Reject,
    /// Translate, then on through this host's own stack.
    Deliver,
    /// Translate, then out by [`Outcome::next_hop`]; the neighbour is known.
    Forward,
    /// The same, but the kernel must find the neighbour.
    ForwardUnresolved,
}

/// What becomes of a packet, and why. Plain words, and what goes with them in an [`Outcome`]: an
/// enum with fields would leave some of its bytes undefined, which the verifier refuses to copy.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Decision {
    /// What.
    pub step: Step,
    /// Why.
    pub reason: Reason,
}

impl Decision {
    #[inline(always)]
    pub(super) const fn new(step: Step, reason: Reason) -> Self {
        Self { step, reason }
    }

    /// To the kernel, unchanged.
    #[inline(always)]
    pub(super) const fn pass(reason: Reason) -> Self {
        Self::new(Step::Pass, reason)
    }

    /// Gone.
    #[inline(always)]
    pub(super) const fn drop(reason: Reason) -> Self {
        Self::new(Step::Drop, reason)
    }

    /// Translated, into this host's own stack.
    #[inline(always)]
    pub(super) const fn deliver(reason: Reason) -> Self {
        Self::new(Step::Deliver, reason)
    }

    /// Handed over by XDP, which cannot do it; at TC, as given.
    #[inline(always)]
    pub(super) const fn unless_xdp(self, hook: Hook) -> Self {
        match hook {
            Hook::Xdp => Self::new(Step::HandOver, self.reason),
            Hook::Ingress | Hook::Egress => self,
        }
    }

    /// Gone, and the sender is told, by TC ingress; not of more than the node may tell. Of what
    /// is too big it always is, as by the kernel: connections would hang without.
    #[inline(always)]
    pub(super) fn reject<E: Environment>(
        environment: &E,
        hook: Hook,
        reason: Reason,
        error: IcmpError,
        outcome: &mut Outcome,
    ) -> Self {
        let is_limited = matches!(hook, Hook::Ingress) && !matches!(error, IcmpError::TooBig);
        if is_limited && !environment.may_answer() {
            return Self::drop(Reason::ErrorLimited);
        }
        outcome.error = error;
        Self::new(Step::Reject, reason).unless_xdp(hook)
    }
}

/// What goes with a [`Decision`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The tuple that the packet is to leave with, where it is translated.
    pub translated: Tuple,
    /// Where it is to go, where it is forwarded.
    pub next_hop: NextHop,
    /// How it is to get there, where it is forwarded.
    pub manner: Manner,
    /// The backend, where the packet is handed over as it came: for whoever has no need of
    /// [`Self::translated`] then.
    pub backend: Address,
    /// What its sender is told, where it is rejected.
    pub error: IcmpError,
}

impl Outcome {
    /// Nothing yet.
    pub const EMPTY: Self = Self {
        translated: Packet::EMPTY.tuple,
        next_hop: NextHop::NONE,
        manner: Manner::Translate,
        backend: Address::UNSPECIFIED,
        error: IcmpError::PortUnreachable,
    };
}

/// Decides about a packet that came in from outside. `len` is the largest IP packet that it will
/// leave as, in bytes.
#[inline(always)]
pub fn decide<E: Environment>(
    environment: &E,
    packet: &Packet,
    hook: Hook,
    len: u16,
    outcome: &mut Outcome,
) -> Decision {
    let flags = environment.port_flags(packet.tuple.protocol(), packet.tuple.destination_port);
    decide_claimed(environment, packet, flags, hook, len, outcome)
}

/// As [`decide`], of a packet to a port of which it is known what it is used for.
#[inline(always)]
pub fn decide_claimed<E: Environment>(
    environment: &E,
    packet: &Packet,
    flags: PortFlags,
    hook: Hook,
    len: u16,
    outcome: &mut Outcome,
) -> Decision {
    if !flags.intersects(PortFlags::FRONTEND.union(PortFlags::SNAT)) {
        return unclaimed(environment, packet, flags, Reason::NotOurs);
    }
    if matches!(hook, Hook::Xdp)
        && !packet.is_tunnelled()
        && (!flags.intersects(PortFlags::REMOTE.union(PortFlags::SNAT))
            || packet.vlan_tags != 0
            || packet.is_first_fragment())
    {
        return Decision::pass(Reason::NotOurs).unless_xdp(hook);
    }
    let steering = Steering::of(packet, flags);
    let mut socket = Socket::None;
    if steering.comes_first() && matches!(hook, Hook::Ingress) {
        socket = environment.socket(packet);
        if matches!(socket, Socket::Open) {
            return Decision::pass(Reason::SteeredEstablished);
        }
    }
    let place = Place::of(environment, &packet.tuple);
    if let Some(decision) = cached::decide(environment, packet, place, hook, len, outcome) {
        return decision;
    }
    if let Some(entry) = environment.flow(&packet.tuple) {
        if !may_begin_anew(environment, packet, entry) || !environment.remove_over(packet, entry) {
            return established(environment, packet, place, hook, len, entry, outcome);
        }
    } else if !flags.intersects(PortFlags::FRONTEND) {
        if is_moving(environment) {
            return Decision::drop(Reason::TableMoves);
        }
        return unclaimed(environment, packet, flags, Reason::NoReplyFlow);
    }
    if steering.is_possible() && !steering.comes_first() && matches!(hook, Hook::Ingress) {
        socket = environment.socket(packet);
    }
    if socket.owns(packet) {
        return Decision::pass(Reason::SteeredEstablished);
    }
    new_flow::open(environment, packet, place, hook, len, steering.given(socket), outcome)
}

/// Whether flows may not be found, and are not to be opened, because their table is made larger just
/// now.
#[inline(always)]
pub(super) fn is_moving<E: Environment>(environment: &E) -> bool {
    let until = environment.node().moving_until;
    until != 0 && environment.now() < until
}

/// Decides about a packet that no frontend and no flow claims. To an address that only frontends
/// have it must not go on: this host's routes might send it back to where it came from, and round
/// in a circle.
#[inline(always)]
pub(super) fn unclaimed<E: Environment>(
    environment: &E,
    packet: &Packet,
    flags: PortFlags,
    reason: Reason,
) -> Decision {
    if flags.intersects(PortFlags::VIPS) && environment.is_vip(&packet.tuple.destination) {
        return Decision::drop(Reason::UndefinedPort);
    }
    Decision::pass(reason)
}

/// Decides about a packet that leaves this host: a local backend's reply, or none of ours.
#[inline(always)]
pub fn decide_reply<E: Environment>(
    environment: &E,
    packet: &Packet,
    outcome: &mut Outcome,
) -> Decision {
    let flags = environment.port_flags(packet.tuple.protocol(), packet.tuple.source_port);
    if !flags.intersects(PortFlags::LOCAL_BACKEND) {
        return Decision::pass(Reason::NotOurs);
    }
    let place = Place::of(environment, &packet.tuple);
    if let Some(decision) = cached::decide(environment, packet, place, Hook::Egress, 0, outcome) {
        return decision;
    }
    let Some(entry) = environment.flow(&packet.tuple) else {
        if is_moving(environment) {
            return Decision::drop(Reason::TableMoves);
        }
        return Decision::pass(Reason::NotOurs);
    };
    if !entry.is_reply() || !entry.is_local() {
        return Decision::pass(Reason::NotOurs);
    }
    if entry.clamps_mss() && packet.flags.answers() {
        environment.clamp_mss(packet);
    }
    words::copy(entry.translated(), &mut outcome.translated);
    let decision = Decision::deliver(Reason::LocalReply);
    track(environment, packet, entry, environment.now());
    cached::keep(environment, packet, place, Hook::Egress, entry, decision, outcome);
    decision
}

/// Decides about a packet of a flow that is there.
#[inline(always)]
pub(super) fn established<E: Environment>(
    environment: &E,
    packet: &Packet,
    place: Place,
    hook: Hook,
    len: u16,
    entry: FlowEntry,
    outcome: &mut Outcome,
) -> Decision {
    words::copy(entry.translated(), &mut outcome.translated);
    let now = environment.now();
    outcome.manner = entry.manner();
    let decision = if !entry.is_local() {
        let reason = match (outcome.manner.hands_over(), entry.is_reply()) {
            (false, false) => Reason::RemoteEstablished,
            (false, true) => Reason::RemoteReply,
            (true, false) => Reason::DsrEstablished,
            // Replies of nodes that answer by themselves never come this way.
            (true, true) => return Decision::pass(Reason::NotOurs),
        };
        let route = if packet.ttl <= 1 {
            Route::TooFar
        } else if let Some(known) = entry.next_hop(place.epoch, now) {
            words::copy(known, &mut outcome.next_hop);
            if u32::from(len) <= known.mtu { Route::Via } else { Route::TooBig }
        } else {
            let route = handover::find_way(environment, packet, len, false, outcome);
            if matches!(route, Route::Via) {
                entry.set_manner(outcome.manner);
                entry.set_next_hop(&outcome.next_hop, place.epoch, now);
            }
            route
        };
        forward(environment, hook, reason, route, outcome)
    } else if entry.is_reply() {
        // Replies of local backends leave by TC egress; nobody outside sends them to us.
        Decision::pass(Reason::NotOurs)
    } else {
        deliver(hook, Reason::LocalEstablished)
    };
    if matches!(decision.step, Step::Forward | Step::ForwardUnresolved | Step::Deliver) {
        track(environment, packet, entry, now);
        cached::keep(environment, packet, place, hook, entry, decision, outcome);
    }
    decision
}

/// Decides about a packet to this host's own stack.
#[inline(always)]
pub(super) const fn deliver(hook: Hook, reason: Reason) -> Decision {
    Decision::new(Step::Deliver, reason).unless_xdp(hook)
}

/// Decides how a packet that leaves this host again goes, given the way that was found.
#[inline(always)]
pub(super) fn forward<E: Environment>(
    environment: &E,
    hook: Hook,
    reason: Reason,
    route: Route,
    outcome: &mut Outcome,
) -> Decision {
    match route {
        Route::TooFar => {
            let error = IcmpError::TimeExceeded;
            Decision::reject(environment, hook, Reason::TtlExceeded, error, outcome)
        }
        Route::Via => {
            let decision = Decision::new(Step::Forward, reason);
            let transmits = matches!(hook, Hook::Ingress)
                || environment
                    .interface(outcome.next_hop.ifindex)
                    .is_some_and(|interface| interface.xdp_transmit());
            if transmits { decision } else { decision.unless_xdp(hook) }
        }
        Route::Unresolved => Decision::new(Step::ForwardUnresolved, reason).unless_xdp(hook),
        Route::TooBig => {
            Decision::reject(environment, hook, Reason::TooBig, IcmpError::TooBig, outcome)
        }
        Route::Unreachable => Decision::drop(Reason::NoRoute),
    }
}
