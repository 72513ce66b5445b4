//! What the maps hold, as the packet code asks for it; every answer is noted.

use std::cell::{Cell, RefCell, UnsafeCell};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ptr::NonNull;
use std::rc::Rc;

use redirector_common::packet::environment::{Inserted, Recorded};
use redirector_common::packet::pressure::Slot;
use redirector_common::packet::{
    Environment, FlowEntry, NextHop, Packet, Route, Scratch, Socket, new_flow, pressure,
};
use redirector_common::service::{MAGLEV_LINE, MaglevLine};
use redirector_common::{
    Address, Affinity, AffinityKey, Backend, BackendId, CacheSet, Direction, FirstFragment, Flow,
    FragmentKey, Frontend, FrontendKey, Interface, NodeConfig, Origin, Peer, Port, PortFlags,
    Protocol, Reason, RingSlot, Service, ServiceId, SourceRange, Taker, TakerKey, Tuple,
};
use serde::Serialize;

use super::sockets::{self, TcpSocket};
use crate::cli::counters::interface_name;
use crate::cli::map::flag_names;
use crate::cli::service::backend_address;
use crate::dataplane::info::{Info, format_frontend};
use crate::dataplane::pinned::{Pinned, PinnedError};
use crate::dataplane::{gc, routes};

/// One answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Found {
    pub(super) step: &'static str,
    pub(super) found: String,
}

/// What stands in the two large maps, of which only a few entries are asked for.
pub(super) trait Large {
    /// A half of a flow.
    fn flow(&self, key: &Tuple) -> Result<Option<Flow>, PinnedError>;

    /// A line of the Maglev tables.
    fn maglev_line(&self, line: u32) -> Result<Option<MaglevLine>, PinnedError>;
}

impl Large for Pinned {
    fn flow(&self, key: &Tuple) -> Result<Option<Flow>, PinnedError> {
        Self::flow(self, key)
    }

    fn maglev_line(&self, line: u32) -> Result<Option<MaglevLine>, PinnedError> {
        Self::maglev_line(self, line)
    }
}

/// A half of a flow, boxed, so that it stays where it is; `None`: there is none.
type Half = Option<Box<UnsafeCell<Flow>>>;

/// A copy of the maps.
pub(super) struct Copied {
    pub(super) now: u64,
    pub(super) random: RefCell<u32>,
    pub(super) node: NodeConfig,
    pub(super) ports: BTreeMap<(Protocol, u32), PortFlags>,
    pub(super) frontends: BTreeMap<FrontendKey, Frontend>,
    pub(super) services: BTreeMap<ServiceId, Service>,
    pub(super) infos: BTreeMap<ServiceId, Info>,
    pub(super) ranges: BTreeSet<SourceRange>,
    pub(super) affinities: BTreeMap<AffinityKey, Affinity>,
    pub(super) takers: BTreeMap<TakerKey, Taker>,
    pub(super) vips: BTreeSet<Address>,
    pub(super) peers: BTreeMap<Address, Peer>,
    pub(super) backends: BTreeMap<BackendId, Backend>,
    pub(super) interfaces: BTreeMap<u32, Interface>,
    pub(super) large: Rc<dyn Large>,
    /// What was asked for of the flows, and what became of it.
    pub(super) flows: RefCell<BTreeMap<Tuple, Half>>,
    /// Why the large maps could not be read.
    failure: RefCell<Option<PinnedError>>,
    pub(super) sockets: Vec<TcpSocket>,
    pub(super) find_way: fn(Address) -> std::io::Result<Option<routes::Way>>,
    /// The neighbour on the way that was last found.
    gateway: Cell<Address>,
    scratch: Box<UnsafeCell<Scratch>>,
    held: Box<UnsafeCell<Tuple>>,
    steps: RefCell<Vec<Found>>,
}

impl Copied {
    /// Reads the maps.
    pub(super) fn load(maps: &Pinned) -> Result<Self, PinnedError> {
        Ok(Self {
            now: gc::now(),
            // Where it matters, the text says that it was chosen at random.
            random: RefCell::new(gc::now() as u32),
            node: maps.node()?,
            ports: maps.ports()?,
            frontends: maps.frontends()?,
            services: maps.services()?,
            infos: maps.infos()?,
            ranges: maps.source_ranges()?,
            affinities: maps.affinities()?,
            takers: maps.takers()?,
            vips: maps.vips()?,
            peers: maps.peers()?,
            backends: maps.backends()?,
            interfaces: maps.interfaces()?,
            sockets: sockets::read(),
            find_way: |to| routes::find(to.into()),
            ..Self::empty(Rc::new(maps.clone()))
        })
    }

