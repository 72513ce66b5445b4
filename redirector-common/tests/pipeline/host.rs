//! A node made of ordinary collections.

use std::cell::{Cell, RefCell, UnsafeCell};
use std::collections::{BTreeMap, BTreeSet};
use std::ptr::NonNull;

use redirector_common::cache::{self, WAYS};
use redirector_common::node::NodeConfig;
use redirector_common::packet::environment::{Inserted, Recorded};
use redirector_common::packet::pressure::Slot;
use redirector_common::packet::{
    Decision, Environment, FlowEntry, Hook, NextHop, Outcome, Packet, Route, Scratch, Socket,
    decide, decide_reply, new_flow, pressure,
};
use redirector_common::{
    Address, Affinity, AffinityKey, Backend, BackendId, CacheSet, CachedFlow, Direction,
    FirstFragment, Flow, FragmentKey, Frontend, FrontendKey, Interface, Peer, Port, PortFlags,
    Protocol, Reason, RingSlot, Service, ServiceId, SourceRange, Taker, TakerKey, Tuple,
};

/// Interface by which everything leaves.
pub(crate) const IFINDEX: u32 = 7;
/// Sets of the flow cache: few, so that flows meet in them.
const CACHE_SETS: usize = 4;
/// Slots of the ring of flows, where a test asks for one.
pub(crate) const RING_SLOTS: u32 = 64;
/// Seconds, as the clock counts.
pub(crate) const SECOND: u64 = 1_000_000_000;

/// The node. Flows are boxed, so that entries stay where they are.
pub(crate) struct Host {
    pub(crate) now: Cell<u64>,
    pub(crate) random: Cell<u32>,
    pub(crate) node: NodeConfig,
    pub(crate) ports: RefCell<BTreeMap<(u8, u16), PortFlags>>,
    pub(crate) frontends: BTreeMap<FrontendKey, Frontend>,
    pub(crate) services: BTreeMap<ServiceId, Service>,
    pub(crate) sources: Vec<SourceRange>,
    pub(crate) table: Vec<BackendId>,
    pub(crate) backends: BTreeMap<BackendId, Backend>,
    pub(crate) affinities: RefCell<BTreeMap<AffinityKey, Affinity>>,
    pub(crate) takers: BTreeMap<TakerKey, Taker>,
    pub(crate) vips: BTreeSet<Address>,
    pub(crate) peers: BTreeMap<Address, Peer>,
    pub(crate) errors: Cell<u32>,
    pub(crate) interface: Option<Interface>,
    pub(crate) route: Cell<Route>,
    /// The next node on the way; the destination itself if there is none.
    pub(crate) router: Cell<Option<Address>>,
    gateway: Cell<Address>,
    /// How often the routing table was asked.
    pub(crate) asked: Cell<u32>,
    pub(crate) flow_capacity: Cell<usize>,
    pub(crate) sockets: RefCell<BTreeMap<Tuple, Socket>>,
    pub(crate) listeners: RefCell<BTreeSet<(Address, u16)>>,
    /// Whether any acknowledgement answers a SYN cookie.
    pub(crate) cookies: Cell<bool>,
    /// Sockets that were looked up.
    pub(crate) socket_look_ups: Cell<u32>,
    /// Flows that were looked up.
    pub(crate) flow_look_ups: Cell<u32>,
    flows: RefCell<BTreeMap<Tuple, Box<UnsafeCell<Flow>>>>,
    pub(crate) caches: bool,
    cache: Box<[UnsafeCell<CacheSet>]>,
    epochs: Box<[Cell<u32>]>,
    pub(crate) fragments: RefCell<BTreeMap<FragmentKey, FirstFragment>>,
    held: UnsafeCell<Tuple>,
    ring: Box<[UnsafeCell<RingSlot>]>,
    admitted: Cell<u32>,
    reclaimed: Cell<u32>,
    /// What was counted that is no packet.
    pub(crate) counted: RefCell<BTreeMap<Reason, u32>>,
    scratch: UnsafeCell<Scratch>,
}

pub(crate) fn v4(last: u8) -> Address {
    Address::from_v4([192, 0, 2, last])
}

