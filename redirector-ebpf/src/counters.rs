//! Packets and bytes by interface and Reason.

use redirector_common::Reason;
use redirector_common::node::MAX_SLOTS;

use crate::context::opaque;
use crate::maps::{COUNTERS, INTERFACES};

/// Counts one packet of `size` bytes at the interface's slot.
#[inline(always)]
pub(crate) fn count(ifindex: u32, reason: Reason, size: usize) {
    count_number(ifindex, reason as u32, size);
}

/// As [`count`], by the Reason's number.
#[inline(always)]
pub(crate) fn count_number(ifindex: u32, reason: u32, size: usize) {
    let slot = INTERFACES.get(ifindex).map_or(0, |interface| u32::from(interface.slot));
    let slot = if slot < MAX_SLOTS { slot } else { 0 };
    let Some(block) = COUNTERS.get_ptr_mut(slot) else {
        return;
    };
    // SAFETY: this CPU's element, which no other packet touches while this one is handled.
    let block = unsafe { &mut *block };
    // Every Reason has a counter, as the compiler knows and 6.1's verifier does not.
    if let Some(counter) = block.reasons.get_mut(opaque(reason as usize)) {
        counter.packets += 1;
        counter.bytes += size as u64;
    }
}

/// Counts what is no packet of an interface's: a socket's connection or datagram, or a flow. Where
/// one program for sockets interrupts another, a count may be lost.
#[inline(always)]
pub(crate) fn count_event(reason: Reason) {
    let Some(block) = COUNTERS.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: this CPU's element, valid until the program ends.
    let block = unsafe { &mut *block };
    if let Some(counter) = block.reasons.get_mut(opaque(reason as usize)) {
        counter.packets += 1;
    }
}
