//! Whatever changes in whatever order, what is kept is what would be made anew.

use proptest::prelude::*;
use redirector_common::Protocol;

use super::super::desired::build;
use super::super::{BackendAddress, BackendSpec, FrontendSpec, Source};
use super::*;

fn node() -> NodeAddresses {
    let ip = |text: &str| text.parse().expect("an address");
    NodeAddresses {
        chosen: vec![ip("192.0.2.10"), ip("2001:db8::10")],
        host: [ip("192.0.2.10"), ip("2001:db8::10")].into(),
        ..NodeAddresses::default()
    }
}

fn key(name: u8) -> ServiceKey {
    ServiceKey { source: Source::Static, namespace: None, name: name.to_string() }
}

/// One way to the only port of a Service.
fn way(source: Source) -> ServiceKey {
    ServiceKey { source, namespace: Some("default".to_owned()), name: "web".to_owned() }
}

fn any_key() -> impl Strategy<Value = ServiceKey> {
    let sources = vec![Source::NodePort, Source::ExternalIp, Source::LoadBalancer];
    prop_oneof![(0_u8..4).prop_map(key), proptest::sample::select(sources).prop_map(way)]
}

/// What a change is: a service put, or taken out without frontends; other nodes, or networks.
#[derive(Clone, Debug)]
enum Change {
    Service(Rank, Service),
    Nodes(BTreeMap<IpAddr, Peer>),
    Sides(BTreeMap<IpNet, Side>),
}

fn any_change() -> impl Strategy<Value = Change> {
    let nodes = ["192.0.2.10", "192.0.2.20", "203.0.113.1", "2001:db8::20"];
    let nodes = proptest::sample::subsequence(nodes.to_vec(), 0..=nodes.len());
    let nodes = (nodes, any::<bool>()).prop_map(|(nodes, takes_flows)| {
        let peer = if takes_flows { Peer::taking() } else { Peer::known() };
        let node = |text: &&str| (text.parse().expect("an address"), peer);
        Change::Nodes(nodes.iter().map(node).collect())
    });
    let networks = ["192.0.2.0/24", "192.0.2.20/32", "203.0.113.0/24"];
    let side = prop_oneof![Just(None), Just(Some(Side::Inside)), Just(Some(Side::Outside))];
    let sides = proptest::collection::vec(side, networks.len()).prop_map(move |sides| {
        let all = networks.iter().zip(sides);
        let known = all.filter_map(|(text, side)| Some((text.parse().expect("a network"), side?)));
        Change::Sides(known.collect())
    });
    prop_oneof![4 => any_service(), 1 => nodes, 1 => sides]
}

fn any_service() -> impl Strategy<Value = Change> {
    let address = prop_oneof![
        Just(None),
        Just(Some("192.0.2.10")),
        Just(Some("192.0.2.20")),
        Just(Some("203.0.113.1"))
    ];
    let frontends = proptest::collection::vec((address, 80_u16..83), 0..3);
    let settings = (0_u16..3, any::<bool>(), any::<bool>());
    (any_key(), 0_i64..3, frontends, settings).prop_map(|(key, order, frontends, settings)| {
        let (backends, local, dsr) = settings;
        let frontends = frontends.into_iter().map(|(address, port)| FrontendSpec {
            address: address.map(|text| text.parse().expect("an address")),
            port,
            protocol: Protocol::Tcp,
        });
        let service = Service {
            frontends: frontends.collect(),
            backends: (0..backends)
                .map(|port| match local {
                    true => BackendSpec::new(BackendAddress::Local, 8080 + port),
                    false => {
                        BackendSpec::new(BackendAddress::At([192, 0, 2, 20].into()), 8080 + port)
                    }
                })
                .collect(),
            forwarding: if dsr { Forwarding::Dsr } else { Forwarding::Snat },
            ..Service::new(key)
        };
        Change::Service(Rank { source: 1, order }, service)
    })
}

/// In the order in which they get frontends.
fn sorted(services: &BTreeMap<ServiceKey, (Rank, Service)>) -> Vec<Service> {
    let mut all: Vec<_> = services.iter().map(|(key, (rank, it))| (*rank, key, it)).collect();
    all.sort_by(|(one, key, _), (two, other, _)| turn(*one, key).cmp(&turn(*two, other)));
    all.into_iter().map(|(.., service)| service.clone()).collect()
}