impl Host {
    /// A node with the address 192.0.2.1 and the translation ports 50000 to 50003.
    pub(crate) fn new() -> Self {
        let empty = Flow::new(Direction::Forward, Packet::EMPTY.tuple, 0, 0, false, 0);
        Self {
            now: Cell::new(1000 * SECOND),
            random: Cell::new(12345),
            node: NodeConfig {
                snat_first: 50000,
                snat_count: 4,
                lookup_ifindex: 1,
                ..NodeConfig::default()
            },
            ports: RefCell::default(),
            frontends: BTreeMap::new(),
            services: BTreeMap::new(),
            sources: Vec::new(),
            table: Vec::new(),
            backends: BTreeMap::new(),
            affinities: RefCell::default(),
            takers: BTreeMap::new(),
            vips: BTreeSet::new(),
            peers: BTreeMap::new(),
            errors: Cell::new(u32::MAX),
            interface: Some(Interface::new(1, v4(1), Address::UNSPECIFIED, true)),
            route: Cell::new(Route::Via),
            router: Cell::new(None),
            gateway: Cell::new(Address::UNSPECIFIED),
            asked: Cell::new(0),
            flow_capacity: Cell::new(1000),
            sockets: RefCell::default(),
            listeners: RefCell::default(),
            cookies: Cell::new(false),
            socket_look_ups: Cell::new(0),
            flow_look_ups: Cell::new(0),
            flows: RefCell::default(),
            caches: true,
            cache: (0..CACHE_SETS)
                .map(|_| UnsafeCell::new(CacheSet { ways: [CachedFlow::EMPTY; WAYS] }))
                .collect(),
            epochs: (0..cache::EPOCHS).map(|_| Cell::new(1)).collect(),
            fragments: RefCell::default(),
            held: UnsafeCell::new(Packet::EMPTY.tuple),
            ring: (0..RING_SLOTS).map(|_| UnsafeCell::new(RingSlot::EMPTY)).collect(),
            admitted: Cell::default(),
            reclaimed: Cell::default(),
            counted: RefCell::default(),
            scratch: UnsafeCell::new(Scratch {
                forward: empty,
                reply: empty,
                reply_key: Packet::EMPTY.tuple,
                affinity_group: 0,
                wanted: 0,
                source: Address::UNSPECIFIED,
            }),
        }
    }

    /// Adds a service with frontends `192.0.2.1:port` and one backend.
    pub(crate) fn serve(&mut self, ports: &[u16], protocol: Protocol, backend: Option<Backend>) {
        let id = self.services.len() as ServiceId + 1;
        let mut service = Service::default();
        let mut flags = PortFlags::FRONTEND;
        if let Some(backend) = backend {
            service.table_offset = self.table.len() as u32;
            service.table_size = 1;
            self.table.push(id);
            self.backends.insert(id, backend);
            let mut ports = self.ports.borrow_mut();
            if backend.is_local() {
                let entry = ports.entry((protocol.number(), backend.port.number())).or_default();
                *entry = entry.union(PortFlags::LOCAL_BACKEND);
            } else {
                flags = flags.union(PortFlags::REMOTE);
            }
        }
        self.services.insert(id, service);
        for &port in ports {
            self.frontends.insert(
                FrontendKey::new(v4(1), Port::new(port), protocol),
                Frontend::new(id, v4(1)),
            );
            let mut ports = self.ports.borrow_mut();
            let entry = ports.entry((protocol.number(), port)).or_default();
            *entry = entry.union(flags);
        }
    }

    /// Gives a port more flags.
    pub(crate) fn mark(&self, port: u16, flags: PortFlags) {
        let mut ports = self.ports.borrow_mut();
        let entry = ports.entry((Protocol::Tcp.number(), port)).or_default();
        *entry = entry.union(flags);
    }

    /// What TC ingress does with a packet.
    pub(crate) fn ingress(&self, packet: &Packet) -> (Decision, Outcome) {
        self.at(Hook::Ingress, packet)
    }

    /// What a hook does with a packet.
    pub(crate) fn at(&self, hook: Hook, packet: &Packet) -> (Decision, Outcome) {
        let mut outcome = Outcome::EMPTY;
        let decision = match hook {
            Hook::Xdp | Hook::Ingress => decide(self, packet, hook, packet.ip_len, &mut outcome),
            Hook::Egress => decide_reply(self, packet, &mut outcome),
        };
        (decision, outcome)
    }

    /// What TC egress does with a packet.
    pub(crate) fn egress(&self, packet: &Packet) -> (Decision, Outcome) {
        self.at(Hook::Egress, packet)
    }

