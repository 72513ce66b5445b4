//! An agent's life over such maps.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard};

use ipnet::IpNet;
use proptest::prelude::*;
use redirector_common::{BackendId, Family, Origin, Peer, Protocol};

use super::world::{World, tables};
use crate::dataplane::contents::{Contents, Ports};
use crate::dataplane::encode::{Capacity, EncodeError, Encoded, encode};
use crate::dataplane::ids::Cursors;
use crate::dataplane::info::{Info, format_range};
use crate::dataplane::sync::{Tables, Writes};
use crate::model::desired::{self, Desired, NodeAddresses};
use crate::model::{
    Algorithm, BackendAddress, BackendSpec, Forwarding, FrontendSpec, Service as ModelService,
    ServiceKey, Source, TrafficPolicy,
};

const CAPACITY: Capacity = Capacity { services: 64, backends: 64, lines: 8192 };

/// One agent's life: the maps, and what it remembers between syncs.
pub(super) struct Node {
    world: Arc<Mutex<World>>,
    pub(super) tables: Tables,
    pub(super) actual: Contents,
    pub(super) cursors: Cursors,
    pub(super) capacity: Capacity,
}

impl Node {
    pub(super) fn new() -> Self {
        let world = Arc::new(Mutex::new(World::default()));
        let tables = tables(&world);
        Self {
            world,
            tables,
            actual: Contents::default(),
            cursors: Cursors::default(),
            capacity: CAPACITY,
        }
    }

    pub(super) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().expect("not poisoned")
    }

    /// A new agent over the same maps.
    pub(super) fn restart(&mut self) {
        self.actual = self.tables.read().expect("read");
        self.cursors = Cursors::default();
    }

    pub(super) fn apply(&mut self, services: &[ModelService]) -> Writes {
        let desired = desired::build(services, &addresses());
        let encoded = self.encode(&desired).expect("fits");
        let contents = encoded.contents.clone();
        self.world().begin(&self.actual, &contents);
        let writes = self.tables.sync(&mut self.actual, encoded).expect("synced");
        self.world().end();
        let in_use = Ports::default();
        self.tables.release_ports(&mut self.actual, &contents.ports, &in_use).expect("released");
        assert_eq!(self.tables.read().expect("read"), self.actual);
        assert_eq!(self.actual, contents);
        let world = self.world();
        world.check_remote();
        world.check_takers();
        assert_eq!(world.vips, !self.actual.vips.is_empty());
        drop(world);
        writes
    }

    pub(super) fn encode(&mut self, desired: &Desired) -> Result<Encoded, EncodeError> {
        encode(
            desired,
            &self.actual,
            &*self.tables.maglev,
            50000..=50015,
            self.capacity,
            &mut self.cursors,
        )
    }

    /// Contents without numbers and places, which depend on what was there before.
    pub(super) fn essence(&self) -> BTreeMap<(ServiceKey, bool), String> {
        let contents = &self.actual;
        let world = self.world();
        let backend = |id: &BackendId| format!("{:?}", contents.backends[id]);
        let mut all = BTreeMap::new();
        for (id, info) in &contents.infos {
            let info = Info::decode(info).expect("legible");
            let service = &contents.services[id];
            let tables = Origin::ALL.map(|origin| -> Vec<String> {
                world.table(service, origin).iter().map(backend).collect()
            });
            let slots: Vec<String> = contents
                .slots
                .iter()
                .filter(|(key, _)| key.service == *id)
                .map(|(key, slot)| {
                    format!(
                        "{} {} {} {}",
                        key.slot,
                        backend(&slot.backend),
                        slot.weight,
                        slot.state
                    )
                })
                .collect();
            let frontends: Vec<String> = contents
                .frontends
                .iter()
                .filter(|(_, frontend)| frontend.service == *id)
                .map(|(key, frontend)| format!("{key:?} {}", frontend.local_address))
                .collect();
            let ranges: Vec<String> = contents
                .ranges
                .keys()
                .filter(|range| range.bits.service == *id)
                .map(format_range)
                .collect();
            let affinity = (service.has_affinity(), service.affinity_seconds);
            let flags = service.flags;
            let text =
                format!("{flags} {tables:?} {slots:?} {frontends:?} {ranges:?} {affinity:?}");
            all.insert((info.key, info.family == Family::V6), text);
        }
        all
    }
}

