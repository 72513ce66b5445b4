//! The text of `/metrics`, read back.

use std::time::Duration;

use redirector_common::{
    Address, Direction, Family, Flow, Frontend, FrontendKey, Port, Protocol, Reason, ServiceId,
    SteeredKey, Tuple,
};

use super::*;
use crate::dataplane::connections::Connection;
use crate::dataplane::info::Info;
use crate::dataplane::status::{InterfaceStatus, Status, TcState, XdpState};
use crate::model::{Forwarding, ServiceKey, Source, TrafficPolicy};

fn status() -> Status {
    Status {
        pid: 7,
        version: "0.1.0".to_owned(),
        started_at: 1,
        node_name: "node".to_owned(),
        interfaces: vec![InterfaceStatus {
            name: "eth0".to_owned(),
            ifindex: 2,
            xdp: XdpState::Generic,
            xdp_reason: None,
            tc: TcState::Tcx,
            slot: 1,
            error: None,
        }],
        in_sync: true,
        config_error: Some("line 3".to_owned()),
        snat_ports: (49152, 57343),
        conflicts: 2,
        ..Status::default()
    }
}

fn scrape() -> Scrape {
    let shared = Shared::new(status());
    shared.update(|account| {
        account.syncs.record(Duration::from_millis(3));
        account.syncs.record(Duration::from_secs(60));
        account.syncs.errors = 4;
    });
    let web = ServiceName { namespace: "shop".to_owned(), name: "we\"b".to_owned() };
    Scrape {
        counters: vec![CounterRow {
            reason: Reason::LocalNew,
            interface: "eth0".to_owned(),
            verdict: "deliver",
            packets: 5,
            bytes: 300,
        }],
        services: BTreeMap::from([(web, Total { packets: 9, steered: 2 })]),
        half_open: HalfOpen { flows: 3, budget: 32768 },
        translation: PortUse { ports: 8192, used: 7, backend: None },
        flows: 3,
        fill: vec![MapFill { map: "FLOWS", entries: 6, capacity: 131_072 }],
        agent: shared.snapshot(),
    }
}

/// Samples by name and labels; every sample must belong to the metric announced before it.
fn parse(text: &str) -> BTreeMap<String, f64> {
    let mut samples = BTreeMap::new();
    let mut announced = String::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            announced = rest.split(' ').next().unwrap_or_default().to_owned();
        }
        if line.starts_with('#') {
            continue;
        }
        let (sample, value) = line.rsplit_once(' ').expect("a sample and its value");
        assert!(sample.starts_with(&announced), "{sample} after {announced}");
        let value = value.parse().expect("a number");
        let twice = samples.insert(sample.to_owned(), value);
        assert_eq!(twice, None, "{sample} appears twice");
    }
    samples
}