    /// Every half, by its key.
    pub(crate) fn flows(&self) -> BTreeMap<Tuple, Flow> {
        let flows = self.flows.borrow();
        // SAFETY: no entry is being written to.
        let mut flows: BTreeMap<Tuple, Flow> =
            flows.iter().map(|(key, flow)| (*key, unsafe { *flow.get() })).collect();
        for entry in self.cached() {
            if let Some(flow) = flows.get_mut(&entry.key) {
                let (packets, bytes) = entry.pending(flow);
                flow.packets += packets;
                flow.bytes += bytes;
            }
        }
        flows
    }

    /// Every entry of the flow cache, also those that are no longer believed.
    pub(crate) fn cached(&self) -> Vec<CachedFlow> {
        // SAFETY: no entry is being written to.
        self.cache.iter().flat_map(|set| unsafe { *set.get() }.ways).collect()
    }

    /// Routes have changed.
    pub(crate) fn raise_all_epochs(&self) {
        self.epochs.iter().for_each(|epoch| epoch.set(epoch.get() + 1));
    }

    /// As after a time without packets.
    pub(crate) fn clear_flows(&self) {
        self.flows.borrow_mut().clear();
    }

    /// Every half has its partner, and they agree about the state.
    pub(crate) fn assert_whole(&self) {
        let flows = self.flows();
        for (key, flow) in &flows {
            let partner = flows.get(&flow.translated.reversed());
            let partner = partner.unwrap_or_else(|| panic!("{key:?} has no partner"));
            assert_eq!(partner.translated.reversed(), *key);
            assert_ne!(partner.direction(), flow.direction());
            assert_eq!(partner.state(), flow.state(), "{key:?}");
        }
    }
}

impl Environment for Host {
    fn now(&self) -> u64 {
        self.now.get()
    }

    fn random(&self) -> u32 {
        self.random.set(self.random.get().wrapping_mul(1_664_525).wrapping_add(1_013_904_223));
        self.random.get()
    }

    fn node(&self) -> NodeConfig {
        self.node
    }

    fn port_flags(&self, protocol: Protocol, port: Port) -> PortFlags {
        let first = self.node.snat_first;
        let everywhere = if self.vips.is_empty() { PortFlags(0) } else { PortFlags::VIPS };
        if (first..first + self.node.snat_count).contains(&port.number()) {
            return PortFlags::SNAT.union(everywhere);
        }
        let ports = self.ports.borrow();
        let flags = ports.get(&(protocol.number(), port.number())).copied().unwrap_or_default();
        flags.union(everywhere)
    }

    fn flow(&self, key: &Tuple) -> Option<FlowEntry> {
        self.flow_look_ups.set(self.flow_look_ups.get() + 1);
        let flows = self.flows.borrow();
        let flow = NonNull::new(flows.get(key)?.get())?;
        // SAFETY: boxed, and removed only between packets or by the packet that holds it.
        Some(unsafe { FlowEntry::new(flow) })
    }

    fn insert_flow(&self, key: &Tuple, flow: &Flow) -> Inserted {
        let mut flows = self.flows.borrow_mut();
        if flows.contains_key(key) {
            return Inserted::Exists;
        }
        if flows.len() >= self.flow_capacity.get() {
            return Inserted::Full;
        }
        flows.insert(*key, Box::new(UnsafeCell::new(*flow)));
        Inserted::Done
    }

    fn remove_flow(&self, key: &Tuple) {
        self.flows.borrow_mut().remove(key);
    }

    fn partner(&self, entry: FlowEntry) -> Option<FlowEntry> {
        self.flow(&entry.translated().reversed())
    }

    fn remove_partner(&self, entry: FlowEntry) {
        self.remove_flow(&entry.translated().reversed());
    }

    fn admit(&self, packet: &Packet, scratch: &Scratch) {
        pressure::admit(self, &packet.tuple, scratch.forward.born());
    }

    fn reclaim(&self) -> bool {
        pressure::reclaim(self)
    }

    fn clear_slot(&self, index: u32, is_full: bool) -> Slot {
        pressure::clear(self, index, is_full)
    }

    fn vacate(&self, scratch: &Scratch) -> bool {
        pressure::vacate(self, &scratch.reply_key)
    }

    fn record(&self, packet: &Packet, scratch: &mut Scratch, keep_port: bool) -> Recorded {
        new_flow::record(self, packet, scratch, keep_port)
    }

