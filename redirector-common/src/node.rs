//! What the data path knows of the node itself: interfaces, ports in use, counters.

use crate::{Address, Family, Port, Protocol};

/// Value of the one-element `NODE` array.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeConfig {
    /// First port of the block reserved for source translation, host byte order.
    pub snat_first: u16,
    /// Number of ports in the block, at least 1.
    pub snat_count: u16,
    /// Index of the interface that route look-ups start from: the loopback device, whose
    /// forwarding switch the agent sets so that look-ups work on hosts that are no routers.
    pub lookup_ifindex: u32,
    /// Elements of `FLOW_CACHE` that each CPU has: a power of two, or 0 for no cache.
    pub cache_sets: u32,
    /// Slots of `FLOW_RING`: a power of two, or 0 for no ring.
    pub ring_slots: u32,
    /// Cookie of the node's network namespace (`SO_NETNS_COOKIE`): tells its programs from those
    /// of pods. 0, which no namespace has: no program is taken for the node's own.
    pub netns_cookie: u64,
    /// Until when, on the programs' clock, the flow table is moved: no flow is opened, and what
    /// belongs to none may belong to one that is not found for the moment. It is dropped, and will
    /// be sent again.
    pub moving_until: u64,
    /// Bits of [`NodeFlags`](Self::FLAG_CLAMP_MSS).
    pub flags: u32,
    /// Reserved, zero.
    pub reserved: u32,
}

const _: () = assert!(size_of::<NodeConfig>() == 40);

impl NodeConfig {
    /// TCP clients whose packets come by a tunnel are told to send segments that fit into it.
    pub const FLAG_CLAMP_MSS: u32 = 1;

    /// Whether clients whose packets come by a tunnel are told of segments that fit into it.
    #[inline(always)]
    #[must_use]
    pub const fn clamps_mss(&self) -> bool {
        self.flags & Self::FLAG_CLAMP_MSS != 0
    }
}

/// What a port is used for; bits of one byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortFlags(pub u8);

impl PortFlags {
    /// Some frontend has this port (or a flow to one still lives): look up as destination port.
    pub const FRONTEND: Self = Self(1);
    /// The port is in the translation block: replies come to it.
    pub const SNAT: Self = Self(2);
    /// Some local backend listens here: look up as source port of what leaves.
    pub const LOCAL_BACKEND: Self = Self(4);
    /// Some frontend with this port has a backend elsewhere: XDP takes part.
    pub const REMOTE: Self = Self(8);
    /// The node has addresses that are frontends' alone; every port has this bit then, and none
    /// otherwise.
    pub const VIPS: Self = Self(16);

    /// Some frontend with this port hands connections to a listening socket of this host. TCP only.
    pub const STEER: Self = Self(32);

    /// What makes a packet that comes in for the port a matter of ours at all.
    pub const CLAIMED: Self = Self(Self::FRONTEND.0 | Self::SNAT.0 | Self::VIPS.0);

    /// Whether any bit of `other` is set.
    #[inline(always)]
    #[must_use]
    pub const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// The bits of both.
    #[inline(always)]
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Ports in one element of the `PORTS` array.
pub const PORTS_PER_BLOCK: u32 = 8;
/// Elements of the `PORTS` array: every port of both protocols.
pub const PORT_BLOCKS: u32 = 2 * 65536 / PORTS_PER_BLOCK;

/// Value of the `PORTS` array: flags of eight consecutive ports. Eight bytes, so that the kernel
/// writes it in one store.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortBlock {
    /// [`PortFlags`] of the ports, in order.
    pub flags: [u8; PORTS_PER_BLOCK as usize],
}

/// Where the flags of a port stand: element of `PORTS`, and byte in it.
#[inline(always)]
#[must_use]
pub const fn port_index(protocol: Protocol, port: Port) -> (u32, usize) {
    let base = match protocol {
        Protocol::Tcp => 0,
        Protocol::Udp => PORT_BLOCKS / 2,
    };
    let number = port.number() as u32;
    (base + number / PORTS_PER_BLOCK, (number % PORTS_PER_BLOCK) as usize)
}

/// Interface indices that the `INTERFACES` array has room for. An interface beyond it is
/// counted in slot 0 and cannot be sent out of directly.
pub const MAX_IFINDEX: u32 = 16384;
/// Addresses of other nodes that the `PEERS` map has room for.
pub const MAX_PEERS: u32 = 32768;
/// Slots of the counters: slot 0 is "any other interface".
pub const MAX_SLOTS: u32 = 64;

/// Value of the `INTERFACES` array, indexed by interface index.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interface {
    /// IPv4 address to translate sources to when leaving here, or unspecified.
    pub ipv4: Address,
    /// IPv6 address to translate sources to when leaving here, or unspecified.
    pub ipv6: Address,
    /// Slot of the counters, below [`MAX_SLOTS`].
    pub slot: u16,
    flags: u16,
    /// Reserved, zero.
    pub reserved: u32,
}

