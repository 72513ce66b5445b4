//! Peers: the other nodes, and what is known of them.

/// Value of the `PEERS` map, by address: what the node that has the address is known to do. By
/// default nobody is known: what is not in the map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    flags: u32,
}

const _: () = assert!(size_of::<Peer>() == 4);

impl Peer {
    const KNOWN: u32 = 1;
    const TAKES: u32 = 2;

    /// A node: what it hands over is taken. Nothing is handed to it, since nobody says that it runs
    /// redirector.
    #[must_use]
    pub const fn known() -> Self {
        Self { flags: Self::KNOWN }
    }

    /// A node that runs redirector, and takes flows that are handed to it.
    #[must_use]
    pub const fn taking() -> Self {
        Self { flags: Self::KNOWN | Self::TAKES }
    }

    /// What both say together.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self { flags: self.flags | other.flags }
    }

    /// Whether it is another node.
    #[inline(always)]
    #[must_use]
    pub const fn is_known(self) -> bool {
        self.flags & Self::KNOWN != 0
    }

    /// Whether new flows may be handed over to it.
    #[inline(always)]
    #[must_use]
    pub const fn takes_flows(self) -> bool {
        self.flags & Self::TAKES != 0
    }
}
