//! Frontends: the exact address, port and protocol that clients hit.

use crate::{Address, Family, Port, Protocol, ServiceId};

/// Key of the `FRONTENDS` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FrontendKey {
    /// Address that the client sends to.
    pub address: Address,
    /// Port that the client sends to.
    pub port: Port,
    protocol: u8,
    scope: u8,
}

const _: () = assert!(size_of::<FrontendKey>() == 20);

impl FrontendKey {
    /// `scope` of a frontend that packets hit.
    const EVERYWHERE: u8 = 0;
    /// `scope` of a frontend that only programs of the node itself hit.
    const LOCALHOST: u8 = 1;

    /// The frontend `address:port/protocol`.
    #[inline(always)]
    #[must_use]
    pub const fn new(address: Address, port: Port, protocol: Protocol) -> Self {
        Self { address, port, protocol: protocol.number(), scope: Self::EVERYWHERE }
    }

    /// The frontend `localhost:port/protocol`: any loopback address of the family, for programs in
    /// the node's own network namespace. No packet ever has this key.
    #[inline(always)]
    #[must_use]
    pub const fn localhost(family: Family, port: Port, protocol: Protocol) -> Self {
        let address = match family {
            Family::V4 => Address::from_v4([0; 4]),
            Family::V6 => Address::UNSPECIFIED,
        };
        Self { address, port, protocol: protocol.number(), scope: Self::LOCALHOST }
    }

    /// Whether this is a [`localhost`](Self::localhost) frontend.
    #[inline(always)]
    #[must_use]
    pub const fn is_localhost(&self) -> bool {
        self.scope == Self::LOCALHOST
    }

    /// The protocol; a key that holds another number (a corrupt map) reads as UDP.
    #[inline(always)]
    #[must_use]
    pub const fn protocol(&self) -> Protocol {
        match Protocol::from_number(self.protocol) {
            Some(protocol) => protocol,
            None => Protocol::Udp,
        }
    }
}

/// Key of the `STEERED` map: a frontend, and the service that had it. The value is how many
/// connections to it were steered, as a plain number.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SteeredKey {
    /// The service.
    pub service: ServiceId,
    /// The frontend.
    pub frontend: FrontendKey,
}

const _: () = assert!(size_of::<SteeredKey>() == 24);

/// Value of the `FRONTENDS` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// The service that answers for this frontend.
    pub service: ServiceId,
    flags: u32,
    /// Where a local backend is delivered: the frontend's own address where it is one of this
    /// host's, else an address of this host of the same family.
    pub local_address: Address,
}

const _: () = assert!(size_of::<Frontend>() == 24);

impl Frontend {
    const FOREIGN: u32 = 1;
    const UNLISTED: u32 = 2;

    /// A frontend of `service`.
    #[inline(always)]
    #[must_use]
    pub const fn new(service: ServiceId, local_address: Address) -> Self {
        Self { service, flags: 0, local_address }
    }

    /// A frontend of `service` on another node's address.
    #[inline(always)]
    #[must_use]
    pub const fn foreign(service: ServiceId, local_address: Address) -> Self {
        Self { service, flags: Self::FOREIGN, local_address }
    }

    /// The same, on an address of this host that other nodes do not know as its.
    #[must_use]
    pub const fn unlisted(self) -> Self {
        Self { flags: self.flags | Self::UNLISTED, ..self }
    }

    /// Whether other nodes do not know that the address is this host's: they would take nothing
    /// that comes to it.
    #[inline(always)]
    #[must_use]
    pub const fn is_unlisted(&self) -> bool {
        self.flags & Self::UNLISTED != 0
    }

    /// Whether the address is another node's: packets to it can only have been handed over by that
    /// node.
    #[inline(always)]
    #[must_use]
    pub const fn is_foreign(&self) -> bool {
        self.flags & Self::FOREIGN != 0
    }
}
