use proptest::prelude::*;
use redirector_common::Protocol;

use super::super::Source;
use super::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A node with an address of each family on its one chosen interface, a second IPv4 address, and
/// loopback addresses.
fn node() -> NodeAddresses {
    NodeAddresses {
        chosen: ["192.0.2.10", "fe80::1", "2001:db8::10", "192.0.2.11"].map(ip).to_vec(),
        host: ["192.0.2.10", "fe80::1", "2001:db8::10", "192.0.2.11", "127.0.0.1", "10.0.0.1"]
            .map(ip)
            .into(),
    }
}

fn key(name: &str) -> ServiceKey {
    ServiceKey { source: Source::Static, namespace: None, name: name.into() }
}

fn mk_service(name: &str, frontends: &[(Option<&str>, u16)], backends: &[BackendSpec]) -> Service {
    Service {
        key: key(name),
        frontends: frontends
            .iter()
            .map(|(address, port)| FrontendSpec {
                address: address.map(ip),
                port: *port,
                protocol: Protocol::Tcp,
            })
            .collect(),
        backends: backends.to_vec(),
        policy: TrafficPolicy::Cluster,
        forwarding: Forwarding::Snat,
        affinity_seconds: None,
    }
}

fn backend(address: &str, port: u16) -> BackendSpec {
    let address = match address {
        "local" => BackendAddress::Local,
        address => BackendAddress::At(ip(address)),
    };
    BackendSpec { address, port, weight: 1, state: BackendState::Active }
}

fn terminating(address: &str, port: u16) -> BackendSpec {
    BackendSpec { state: BackendState::Terminating, ..backend(address, port) }
}

fn weighted(address: &str, port: u16, weight: u16) -> BackendSpec {
    BackendSpec { weight, ..backend(address, port) }
}

/// `address:port -> local address` of every frontend.
fn frontends(service: &DesiredService) -> Vec<String> {
    let mut rows: Vec<String> = service
        .frontends
        .iter()
        .map(|(key, local)| format!("{}:{} at {local}", key.address, key.port))
        .collect();
    rows.sort();
    rows
}

/// Addresses of the backends that take new flows.
fn takers(service: &DesiredService) -> Vec<BackendAddress> {
    service
        .backends
        .iter()
        .filter(|backend| backend.takes_new_flows)
        .map(|backend| backend.address)
        .collect()
}

fn only(service: Service, family: Family) -> DesiredService {
    let key = (service.key.clone(), family);
    build(&[service], &node()).services.remove(&key).unwrap()
}

#[test]
fn frontend_without_address_stands_for_every_chosen_address() {
    let desired = build(&[mk_service("web", &[(None, 80)], &[backend("local", 8080)])], &node());
    let rows: Vec<_> = desired
        .services
        .iter()
        .map(|((_, family), service)| (*family, frontends(service)))
        .collect();
    assert_eq!(
        rows,
        [
            (
                Family::V4,
                vec![
                    "192.0.2.10:80 at 192.0.2.10".to_owned(),
                    "192.0.2.11:80 at 192.0.2.11".to_owned(),
                ]
            ),
            (Family::V6, vec!["2001:db8::10:80 at 2001:db8::10".to_owned()]),
        ]
    );
    assert_eq!(desired.conflicts, []);
}

#[test]
fn local_address_is_the_frontends_own_or_the_primary() {
    let rows = [
        // One of the chosen, another of the host, and foreign ones.
        ("192.0.2.11", "192.0.2.11:80 at 192.0.2.11"),
        ("10.0.0.1", "10.0.0.1:80 at 10.0.0.1"),
        ("203.0.113.1", "203.0.113.1:80 at 192.0.2.10"),
        ("2001:db8::99", "2001:db8::99:80 at 2001:db8::10"),
    ];
    for (address, wanted) in rows {
        let service = mk_service("web", &[(Some(address), 80)], &[backend("local", 8080)]);
        let service = only(service, Family::of(ip(address)));
        assert_eq!(frontends(&service), [wanted]);
    }
}

#[test]
fn local_address_without_a_primary_is_the_frontend() {
    let node = NodeAddresses { chosen: vec![ip("fe80::1")], host: [ip("fe80::1")].into() };
    let service = mk_service("web", &[(Some("2001:db8::99"), 80)], &[]);
    let desired = build(&[service], &node);
    assert_eq!(
        frontends(&desired.services[&(key("web"), Family::V6)]),
        ["2001:db8::99:80 at 2001:db8::99"]
    );
}

#[test]
fn a_family_without_frontends_has_no_entry() {
    let service = mk_service("web", &[(Some("192.0.2.10"), 80)], &[backend("2001:db8::5", 80)]);
    let desired = build(&[service], &node());
    assert_eq!(desired.services.keys().collect::<Vec<_>>(), [&(key("web"), Family::V4)]);
    assert_eq!(desired.services[&(key("web"), Family::V4)].backends, []);
}

