//! What the maps hold, for the packet code to ask.

mod answers;

use std::cell::{Cell, RefCell, UnsafeCell};
use std::collections::{BTreeMap, BTreeSet};
use std::ptr::NonNull;
use std::rc::Rc;

use redirector_common::packet::Memory;
use redirector_common::service::MaglevLine;
use redirector_common::{
    Address, Affinity, AffinityKey, Backend, BackendId, Flow, Frontend, FrontendKey, Interface,
    NodeConfig, Peer, PortFlags, Protocol, Service, ServiceId, SnatAddressKey, SourceRange, Taker,
    TakerKey, Tuple,
};
use serde::Serialize;

use super::sockets;
use crate::cli::service::backend_address;
use crate::dataplane::info::Info;
use crate::dataplane::pinned::{Pinned, PinnedError};
use crate::dataplane::proc_net::ListedSocket;
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
    pub(super) snat_addresses: BTreeMap<SnatAddressKey, Address>,
    pub(super) large: Rc<dyn Large>,
    /// What was asked for of the flows, and what became of it.
    pub(super) flows: RefCell<BTreeMap<Tuple, Half>>,
    /// Why the large maps could not be read.
    failure: RefCell<Option<PinnedError>>,
    pub(super) sockets: Vec<ListedSocket>,
    pub(super) find_way: fn(Address) -> std::io::Result<Option<routes::Way>>,
    /// The neighbour on the way that was last found.
    gateway: Cell<Address>,
    memory: Memory,
    steps: RefCell<Vec<Found>>,
}

impl Copied {
    /// Reads the maps.
    pub(super) fn load(maps: &Pinned) -> Result<Self, PinnedError> {
        Ok(Self {
            now: gc::now(),
            // Where translation ports are looked for from.
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
            snat_addresses: maps.snat_addresses()?,
            sockets: sockets::read(),
            find_way: |to| routes::find(to.into()),
            ..Self::empty(Rc::new(maps.clone()))
        })
    }

    /// Maps that hold nothing, but for the large ones.
    pub(super) fn empty(large: Rc<dyn Large>) -> Self {
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
            snat_addresses: BTreeMap::new(),
            large,
            flows: RefCell::default(),
            failure: RefCell::default(),
            sockets: Vec::new(),
            find_way: |_| Ok(None),
            gateway: Cell::new(Address::UNSPECIFIED),
            memory: Memory::default(),
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
            snat_addresses: self.snat_addresses.clone(),
            find_way: self.find_way,
            ..Self::empty(Rc::clone(&self.large))
        }
    }
}
