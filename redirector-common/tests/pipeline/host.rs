//! A node made of ordinary collections.

mod environment;

use std::cell::{Cell, RefCell, UnsafeCell};
use std::collections::{BTreeMap, BTreeSet};

use redirector_common::cache::{self, WAYS};
use redirector_common::node::NodeConfig;
use redirector_common::packet::{
    Decision, Environment, Hook, Memory, Outcome, Packet, Route, Socket, decide, decide_reply,
};
use redirector_common::{
    Address, Affinity, AffinityKey, Backend, BackendId, CacheSet, CachedFlow, FirstFragment, Flow,
    FragmentKey, Frontend, FrontendKey, Interface, Peer, Port, PortFlags, Protocol, Reason,
    RingSlot, Service, ServiceId, SnatAddressKey, SourceRange, SteeredKey, Taker, TakerKey, Tuple,
};

/// Interface by which everything leaves.
pub(crate) const IFINDEX: u32 = 7;
/// Sets of the flow cache: few, so that flows meet in them.
const CACHE_SETS: usize = 2;
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
    pub(crate) snat_addresses: BTreeMap<SnatAddressKey, Address>,
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
    ring: Box<[UnsafeCell<RingSlot>]>,
    admitted: Cell<u32>,
    reclaimed: Cell<u32>,
    /// What was counted that is no packet.
    pub(crate) counted: RefCell<BTreeMap<Reason, u32>>,
    memory: Memory,
    /// Connections that were handed to listeners.
    pub(crate) steered: RefCell<BTreeMap<SteeredKey, u64>>,
    /// Answers to SYNs whose segment size was to be lowered.
    pub(crate) clamped: Cell<u32>,
}

pub(crate) fn v4(last: u8) -> Address {
    Address::from_v4([192, 0, 2, last])
}

impl Host {
    /// A node with the address 192.0.2.1 and the translation ports 50000 to 50003.
    pub(crate) fn new() -> Self {
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
            snat_addresses: BTreeMap::new(),
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
            ring: (0..RING_SLOTS).map(|_| UnsafeCell::new(RingSlot::EMPTY)).collect(),
            admitted: Cell::default(),
            reclaimed: Cell::default(),
            counted: RefCell::default(),
            memory: Memory::default(),
            steered: RefCell::default(),
            clamped: Cell::default(),
        }
    }

    /// The same with a backend elsewhere behind these ports and one of its own behind those, of each
    /// protocol.
    pub(crate) fn serving(remote: &[u16], local: &[u16]) -> Self {
        let mut host = Self::new();
        for protocol in Protocol::ALL {
            host.serve(remote, protocol, Some(Backend::remote(v4(50), Port::new(8080))));
            host.serve(local, protocol, Some(Backend::local(Port::new(8080))));
        }
        host
    }

    /// One with a backend elsewhere behind ports 80 and 81, and its own behind 82, that has fewer
    /// ports to translate to than clients may ask for.
    pub(crate) fn crowded(caches: bool, ring_slots: u32) -> Self {
        let mut host = Self::serving(&[80, 81], &[82]);
        (host.caches, host.node.ring_slots, host.node.snat_count) = (caches, ring_slots, 6);
        host
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

    /// Removes flows that are over, as the agent does.
    pub(crate) fn collect(&self) {
        let (now, flows) = (self.now.get(), self.flows());
        for (key, half) in &flows {
            let partner = half.translated.reversed();
            if half.is_expired(now) && flows.get(&partner).is_none_or(|half| half.is_expired(now)) {
                self.remove_flow(key);
                self.remove_flow(&partner);
            }
        }
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
