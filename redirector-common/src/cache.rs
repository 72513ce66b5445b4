//! The flow cache: what packets of established flows need, in front of the flow table.
//!
//! `FLOW_CACHE` is one array, with a part for each CPU that no other CPU touches, so nothing in it
//! is ever torn and nothing needs a lock. An entry is believed for [`LIFETIME`] ticks after it was
//! filled in, and only while the epoch of its bucket stands where it stood then. Removing a flow
//! before its time raises its own epoch, and a change of routes, neighbours or interfaces all of
//! them. So an entry never outlives what it repeats, and with the agent dead it is at most as old
//! as its lifetime.
//!
//! What hits count is added to the flow when the entry is filled in again or gives way; readers in
//! user space add what is still [pending](CachedFlow::pending).

use crate::packet::{NextHop, Packet};
use crate::{Flow, Manner, Reason, Tuple};

/// Ticks of the kernel's clock (`jiffies`) for which an entry is believed: one second where
/// the kernel counts 250 in a second, as distributions' kernels do.
pub const LIFETIME: u32 = 250;

/// Entries that a flow may have, by its hash: a power of two.
pub const WAYS: usize = 4;

/// Elements of the `EPOCHS` array.
pub const EPOCHS: u32 = 256;

/// A flow's packets in one direction, as they are handled. Two cache lines: what tells whether it is
/// the right entry, and what to do then.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CachedFlow {
    /// The packets that it is about.
    pub key: Tuple,
    /// Their IP bytes, of those that hit since this was filled in.
    pub bytes: u64,
    /// Epoch of the bucket when this was filled in; 0: empty.
    pub epoch: u32,
    /// When this was filled in, in ticks.
    pub filled: u32,
    /// Packets that hit since.
    pub packets: u32,
    /// Why they are handled so: a [`Reason`]'s number.
    reason: u8,
    flags: u8,
    /// Reserved, zero.
    pub reserved: [u8; 2],
    /// What they leave with.
    pub translated: Tuple,
    /// Where they go, if they are forwarded.
    pub next_hop: NextHop,
    /// Which of the flows that have had this key: [`Flow::born`].
    pub born: u32,
}

const _: () = assert!(core::mem::offset_of!(CachedFlow, translated) == 64);
const _: () = assert!(size_of::<CachedFlow>() == 128);

/// Value of the `FLOW_CACHE` array.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheSet {
    /// Entries with the same hash.
    pub ways: [CachedFlow; WAYS],
}

impl CacheSet {
    /// Index of the entry that a flow with this hash has as its `nth` choice. Flows of a set begin
    /// at different ones, so that most are found in the first cache line that is looked at.
    #[inline(always)]
    #[must_use]
    pub const fn choice(hash: u32, nth: usize) -> usize {
        ((hash >> 16) as usize + nth) % WAYS
    }
}

impl CachedFlow {
    const FORWARDED: u8 = 1;
    const XDP: u8 = 2;
    const LAYER2: u8 = 4;
    const TUNNEL: u8 = 8;

    /// Nothing.
    pub const EMPTY: Self = Self {
        key: Packet::EMPTY.tuple,
        translated: Packet::EMPTY.tuple,
        next_hop: NextHop::NONE,
        epoch: 0,
        filled: 0,
        packets: 0,
        bytes: 0,
        reason: 0,
        flags: 0,
        reserved: [0; 2],
        born: 0,
    };

    /// Whether the packets leave this host again, whether XDP can send them, and how.
    #[inline(always)]
    pub const fn set_way(&mut self, reason: Reason, forwarded: bool, by_xdp: bool, manner: Manner) {
        self.reason = reason as u8;
        let manner = match manner {
            Manner::Translate => 0,
            Manner::Layer2 => Self::LAYER2,
            Manner::Tunnel => Self::TUNNEL,
        };
        self.flags = manner
            | if forwarded { Self::FORWARDED } else { 0 }
            | if by_xdp { Self::XDP } else { 0 };
    }

    /// How the packets get to a backend elsewhere.
    #[inline(always)]
    #[must_use]
    pub const fn manner(&self) -> Manner {
        if self.flags & (Self::LAYER2 | Self::TUNNEL) == 0 {
            Manner::Translate
        } else if self.flags & Self::LAYER2 != 0 {
            Manner::Layer2
        } else {
            Manner::Tunnel
        }
    }

    /// Whether the packets are replies of a backend on this host, on their way out.
    #[inline(always)]
    #[must_use]
    pub const fn leaves(&self) -> bool {
        self.reason == Reason::LocalReply as u8
    }

    /// Whether the packets leave this host again.
    #[inline(always)]
    #[must_use]
    pub const fn is_forwarded(&self) -> bool {
        self.flags & Self::FORWARDED != 0
    }

    /// Whether XDP can send them.
    #[inline(always)]
    #[must_use]
    pub const fn by_xdp(&self) -> bool {
        self.flags & Self::XDP != 0
    }

    /// Why they are handled so.
    #[inline(always)]
    pub const fn reason(&self) -> Reason {
        // The few that are ever cached: plain comparisons, where a table would need memory.
        if self.reason == Reason::RemoteReply as u8 {
            Reason::RemoteReply
        } else if self.reason == Reason::LocalEstablished as u8 {
            Reason::LocalEstablished
        } else if self.reason == Reason::LocalReply as u8 {
            Reason::LocalReply
        } else if self.reason == Reason::DsrEstablished as u8 {
            Reason::DsrEstablished
        } else {
            Reason::RemoteEstablished
        }
    }

    /// Whether the entry may still be believed.
    #[inline(always)]
    #[must_use]
    pub const fn is_current(&self, epoch: u32, ticks: u32) -> bool {
        self.epoch == epoch && ticks.wrapping_sub(self.filled) < LIFETIME
    }

    /// Packets and bytes that the counters of the flow lack that has the entry's key now.
    #[inline(always)]
    #[must_use]
    pub const fn pending(&self, flow: &Flow) -> (u64, u64) {
        if self.born == flow.born() { (self.packets as u64, self.bytes) } else { (0, 0) }
    }
}

#[cfg(test)]
mod tests {
    use super::{CacheSet, WAYS};

    #[test]
    fn choices_are_all_entries() {
        for hash in [0, 1 << 16, 2 << 16, 3 << 16, 0xdead_beef, u32::MAX] {
            let mut choices: std::vec::Vec<_> =
                (0..WAYS).map(|nth| CacheSet::choice(hash, nth)).collect();
            choices.sort_unstable();
            assert_eq!(choices, [0, 1, 2, 3], "{hash:x}");
        }
    }
}