#[test]
fn a_node_without_addresses_publishes_nothing() {
    let service = mk_service("web", &[(None, 80)], &[backend("local", 8080)]);
    assert_eq!(build(&[service], &NodeAddresses::default()), Desired::default());
}

#[test]
fn backends_are_local_where_their_address_is_the_hosts() {
    let specs = [
        backend("local", 8080),
        backend("10.0.0.1", 8080),
        backend("10.0.0.5", 8080),
        backend("2001:db8::5", 8080),
    ];
    let service = mk_service("web", &[(None, 80)], &specs);
    let of = |family| -> Vec<Backend> {
        only(service.clone(), family).backends.iter().map(|backend| backend.backend).collect()
    };
    let port = Port::new(8080);
    assert_eq!(
        of(Family::V4),
        [
            Backend::local(port),
            Backend::local_at(ip("10.0.0.1").into(), port),
            Backend::remote(ip("10.0.0.5").into(), port),
        ]
    );
    assert_eq!(
        of(Family::V6),
        [Backend::local(port), Backend::remote(ip("2001:db8::5").into(), port)]
    );
}

#[test]
fn a_backend_that_is_listed_twice_counts_once() {
    let specs = [weighted("10.0.0.5", 80, 2), backend("10.0.0.5", 80), backend("10.0.0.5", 81)];
    let service = only(mk_service("web", &[(None, 80)], &specs), Family::V4);
    let rows: Vec<_> = service.backends.iter().map(|b| (b.backend.port, b.weight)).collect();
    assert_eq!(rows, [(Port::new(80), 2), (Port::new(81), 1)]);
}

#[test]
fn a_claimed_frontend_stays_with_the_earlier_service() {
    let first = mk_service("first", &[(Some("192.0.2.11"), 80)], &[]);
    let second = mk_service("second", &[(None, 80)], &[]);
    let third = mk_service("third", &[(Some("192.0.2.11"), 80)], &[]);
    let desired = build(&[first, second, third], &node());
    let frontend = FrontendKey::new(ip("192.0.2.11").into(), Port::new(80), Protocol::Tcp);

    let entry = |name: &str| &desired.services[&(key(name), Family::V4)];
    assert_eq!(frontends(entry("first")), ["192.0.2.11:80 at 192.0.2.11"]);
    assert_eq!(frontends(entry("second")), ["192.0.2.10:80 at 192.0.2.10"]);
    assert_eq!(entry("second").conflicts, [frontend].into());
    // All in conflict: the service still exists, to be shown.
    assert_eq!(frontends(entry("third")), [""; 0]);
    assert_eq!(entry("third").conflicts, [frontend].into());
    let loser = |name| Conflict { frontend, winner: key("first"), loser: key(name) };
    assert_eq!(desired.conflicts, [loser("second"), loser("third")]);
}

#[test]
fn protocols_and_ports_do_not_conflict() {
    let tcp = mk_service("tcp", &[(None, 53), (None, 54)], &[]);
    let mut udp = mk_service("udp", &[(None, 53)], &[]);
    udp.frontends[0].protocol = Protocol::Udp;
    assert_eq!(build(&[tcp, udp], &node()).conflicts, []);
}

#[test]
fn of_services_with_one_key_the_first_counts() {
    let first = mk_service("web", &[(Some("192.0.2.11"), 80)], &[]);
    let second = mk_service("web", &[(Some("192.0.2.11"), 81)], &[]);
    let desired = build(&[first, second], &node());
    assert_eq!(
        frontends(&desired.services[&(key("web"), Family::V4)]),
        ["192.0.2.11:80 at 192.0.2.11"]
    );
}

/// An address of the host, and one that is not.
const HERE: &str = "10.0.0.1";
const THERE: &str = "10.0.0.5";

