//! Making room for new flows: in the packets' own path, so that it works with the agent dead.
//!
//! ```text
//!            budget of half-open flows
//!          ◄───────────────────────────►
//! ─────────┬──────────────────────────┬───────────────────
//!  settled │  newest flows            │ oldest flows
//! ─────────┴──────────────────────────┴───────────────────
//!          ▲                          ▲
//!          half-open ones go          over: gone; the new flow takes the slot
//! ```
//!
//! Two hands go round the ring, one behind the other by the budget. A flow that is still half-open
//! when as many newer ones have come makes room: there are never more of them than the budget, and
//! established flows are not touched. The one in front frees slots whose flows are over, as the
//! agent's collector does.

use core::ptr::NonNull;

use super::cached::Stale;
use super::{Environment, FlowEntry};
use crate::ring::{RingSlot, half_open_budget};
use crate::{FlowState, Reason, Tuple, words};

/// Slots that are looked at for one new flow. With all of them taken by flows that live, the last
/// one's flow loses its place in the ring, and is then collected by the agent alone.
const PROBES: u32 = 4;

/// Slots that are looked at for one new flow when the table is full.
const PROBES_WHEN_FULL: u32 = 32;

/// Gives a new flow its slot, and takes room from those that have had theirs for too long.
#[inline(always)]
pub fn admit<E: Environment>(environment: &E, key: &Tuple, born: u32) {
    let slots = environment.node().ring_slots;
    if slots == 0 {
        return;
    }
    for probe in 1..=PROBES {
        let position = environment.next_admitted();
        let waiting = position.wrapping_sub(half_open_budget(slots));
        let _ = environment.clear_slot(waiting & (slots - 1), false);
        let index = position & (slots - 1);
        if environment.clear_slot(index, false) != Slot::Taken || probe == PROBES {
            if let Some(slot) = environment.ring_slot(index) {
                take(slot, key, born);
            }
            return;
        }
    }
}

/// Looks for flows that can go, because the table is full. Whether one has gone.
#[inline(always)]
pub fn reclaim<E: Environment>(environment: &E) -> bool {
    let slots = environment.node().ring_slots;
    if slots == 0 {
        return false;
    }
    for _ in 0..PROBES_WHEN_FULL {
        let position = environment.next_reclaimed();
        if environment.clear_slot(position & (slots - 1), true) == Slot::Cleared {
            return true;
        }
    }
    false
}

/// Takes a reply half's key, and with it a port of the translation block, from a flow that can
/// go. Whether it is free now.
#[inline(always)]
pub fn vacate<E: Environment>(environment: &E, reply_key: &Tuple) -> bool {
    match environment.flow(reply_key) {
        Some(entry) => entry.is_reply() && give_way(environment, reply_key, entry, true),
        None => true,
    }
}

/// What stands in a slot.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Slot {
    /// A flow that lives.
    Taken = 0,
    /// Nothing.
    Free = 1,
    /// Nothing any more.
    Cleared = 2,
}

impl Slot {
    /// From its number; an unknown one reads as `Taken`.
    #[inline(always)]
    pub const fn from_number(number: u32) -> Self {
        match number {
            1 => Self::Free,
            2 => Self::Cleared,
            _ => Self::Taken,
        }
    }
}

/// Removes the flow that a slot names, if it has to make room.
#[inline(always)]
pub fn clear<E: Environment>(environment: &E, index: u32, is_full: bool) -> Slot {
    let Some(slot) = environment.ring_slot(index) else {
        return Slot::Taken;
    };
    // SAFETY: an element of the ring, which stays where it is.
    let slot = unsafe { &mut *slot.as_ptr() };
    if slot.is_free() {
        return Slot::Free;
    }
    // Another CPU may write the slot meanwhile; what is removed is what was looked at.
    let (key, born) = (environment.hold(&slot.key), slot.born);
    let found = match environment.flow(key) {
        Some(entry) if !entry.is_reply() && entry.born() == born => {
            if !give_way(environment, key, entry, is_full) {
                return Slot::Taken;
            }
            Slot::Cleared
        }
        Some(_) | None => Slot::Free,
    };
    // The other hand need not look the flow up again.
    slot.free();
    found
}

/// Removes the flow of a half, both halves, if it has to make room. Whether it was removed.
#[inline(always)]
fn give_way<E: Environment>(environment: &E, key: &Tuple, entry: FlowEntry, is_full: bool) -> bool {
    let (state, now) = (entry.state(), environment.now());
    // Both halves have one state. Once for all: the verifier walks what follows for each of them.
    let timeout = u64::from(state.timeout_seconds()) * 1_000_000_000;
    let is_idle = entry.idle(now) > timeout;
    let reason = if state.is_half_open() {
        // Logs and figures that are sent by UDP are answered by nobody, and used all the same.
        let is_used = state == FlowState::Unreplied && !is_idle && entry.age(now) > timeout;
        if is_used && !is_full {
            return false;
        }
        Reason::HalfOpenDropped
    } else if (is_full && state.is_finished())
        || (is_idle && environment.partner(entry).is_none_or(|partner| partner.idle(now) > timeout))
    {
        Reason::FlowReclaimed
    } else {
        return false;
    };
    remove(environment, key, entry);
    environment.count(reason);
    true
}

/// Removes both halves.
#[inline(always)]
fn remove<E: Environment>(environment: &E, key: &Tuple, entry: FlowEntry) {
    // The flow cache has settled flows alone. For those that were idle for as long as it takes to
    // be over, it holds nothing that it believes.
    if entry.state().is_finished() {
        Stale::of(key, entry).forget(environment);
    }
    let partner = environment.partner(entry);
    if partner.is_some_and(|partner| partner.translated().reverses(key)) {
        environment.remove_partner(entry);
    }
    environment.remove_flow(key);
}

/// Writes a new flow into a slot.
#[inline(always)]
fn take(slot: NonNull<RingSlot>, key: &Tuple, born: u32) {
    // SAFETY: an element of the ring. Another CPU may write it at the same time: then it names no
    // flow, or one of both.
    let slot = unsafe { &mut *slot.as_ptr() };
    slot.born = born;
    words::copy(key, &mut slot.key);
}
