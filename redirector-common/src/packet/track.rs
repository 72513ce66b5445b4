//! Following a flow's state.

use super::cached::Stale;
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
    environment.follow(packet, entry);
}

/// Moves both halves to the state that a packet leads to.
#[inline(always)]
pub fn follow<E: Environment>(environment: &E, packet: &Packet, entry: FlowEntry) {
    let direction = if entry.is_reply() { Direction::Reply } else { Direction::Forward };
    let state = entry.state();
    let partner = partner_of(environment, packet, entry);
    if packet.flags.closes() && !matches!(state, FlowState::SynSent) {
        entry.set_fin_seen();
    }
    if matches!(state, FlowState::Closed) && packet.flags.acknowledges() {
        entry.set_alive();
    }
    let next = next_state(state, direction, packet, Seen::by(entry, partner));
    if next == state && !packet.flags.any(TcpFlags::RST) {
        return;
    }
    let stale = Stale::of(&packet.tuple, entry);
    enter(entry, state, next);
    if let Some(partner) = partner {
        enter(partner, state, next);
    }
    // It is for what comes next to say whether a RST was one, and whether a connection is open again.
    let is_doubtful = matches!(next, FlowState::SynReceived | FlowState::Closed);
    if is_doubtful && !state.is_half_open() && next != state {
        stale.forget(environment);
    }
}

/// Moves a half to a state, in which what was seen before counts no more.
#[inline(always)]
fn enter(half: FlowEntry, state: FlowState, next: FlowState) {
    match next {
        FlowState::SynReceived => half.forget_fin(),
        FlowState::Closed => {
            half.forget_alive();
            // What was refused never began: whatever follows, there is nothing to go on with.
            if matches!(state, FlowState::SynSent) {
                half.set_fin_seen();
            }
        }
        FlowState::SynSent
        | FlowState::Established
        | FlowState::HalfClosed
        | FlowState::TimeWait
        | FlowState::Unreplied
        | FlowState::Replied => {}
    }
    half.set_state(next);
}

/// The other half of a packet's flow; `None` too if another flow's stands in its place.
#[inline(always)]
pub(super) fn partner_of<E: Environment>(
    environment: &E,
    packet: &Packet,
    entry: FlowEntry,
) -> Option<FlowEntry> {
    environment.partner(entry).filter(|partner| partner.translated().reverses(&packet.tuple))
}

/// What was seen of both ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// FINs, of the packet's sender and of its receiver.
    pub fins: [bool; 2],
    /// Whether both have gone on after a RST.
    pub alive: bool,
}

impl Seen {
    /// By these halves.
    #[inline(always)]
    pub(super) fn by(entry: FlowEntry, partner: Option<FlowEntry>) -> Self {
        Self {
            fins: [entry.fin_seen(), partner.is_some_and(|partner| partner.fin_seen())],
            alive: entry.is_alive() && partner.is_some_and(|partner| partner.is_alive()),
        }
    }

    /// Whether both ends have sent FIN. Two CPUs that handle one each may both take the connection
    /// for half closed.
    #[inline(always)]
    pub(super) const fn is_finished(self) -> bool {
        matches!(self.fins, [true, true])
    }

    /// The state of a connection that is open but for these FINs.
    #[inline(always)]
    const fn state(self) -> FlowState {
        match self.fins {
            [false, false] => FlowState::Established,
            [true, true] => FlowState::TimeWait,
            [true, false] | [false, true] => FlowState::HalfClosed,
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
            use FlowState::{Closed, HalfClosed, SynReceived};
            packet.flags.any(TcpFlags::SYN | TcpFlags::FIN | TcpFlags::RST)
                || matches!(state, SynReceived | HalfClosed | Closed)
        }
    }
}

/// The state after a packet, of which `seen` knows already.
///
/// Sequence numbers are not followed, so it is what comes after that tells what a packet has done:
///
/// * After a RST that was believed its sender says nothing more, and its receiver nothing but what was
///   on its way. So where both go on, the RST had a wrong number: it was forged, or late.
///   Unless there is nothing to go on with: nobody had answered, or both had finished.
/// * A backend that answers a SYN has begun anew, whatever was before: it had forgotten a
///   connection which its client took up again, or the RST was of an earlier one.
#[inline(always)]
#[must_use]
pub fn next_state(
    state: FlowState,
    direction: Direction,
    packet: &Packet,
    seen: Seen,
) -> FlowState {
    use Direction::{Forward, Reply};
    use FlowState::{
        Closed, Established, HalfClosed, Replied, SynReceived, SynSent, TimeWait, Unreplied,
    };
    let flags = packet.flags;
    match (state, direction) {
        (Unreplied | Replied, Reply) => Replied,
        (Unreplied | Replied, Forward) => state,
        _ if flags.any(TcpFlags::RST) => Closed,
        (SynSent | HalfClosed | Closed, Reply) if flags.answers() => SynReceived,
        // Finished flows stay so; a new SYN makes a new flow before it comes here. And nobody ends
        // what was not answered.
        (SynSent | TimeWait, _) => state,
        (Closed, _) if seen.alive && !seen.is_finished() => seen.state(),
        (Closed, _) => Closed,
        // Also where both FINs came at once, by two CPUs that did not see each other's.
        (_, _) if flags.closes() || matches!(state, HalfClosed) => seen.state(),
        (SynReceived, Forward) if flags.acknowledges() => Established,
        (SynReceived | Established | HalfClosed, Forward | Reply) => state,
    }
}
