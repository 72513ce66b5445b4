//! Where packets go next.

/// Where to send a packet next.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// Outgoing interface.
    pub ifindex: u32,
    /// Largest IP packet that fits, in bytes; set with [`Route::TooBig`] and [`Route::Via`].
    pub mtu: u32,
    /// Ethernet addresses; set with [`Route::Via`].
    pub link: LinkAddresses,
}

impl NextHop {
    /// Nowhere yet.
    pub const NONE: Self = Self { ifindex: 0, mtu: 0, link: LinkAddresses { words: [0; 3] } };
}

/// The start of an Ethernet header: destination, then source address. Three words as on the wire,
/// so that the compiler moves words.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkAddresses {
    words: [u32; 3],
}

impl LinkAddresses {
    /// From both addresses, as on the wire, destination first.
    #[inline(always)]
    #[must_use]
    pub const fn from_halves(destination: [u16; 3], source: [u16; 3]) -> Self {
        #[inline(always)]
        const fn join(a: u16, b: u16) -> u32 {
            if cfg!(target_endian = "little") {
                a as u32 | (b as u32) << 16
            } else {
                (a as u32) << 16 | b as u32
            }
        }
        let [a, b, c] = destination;
        let [d, e, f] = source;
        Self { words: [join(a, b), join(c, d), join(e, f)] }
    }

    /// The words, as they are to stand in memory.
    #[inline(always)]
    #[must_use]
    pub const fn words(&self) -> &[u32; 3] {
        &self.words
    }
}

/// What the routing table says.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// This way; the neighbour is known.
    Via,
    /// This way, but the kernel must find the neighbour's address.
    Unresolved,
    /// This way, but the packet is too large.
    TooBig,
    /// No way, or a forbidden one, or to this host itself.
    Unreachable,
    /// The packet has passed too many routers to go on; of a packet alone, never of a way.
    TooFar,
}

impl Route {
    /// From its number; an unknown one reads as `Unreachable`.
    #[inline(always)]
    #[must_use]
    pub const fn from_number(number: u32) -> Self {
        if number == Self::Via as u32 {
            Self::Via
        } else if number == Self::Unresolved as u32 {
            Self::Unresolved
        } else if number == Self::TooBig as u32 {
            Self::TooBig
        } else if number == Self::TooFar as u32 {
            Self::TooFar
        } else {
            Self::Unreachable
        }
    }
}
