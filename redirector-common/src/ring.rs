//! The ring of flows: which flow was opened when, so that room can be made without a search.
//!
//! `FLOW_RING` has a slot for every flow that the flow table has room for. A new flow takes the
//! slot after the one before it. So looking back by the half-open budget finds the flows that were
//! opened that many flows ago, and looking ahead finds the oldest of all. See
//! [`pressure`](crate::packet::pressure).

use crate::Tuple;
use crate::packet::Packet;

/// Of the ring's slots, flows that are not established yet may have one in so many.
pub const HALF_OPEN_SHARE: u32 = 2;

/// Value of the `FLOW_RING` array. Other CPUs may write it while it is read: what is torn names no
/// flow.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingSlot {
    /// Key of the forward half.
    pub key: Tuple,
    /// Which of the flows that have had this key: [`Flow::born`](crate::Flow::born).
    pub born: u32,
    /// Reserved, zero.
    pub reserved: u32,
}

const _: () = assert!(size_of::<RingSlot>() == 48);

impl RingSlot {
    /// Nothing.
    pub const EMPTY: Self = Self { key: Packet::EMPTY.tuple, born: 0, reserved: 0 };
}

/// Slots of the ring for a flow table of so many entries: a power of two, so that finding the slot
/// of a position is cheap.
#[must_use]
pub const fn slots(entries: u32) -> u32 {
    let flows = entries / 2;
    if flows > 1 << 31 { 1 << 31 } else { flows.next_power_of_two() }
}

/// How many flows may be half-open at once, of a ring of so many slots.
#[inline(always)]
#[must_use]
pub const fn half_open_budget(slots: u32) -> u32 {
    slots / HALF_OPEN_SHARE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flow_has_a_slot() {
        let rows = [(0, 1), (2, 1), (1000, 512), (262_144, 131_072), (u32::MAX, 1 << 31)];
        for (entries, expected) in rows {
            assert_eq!(slots(entries), expected, "{entries}");
        }
        assert_eq!(half_open_budget(slots(262_144)), 65536);
    }
}