    /// Maps that hold nothing, but for the large ones.
    pub(super) fn empty(large: Rc<dyn Large>) -> Self {
        let flow = Flow::new(Direction::Forward, Packet::EMPTY.tuple, 0, 0, false, 0);
        Self {
            now: 0,
            random: RefCell::new(0),
            node: NodeConfig::default(),
            ports: BTreeMap::new(),
            frontends: BTreeMap::new(),
            services: BTreeMap::new(),
            infos: BTreeMap::new(),
            ranges: BTreeSet::new(),
            affinities: BTreeMap::new(),
            takers: BTreeMap::new(),
            vips: BTreeSet::new(),
            peers: BTreeMap::new(),
            backends: BTreeMap::new(),
            interfaces: BTreeMap::new(),
            large,
            flows: RefCell::default(),
            failure: RefCell::default(),
            sockets: Vec::new(),
            find_way: |_| Ok(None),
            gateway: Cell::new(Address::UNSPECIFIED),
            scratch: Box::new(UnsafeCell::new(Scratch {
                forward: flow,
                reply: flow,
                reply_key: Packet::EMPTY.tuple,
                affinity_group: 0,
                wanted: 0,
                source: Address::UNSPECIFIED,
            })),
            held: Box::new(UnsafeCell::new(Packet::EMPTY.tuple)),
            steps: RefCell::default(),
        }
    }

    /// What was asked and answered so far.
    pub(super) fn take_steps(&self) -> Vec<Found> {
        self.steps.take()
    }

    /// Why what was found may be wrong, if so.
    pub(super) fn take_failure(&self) -> Option<PinnedError> {
        self.failure.take()
    }

    /// What was read, or nothing and the failure noted.
    fn read<T>(&self, found: Result<Option<T>, PinnedError>) -> Option<T> {
        found.unwrap_or_else(|error| {
            self.failure.borrow_mut().get_or_insert(error);
            None
        })
    }

    /// The half that stands there now.
    fn half(&self, key: &Tuple) -> Option<NonNull<Flow>> {
        let mut flows = self.flows.borrow_mut();
        let half = flows.entry(*key).or_insert_with(|| {
            self.read(self.large.flow(key)).map(|flow| Box::new(UnsafeCell::new(flow)))
        });
        half.as_ref().and_then(|half| NonNull::new(half.get()))
    }

    fn note(&self, step: &'static str, found: String) {
        let mut steps = self.steps.borrow_mut();
        let found = Found { step, found };
        // What is asked twice is said once.
        if steps.last() != Some(&found) {
            steps.push(found);
        }
    }

    fn service_name(&self, id: ServiceId) -> String {
        self.infos.get(&id).map_or_else(
            || format!("service {id}"),
            |info| match &info.key.namespace {
                Some(namespace) => format!("service {namespace}/{}", info.key.name),
                None => format!("service {}", info.key.name),
            },
        )
    }

    fn backend_name(&self, id: BackendId) -> String {
        match self.backends.get(&id) {
            Some(backend) => {
                let (address, port) = (backend_address(backend), backend.port.number());
                if address.contains(':') {
                    format!("[{address}]:{port}")
                } else {
                    format!("{address}:{port}")
                }
            }
            None => format!("backend {id}, which is not there"),
        }
    }
}

/// The same maps, as they were read: of the flows, as they are.
impl Clone for Copied {
    fn clone(&self) -> Self {
        Self {
            now: self.now,
            random: self.random.clone(),
            node: self.node,
            ports: self.ports.clone(),
            frontends: self.frontends.clone(),
            services: self.services.clone(),
            infos: self.infos.clone(),
            ranges: self.ranges.clone(),
            affinities: self.affinities.clone(),
            takers: self.takers.clone(),
            vips: self.vips.clone(),
            peers: self.peers.clone(),
            backends: self.backends.clone(),
            interfaces: self.interfaces.clone(),
            find_way: self.find_way,
            ..Self::empty(Rc::clone(&self.large))
        }
    }
}

fn show(tuple: &Tuple) -> String {
    let end = |address: Address, port: Port| SocketAddr::new(address.into(), port.number());
    let source = end(tuple.source, tuple.source_port);
    format!("{source} → {}", end(tuple.destination, tuple.destination_port))
}

