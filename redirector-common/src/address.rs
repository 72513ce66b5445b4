//! Addresses, ports and protocols as they stand in packets and map keys.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An IP address in network byte order; IPv4 as the IPv4-mapped IPv6 address (RFC 4291 §2.5.5.2).
///
/// One representation for both families means one map and one code path for both. It is kept as
/// four words, each holding network-order bytes, so that the compiler compares and copies words.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    words: [u32; 4],
}

/// The third word of an IPv4-mapped address: `00 00 ff ff`.
const MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);

impl Address {
    /// `::`, which no packet of ours carries: stands for "no address".
    pub const UNSPECIFIED: Self = Self { words: [0; 4] };

    /// An IPv4 address from its four bytes as on the wire.
    #[inline(always)]
    #[must_use]
    pub const fn from_v4(bytes: [u8; 4]) -> Self {
        Self { words: [0, 0, MAPPED, u32::from_ne_bytes(bytes)] }
    }

    /// An IPv4 address from its four bytes as loaded from memory.
    #[inline(always)]
    #[must_use]
    pub const fn from_v4_word(word: u32) -> Self {
        Self { words: [0, 0, MAPPED, word] }
    }

    /// An IPv6 address from its sixteen bytes as on the wire.
    #[inline(always)]
    #[must_use]
    pub const fn from_v6(bytes: [u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = bytes;
        Self {
            words: [
                u32::from_ne_bytes([a, b, c, d]),
                u32::from_ne_bytes([e, f, g, h]),
                u32::from_ne_bytes([i, j, k, l]),
                u32::from_ne_bytes([m, n, o, p]),
            ],
        }
    }

    /// The four words, each in network byte order as loaded from memory.
    #[inline(always)]
    #[must_use]
    pub const fn words(&self) -> &[u32; 4] {
        &self.words
    }

    /// An address from its words, each in network byte order as loaded from memory.
    #[inline(always)]
    #[must_use]
    pub const fn from_words(words: [u32; 4]) -> Self {
        Self { words }
    }

    /// Both halves, as loaded from memory.
    #[inline(always)]
    #[must_use]
    pub(crate) const fn long_words(self) -> [u64; 2] {
        // SAFETY: as large; made of integers.
        unsafe { core::mem::transmute(self) }
    }

    /// An address from both halves, as loaded from memory.
    #[inline(always)]
    #[must_use]
    pub(crate) const fn from_long_words(words: [u64; 2]) -> Self {
        // SAFETY: as large; made of integers.
        unsafe { core::mem::transmute(words) }
    }

    /// The four bytes of an IPv4 address, as loaded from memory.
    #[inline(always)]
    #[must_use]
    pub const fn v4_word(&self) -> u32 {
        self.words[3]
    }

    /// The last four bytes as on the wire: the IPv4 address, where it is one.
    #[inline(always)]
    #[must_use]
    pub const fn v4_bytes(&self) -> [u8; 4] {
        self.words[3].to_ne_bytes()
    }

    /// All sixteen bytes as on the wire.
    #[inline(always)]
    #[must_use]
    pub const fn v6_bytes(&self) -> [u8; 16] {
        let [a, b, c, d] = self.words[0].to_ne_bytes();
        let [e, f, g, h] = self.words[1].to_ne_bytes();
        let [i, j, k, l] = self.words[2].to_ne_bytes();
        let [m, n, o, p] = self.words[3].to_ne_bytes();
        [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
    }

    /// The family: IPv4 if the address is IPv4-mapped.
    #[inline(always)]
    #[must_use]
    pub const fn family(&self) -> Family {
        if self.words[0] | self.words[1] | (self.words[2] ^ MAPPED) == 0 {
            Family::V4
        } else {
            Family::V6
        }
    }

    /// Whether this is an address of the host itself whichever host it is: `127.0.0.0/8` or
    /// `::1`; also `0.0.0.0` and `::`, which connecting programs use for it.
    #[inline(always)]
    #[must_use]
    pub const fn is_loopback(&self) -> bool {
        match self.family() {
            Family::V4 => {
                let [first, ..] = self.v4_bytes();
                first == 127 || self.words[3] == 0
            }
            Family::V6 => {
                self.words[0] == 0
                    && self.words[1] == 0
                    && self.words[2] == 0
                    && (self.words[3] == 0 || self.words[3] == u32::from_be(1))
            }
        }
    }

    /// The loopback address that programs of a host listen on.
    #[must_use]
    pub const fn loopback(family: Family) -> Self {
        match family {
            Family::V4 => Self::from_v4([127, 0, 0, 1]),
            Family::V6 => Self { words: [0, 0, 0, u32::from_be(1)] },
        }
    }

    /// Whether this is [`Self::UNSPECIFIED`].
    #[inline(always)]
    #[must_use]
    pub const fn is_unspecified(&self) -> bool {
        self.words[0] == 0 && self.words[1] == 0 && self.words[2] == 0 && self.words[3] == 0
    }
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => Self::from_v4(v4.octets()),
            IpAddr::V6(v6) => Self::from_v6(v6.octets()),
        }
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        match address.family() {
            Family::V4 => Self::V4(Ipv4Addr::from(address.v4_bytes())),
            Family::V6 => Self::V6(Ipv6Addr::from(address.v6_bytes())),
        }
    }
}

impl core::fmt::Debug for Address {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::fmt::Display::fmt(&IpAddr::from(*self), f)
    }
}

impl core::fmt::Display for Address {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::fmt::Display::fmt(&IpAddr::from(*self), f)
    }
}

/// An IP address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of a standard library address.
    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

/// A TCP or UDP port, kept in network byte order.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Port(u16);

impl Port {
    /// Port 0, which no packet of ours carries: stands for "no port".
    pub const ZERO: Self = Self(0);

    /// A port from its number in host byte order.
    #[inline(always)]
    #[must_use]
    pub const fn new(number: u16) -> Self {
        Self(number.to_be())
    }

    /// A port from its two bytes as on the wire.
    #[inline(always)]
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 2]) -> Self {
        Self(u16::from_ne_bytes(bytes))
    }

    /// The two bytes as on the wire.
    #[inline(always)]
    #[must_use]
    pub const fn bytes(self) -> [u8; 2] {
        self.0.to_ne_bytes()
    }

    /// The number in host byte order.
    #[inline(always)]
    #[must_use]
    pub const fn number(self) -> u16 {
        u16::from_be(self.0)
    }

    /// The raw network-order word, for checksum arithmetic.
    #[inline(always)]
    #[must_use]
    pub const fn raw(self) -> u16 {
        self.0
    }
}

impl PartialOrd for Port {
    fn partial_cmp(&self, other: &Self) -> Option<core::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Port {
    fn cmp(&self, other: &Self) -> core::cmp::Ordering {
        self.number().cmp(&other.number())
    }
}

impl core::fmt::Debug for Port {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::fmt::Display::fmt(&self.number(), f)
    }
}

impl core::fmt::Display for Port {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::fmt::Display::fmt(&self.number(), f)
    }
}

/// A transport protocol that redirector translates, with its IANA number.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp = 6,
    /// UDP.
    Udp = 17,
}

impl Protocol {
    /// Both, in the order of their numbers.
    pub const ALL: [Self; 2] = [Self::Tcp, Self::Udp];

    /// From the IANA number; `None` for a protocol that we leave alone.
    #[inline(always)]
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            _ => None,
        }
    }

    /// The IANA number.
    #[inline(always)]
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// `TCP` or `UDP`, as Kubernetes spells them.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        }
    }
}

impl core::fmt::Display for Protocol {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.name())
    }
}
