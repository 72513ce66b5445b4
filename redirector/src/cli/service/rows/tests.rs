use redirector_common::{Address, Family, Port, Protocol};

use super::*;
use crate::dataplane::info::parse_frontend;

fn info(name: &str, family: Family, conflicts: &[&str]) -> Info {
    Info {
        key: ServiceKey { source: Source::Static, namespace: None, name: name.to_owned() },
        family,
        policy: TrafficPolicy::Cluster,
        forwarding: Forwarding::Snat,
        affinity: Some(10_800),
        group: None,
        algorithm: Algorithm::Maglev,
        conflicts: conflicts.iter().map(|text| parse_frontend(text).expect("a frontend")).collect(),
        omitted: 0,
    }
}

fn frontend(text: &str, service: ServiceId) -> (FrontendKey, Frontend) {
    let frontend = Frontend::new(service, Address::UNSPECIFIED);
    (parse_frontend(text).expect("a frontend"), frontend)
}

fn slot(service: ServiceId, slot: u32, backend: BackendId, weight: u16) -> (SlotKey, SlotValue) {
    let value = SlotValue { backend, weight, state: SlotValue::ACTIVE };
    (SlotKey { service, slot }, value)
}

fn service(table_size: u32) -> Service {
    let flags = Service::FLAG_SOURCE_RANGES;
    Service { table_size, flags, ..Service::default() }
}

fn ip(text: &str) -> Address {
    Address::from(text.parse::<IpAddr>().expect("an address"))
}

/// Service `web` in both families, with a local backend and one elsewhere.
fn two_families() -> Loaded {
    let client = (ip("198.51.100.7"), Port::new(50_000));
    let key = Tuple::new(Protocol::Tcp, client, (ip("192.0.2.1"), Port::new(80)));
    let mut flow = Flow::new(Direction::Forward, key, 1, 1, true, 0);
    flow.packets = 3;
    flow.bytes = 180;
    let reply = Flow::new(Direction::Reply, key, 1, 1, true, 0);
    let (steered, _) = frontend("[2001:db8::1]:80/tcp", 2);
    Loaded {
        infos: BTreeMap::from([
            (1, info("web", Family::V4, &["192.0.2.1:443/tcp"])),
            (2, info("web", Family::V6, &[])),
        ]),
        services: BTreeMap::from([(1, service(251)), (2, service(0))]),
        ranges: BTreeSet::from([
            SourceRange::new(1, ip("198.51.100.0"), 24),
            SourceRange::new(1, ip("203.0.113.7"), 32),
            SourceRange::new(9, ip("192.0.2.0"), 24),
        ]),
        frontends: BTreeMap::from([
            frontend("192.0.2.1:80/tcp", 1),
            frontend("[2001:db8::1]:80/tcp", 2),
            frontend("192.0.2.1:443/tcp", 9),
        ]),
        slots: BTreeMap::from([slot(1, 0, 1, 1), slot(1, 1, 2, 2), slot(2, 0, 1, 1)]),
        backends: BTreeMap::from([
            (1, Backend::local(Port::new(8080))),
            (2, Backend::remote(ip("10.0.0.5"), Port::new(8080))),
        ]),
        flows: BTreeMap::from([(key, flow), (key.reversed(), reply)]),
        steered: BTreeMap::from([
            (SteeredKey { service: 2, frontend: steered }, 7),
            (SteeredKey { service: 9, frontend: steered }, 99),
        ]),
        connections: vec![Connection { frontend: steered, cookie: 1, packets: 4, bytes: 250 }],
    }
}

#[test]
fn json_is_as_the_contract_says() {
    let json = serde_json::to_value(service_rows(&two_families())).expect("JSON");
    let expected = serde_json::json!([{
        "name": "web",
        "namespace": null,
        "source": "static",
        "frontends": [
            {"address": "192.0.2.1", "port": 80, "protocol": "TCP", "state": "active",
             "packets": 3, "bytes": 180, "steered": 0},
            {"address": "192.0.2.1", "port": 443, "protocol": "TCP", "state": "conflict",
             "packets": 0, "bytes": 0, "steered": 0},
            {"address": "2001:db8::1", "port": 80, "protocol": "TCP",
             "state": "no-endpoints", "packets": 4, "bytes": 250, "steered": 7},
        ],
        "backends": [
            {"address": "10.0.0.5", "port": 8080, "local": false, "state": "active",
             "weight": 2},
            {"address": "local", "port": 8080, "local": true, "state": "active", "weight": 1},
        ],
        "policy": "cluster",
        "affinitySeconds": 10800,
        "forwarding": "snat",
        "algorithm": "maglev",
        "sourceRanges": ["198.51.100.0/24", "203.0.113.7/32"],
    }]);
    assert_eq!(json, expected);
}

#[test]
fn services_come_by_source_namespace_and_name() {
    let mut publish = info("80:8080/tcp", Family::V4, &[]);
    publish.key.source = Source::Publish;
    let loaded = Loaded {
        infos: BTreeMap::from([
            (1, info("b", Family::V4, &[])),
            (2, info("a", Family::V4, &[])),
            (3, publish),
        ]),
        ..Loaded::default()
    };
    let names: Vec<_> = service_rows(&loaded).into_iter().map(|row| row.name).collect();
    assert_eq!(names, ["80:8080/tcp", "a", "b"]);
}

#[test]
fn addresses_with_colons_stand_in_brackets() {
    let backend = Backend::remote(ip("2001:db8::5"), Port::new(80));
    let (_, slot) = slot(1, 0, 1, 1);
    assert_eq!(backend_row(&backend, slot).text(), "[2001:db8::5]:80");
}

#[test]
fn backends_that_keep_their_flows_alone_say_so() {
    let backend = Backend::remote(ip("10.0.0.5"), Port::new(80));
    let rows = [
        (1, SlotValue::ACTIVE, "10.0.0.5:80"),
        (0, SlotValue::ACTIVE, "10.0.0.5:80 (draining)"),
        (1, SlotValue::TERMINATING, "10.0.0.5:80 (terminating)"),
        (0, SlotValue::TERMINATING, "10.0.0.5:80 (terminating)"),
    ];
    for (weight, state, wanted) in rows {
        let slot = SlotValue { backend: 1, weight, state };
        assert_eq!(backend_row(&backend, slot).label(), wanted);
    }
}

#[test]
fn a_service_is_as_active_as_its_frontends() {
    let web = || service_rows(&two_families()).remove(0);
    assert_eq!(web().state(), "1 of 3 active");
    let left = |state| {
        let mut row = web();
        row.frontends.retain(|frontend| frontend.state == state);
        row.state()
    };
    assert_eq!(left(FrontendState::Active), "active");
    assert_eq!(left(FrontendState::Conflict), "conflict");
    assert_eq!(left(FrontendState::NoEndpoints), "no-endpoints");
    assert_eq!(ServiceRow { frontends: Vec::new(), ..web() }.state(), "no-frontends");
}