fn by_frontend(mut conflicts: Vec<Conflict>) -> Vec<Conflict> {
    conflicts.sort_by_key(|conflict| (conflict.frontend, conflict.loser.clone()));
    conflicts
}

proptest! {
    #[test]
    fn what_is_kept_is_what_would_be_made(changes in proptest::collection::vec(any_change(), 0..12)) {
        let mut state = State::new::<Service>(node(), []);
        let mut services = BTreeMap::new();
        let mut node = node();
        for change in changes {
            let before = state.all();
            state.take_dirty();
            match change {
                Change::Nodes(nodes) => {
                    node.nodes.clone_from(&nodes);
                    state.set_nodes(nodes);
                }
                Change::Sides(sides) => {
                    node.sides.clone_from(&sides);
                    state.set_sides(sides);
                }
                Change::Service(_, service) if service.frontends.is_empty() => {
                    state.remove(&service.key);
                    services.remove(&service.key);
                }
                Change::Service(rank, service) => {
                    state.put(rank, service.clone());
                    services.insert(service.key.clone(), (rank, service));
                }
            }
            let mut kept = state.all();
            let mut made = build(&sorted(&services), &node);
            kept.conflicts = by_frontend(kept.conflicts);
            made.conflicts = by_frontend(made.conflicts);
            prop_assert_eq!(&kept, &made);
            // Nothing but what was said to be dirty has changed.
            let dirty = state.take_dirty();
            let all = before.services.keys().chain(kept.services.keys());
            for key in all.filter(|key| !dirty.contains(&key.0)) {
                prop_assert_eq!(before.services.get(key), kept.services.get(key));
            }
        }
    }
}

#[test]
fn a_change_concerns_those_who_claim_the_same() {
    let service = |name, port| {
        let frontend = FrontendSpec { address: None, port, protocol: Protocol::Tcp };
        Service { frontends: vec![frontend], ..Service::new(key(name)) }
    };
    let rank = |order| Rank { source: 1, order };
    let mut state = State::new(
        node(),
        [(rank(1), service(1, 80)), (rank(2), service(2, 80)), (rank(3), service(3, 81))],
    );
    assert_eq!(state.conflicts().len(), 2);
    state.put(rank(1), service(1, 82));
    assert_eq!(state.take_dirty(), BTreeSet::from([key(1), key(2)]));
    assert_eq!(state.conflicts(), []);
    state.put(rank(3), Service { affinity_seconds: Some(1), ..service(3, 81) });
    assert_eq!(state.take_dirty(), BTreeSet::from([key(3)]));
    state.put(rank(3), Service { affinity_seconds: Some(1), ..service(3, 81) });
    assert!(state.take_dirty().is_empty());
}

/// An external IP that is the node's own, at a port that is the node port's number too: whoever
/// asks there gets the same backends, by the ranges of the load balancer where it is its address.
#[test]
fn ways_to_one_port_are_in_no_conflict() {
    let ranked = |source, address: Option<[u8; 4]>, order| {
        let frontend =
            FrontendSpec { address: address.map(IpAddr::from), port: 80, protocol: Protocol::Tcp };
        let service = Service { frontends: vec![frontend], ..Service::new(way(source)) };
        (Rank { source: 1, order }, service)
    };
    let own = Some([192, 0, 2, 10]);
    let mut state = State::new(node(), [ranked(Source::NodePort, None, 1)]);
    let (rank, external) = ranked(Source::ExternalIp, own, 1);
    state.put(rank, external);
    let (rank, balanced) = ranked(Source::LoadBalancer, own, 1);
    state.put(rank, balanced);
    assert_eq!(state.conflicts(), []);
    let all = state.all().services;
    let has = |source, family| all.get(&(way(source), family)).map(|it| it.frontends.len());
    assert_eq!(has(Source::LoadBalancer, Family::V4), Some(1));
    assert_eq!(has(Source::ExternalIp, Family::V4), None, "there is nothing left of it");
    // The node port stays at `localhost`, and at the other family's address.
    assert_eq!(has(Source::NodePort, Family::V4), Some(0));
    assert_eq!(has(Source::NodePort, Family::V6), Some(1));
    assert!(all.values().all(|service| service.conflicts.is_empty()));
    // With others they are, each of them.
    let (rank, mut older) = ranked(Source::NodePort, None, 0);
    older.key = ServiceKey { name: "older".to_owned(), ..older.key };
    state.put(rank, older.clone());
    let losers: Vec<Source> = state.conflicts().iter().map(|it| it.loser.source).collect();
    let ways = [Source::LoadBalancer, Source::ExternalIp, Source::NodePort];
    assert_eq!(losers, [&ways[..], &[Source::NodePort]].concat());
    state.take_dirty();
    state.remove(&older.key);
    assert_eq!(state.conflicts(), []);
    assert_eq!(state.take_dirty(), ways.map(way).into_iter().chain([older.key]).collect());
}

