//! Any state to any other, over tables that check after each single write that every way from a
//! frontend to a backend is whole.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex};

use ipnet::IpNet;
use proptest::prelude::*;
use redirector_common::node::PortBlock;
use redirector_common::{Address, Family, Origin, Peer, Port, PortFlags, Protocol};

use super::*;
use crate::dataplane::encode::{Capacity, EncodeError, encode};
use crate::dataplane::ids::Cursors;
use crate::dataplane::info::{Info, format_range};
use crate::model::desired::{self, Desired, NodeAddresses};
use crate::model::{
    Algorithm, BackendAddress, BackendSpec, Forwarding, FrontendSpec, Service as ModelService,
    ServiceKey, Source, TrafficPolicy,
};

const CAPACITY: Capacity = Capacity { services: 64, backends: 64, lines: 8192 };

/// The maps as packets see them.
#[derive(Default)]
struct World {
    contents: Contents,
    /// What packets may still be looking at although nothing leads there any more.
    watched: Option<Contents>,
    /// Before and after.
    between: Option<(Contents, Contents)>,
    /// Whether packets to other ports ask for addresses that only frontends have.
    vips: bool,
}

impl World {
    fn check(&self) {
        check_ways(&self.contents);
        if let Some((before, after)) = &self.between {
            check_sources(before, &self.contents, after);
        }
        if let Some(watched) = &self.watched {
            for (line, value) in &watched.maglev {
                assert_eq!(self.contents.maglev.get(line), Some(value), "line {line} in use");
            }
            for (id, value) in &watched.backends {
                assert_eq!(self.contents.backends.get(id), Some(value), "backend {id} in use");
            }
            for id in watched.services.keys() {
                assert!(self.contents.services.contains_key(id), "service {id} in use");
            }
            for range in watched.ranges.keys() {
                assert!(self.contents.ranges.contains_key(range), "{range:?} in use");
            }
        }
    }
}

fn check_ways(contents: &Contents) {
    for (frontend, value) in &contents.frontends {
        let service = contents.services.get(&value.service);
        let service = service.unwrap_or_else(|| panic!("{frontend:?} leads to no service"));
        for origin in Origin::ALL {
            let table = contents.table(service, origin).expect("the table is whole");
            for backend in &table {
                let found = contents.backends.contains_key(backend);
                assert!(found, "{frontend:?} leads to no backend from {origin:?}");
            }
        }
        let flags = contents.ports.get(frontend.protocol(), frontend.port);
        assert!(flags.intersects(PortFlags::FRONTEND), "{frontend:?} is not looked up");
        assert!(contents.infos.contains_key(&value.service), "{frontend:?} has no name");
    }
}

/// Who may come to a service before and after may come meanwhile, and who may not, may not.
fn check_sources(before: &Contents, now: &Contents, after: &Contents) {
    for (frontend, value) in &now.frontends {
        let same = |contents: &Contents| contents.frontends.get(frontend) == Some(value);
        if !same(before) || !same(after) {
            continue;
        }
        for client in ["10.1.0.1", "10.2.0.1", "10.2.3.4", "2001:db8:1::1", "2001:db8:2::1"] {
            let client = client.parse::<IpAddr>().expect("an address").into();
            let [was, is, will] = [before, now, after].map(|it| admits(it, value.service, client));
            assert!(was != will || is == was, "{client} to {frontend:?}: {was}, {is}, {will}");
        }
    }
}

/// What packets find.
fn admits(contents: &Contents, service: ServiceId, client: Address) -> bool {
    !contents.services[&service].limits_sources()
        || contents.ranges.keys().any(|range| range.admits(service, &client))
}

/// Between two states TC alone may serve a frontend; in a state XDP takes part where it can.
fn check_remote(contents: &Contents) {
    for (frontend, value) in &contents.frontends {
        let service = &contents.services[&value.service];
        let table = contents.table(service, Origin::Outside).expect("the table is whole");
        let remote = table.iter().any(|id| !contents.backends[id].is_local());
        let flags = contents.ports.get(frontend.protocol(), frontend.port);
        assert!(!remote || flags.intersects(PortFlags::REMOTE), "{frontend:?} passes XDP");
    }
}