    fn hold(&self, key: &Tuple) -> &Tuple {
        // SAFETY: nobody holds another one.
        let held = unsafe { &mut *self.held.get() };
        *held = *key;
        held
    }

    fn next_admitted(&self) -> u32 {
        self.admitted.replace(self.admitted.get().wrapping_add(1))
    }

    fn next_reclaimed(&self) -> u32 {
        self.reclaimed.replace(self.reclaimed.get().wrapping_add(1))
    }

    fn ring_slot(&self, index: u32) -> Option<NonNull<RingSlot>> {
        self.ring.get(index as usize).and_then(|slot| NonNull::new(slot.get()))
    }

    fn count(&self, reason: Reason) {
        *self.counted.borrow_mut().entry(reason).or_default() += 1;
    }

    fn ticks(&self) -> u32 {
        (self.now.get() * 250 / SECOND) as u32
    }

    fn cache_set(&self, hash: u32) -> Option<NonNull<CacheSet>> {
        let set = self.caches.then(|| self.cache[hash as usize % CACHE_SETS].get());
        set.and_then(NonNull::new)
    }

    fn epoch(&self, hash: u32) -> u32 {
        self.epochs[(hash >> 24) as usize].get()
    }

    fn raise_epoch(&self, hash: u32) {
        let epoch = &self.epochs[(hash >> 24) as usize];
        epoch.set(epoch.get() + 1);
    }

    fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        self.frontends.get(key).copied()
    }

    fn service(&self, id: ServiceId) -> Option<Service> {
        self.services.get(&id).copied()
    }

    fn source_allowed(&self, service: ServiceId, client: &Address) -> bool {
        let limits = self.services.get(&service).is_some_and(Service::limits_sources);
        assert!(limits, "asked about a service that admits everyone");
        self.sources.iter().any(|range| range.admits(service, client))
    }

    fn table_entry(&self, index: u32) -> Option<BackendId> {
        self.table.get(index as usize).copied()
    }

    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        self.affinities.borrow().get(key).copied()
    }

    fn set_affinity(&self, key: &AffinityKey, affinity: &Affinity) {
        self.affinities.borrow_mut().insert(*key, *affinity);
    }

    fn taker(&self, key: &TakerKey) -> Taker {
        self.takers.get(key).copied().unwrap_or_default()
    }

    fn is_vip(&self, address: &Address) -> bool {
        assert!(!self.vips.is_empty(), "asked for nothing");
        self.vips.contains(address)
    }

    fn peer(&self, address: &Address) -> Peer {
        self.peers.get(address).copied().unwrap_or_default()
    }

    fn may_answer(&self) -> bool {
        let left = self.errors.get();
        self.errors.set(left.saturating_sub(1));
        left > 0
    }

    fn backend(&self, id: BackendId) -> Option<Backend> {
        self.backends.get(&id).copied()
    }

    fn interface(&self, ifindex: u32) -> Option<Interface> {
        self.interface.filter(|_| ifindex == IFINDEX)
    }

    fn fragment(&self, key: &FragmentKey) -> Option<FirstFragment> {
        self.fragments.borrow().get(key).copied()
    }

    fn note_fragment(&self, key: &FragmentKey, first: &FirstFragment) {
        self.fragments.borrow_mut().insert(*key, *first);
    }

    fn route(&self, _: &Packet, to: &Tuple, _: u16, next_hop: &mut NextHop) -> Route {
        self.asked.set(self.asked.get() + 1);
        self.gateway.set(self.router.get().unwrap_or(to.destination));
        next_hop.ifindex = IFINDEX;
        next_hop.mtu = 1280;
        self.route.get()
    }

    fn gateway(&self) -> Address {
        self.gateway.get()
    }

    fn socket(&self, packet: &Packet) -> Socket {
        self.socket_look_ups.set(self.socket_look_ups.get() + 1);
        self.sockets.borrow().get(&packet.tuple).copied().unwrap_or(Socket::None)
    }

    fn assign(&self, packet: &Packet, to: &Tuple) -> bool {
        let listener = (to.destination, to.destination_port.number());
        self.listeners.borrow().contains(&listener) && (packet.flags.opens() || self.cookies.get())
    }

    fn scratch(&self) -> Option<NonNull<Scratch>> {
        NonNull::new(self.scratch.get())
    }
}
