//! The Internet checksum, updated incrementally.
//!
//! A checksum field `HC` holds the complement of the one's-complement sum of the words it covers.
//! When a word changes from `m` to `m'`, RFC 1624 (equation 3) gives the new field as
//!
//! ```text
//! HC' = ~(~HC + ~m + m')
//! ```
//!
//! One's-complement addition is ordinary addition whose carries are added back in at the bottom,
//! and it does not care about byte order (RFC 1071 §2B). So we add words as they were loaded, in
//! a wide integer, and fold the carries once, at the end. A [`Delta`] is the `~m + m'` part,
//! collected over all words that change; it then applies to any number of checksums.
//!
//! Where nothing changes nothing must be added: `~m + m` is all ones, one's complement's other
//! zero, which would turn a checksum of `0xffff` into `0`. Beside a word that does change it makes no
//! difference.
//!
//! A sender may leave the sum of what it sends to its network card: Linux then puts the sum of the
//! pseudo-header into the field, as it is, and says so beside the packet (`CHECKSUM_PARTIAL`). Virtual
//! devices hand that on, but no XDP program is told, nor whoever gets the frame from it:
//! [`is_partial`] recognises such fields.

use super::Packet;
use crate::{Address, Protocol};

/// What a change of some words adds to a one's-complement sum; not yet folded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delta(u64);

impl Delta {
    /// No change.
    pub const NONE: Self = Self(0);

    /// A 16-bit word, as loaded from memory, changes.
    #[inline(always)]
    #[must_use]
    pub const fn word(self, old: u16, new: u16) -> Self {
        if old == new {
            return self;
        }
        Self(self.0 + !old as u64 + new as u64)
    }

    /// A word as loaded from memory changes.
    #[inline(always)]
    #[must_use]
    pub const fn long_word(self, old: u32, new: u32) -> Self {
        if old == new {
            return self;
        }
        Self(self.0 + !old as u64 + new as u64)
    }

    /// An address changes. Words of it that do not are added all the same.
    #[inline(always)]
    #[must_use]
    pub fn address(self, old: &Address, new: &Address) -> Self {
        if old == new {
            return self;
        }
        let [a, b, c, d] = *old.words();
        let inverse = u64::from(!a) + u64::from(!b) + u64::from(!c) + u64::from(!d);
        Self(self.0 + inverse + sum_of(new))
    }

    /// A block of words changes, of which the sums, not folded, were and are these. One comparison
    /// for the whole block, where [`Self::address`] makes one for each word: less for the verifier
    /// to walk, but more to compute.
    #[inline(always)]
    #[must_use]
    pub const fn sums(self, old: u64, new: u64) -> Self {
        self.word(fold(old), fold(new))
    }

    /// Both changes.
    #[inline(always)]
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// Whether nothing changed.
    #[inline(always)]
    #[must_use]
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }

    /// Folded to 32 bits: what the kernel's checksum helpers take as a difference.
    #[inline(always)]
    #[must_use]
    pub const fn to_u32(self) -> u32 {
        let sum = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        let sum = (sum & 0xffff_ffff) + (sum >> 32);
        (sum & 0xffff_ffff) as u32
    }

    /// The checksum field after the change; both as loaded from memory.
    #[inline(always)]
    #[must_use]
    pub const fn apply(self, checksum: u16) -> u16 {
        if self.is_none() {
            return checksum;
        }
        !fold(self.0 + !checksum as u64)
    }
}

/// The sum of an address's words, not folded.
#[inline(always)]
#[must_use]
pub fn sum_of(address: &Address) -> u64 {
    let [a, b, c, d] = *address.words();
    u64::from(a) + u64::from(b) + u64::from(c) + u64::from(d)
}

/// Whether the transport checksum of a whole packet is still to be computed, by whoever sends it on:
/// its field holds the pseudo-header's sum (RFC 9293 §3.1, RFC 8200 §8.1). One in 65 536 others looks
/// the same.
#[inline(always)]
#[must_use]
pub fn is_partial(packet: &Packet) -> bool {
    let Packet { tuple, network, transport, ip_len, checksum, .. } = packet;
    let len = ip_len - (transport - network);
    // Both in the last byte of a word.
    let protocol = u16::from(tuple.protocol().number()).to_be();
    // IPv4 addresses are mapped, with words that are all zeroes or all ones: nothing to such a sum.
    let sum = sum_of(&tuple.source)
        + sum_of(&tuple.destination)
        + u64::from(protocol)
        + u64::from(len.to_be());
    *checksum == fold(sum)
}

/// Where the checksum of a transport header at `transport` is.
#[inline(always)]
pub(super) const fn checksum_at(protocol: Protocol, transport: usize) -> usize {
    match protocol {
        Protocol::Tcp => transport + 16,
        Protocol::Udp => transport + 6,
    }
}

/// Folds a sum of words to sixteen bits.
#[inline(always)]
#[must_use]
pub const fn fold(sum: u64) -> u16 {
    // The first step leaves at most 33 bits, the second 18, the third 17, the last 16.
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    (sum + (sum >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 1624 §4: HC = 0xDD2F, m = 0x5555, m' = 0x3285 gives HC' = 0x0000, where the older
    /// equation of RFC 1141 gave 0xFFFF.
    #[test]
    fn rfc_1624_example() {
        assert_eq!(Delta::NONE.word(0x5555, 0x3285).apply(0xdd2f), 0x0000);
    }

    #[test]
    fn no_change_keeps_both_zeros() {
        let delta = Delta::NONE.word(0x1234, 0x1234);
        assert_eq!(delta.apply(0xffff), 0xffff);
        assert_eq!(delta.apply(0x0000), 0x0000);
        assert!(delta.is_none());
    }

    fn full(words: &[u16]) -> u16 {
        !fold(words.iter().map(|&w| u64::from(w)).sum())
    }

    proptest::proptest! {
        #[test]
        fn incremental_equals_full(
            mut words in proptest::collection::vec(0u16.., 2..40),
            index in 0usize..40,
            new in 0u16..,
        ) {
            // A real packet's words are never all zero: its version or length is not.
            words[0] |= 0x4500;
            let index = 1 + index % (words.len() - 1);
            let before = full(&words);
            let delta = Delta::NONE.word(words[index], new);
            words[index] = new;
            proptest::prop_assert_eq!(delta.apply(before), full(&words));
        }

        #[test]
        fn change_and_back_is_identity(checksum in 0u16..=0xfffe, old in 0u16.., new in 0u16..) {
            // 0xffff is excluded: no sum of a real packet has it as its complement.
            let there = Delta::NONE.word(old, new).apply(checksum);
            proptest::prop_assume!(there != 0xffff);
            proptest::prop_assert_eq!(Delta::NONE.word(new, old).apply(there), checksum);
        }

        #[test]
        fn address_equals_its_words(old: [u8; 16], new: [u8; 16], checksum in 0u16..=0xfffe) {
            let by_words = old.chunks(2).zip(new.chunks(2)).fold(Delta::NONE, |delta, (o, n)| {
                delta.word(u16::from_ne_bytes([o[0], o[1]]), u16::from_ne_bytes([n[0], n[1]]))
            });
            let at_once = Delta::NONE.address(&Address::from_v6(old), &Address::from_v6(new));
            let (a, b) = (at_once.apply(checksum), by_words.apply(checksum));
            // The two may end at different zeros only where the sum is zero; the field never is.
            proptest::prop_assert!(a == b || (a ^ b) == 0xffff && (a == 0 || b == 0));
        }
    }
}