#[test]
fn every_metric_has_its_name_and_labels() {
    let text = encode(scrape()).expect("encodes");
    assert!(text.ends_with("# EOF\n"), "{text}");
    let samples = parse(&text);
    let expected = [
        (r#"redirector_packets_total{reason="local-new",verdict="deliver",interface="eth0"}"#, 5.0),
        (r#"redirector_bytes_total{reason="local-new",verdict="deliver",interface="eth0"}"#, 300.0),
        (r#"redirector_service_packets_total{namespace="shop",service="we\"b"}"#, 9.0),
        (r#"redirector_service_steered_total{namespace="shop",service="we\"b"}"#, 2.0),
        ("redirector_flows", 3.0),
        ("redirector_snat_ports", 8192.0),
        ("redirector_snat_ports_used", 7.0),
        (r#"redirector_map_entries{map="FLOWS"}"#, 6.0),
        (r#"redirector_map_capacity{map="FLOWS"}"#, 131_072.0),
        ("redirector_sync_duration_seconds_count", 2.0),
        ("redirector_sync_duration_seconds_sum", 60.003),
        (r#"redirector_sync_duration_seconds_bucket{le="0.005"}"#, 1.0),
        (r#"redirector_sync_duration_seconds_bucket{le="+Inf"}"#, 2.0),
        ("redirector_sync_errors_total", 4.0),
        ("redirector_config_stale", 1.0),
        ("redirector_frontend_conflicts", 2.0),
        (r#"redirector_xdp_mode{interface="eth0",mode="generic"}"#, 1.0),
        (concat!(r#"redirector_build_info{version=""#, env!("CARGO_PKG_VERSION"), r#""}"#), 1.0),
    ];
    for (sample, value) in expected {
        assert_eq!(samples.get(sample), Some(&value), "{sample}\n{text}");
    }
}

fn infos() -> BTreeMap<ServiceId, Info> {
    let info = Info {
        key: ServiceKey { source: Source::Static, namespace: None, name: "web".to_owned() },
        family: Family::V4,
        policy: TrafficPolicy::Cluster,
        forwarding: Forwarding::Snat,
        affinity: None,
        group: None,
        algorithm: crate::model::Algorithm::default(),
        conflicts: Vec::new(),
        omitted: 0,
    };
    BTreeMap::from([(1, info)])
}

#[test]
fn totals_never_fall() {
    let infos = infos();
    let flow = |created, packets| {
        let client = (Address::from_v4([198, 51, 100, 7]), Port::new(4000));
        let frontend = (Address::from_v4([192, 0, 2, 1]), Port::new(80));
        let key = Tuple::new(Protocol::Tcp, client, frontend);
        let mut flow = Flow::new(Direction::Forward, key, 1, 1, true, created);
        flow.packets = packets;
        BTreeMap::from([(key, flow)])
    };
    let mut traffic = Traffic::default();
    let mut total_after = |flows: BTreeMap<Tuple, Flow>| {
        traffic.observe(&Seen {
            infos: &infos,
            frontends: &BTreeMap::new(),
            flows: &flows,
            steered: &BTreeMap::new(),
            connections: &[],
        });
        traffic.totals().values().map(|total| total.packets).sum::<u64>()
    };
    assert_eq!(total_after(flow(1, 10)), 10);
    assert_eq!(total_after(flow(1, 15)), 15);
    assert_eq!(total_after(BTreeMap::new()), 15);
    assert_eq!(total_after(flow(2, 3)), 18);
    // The same tuple again, in one look: the earlier flow's end was not seen.
    assert_eq!(total_after(flow(3, 2)), 20);
}

/// Every SYN counts when its connection was steered, what follows while the connection lives.
#[test]
fn steered_connections_count_once() {
    let infos = infos();
    let own = (Address::from_v4([192, 0, 2, 1]), Port::new(80));
    let frontend = FrontendKey::new(own.0, own.1, Protocol::Tcp);
    let frontends = BTreeMap::from([(frontend, Frontend::new(1, own.0))]);
    let mut traffic = Traffic::default();
    let mut totals_after = |steered: u64, connections: &[(u64, u64)]| {
        let connections: Vec<_> = connections
            .iter()
            .map(|&(cookie, packets)| Connection { frontend, cookie, packets, bytes: 0 })
            .collect();
        traffic.observe(&Seen {
            infos: &infos,
            frontends: &frontends,
            flows: &BTreeMap::new(),
            steered: &BTreeMap::from([(SteeredKey { service: 1, frontend }, steered)]),
            connections: &connections,
        });
        traffic.totals().values().map(|total| (total.packets, total.steered)).collect::<Vec<_>>()
    };
    assert_eq!(totals_after(1, &[(7, 3)]), [(3, 1)]);
    assert_eq!(totals_after(1, &[(7, 5)]), [(5, 1)]);
    // One goes on, one came and went, one is new.
    assert_eq!(totals_after(3, &[(7, 5), (8, 2)]), [(8, 3)]);
    assert_eq!(totals_after(3, &[]), [(8, 3)]);
    // The map had no room, and counts anew.
    assert_eq!(totals_after(2, &[]), [(10, 5)]);
}
