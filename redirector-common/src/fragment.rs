//! Fragments: what those after the first need to know of it.

use crate::{Address, Family, Port, Tuple};

/// Key of the `FRAGMENTS` map: what the fragments of one packet have in common.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct FragmentKey {
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// The identification, as loaded from memory.
    pub identification: u32,
    /// IANA protocol number; a whole word, so that the key has no padding.
    pub protocol: u32,
}

const _: () = assert!(size_of::<FragmentKey>() == 40);

impl FragmentKey {
    /// The key of fragments between the ends of `tuple`, whose ports do not matter.
    #[inline(always)]
    #[must_use]
    pub const fn new(tuple: &Tuple, identification: u32) -> Self {
        Self {
            source: tuple.source,
            destination: tuple.destination,
            identification,
            protocol: tuple.protocol().number() as u32,
        }
    }

    /// The identification as a number: of sixteen bits in IPv4, of 32 in IPv6.
    #[must_use]
    pub const fn number(&self) -> u32 {
        match self.source.family() {
            Family::V4 => u16::from_be(self.identification as u16) as u32,
            Family::V6 => u32::from_be(self.identification),
        }
    }
}

/// Value of the `FRAGMENTS` map: what only the first fragment has.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FirstFragment {
    /// Source port.
    pub source_port: Port,
    /// Destination port.
    pub destination_port: Port,
    /// Reserved, zero.
    pub reserved: u32,
    /// When it was seen, `CLOCK_MONOTONIC` nanoseconds.
    pub seen: u64,
}

const _: () = assert!(size_of::<FirstFragment>() == 16);

impl FirstFragment {
    /// Nanoseconds after which no fragment is taken to belong to it any more: hosts wait as long
    /// for the rest of a packet (RFC 8200 §4.5).
    const LIFE: u64 = 60 * 1_000_000_000;

    /// The first fragment of a packet with these ports.
    #[inline(always)]
    #[must_use]
    pub const fn new(tuple: &Tuple, now: u64) -> Self {
        Self {
            source_port: tuple.source_port,
            destination_port: tuple.destination_port,
            reserved: 0,
            seen: now,
        }
    }

    /// Whether it was seen so long ago that the identification is used again.
    #[inline(always)]
    #[must_use]
    pub const fn is_over(&self, now: u64) -> bool {
        now.saturating_sub(self.seen) > Self::LIFE
    }
}
