//! What the packet code asks of its surroundings: maps, routing table, clock.

use core::ptr::NonNull;
use core::sync::atomic::{Ordering, compiler_fence};

use super::pressure::{self, Slot};
use super::{Outcome, Packet, Socket, handover, new_flow};
use crate::flow::moment;
use crate::fragment::{FirstFragment, FragmentKey};
use crate::{
    Address, Affinity, AffinityKey, Backend, BackendId, CacheSet, CachedFlow, Flow, FlowState,
    Frontend, FrontendKey, Interface, Manner, NodeConfig, Peer, Port, PortFlags, Protocol, Reason,
    RingSlot, Service, ServiceId, Taker, TakerKey, Tuple, words,
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

/// A half of a flow where it stands in its map, shared with other CPUs.
///
/// Fields are read and written one by one, unsynchronised: counters may lose a packet when two
/// CPUs handle one flow at once, which is worth more than an atomic operation for every packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowEntry(NonNull<Flow>);

impl FlowEntry {
    /// # Safety
    ///
    /// `entry` stays valid for as long as this packet is handled.
    #[inline(always)]
    #[must_use]
    pub const unsafe fn new(entry: NonNull<Flow>) -> Self {
        Self(entry)
    }

    #[inline(always)]
    const fn view(&self) -> &Flow {
        // SAFETY: valid, by the promise made to `new`; see the type about sharing.
        unsafe { self.0.as_ref() }
    }

    /// What packets leave with.
    #[inline(always)]
    #[must_use]
    pub const fn translated(&self) -> &Tuple {
        &self.view().translated
    }

    /// Whether this is the reply half.
    #[inline(always)]
    #[must_use]
    pub const fn is_reply(&self) -> bool {
        matches!(self.view().direction(), crate::Direction::Reply)
    }

    /// Whether the backend is in this host's own stack.
    #[inline(always)]
    #[must_use]
    pub const fn is_local(&self) -> bool {
        self.view().is_local()
    }

    /// Where the flow stands.
    #[inline(always)]
    #[must_use]
    pub const fn state(&self) -> FlowState {
        self.view().state()
    }

    /// Whether the sender of this half's packets has sent FIN.
    #[inline(always)]
    #[must_use]
    pub const fn fin_seen(&self) -> bool {
        self.view().fin_seen()
    }

    /// How the flow's packets get to a backend elsewhere.
    #[inline(always)]
    #[must_use]
    pub const fn manner(&self) -> Manner {
        self.view().manner()
    }

    /// Whether the client is to be told of segments that fit into a tunnel.
    #[inline(always)]
    #[must_use]
    pub const fn clamps_mss(&self) -> bool {
        self.view().clamps_mss()
    }

    /// Packets that this half has counted.
    #[inline(always)]
    #[must_use]
    pub const fn packets(&self) -> u64 {
        self.view().packets
    }

    /// Whether this half has seen no packet for so many milliseconds.
    #[inline(always)]
    #[must_use]
    pub const fn is_idle(&self, now: u64, milliseconds: u64) -> bool {
        now.saturating_sub(self.view().last_seen) > milliseconds * 1_000_000
    }

    /// Sets how packets of this half get to a backend elsewhere.
    #[inline(always)]
    pub const fn set_manner(self, manner: Manner) {
        // SAFETY: as for `count`.
        unsafe { &mut *self.0.as_ptr() }.set_manner(manner);
    }

    /// Whether this half alone is past its timeout.
    #[inline(always)]
    #[must_use]
    pub const fn is_expired(&self, now: u64) -> bool {
        self.view().is_expired(now)
    }

    /// Whether nothing but the passing of time will change the flow's state.
    #[inline(always)]
    #[must_use]
    pub const fn is_settled(&self) -> bool {
        self.view().is_settled()
    }

    /// Nanoseconds since the flow began.
    #[inline(always)]
    #[must_use]
    pub const fn age(&self, now: u64) -> u64 {
        now.saturating_sub(self.view().created)
    }

    /// Nanoseconds since this half last saw a packet.
    #[inline(always)]
    #[must_use]
    pub const fn idle(&self, now: u64) -> u64 {
        now.saturating_sub(self.view().last_seen)
    }

    /// Counts a packet of `bytes` bytes.
    #[inline(always)]
    pub const fn count(self, now: u64, bytes: u16) {
        // SAFETY: as for `view`; plain stores of aligned words.
        let flow = unsafe { &mut *self.0.as_ptr() };
        flow.last_seen = now;
        flow.packets += 1;
        flow.bytes += bytes as u64;
    }

    /// Which of the flows that have had this key.
    #[inline(always)]
    #[must_use]
    pub const fn born(&self) -> u32 {
        self.view().born()
    }

    /// Adds packets that the flow cache has counted.
    #[inline(always)]
    pub const fn add_cached(self, entry: &CachedFlow) {
        // SAFETY: as for `count`.
        let flow = unsafe { &mut *self.0.as_ptr() };
        let (packets, bytes) = entry.pending(flow);
        flow.packets += packets;
        flow.bytes += bytes;
    }

    /// The next hop, if it still holds; see [`Flow::is_routed`].
    #[inline(always)]
    #[must_use]
    pub const fn next_hop(&self, epoch: u32, now: u64) -> Option<&NextHop> {
        if self.view().is_routed(epoch, now) { Some(&self.view().next_hop) } else { None }
    }

    /// Notes the next hop. Void while it is written, so that another CPU does not use half of it.
    #[inline(always)]
    pub fn set_next_hop(self, next_hop: &NextHop, epoch: u32, now: u64) {
        // SAFETY: as for `count`.
        let flow = unsafe { &mut *self.0.as_ptr() };
        flow.epoch = 0;
        compiler_fence(Ordering::SeqCst);
        words::copy(next_hop, &mut flow.next_hop);
        flow.routed = moment(now);
        compiler_fence(Ordering::SeqCst);
        flow.epoch = epoch;
    }

    /// Moves this half to `state`.
    #[inline(always)]
    pub const fn set_state(self, state: FlowState) {
        // SAFETY: as for `count`.
        unsafe { &mut *self.0.as_ptr() }.set_state(state);
    }

    /// Notes a FIN from the sender of this half's packets.
    #[inline(always)]
    pub const fn set_fin_seen(self) {
        // SAFETY: as for `count`.
        unsafe { &mut *self.0.as_ptr() }.set_fin_seen();
    }
}
