//! Services: frontends that share backends and policy.

use crate::BackendId;

/// Index into the `SERVICES` array. Stable while the service lives; 0 is never a service.
pub type ServiceId = u32;

/// Value of the `SERVICES` array: what a new flow needs to know.
///
/// Each Maglev table is one aligned 8-byte word on purpose: user space fills a free region of
/// `MAGLEV` and then moves the service to it in one store, so a packet sees the old table or the
/// new one and never a mixture.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// First entry of the service's table in `MAGLEV` (an index of entries, not of lines).
    pub table_offset: u32,
    /// Entries in the table; 0: no backend takes new flows.
    pub table_size: u32,
    /// The same for clients on the node itself, for whom a traffic policy Local is as Cluster; the
    /// same region where it makes no difference.
    pub internal_offset: u32,
    /// Entries in that table.
    pub internal_size: u32,
    /// The same for packets that another node hands over: this host's backends alone. Only services
    /// with direct server return have it.
    pub peer_offset: u32,
    /// Entries in that table.
    pub peer_size: u32,
    /// Bits of [`ServiceFlags`](Self::FLAG_SILENT).
    pub flags: u32,
    /// Services with the same group share what is remembered of clients; 0: nothing is.
    pub affinity_group: u32,
    /// For how long a client that opens no flow is remembered.
    pub affinity_seconds: u32,
    /// Reserved, zero.
    pub reserved: u32,
}

const _: () = assert!(size_of::<Service>() == 40);

/// Where the client of a flow is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Origin {
    /// On the network.
    Outside,
    /// On this node: a program of the host or of a pod on it.
    Node,
    /// On the network, and another node that runs redirector hands its packets over.
    Peer,
}

impl Origin {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Outside, Self::Node, Self::Peer];
}

impl Service {
    /// Without a backend, drop silently instead of answering "port unreachable": traffic policy
    /// Local with backends only elsewhere.
    pub const FLAG_SILENT: u32 = 1;

    /// Only clients in a range of `SOURCE_RANGES` may open flows.
    pub const FLAG_SOURCE_RANGES: u32 = 2;

    /// Any entry of the table for any new flow, in place of the one that its hash names.
    pub const FLAG_RANDOM: u32 = 4;

    /// Backends on other nodes that run redirector get packets as they are, and answer clients
    /// themselves.
    pub const FLAG_DSR: u32 = 8;

    /// Offset and size of the table for clients from `origin`.
    #[inline(always)]
    #[must_use]
    pub const fn table(&self, origin: Origin) -> (u32, u32) {
        match origin {
            Origin::Outside => (self.table_offset, self.table_size),
            Origin::Node => (self.internal_offset, self.internal_size),
            Origin::Peer => (self.peer_offset, self.peer_size),
        }
    }

    /// Whether a new flow goes to any backend, whatever its hash.
    #[inline(always)]
    #[must_use]
    pub const fn is_random(&self) -> bool {
        self.flags & Self::FLAG_RANDOM != 0
    }

    /// Whether backends on other nodes answer clients themselves, where that can be.
    #[inline(always)]
    #[must_use]
    pub const fn is_dsr(&self) -> bool {
        self.flags & Self::FLAG_DSR != 0
    }

    /// Whether clients stay with their backend.
    #[inline(always)]
    #[must_use]
    pub const fn has_affinity(&self) -> bool {
        self.affinity_group != 0
    }

    /// Whether the service looks at where clients come from.
    #[inline(always)]
    #[must_use]
    pub const fn limits_sources(&self) -> bool {
        self.flags & Self::FLAG_SOURCE_RANGES != 0
    }

    /// Whether a packet that finds no backend is dropped without an answer.
    #[inline(always)]
    #[must_use]
    pub const fn is_silent(&self) -> bool {
        self.flags & Self::FLAG_SILENT != 0
    }
}

/// Entries of one line of the `MAGLEV` array.
pub const MAGLEV_LINE: u32 = 16;

/// Value of the `MAGLEV` array: a cache line of consecutive table entries. Kernel array elements
/// are rounded up to eight bytes, so single `u32` entries would waste half the memory.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaglevLine {
    /// Backends by hash; the slot was resolved when the table was written.
    pub entries: [BackendId; MAGLEV_LINE as usize],
}

/// Key of the `SLOTS` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotKey {
    /// The service.
    pub service: ServiceId,
    /// Position of the backend in the service, from 0.
    pub slot: u32,
}

/// Value of the `SLOTS` map: one backend's place in a service.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotValue {
    /// Index into `BACKENDS`.
    pub backend: BackendId,
    /// Relative share of new flows; 0 takes none.
    pub weight: u16,
    /// 0 active, 1 terminating (keeps its flows, takes no new ones).
    pub state: u16,
}

const _: () = assert!(size_of::<SlotValue>() == 8);

impl SlotValue {
    /// `state` of a backend that takes new flows.
    pub const ACTIVE: u16 = 0;
    /// `state` of a backend that only keeps the flows it has.
    pub const TERMINATING: u16 = 1;
}

/// Longest JSON text in [`ServiceInfo`], in bytes.
pub const SERVICE_INFO_LEN: usize = 504;

/// Value of the `SERVICE_INFO` map: what people are shown of a service. The data path never
/// reads it; it makes the pinned maps legible with no agent running.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ServiceInfo {
    /// Bytes used of `json`.
    pub len: u32,
    /// Reserved, zero.
    pub reserved: u32,
    /// UTF-8 JSON; the shape is user space's own.
    pub json: [u8; SERVICE_INFO_LEN],
}

const _: () = assert!(size_of::<ServiceInfo>() == 512);

impl core::fmt::Debug for ServiceInfo {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(core::str::from_utf8(self.json()).unwrap_or("not UTF-8"))
    }
}

impl ServiceInfo {
    /// Without a text.
    pub const EMPTY: Self = Self { len: 0, reserved: 0, json: [0; SERVICE_INFO_LEN] };

    /// The JSON text; `None` if it is longer than [`SERVICE_INFO_LEN`].
    #[must_use]
    pub fn new(json: &[u8]) -> Option<Self> {
        let mut info = Self::EMPTY;
        info.json.get_mut(..json.len())?.copy_from_slice(json);
        info.len = u32::try_from(json.len()).ok()?;
        Some(info)
    }

    /// The bytes of the JSON text.
    #[must_use]
    pub fn json(&self) -> &[u8] {
        let len = (self.len as usize).min(SERVICE_INFO_LEN);
        self.json.get(..len).unwrap_or(&[])
    }
}
