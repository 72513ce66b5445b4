//! What the packet code asks of its surroundings: maps, routing table, clock.

use core::ptr::NonNull;

use super::pressure::{self, Slot};
use super::{
    FlowEntry, NextHop, Outcome, Packet, Route, Socket, handover, new_flow, renewal, track,
};
use crate::fragment::{FirstFragment, FragmentKey};
use crate::{
    Address, Affinity, AffinityKey, Backend, BackendId, CacheSet, Flow, Frontend, FrontendKey,
    Interface, Manner, NodeConfig, Peer, Port, PortFlags, Protocol, Reason, RingSlot, Service,
    ServiceId, SnatAddressKey, Taker, TakerKey, Tuple,
};

/// The node as the packet code sees it. In the kernel: maps and helpers; in user space: copies.
///
/// Functions that have a body here are the packet code's own. In the kernel they are functions that
/// the verifier walks by themselves, and find what they work on in a map.
pub trait Environment {
    /// `CLOCK_MONOTONIC` in nanoseconds; coarse is good enough.
    fn now(&self) -> u64;

    /// A random number.
    fn random(&self) -> u32;

    /// Settings of the node.
    fn node(&self) -> NodeConfig;

    /// What a port is used for.
    fn port_flags(&self, protocol: Protocol, port: Port) -> PortFlags;

    /// The half that matches packets with this tuple.
    fn flow(&self, key: &Tuple) -> Option<FlowEntry>;

    /// Adds a half; never replaces one.
    fn insert_flow(&self, key: &Tuple, flow: &Flow) -> Inserted;

    /// Removes a half, if it is there.
    fn remove_flow(&self, key: &Tuple);

    /// The other half of an entry's flow.
    fn partner(&self, entry: FlowEntry) -> Option<FlowEntry> {
        self.flow(&entry.translated().reversed())
    }

    /// Removes the other half of an entry's flow, if it is there.
    fn remove_partner(&self, entry: FlowEntry) {
        self.remove_flow(&entry.translated().reversed());
    }

    /// Follows the state of the packet's flow: [`track::follow`].
    fn follow(&self, packet: &Packet, entry: FlowEntry)
    where
        Self: Sized,
    {
        track::follow(self, packet, entry);
    }

    /// Removes the packet's flow if it is over: [`renewal::remove_over`].
    fn remove_over(&self, packet: &Packet, entry: FlowEntry) -> bool
    where
        Self: Sized,
    {
        renewal::remove_over(self, packet, entry)
    }

    /// Makes room for the flow that is put together, and notes that it comes: [`pressure::admit`]
    /// with this packet's tuple.
    fn admit(&self, packet: &Packet, scratch: &Scratch)
    where
        Self: Sized,
    {
        pressure::admit(self, &packet.tuple, scratch.forward.born());
    }

    /// Makes room in a table that is full, and says whether there is some: [`pressure::reclaim`].
    fn reclaim(&self) -> bool
    where
        Self: Sized,
    {
        pressure::reclaim(self)
    }

    /// Removes the flow that a slot of the ring names, if it has to make room:
    /// [`pressure::clear`].
    fn clear_slot(&self, index: u32, is_full: bool) -> Slot
    where
        Self: Sized,
    {
        pressure::clear(self, index, is_full)
    }

    /// Takes the reply half's key of the flow that is put together from a flow that can go, and
    /// says whether it is free: [`pressure::vacate`].
    fn vacate(&self, scratch: &Scratch) -> bool
    where
        Self: Sized,
    {
        pressure::vacate(self, &scratch.reply_key)
    }

    /// Adds the halves that are put together: [`new_flow::record`].
    fn record(&self, packet: &Packet, scratch: &mut Scratch, keep_port: bool) -> Recorded
    where
        Self: Sized,
    {
        new_flow::record(self, packet, scratch, keep_port)
    }

    /// Adds the halves that are put together with a port of the block for their source address:
    /// [`new_flow::try_ports`].
    fn try_ports(
        &self,
        packet: &Packet,
        scratch: &mut Scratch,
        attempts: u32,
        takes: bool,
    ) -> Recorded
    where
        Self: Sized,
    {
        new_flow::try_ports(self, packet, scratch, attempts, takes)
    }

    /// A copy of a key that others may write, for as long as none other is held.
    fn hold(&self, key: &Tuple) -> &Tuple;

    /// Position of a new flow in the ring: one more each time; wraps.
    fn next_admitted(&self) -> u32;

    /// Position in the ring where room is looked for next: one more each time; wraps.
    fn next_reclaimed(&self) -> u32;

    /// A slot of the ring.
    fn ring_slot(&self, index: u32) -> Option<NonNull<RingSlot>>;

    /// Counts what is no packet.
    fn count(&self, reason: Reason);

    /// The kernel's clock in ticks; wraps.
    fn ticks(&self) -> u32;

    /// This CPU's entries of the flow cache for a hash.
    fn cache_set(&self, hash: u32) -> Option<NonNull<CacheSet>>;

    /// The epoch of flows with this hash.
    fn epoch(&self, hash: u32) -> u32;

