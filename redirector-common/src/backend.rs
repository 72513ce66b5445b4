//! Backends: the address and port that answers.

use crate::{Address, Port};

/// Index into the `BACKENDS` array. 0 is never a backend.
pub type BackendId = u32;

/// Value of the `BACKENDS` array.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Address; [`Address::UNSPECIFIED`] for a local backend that listens on whichever address the
    /// frontend names.
    pub address: Address,
    /// Port.
    pub port: Port,
    flags: u16,
    /// Reserved, zero.
    pub reserved: u32,
}

const _: () = assert!(size_of::<Backend>() == 24);

impl Backend {
    const LOCAL: u16 = 1;
    const ROUTED: u16 = 2;

    /// What an unused entry of the array holds.
    pub const NONE: Self =
        Self { address: Address::UNSPECIFIED, port: Port::ZERO, flags: 0, reserved: 0 };

    /// A backend in this host's own stack, reached at the frontend's `local_address`.
    #[must_use]
    pub const fn local(port: Port) -> Self {
        Self::local_at(Address::UNSPECIFIED, port)
    }

    /// A backend in this host's own stack, reached at `address`, one of this host's.
    #[must_use]
    pub const fn local_at(address: Address, port: Port) -> Self {
        Self { address, port, flags: Self::LOCAL, reserved: 0 }
    }

    /// A backend on this host, in a network of its own: packets to it go through this host's
    /// stack, which routes them there, and so do its answers.
    #[must_use]
    pub const fn routed(address: Address, port: Port) -> Self {
        Self { address, port, flags: Self::LOCAL | Self::ROUTED, reserved: 0 }
    }

    /// A backend elsewhere.
    #[must_use]
    pub const fn remote(address: Address, port: Port) -> Self {
        Self { address, port, flags: 0, reserved: 0 }
    }

    /// Whether this host's own stack takes packets to it: a host-network program on this host, or
    /// [one that is routed to](Self::is_routed).
    #[inline(always)]
    #[must_use]
    pub const fn is_local(&self) -> bool {
        self.flags & Self::LOCAL != 0
    }

    /// Whether it is a host-network program on this host, with sockets in this network namespace.
    #[inline(always)]
    #[must_use]
    pub const fn is_own(&self) -> bool {
        self.flags & (Self::LOCAL | Self::ROUTED) == Self::LOCAL
    }

    /// Whether it is on this host, in a network of its own: no socket of this network namespace is
    /// its.
    #[inline(always)]
    #[must_use]
    pub const fn is_routed(&self) -> bool {
        self.flags & Self::ROUTED != 0
    }

    /// Whether the entry is in use.
    #[inline(always)]
    #[must_use]
    pub const fn is_some(&self) -> bool {
        self.port.raw() != 0
    }
}