#[test]
fn networks_concern_those_whose_backends_are_in_them() {
    let service = |name, address: &str| {
        let frontend =
            FrontendSpec { address: None, port: 80 + u16::from(name), protocol: Protocol::Tcp };
        let address = BackendAddress::At(address.parse().expect("an address"));
        let backends = vec![BackendSpec::new(address, 8080)];
        Service { frontends: vec![frontend], backends, ..Service::new(key(name)) }
    };
    let rank = |order| Rank { source: 1, order };
    let services = [(rank(1), service(1, "10.1.0.2")), (rank(2), service(2, "10.1.0.3"))];
    let mut state = State::new(node(), services);
    let pod = |text: &str| (text.parse::<IpNet>().expect("a network"), Side::Inside);
    state.set_sides([pod("10.1.0.3/32"), pod("10.1.0.9/32")].into());
    assert_eq!(state.take_dirty(), BTreeSet::from([key(2)]));
    state.set_sides([pod("10.1.0.3/32")].into());
    assert!(state.take_dirty().is_empty());
    state.set_sides(BTreeMap::new());
    assert_eq!(state.take_dirty(), BTreeSet::from([key(2)]));
}

#[test]
fn other_nodes_concern_those_whose_backends_answer_directly() {
    let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
    let service = |name, address, forwarding| {
        let frontend =
            FrontendSpec { address, port: 80 + u16::from(name), protocol: Protocol::Tcp };
        Service { frontends: vec![frontend], forwarding, ..Service::new(key(name)) }
    };
    let rank = |order| Rank { source: 1, order };
    let mut state = State::new(
        node(),
        [
            (rank(1), service(1, None, Forwarding::Snat)),
            (rank(2), service(2, None, Forwarding::Dsr)),
            (rank(3), service(3, Some(ip("203.0.113.1")), Forwarding::Snat)),
            (rank(4), service(4, Some(ip("203.0.113.4")), Forwarding::Snat)),
        ],
    );
    let nodes =
        |peer| BTreeMap::from([(ip("192.0.2.10"), Peer::known()), (ip("203.0.113.1"), peer)]);
    state.set_nodes(nodes(Peer::known()));
    // The address of the third turned out to be a node's.
    assert_eq!(state.take_dirty(), BTreeSet::from([key(2), key(3)]));
    assert_eq!(state.all().vips, BTreeSet::from([ip("203.0.113.4").into()]));
    let peer = |peer| BTreeMap::from([(ip("203.0.113.1").into(), peer)]);
    assert_eq!(*state.peers(), peer(Peer::known()));
    // That it takes flows concerns no service.
    state.set_nodes(nodes(Peer::taking()));
    assert_eq!(*state.peers(), peer(Peer::taking()));
    assert!(state.take_dirty().is_empty());
}

#[test]
fn addresses_that_services_of_the_cluster_name_are_counted() {
    let address = IpAddr::from([192, 0, 2, 10]);
    let named = |name: u8, source, ports: &[u16]| {
        let frontend = |port: &u16| FrontendSpec {
            address: Some(address),
            port: *port,
            protocol: Protocol::Tcp,
        };
        Service {
            frontends: ports.iter().map(frontend).collect(),
            ..Service::new(ServiceKey { source, ..key(name) })
        }
    };
    let rank = Rank { source: 1, order: 0 };
    let mut state = State::new(node(), [(rank, named(0, Source::Static, &[80]))]);
    assert!(!state.is_named(address), "the file's words are the operator's own");
    let (one, two) = (Source::ExternalIp, Source::LoadBalancer);
    state.put(rank, named(1, one, &[81, 82]));
    state.put(rank, named(2, two, &[83]));
    assert!(state.is_named(address));
    state.put(rank, named(1, one, &[]));
    assert!(state.is_named(address));
    state.remove(&ServiceKey { source: two, ..key(2) });
    assert!(!state.is_named(address));
}