    /// Raises the epoch of flows with this hash: what the cache holds of them is void.
    fn raise_epoch(&self, hash: u32);

    /// The frontend of this address, port and protocol.
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend>;

    /// A service.
    fn service(&self, id: ServiceId) -> Option<Service>;

    /// Whether a client is in one of a service's source ranges.
    fn source_allowed(&self, service: ServiceId, client: &Address) -> bool;

    /// An entry of the Maglev tables.
    fn table_entry(&self, index: u32) -> Option<BackendId>;

    /// What is remembered of a client.
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity>;

    /// Remembers a client; that there is no room does no harm.
    fn set_affinity(&self, key: &AffinityKey, affinity: &Affinity);

    /// From where a backend of a service with affinity takes new flows.
    fn taker(&self, key: &TakerKey) -> Taker;

    /// Whether an address is a frontend's and not this host's.
    fn is_vip(&self, address: &Address) -> bool;

    /// What is known of the other node that has an address, if one has.
    fn peer(&self, address: &Address) -> Peer;

    /// Whether one more error may be sent now.
    fn may_answer(&self) -> bool;

    /// A backend.
    fn backend(&self, id: BackendId) -> Option<Backend>;

    /// An interface.
    fn interface(&self, ifindex: u32) -> Option<Interface>;

    /// A further address of an interface to translate sources to.
    fn snat_address(&self, key: &SnatAddressKey) -> Option<Address>;

    /// What was noted of the first fragment of a packet.
    fn fragment(&self, key: &FragmentKey) -> Option<FirstFragment>;

    /// Notes the first fragment of a packet.
    fn note_fragment(&self, key: &FragmentKey, first: &FirstFragment);

    /// The way to `to`'s destination for a packet of `len` bytes of IP, noted in `next_hop`.
    fn route(&self, packet: &Packet, to: &Tuple, len: u16, next_hop: &mut NextHop) -> Route;

    /// The neighbour that the way which was last found goes by; the destination itself where it
    /// is one.
    fn gateway(&self) -> Address;

    /// [`handover::settle`].
    fn settle(
        &self,
        packet: &Packet,
        len: u16,
        is_first: bool,
        route: Route,
        outcome: &mut Outcome,
    ) -> Route
    where
        Self: Sized,
    {
        handover::settle(self, packet, len, is_first, route, outcome)
    }

    /// What this host's own stack has for a TCP packet as it is.
    fn socket(&self, packet: &Packet) -> Socket;

    /// Hands the packet to the listening socket that would get it with the destination of `to`;
    /// where it opens no connection, only if it ends a handshake that the kernel has kept no state
    /// of (a SYN cookie). Whether that was done: there may be no such socket, and the kernel may
    /// refuse. At TC ingress alone.
    fn assign(&self, packet: &Packet, to: &Tuple) -> bool;

    /// Counts that the packet was handed to a listening socket, for this service and the frontend
    /// that it is for.
    fn count_steered(&self, packet: &Packet, service: ServiceId);

    /// Lowers the largest segment that the packet, a local backend's answer to a SYN, announces to
    /// what fits into a tunnel: [`mss::lower`](super::mss::lower).
    fn clamp_mss(&self, packet: &Packet);

    /// Memory for making a new flow, of this packet alone.
    fn scratch(&self) -> Option<NonNull<Scratch>>;
}

/// What came of adding a half.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Inserted {
    /// It stands in the table.
    Done,
    /// Its key is taken.
    Exists,
    /// The table is full.
    Full,
}

/// What came of recording a flow.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Recorded {
    /// Both halves stand in the table.
    New = 0,
    /// Another CPU was faster; its entry is the flow.
    Elsewhere = 1,
    /// The table is full.
    Full = 2,
    /// No port is left with which the backend could tell this flow from others.
    NoPort = 3,
}

impl Recorded {
    /// From its number; an unknown one reads as `NoPort`.
    #[inline(always)]
    pub const fn from_number(number: u32) -> Self {
        match number {
            0 => Self::New,
            1 => Self::Elsewhere,
            2 => Self::Full,
            _ => Self::NoPort,
        }
    }
}

/// Where a new flow is put together: too large for the 512 bytes of a program's stack.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Scratch {
    /// Forward half.
    pub forward: Flow,
    /// Reply half.
    pub reply: Flow,
    /// The reply half's key.
    pub reply_key: Tuple,
    /// Of the flow's service.
    pub affinity_group: u32,
    /// How the flow's packets are to get to a backend elsewhere, if that can be: a [`Manner`].
    pub wanted: u32,
    /// Index of the interface by which packets to a backend elsewhere leave; 0 for one on this
    /// host, which sees the client's address always.
    pub outgoing: u32,
    /// Where packets come from for a backend that cannot tell this client from others.
    pub source: Address,
}

impl Scratch {
    /// How the flow's packets are to get to a backend elsewhere, if that can be.
    #[inline(always)]
    #[must_use]
    pub const fn wanted(&self) -> Manner {
        if self.wanted == Manner::Layer2 as u32 {
            Manner::Layer2
        } else if self.wanted == Manner::Tunnel as u32 {
            Manner::Tunnel
        } else {
            Manner::Translate
        }
    }
}