/// Clients may stay with exactly those backends that new flows may go to.
fn check_takers(contents: &Contents) {
    for (id, service) in &contents.services {
        for origin in Origin::ALL {
            let table = contents.table(service, origin).expect("the table is whole");
            let expected: BTreeSet<_> = match service.has_affinity() {
                true => table.into_iter().collect(),
                false => BTreeSet::new(),
            };
            let takers = contents.takers.iter();
            let found: BTreeSet<_> = takers
                .filter(|(key, taker)| key.service == *id && taker.takes_from(origin))
                .map(|(key, _)| key.backend)
                .collect();
            assert_eq!(found, expected, "service {id} from {origin:?}");
        }
    }
}

struct Watched<K, V> {
    world: Arc<Mutex<World>>,
    select: fn(&mut Contents) -> &mut BTreeMap<K, V>,
    /// What an array of the kernel cannot tell from an element that is not there.
    is_unused: fn(&V) -> bool,
}

impl<K: Ord + Copy, V: Copy> Table<K, V> for Watched<K, V> {
    fn entries(&self) -> Result<BTreeMap<K, V>, TableError> {
        let mut world = self.world.lock().expect("not poisoned");
        let mut all = (self.select)(&mut world.contents).clone();
        all.retain(|_, value| !(self.is_unused)(value));
        Ok(all)
    }

    fn set(&mut self, key: &K, value: &V) -> Result<(), TableError> {
        let mut world = self.world.lock().expect("not poisoned");
        (self.select)(&mut world.contents).insert(*key, *value);
        world.check();
        Ok(())
    }

    fn remove(&mut self, key: &K) -> Result<(), TableError> {
        let mut world = self.world.lock().expect("not poisoned");
        (self.select)(&mut world.contents).remove(key);
        world.check();
        Ok(())
    }
}

impl PortTable for Watched<u32, PortBlock> {
    fn mark_vips(&mut self, vips: bool) -> Result<(), TableError> {
        self.world.lock().expect("not poisoned").vips = vips;
        Ok(())
    }
}

fn tables(world: &Arc<Mutex<World>>) -> Tables {
    fn table<K: Ord + Copy + Send + 'static, V: Copy + Send + 'static>(
        world: &Arc<Mutex<World>>,
        select: fn(&mut Contents) -> &mut BTreeMap<K, V>,
    ) -> DynTable<K, V> {
        let world = Arc::clone(world);
        Box::new(Watched { world, select, is_unused: |_| false })
    }
    let waiting = Arc::clone(world);
    Tables {
        frontends: table(world, |contents| &mut contents.frontends),
        services: Box::new(Watched {
            world: Arc::clone(world),
            select: |contents| &mut contents.services,
            is_unused: |service| *service == Service::default(),
        }),
        ranges: table(world, |contents| &mut contents.ranges),
        maglev: table(world, |contents| &mut contents.maglev),
        backends: table(world, |contents| &mut contents.backends),
        slots: table(world, |contents| &mut contents.slots),
        infos: table(world, |contents| &mut contents.infos),
        takers: table(world, |contents| &mut contents.takers),
        vips: table(world, |contents| &mut contents.vips),
        peers: table(world, |contents| &mut contents.peers),
        ports: Box::new(Watched {
            world: Arc::clone(world),
            select: |contents| &mut contents.ports.blocks,
            is_unused: |_| false,
        }),
        wait_for_packets: Box::new(move || waiting.lock().expect("not poisoned").watched = None),
    }
}

/// One agent's life: the maps, and what it remembers between syncs.
struct Node {
    world: Arc<Mutex<World>>,
    tables: Tables,
    actual: Contents,
    cursors: Cursors,
    capacity: Capacity,
}