const _: () = assert!(size_of::<Interface>() == 40);

impl Interface {
    const XDP_TRANSMIT: u16 = 1;

    /// What an index that is no known interface holds.
    pub const NONE: Self = Self {
        ipv4: Address::UNSPECIFIED,
        ipv6: Address::UNSPECIFIED,
        slot: 0,
        flags: 0,
        reserved: 0,
    };

    /// An interface with its counter slot and the addresses to translate sources to.
    #[must_use]
    pub const fn new(slot: u16, ipv4: Address, ipv6: Address, xdp_transmit: bool) -> Self {
        let flags = if xdp_transmit { Self::XDP_TRANSMIT } else { 0 };
        Self { ipv4, ipv6, slot, flags, reserved: 0 }
    }

    /// Whether frames may be sent out of it from XDP (`ndo_xdp_xmit`); the kernel silently
    /// drops them where the driver can't.
    #[inline(always)]
    #[must_use]
    pub const fn xdp_transmit(&self) -> bool {
        self.flags & Self::XDP_TRANSMIT != 0
    }

    /// Whether our programs are on it.
    #[inline(always)]
    #[must_use]
    pub const fn is_ours(&self) -> bool {
        self.slot != 0
    }

    /// The address to translate sources to, unspecified if there is none.
    #[inline(always)]
    #[must_use]
    pub const fn source(&self, family: Family) -> Address {
        match family {
            Family::V4 => self.ipv4,
            Family::V6 => self.ipv6,
        }
    }
}

/// Addresses of one family that sources may be translated to when leaving by one interface, the
/// first of which stands in [`Interface`].
pub const MAX_SNAT_ADDRESSES: u16 = 8;
/// Entries that the `SNAT_ADDRESSES` map has room for.
pub const MAX_SNAT_ENTRIES: u32 = 16384;

/// Key of the `SNAT_ADDRESSES` map, whose values are [`Address`]es.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SnatAddressKey {
    /// Index of the interface.
    pub ifindex: u32,
    family: u16,
    /// Position among the addresses of the family, from 1, without gaps, below
    /// [`MAX_SNAT_ADDRESSES`].
    pub position: u16,
}

const _: () = assert!(size_of::<SnatAddressKey>() == 8);

impl SnatAddressKey {
    /// The key of the address at a position.
    #[inline(always)]
    #[must_use]
    pub const fn new(ifindex: u32, family: Family, position: u16) -> Self {
        let family = match family {
            Family::V4 => 4,
            Family::V6 => 6,
        };
        Self { ifindex, family, position }
    }
}

/// Packets and bytes.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counter {
    /// Packets.
    pub packets: u64,
    /// Bytes of the frames, Ethernet header included.
    pub bytes: u64,
}

/// Value of the per-CPU `COUNTERS` array, indexed by interface slot: a counter for each Reason.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CounterBlock {
    /// Indexed by the Reason's number.
    pub reasons: [Counter; crate::reason::REASON_CAPACITY as usize],
}

/// Bytes of text that [`Text`] has room for.
pub const TEXT_LEN: usize = 8184;

/// Value of the one-element `STATUS` array: what the agent last said of itself, as JSON. The
/// data path never reads it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Text {
    /// Bytes used of `bytes`.
    pub len: u64,
    /// UTF-8.
    pub bytes: [u8; TEXT_LEN],
}

impl Text {
    /// The text, cut at a character boundary where it does not fit.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let text = &text[..text.floor_char_boundary(TEXT_LEN)];
        let mut bytes = [0; TEXT_LEN];
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        Self { len: text.len() as u64, bytes }
    }

    /// The text; `None` where the map holds no valid UTF-8.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        let len = usize::try_from(self.len).ok()?;
        core::str::from_utf8(self.bytes.get(..len)?).ok()
    }
}

/// Key of the `SYSCTLS` map: a path under `/proc/sys`, zero-padded.
pub type SysctlKey = FixedText<120>;
/// Value of the `SYSCTLS` map: what the agent found there before it changed it.
pub type SysctlValue = FixedText<1024>;

/// Zero-padded text.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FixedText<const N: usize> {
    bytes: [u8; N],
}

impl<const N: usize> FixedText<N> {
    /// The text; `None` if it does not fit.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let mut bytes = [0; N];
        bytes.get_mut(..text.len())?.copy_from_slice(text.as_bytes());
        Some(Self { bytes })
    }

    /// The text without its padding; empty where the map holds no valid UTF-8.
    #[must_use]
    pub fn as_str(&self) -> &str {
        core::str::from_utf8(&self.bytes).unwrap_or("").trim_end_matches('\0')
    }
}