pub(super) fn addresses() -> NodeAddresses {
    let chosen = vec![
        IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
        IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
    ];
    let nodes = ["192.0.2.1", "192.0.2.2", "2001:db8::2"];
    NodeAddresses {
        host: chosen.iter().copied().collect(),
        chosen,
        nodes: nodes.map(|node| (node.parse().expect("an address"), Peer::taking())).into(),
        ..NodeAddresses::default()
    }
}

pub(super) fn service(
    name: u8,
    frontends: &BTreeSet<(u16, bool)>,
    backends: &[(u8, u16, u16)],
    source_ranges: &[IpNet],
) -> ModelService {
    ModelService {
        frontends: frontends
            .iter()
            .map(|(port, tcp)| FrontendSpec {
                address: None,
                port: *port,
                protocol: if *tcp { Protocol::Tcp } else { Protocol::Udp },
            })
            .collect(),
        backends: backends
            .iter()
            .map(|(host, port, weight)| {
                let address = match host {
                    0 => BackendAddress::Local,
                    1 => BackendAddress::At(Ipv4Addr::new(192, 0, 2, 1).into()),
                    host => BackendAddress::At(Ipv4Addr::new(10, 0, 0, *host).into()),
                };
                BackendSpec { weight: *weight, ..BackendSpec::new(address, *port) }
            })
            .collect(),
        source_ranges: source_ranges.to_vec(),
        ..ModelService::new(ServiceKey {
            source: Source::Static,
            namespace: None,
            name: format!("service-{name}"),
        })
    }
}

pub(super) fn services() -> impl Strategy<Value = Vec<ModelService>> {
    let frontends = prop::collection::btree_set((80..84u16, any::<bool>()), 0..3);
    let backends = prop::collection::vec((0..5u8, 8080..8083u16, 0..3u16), 0..4);
    let ranges = ["10.1.0.0/16", "10.2.0.0/16", "10.0.0.0/8", "2001:db8:1::/48", "::/0"];
    let ranges = ranges.map(|range| range.parse::<IpNet>().expect("a network"));
    // None, as often as not: everyone.
    let ranges =
        prop_oneof![Just(Vec::new()), prop::sample::subsequence(ranges.to_vec(), 1..=ranges.len())];
    let policy = prop_oneof![Just(TrafficPolicy::Cluster), Just(TrafficPolicy::Local)];
    let algorithm = prop_oneof![Just(Algorithm::Maglev), Just(Algorithm::Random)];
    let group = prop_oneof![Just(None), Just(Some("shared".to_owned()))];
    let settings =
        (policy, algorithm, prop::option::of(1..100u32), group, any::<bool>(), any::<bool>());
    let services =
        prop::collection::btree_map(0..6u8, (frontends, backends, ranges, settings), 0..5);
    services.prop_map(|all| {
        all.into_iter()
            .map(|(name, (frontends, backends, ranges, settings))| {
                let (policy, algorithm, affinity_seconds, affinity_group, vip, dsr) = settings;
                let mut service = ModelService {
                    policy,
                    forwarding: if dsr { Forwarding::Dsr } else { Forwarding::Snat },
                    algorithm,
                    affinity_seconds,
                    affinity_group,
                    ..service(name, &frontends, &backends, &ranges)
                };
                for frontend in service.frontends.iter_mut().filter(|_| vip) {
                    frontend.address = Some(Ipv4Addr::new(203, 0, 113, name).into());
                }
                service
            })
            .collect()
    })
}