impl Node {
    fn new() -> Self {
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

    /// A new agent over the same maps.
    fn restart(&mut self) {
        self.actual = self.tables.read().expect("read");
        self.cursors = Cursors::default();
    }

    fn apply(&mut self, services: &[ModelService]) -> Writes {
        let desired = desired::build(services, &addresses());
        let encoded = self.encode(&desired).expect("fits");
        {
            let mut world = self.world.lock().expect("not poisoned");
            world.watched = Some(self.actual.clone());
            world.between = Some((self.actual.clone(), encoded.clone()));
        }
        let writes = self.tables.sync(&mut self.actual, &encoded).expect("synced");
        {
            let mut world = self.world.lock().expect("not poisoned");
            world.watched = None;
            world.between = None;
        }
        let in_use = Ports::default();
        self.tables.release_ports(&mut self.actual, &encoded.ports, &in_use).expect("released");
        assert_eq!(self.tables.read().expect("read"), self.actual);
        assert_eq!(self.actual, encoded);
        check_remote(&self.actual);
        check_takers(&self.actual);
        let vips = self.world.lock().expect("not poisoned").vips;
        assert_eq!(vips, !self.actual.vips.is_empty());
        writes
    }

    fn encode(&mut self, desired: &Desired) -> Result<Contents, EncodeError> {
        encode(desired, &self.actual, 50000..=50015, self.capacity, &mut self.cursors)
    }
}

fn addresses() -> NodeAddresses {
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

/// Contents without numbers and places, which depend on what was there before.
fn essence(contents: &Contents) -> BTreeMap<(ServiceKey, bool), String> {
    let backend = |id: &BackendId| format!("{:?}", contents.backends[id]);
    let mut all = BTreeMap::new();
    for (id, info) in &contents.infos {
        let info = Info::decode(info).expect("legible");
        let service = &contents.services[id];
        let tables = Origin::ALL.map(|origin| -> Vec<String> {
            contents.table(service, origin).expect("whole").iter().map(backend).collect()
        });
        let slots: Vec<String> = contents
            .slots
            .iter()
            .filter(|(key, _)| key.service == *id)
            .map(|(key, slot)| {
                format!("{} {} {} {}", key.slot, backend(&slot.backend), slot.weight, slot.state)
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
        let text = format!("{flags} {tables:?} {slots:?} {frontends:?} {ranges:?} {affinity:?}");
        all.insert((info.key, info.family == Family::V6), text);
    }
    all
}

fn service(
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

fn services() -> impl Strategy<Value = Vec<ModelService>> {
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_state_is_reached_from_any_other(states in prop::collection::vec(services(), 1..5)) {
        let mut node = Node::new();
        for state in &states {
            node.apply(state);
            let mut fresh = Node::new();
            fresh.apply(state);
            prop_assert_eq!(essence(&node.actual), essence(&fresh.actual));
        }
    }

    #[test]
    fn a_restart_writes_nothing(state in services()) {
        let mut node = Node::new();
        node.apply(&state);
        let before = node.actual.clone();
        node.restart();
        prop_assert!(node.apply(&state).is_none());
        prop_assert_eq!(&node.actual, &before);
    }
}

#[test]
fn numbers_stay_when_others_go() {
    let front = |port| BTreeSet::from([(port, true)]);
    let mut node = Node::new();
    let first = service(1, &front(80), &[(2, 8080, 1)], &[]);
    let second = service(2, &front(81), &[(3, 8080, 1), (4, 8080, 1)], &[]);
    node.apply(&[first, second.clone()]);
    let before = node.actual.frontends.clone();
    node.restart();
    node.apply(&[second]);
    assert!(!node.actual.frontends.is_empty());
    for (key, frontend) in &node.actual.frontends {
        assert_eq!(before.get(key), Some(frontend));
    }
}

#[test]
fn ports_that_flows_use_are_kept() {
    let mut node = Node::new();
    node.apply(&[service(1, &BTreeSet::from([(80, true)]), &[(2, 8080, 1)], &[])]);
    let encoded = node.encode(&Desired::default()).expect("fits");
    node.tables.sync(&mut node.actual, &encoded).expect("synced");
    let port = Port::new(80);
    let mut in_use = Ports::default();
    in_use.add(Protocol::Tcp, port, PortFlags::FRONTEND);
    let (tables, actual) = (&mut node.tables, &mut node.actual);
    tables.release_ports(actual, &encoded.ports, &in_use).expect("released");
    assert_eq!(actual.ports.get(Protocol::Tcp, port), PortFlags::FRONTEND);
    let none = Ports::default();
    tables.release_ports(actual, &encoded.ports, &none).expect("released");
    assert_eq!(actual.ports.get(Protocol::Tcp, port), PortFlags(0));
    assert_eq!(*actual, encoded);
}

#[test]
fn what_does_not_fit_is_named() {
    let mut node = Node::new();
    let backends: Vec<_> = (0..70).map(|port| (2, 8000 + port, 1)).collect();
    let state = [service(1, &BTreeSet::from([(80, true)]), &backends, &[])];
    let error =
        node.encode(&desired::build(&state, &addresses())).expect_err("more than 64 backends");
    assert!(error.to_string().contains("BACKENDS is full"), "{error}");
}

#[test]
fn every_range_belongs_to_its_family_s_service() {
    let mut node = Node::new();
    let ranges = ["10.1.0.0/16", "10.2.0.0/16"].map(|range| range.parse().expect("a network"));
    node.apply(&[service(1, &BTreeSet::from([(80, true)]), &[(0, 8080, 1)], &ranges)]);
    let contents = &node.actual;
    assert_eq!(contents.ranges.len(), 2);
    for (key, frontend) in &contents.frontends {
        let client = |text: &str| text.parse::<IpAddr>().expect("an address").into();
        let admitted = ["10.1.2.3", "10.3.0.1", "2001:db8::7"]
            .map(|text| admits(contents, frontend.service, client(text)));
        // No range is of IPv6: nobody comes that way.
        assert_eq!(admitted, [key.address.family() == Family::V4, false, false], "{key:?}");
    }
}

/// Services of ten backends each.
fn tens(services: u8) -> Vec<ModelService> {
    let backends: Vec<_> = (0..10).map(|port| (2, 8000 + port, 1)).collect();
    (0..services)
        .map(|name| service(name, &BTreeSet::from([(100 + u16::from(name), true)]), &backends, &[]))
        .collect()
}

#[test]
fn tables_are_as_dense_as_there_is_room_for() {
    let mut node = Node::new();
    node.capacity.lines = 400;
    let mut sizes = |services| {
        node.apply(&tens(services));
        let crowded = node.cursors.is_crowded();
        if crowded {
            node.apply(&tens(services));
        }
        assert!(!node.cursors.is_crowded());
        let sizes = node.actual.services.values().map(|service| service.table_size);
        let mut sizes: Vec<_> = sizes.filter(|size| *size > 0).collect();
        sizes.dedup();
        (sizes, crowded)
    };
    // 350 of the 400 lines may be used: 5 × 64, 21 × 16, 87 × 4.
    assert_eq!(sizes(5), (vec![1021], false));
    assert_eq!(sizes(6), (vec![251], true));
    assert_eq!(sizes(21), (vec![251], false));
    assert_eq!(sizes(22), (vec![61], true));
    assert_eq!(sizes(31), (vec![61], false));
    assert_eq!(sizes(2), (vec![1021], false));
}

#[test]
fn affinity_groups_keep_their_numbers() {
    let mut node = Node::new();
    let with = |name, group: Option<&str>| ModelService {
        affinity_seconds: Some(60),
        affinity_group: group.map(str::to_owned),
        ..service(name, &BTreeSet::from([(80 + u16::from(name), true)]), &[(2, 8080, 1)], &[])
    };
    node.apply(&[with(1, Some("a")), with(2, Some("a")), with(3, None), with(4, None)]);
    let groups = |node: &Node| -> Vec<u32> {
        let front = |name: u16| {
            let mut all = node.actual.frontends.iter();
            let found = all.find(|(key, _)| key.port == Port::new(80 + name));
            found.map_or(0, |(_, it)| node.actual.services[&it.service].affinity_group)
        };
        (1..=4).map(front).collect()
    };
    let before = groups(&node);
    assert!(before.iter().all(|group| *group != 0), "{before:?}");
    assert_eq!(before[0], before[1]);
    assert_eq!(before[1..].iter().collect::<BTreeSet<_>>().len(), 3);
    node.restart();
    // The service that had the number first may go.
    node.apply(&[with(2, Some("a")), with(3, None), with(4, None)]);
    assert_eq!(groups(&node), [0, before[1], before[2], before[3]]);
    for (key, info) in &node.actual.infos {
        let info = Info::decode(info).expect("legible");
        let group = node.actual.services[key].affinity_group;
        let twin = node.actual.infos.iter().find(|(id, other)| {
            *id != key && Info::decode(other).is_ok_and(|other| other.key == info.key)
        });
        let (id, _) = twin.expect("both families");
        assert_eq!(node.actual.services[id].affinity_group, group, "families share");
    }
}