/// Name, policy and backends; who takes new flows; whether the service is silent.
type TakersRow = (&'static str, TrafficPolicy, Vec<BackendSpec>, &'static [&'static str], bool);

#[test]
fn takers_of_new_flows() {
    let (cluster, local) = (TrafficPolicy::Cluster, TrafficPolicy::Local);
    let rows: [TakersRow; 13] = [
        ("none", cluster, vec![], &[], false),
        ("none, Local", local, vec![], &[], false),
        ("both", cluster, vec![backend(HERE, 80), backend(THERE, 80)], &[HERE, THERE], false),
        ("Local keeps here", local, vec![backend(HERE, 80), backend(THERE, 80)], &[HERE], false),
        ("Local, only there", local, vec![backend(THERE, 80)], &[], true),
        ("Cluster, only there", cluster, vec![backend(THERE, 80)], &[THERE], false),
        (
            "terminating gives way",
            cluster,
            vec![terminating(HERE, 80), backend(THERE, 80)],
            &[THERE],
            false,
        ),
        (
            "terminating is better than none",
            cluster,
            vec![terminating(HERE, 80), weighted(THERE, 80, 0)],
            &[HERE],
            false,
        ),
        (
            "Local prefers terminating here to active there",
            local,
            vec![terminating(HERE, 80), backend(THERE, 80)],
            &[HERE],
            false,
        ),
        ("Local, terminating there", local, vec![terminating(THERE, 80)], &[], true),
        ("weight 0", cluster, vec![weighted(THERE, 80, 0)], &[], false),
        ("Local, weight 0 there", local, vec![weighted(THERE, 80, 0)], &[], false),
        (
            "Local, weight 0 here, active there",
            local,
            vec![weighted(HERE, 80, 0), backend(THERE, 80)],
            &[],
            true,
        ),
    ];
    for (name, policy, specs, wanted, silent) in rows {
        let mut service = mk_service("web", &[(None, 80)], &specs);
        service.policy = policy;
        let service = only(service, Family::V4);
        let wanted: Vec<_> = wanted.iter().map(|address| BackendAddress::At(ip(address))).collect();
        assert_eq!(takers(&service), wanted, "{name}");
        assert_eq!(service.silent, silent, "{name}");
        assert_eq!(service.backends.len(), specs.len(), "{name}: all are listed");
        assert_eq!(service.table().is_empty(), wanted.is_empty(), "{name}");
    }
}

#[test]
fn policy_local_takes_the_local_program() {
    let mut service =
        mk_service("web", &[(None, 80)], &[backend("10.0.0.5", 80), backend("local", 8080)]);
    service.policy = TrafficPolicy::Local;
    assert_eq!(takers(&only(service, Family::V6)), [BackendAddress::Local]);
}

#[test]
fn table_names_takers_by_their_position() {
    let specs = [weighted("10.0.0.4", 80, 0), weighted("10.0.0.5", 80, 3), backend("local", 80)];
    let service = only(mk_service("web", &[(None, 80)], &specs), Family::V4);
    let table = service.table();
    assert_eq!(table.len(), 251);
    assert_eq!(service.table_size(), 251);
    let count = |index| table.iter().filter(|entry| **entry == index).count();
    assert_eq!((count(0), count(1), count(2)), (0, 188, 63));
}

#[test]
fn settings_are_carried_over() {
    let mut service = mk_service("web", &[(None, 80)], &[]);
    service.affinity_seconds = Some(60);
    service.forwarding = Forwarding::Dsr;
    service.policy = TrafficPolicy::Local;
    let service = only(service, Family::V4);
    assert_eq!(service.affinity_seconds, Some(60));
    assert_eq!(service.forwarding, Forwarding::Dsr);
    assert_eq!(service.policy, TrafficPolicy::Local);
}

fn any_service(name: usize) -> impl Strategy<Value = Service> {
    let address = prop_oneof![
        Just(None),
        Just(Some("192.0.2.10")),
        Just(Some("203.0.113.1")),
        Just(Some("2001:db8::10")),
    ];
    let backends = proptest::collection::vec(
        (prop_oneof![Just("local"), Just("10.0.0.5"), Just("2001:db8::5")], 1_u16..4, 0_u16..3),
        0..4,
    );
    (proptest::collection::vec((address, 80_u16..83), 1..4), backends).prop_map(
        move |(frontends, backends)| {
            let backends: Vec<_> =
                backends.into_iter().map(|(a, port, weight)| weighted(a, port, weight)).collect();
            mk_service(&name.to_string(), &frontends, &backends)
        },
    )
}

fn any_services() -> impl Strategy<Value = Vec<Service>> {
    (any_service(0), any_service(1), any_service(2)).prop_map(|(a, b, c)| vec![a, b, c])
}

proptest! {
    #[test]
    fn every_frontend_has_one_service(services in any_services()) {
        let desired = build(&services, &node());
        let mut seen = BTreeSet::new();
        for service in desired.services.values() {
            for frontend in service.frontends.keys() {
                prop_assert!(seen.insert(*frontend), "{frontend:?} twice");
                prop_assert!(!service.conflicts.contains(frontend));
            }
        }
        for conflict in &desired.conflicts {
            prop_assert!(seen.contains(&conflict.frontend));
        }
    }

    #[test]
    fn tables_name_takers_alone(services in any_services()) {
        for service in build(&services, &node()).services.values() {
            for index in service.table() {
                prop_assert!(service.backends[usize::from(index)].takes_new_flows);
            }
        }
    }

    #[test]
    fn services_without_conflicts_do_not_depend_on_their_order(services in any_services()) {
        let mut services = services;
        for (apart, service) in (0..).step_by(10).zip(&mut services) {
            for frontend in &mut service.frontends {
                frontend.port += apart;
            }
        }
        let forward = build(&services, &node());
        prop_assert_eq!(&forward.conflicts, &[]);
        let reversed: Vec<_> = services.into_iter().rev().collect();
        prop_assert_eq!(forward, build(&reversed, &node()));
    }
}