impl Environment for Copied {
    fn now(&self) -> u64 {
        self.now
    }

    fn random(&self) -> u32 {
        let mut random = self.random.borrow_mut();
        *random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *random
    }

    fn node(&self) -> NodeConfig {
        self.node
    }

    fn port_flags(&self, protocol: Protocol, port: Port) -> PortFlags {
        let flags = self.ports.get(&(protocol, port.number().into())).copied();
        let flags = flags.unwrap_or_default();
        let names = flag_names(flags).join(", ");
        let found = if names.is_empty() { "not used by redirector".to_owned() } else { names };
        self.note("port", format!("{port}/{}: {found}", protocol.name().to_lowercase()));
        if self.vips.is_empty() { flags } else { flags.union(PortFlags::VIPS) }
    }

    fn flow(&self, key: &Tuple) -> Option<FlowEntry> {
        let Some(half) = self.half(key) else {
            self.note("flow", format!("none for {}", show(key)));
            return None;
        };
        // SAFETY: a copy of our own, which is removed only by the packet that holds it, and to
        // which nothing else refers at this moment.
        let flow = unsafe { half.read() };
        self.note(
            "flow",
            format!(
                "{} since {} s, of {}, to {}",
                flow.state().name(),
                self.now.saturating_sub(flow.created) / 1_000_000_000,
                self.service_name(flow.service),
                self.backend_name(flow.backend)
            ),
        );
        // SAFETY: as above.
        Some(unsafe { FlowEntry::new(half) })
    }

    fn insert_flow(&self, key: &Tuple, flow: &Flow) -> Inserted {
        if self.half(key).is_some() {
            return Inserted::Exists;
        }
        self.flows.borrow_mut().insert(*key, Some(Box::new(UnsafeCell::new(*flow))));
        Inserted::Done
    }

    fn remove_flow(&self, key: &Tuple) {
        self.flows.borrow_mut().insert(*key, None);
    }

    fn partner(&self, entry: FlowEntry) -> Option<FlowEntry> {
        let half = self.half(&entry.translated().reversed())?;
        // SAFETY: as in `flow`.
        Some(unsafe { FlowEntry::new(half) })
    }

    fn remove_partner(&self, entry: FlowEntry) {
        self.remove_flow(&entry.translated().reversed());
    }

    // The copy has no need of room.
    fn admit(&self, _: &Packet, _: &Scratch) {}

    fn reclaim(&self) -> bool {
        false
    }

    fn clear_slot(&self, _: u32, _: bool) -> Slot {
        Slot::Taken
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
        0
    }

    fn next_reclaimed(&self) -> u32 {
        0
    }

    fn ring_slot(&self, _: u32) -> Option<NonNull<RingSlot>> {
        None
    }

    fn count(&self, _: Reason) {}

    fn ticks(&self) -> u32 {
        0
    }

    fn cache_set(&self, _: u32) -> Option<NonNull<CacheSet>> {
        // What it says stands in the flow table too.
        None
    }

    fn epoch(&self, _: u32) -> u32 {
        // Of no flow: the way is asked for anew.
        u32::MAX
    }

    fn raise_epoch(&self, _: u32) {}

    fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        let frontend = self.frontends.get(key).copied();
        let found = frontend.map_or_else(
            || "none: no service has it".to_owned(),
            |frontend| self.service_name(frontend.service),
        );
        self.note("frontend", format!("{}: {found}", format_frontend(key)));
        frontend
    }

    fn service(&self, id: ServiceId) -> Option<Service> {
        let service = self.services.get(&id).copied();
        let found = service.map_or_else(
            || "not there".to_owned(),
            |service| {
                let (_, size) = service.table(Origin::Outside);
                let mut found = match size {
                    0 => "no backend takes new flows".to_owned(),
                    1 => "one backend".to_owned(),
                    size => format!("a table of {size} entries"),
                };
                if service.is_random() {
                    found += ", chosen from at random";
                }
                if service.has_affinity() {
                    found += &format!(", clients stay for {} s", service.affinity_seconds);
                }
                found
            },
        );
        self.note("service", format!("{}: {found}", self.service_name(id)));
        service
    }

    fn source_allowed(&self, service: ServiceId, client: &Address) -> bool {
        let allowed = self.ranges.iter().any(|range| range.admits(service, client));
        let found = if allowed { "in a source range" } else { "in no source range" };
        self.note("source", format!("{client} is {found} of the service"));
        allowed
    }

    fn table_entry(&self, index: u32) -> Option<BackendId> {
        let line = self.read(self.large.maglev_line(index / MAGLEV_LINE))?;
        let id = line.entries.get((index % MAGLEV_LINE) as usize).copied()?;
        self.note("table", format!("entry {index}: {}", self.backend_name(id)));
        Some(id)
    }

    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        let affinity = self.affinities.get(key).copied();
        let found = affinity.map_or_else(
            || "is not remembered".to_owned(),
            |affinity| {
                let age = self.now.saturating_sub(affinity.last_seen) / 1_000_000_000;
                format!("went to {} {age} s ago", self.backend_name(affinity.backend))
            },
        );
        self.note("affinity", format!("{} {found}", key.client));
        affinity
    }

    fn set_affinity(&self, _: &AffinityKey, _: &Affinity) {}

    fn taker(&self, key: &TakerKey) -> Taker {
        let taker = self.takers.get(key).copied().unwrap_or_default();
        let found = if taker.takes_from(Origin::Outside) { "stays" } else { "takes no new flows" };
        self.note("affinity", format!("{}: {found}", self.backend_name(key.backend)));
        taker
    }

    fn is_vip(&self, address: &Address) -> bool {
        let is_vip = self.vips.contains(address);
        if is_vip {
            self.note("address", format!("only frontends have {address}"));
        }
        is_vip
    }

    fn peer(&self, address: &Address) -> Peer {
        let peer = self.peers.get(address).copied().unwrap_or_default();
        let found = if peer.takes_flows() {
            "a node that runs redirector"
        } else if peer.is_known() {
            "a node that is not known to run redirector: it gets no new flows"
        } else {
            "no other node"
        };
        self.note("peer", format!("{address}: {found}"));
        peer
    }

    fn may_answer(&self) -> bool {
        true
    }

    fn backend(&self, id: BackendId) -> Option<Backend> {
        let backend = self.backends.get(&id).copied();
        let place = match backend {
            Some(backend) if backend.is_local() => "on this host",
            Some(_) => "elsewhere",
            None => "not there",
        };
        self.note("backend", format!("{}: {place}", self.backend_name(id)));
        // As the kernel's array has it.
        Some(backend.unwrap_or(Backend::NONE))
    }

    fn interface(&self, ifindex: u32) -> Option<Interface> {
        self.interfaces.get(&ifindex).copied()
    }

    fn fragment(&self, _: &FragmentKey) -> Option<FirstFragment> {
        None
    }

    fn note_fragment(&self, _: &FragmentKey, _: &FirstFragment) {}

    fn socket(&self, packet: &Packet) -> Socket {
        let socket = sockets::owner(&self.sockets, packet);
        let found = match socket {
            Socket::None => "none of this host's has this connection",
            Socket::TimeWait => "one of this host's has just closed this connection",
            Socket::Open => "one of this host's has this connection",
        };
        self.note("socket", found.to_owned());
        socket
    }

    fn assign(&self, _: &Packet, to: &Tuple) -> bool {
        let listens = sockets::listens(&self.sockets, to);
        let found = if listens { "a program listens" } else { "no program listens" };
        self.note("socket", format!("{found} on port {}", to.destination_port));
        listens
    }

    fn route(&self, _: &Packet, to: &Tuple, len: u16, next_hop: &mut NextHop) -> Route {
        let (route, found) = match (self.find_way)(to.destination) {
            Err(error) => (Route::Unreachable, format!("the kernel does not say: {error}")),
            Ok(None) => (Route::Unreachable, "no way that leaves this host".to_owned()),
            Ok(Some(way)) => {
                self.gateway.set(way.gateway.map_or(to.destination, Address::from));
                next_hop.ifindex = way.ifindex;
                next_hop.mtu = way.mtu;
                let by = way.gateway.map(|gateway| format!(" by {gateway}")).unwrap_or_default();
                let out = format!("out of {}{by}", interface_name(way.ifindex));
                if u32::from(len) > way.mtu {
                    (Route::TooBig, format!("{out}, where at most {} bytes fit", way.mtu))
                } else if way.is_resolved {
                    (Route::Via, out)
                } else {
                    (Route::Unresolved, format!("{out}, to a neighbour yet to be found"))
                }
            }
        };
        self.note("route", format!("to {}: {found}", to.destination));
        route
    }

    fn gateway(&self) -> Address {
        self.gateway.get()
    }

    fn scratch(&self) -> Option<NonNull<Scratch>> {
        NonNull::new(self.scratch.get())
    }
}
