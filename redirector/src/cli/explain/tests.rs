use std::rc::Rc;

use redirector_common::Backend;

use super::copy::Large;
use super::*;
use crate::dataplane::info::{Info, parse_frontend};
use crate::dataplane::pinned::PinnedError;
use crate::dataplane::routes::Way;
use crate::model::{Algorithm, Forwarding, ServiceKey, Source, TrafficPolicy};
use redirector_common::node::NodeConfig;
use redirector_common::service::MaglevLine;
use redirector_common::{
    Direction, Family, Flow, FlowState, Frontend, Interface, PortFlags, Service, SnatAddressKey,
};

fn ip(text: &str) -> Address {
    text.parse::<std::net::IpAddr>().expect("an address").into()
}

/// Tables of one entry each, and no flow.
struct Tables;

impl Large for Tables {
    fn flow(&self, _: &Tuple) -> Result<Option<Flow>, PinnedError> {
        Ok(None)
    }

    fn maglev_line(&self, line: u32) -> Result<Option<MaglevLine>, PinnedError> {
        Ok(Some(MaglevLine { entries: [line; 16] }))
    }
}

/// Service 1, `192.0.2.1:80/tcp`, to `10.0.0.5:8080`; service 2, port 81, to a program here;
/// service 3, port 82, to nobody.
fn node() -> Copied {
    let mut copied = Copied::empty(Rc::new(Tables));
    copied.node = NodeConfig { snat_first: 50_000, snat_count: 100, ..NodeConfig::default() };
    let targets = [
        Some(Backend::remote(ip("10.0.0.5"), Port::new(8080))),
        Some(Backend::local(Port::new(8080))),
        None,
    ];
    for ((id, port), backend) in (1..).zip(80..).zip(targets) {
        let key = parse_frontend(&format!("192.0.2.1:{port}/tcp")).expect("a frontend");
        let local_address = ip("192.0.2.1");
        copied.frontends.insert(key, Frontend::new(id, local_address));
        let size = u32::from(backend.is_some());
        let service = Service { table_offset: id * 16, table_size: size, ..Service::default() };
        copied.services.insert(id, service);
        let flags = match backend {
            Some(backend) if !backend.is_local() => PortFlags::FRONTEND.union(PortFlags::REMOTE),
            _ => PortFlags::FRONTEND,
        };
        copied.ports.insert((Protocol::Tcp, port), flags);
        copied.backends.extend(backend.map(|backend| (id, backend)));
        let name = format!("service-{id}");
        let info = Info {
            key: ServiceKey { source: Source::Static, namespace: None, name },
            family: Family::V4,
            policy: TrafficPolicy::Cluster,
            forwarding: Forwarding::Snat,
            affinity: None,
            group: None,
            algorithm: Algorithm::Maglev,
            conflicts: Vec::new(),
            omitted: 0,
        };
        copied.infos.insert(id, info);
    }
    let unnamed = Address::UNSPECIFIED;
    copied.interfaces.insert(7, Interface::new(1, ip("10.0.0.1"), unnamed, true));
    copied.find_way = |_| Ok(Some(Way { ifindex: 7, mtu: 1500, gateway: None, is_resolved: true }));
    copied
}

fn sent(to: &str, flags: u8) -> Packet {
    let to: SocketAddr = to.parse().expect("an address and port");
    let client = (ip("198.51.100.7"), Port::new(40_000));
    let to = (Address::from(to.ip()), Port::new(to.port()));
    let tuple = Tuple::new(Protocol::Tcp, client, to);
    Packet { tuple, ip_len: 60, ttl: 64, flags: TcpFlags(flags), ..Packet::EMPTY }
}

fn explained(copied: &Copied, to: &str) -> Explanation {
    explain(copied, &sent(to, TcpFlags::SYN), false).expect("explained")
}

fn steps(explanation: &Explanation) -> Vec<&'static str> {
    explanation.steps.iter().map(|it| it.step).collect()
}

#[test]
fn a_backend_elsewhere() {
    let found = explained(&node(), "192.0.2.1:80");
    assert_eq!((found.hook, found.verdict, found.reason), ("xdp", "forward", "remote-new"));
    let expected = ["port", "flow", "frontend", "service", "table", "backend", "route"];
    assert_eq!(steps(&found), expected);
    let ends = found.translated.as_ref().expect("translated");
    assert_eq!(ends.destination, "10.0.0.5:8080".parse().expect("an address"));
    assert_eq!(ends.source.ip().to_string(), "10.0.0.1");
    let text = describe(&found);
    for words in ["service service-1", "10.0.0.5:8080: elsewhere", "remote-new", "→ 10.0.0.5:8080"]
    {
        assert!(text.contains(words), "{words} in {text}");
    }
}

#[test]
fn a_program_here_and_what_xdp_leaves() {
    let found = explained(&node(), "192.0.2.1:81");
    assert_eq!((found.hook, found.verdict, found.reason), ("tc-ingress", "deliver", "local-new"));
    assert!(found.action.contains("own stack"), "{}", found.action);

    let mut slow = node();
    slow.find_way = |_| Ok(Some(Way { ifindex: 7, mtu: 1500, gateway: None, is_resolved: false }));
    let found = explained(&slow, "192.0.2.1:80");
    assert_eq!((found.hook, found.reason), ("tc-ingress", "remote-new"));
    assert!(found.action.contains("neighbour"), "{}", found.action);
}

#[test]
fn what_goes_nowhere() {
    let rows = [
        ("192.0.2.1:82", "no-backend", "port unreachable"),
        ("192.0.2.1:22", "not-ours", "unchanged"),
        ("192.0.2.9:80", "not-ours", "unchanged"),
        ("203.0.113.1:22", "undefined-port", "without an answer"),
    ];
    for (to, reason, action) in rows {
        let mut node = node();
        node.vips.insert(ip("203.0.113.1"));
        let found = explained(&node, to);
        assert_eq!(found.reason, reason, "{to}");
        assert!(found.action.contains(action), "{to}: {}", found.action);
        assert_eq!(found.translated, None, "{to}");
    }
    let mut lost = node();
    lost.find_way = |_| Ok(None);
    assert_eq!(explained(&lost, "192.0.2.1:80").reason, "no-route");
    let mut narrow = node();
    narrow.find_way = |_| Ok(Some(Way { ifindex: 7, mtu: 40, gateway: None, is_resolved: true }));
    let found = explained(&narrow, "192.0.2.1:80");
    assert!(found.reason == "too-big" && found.action.contains("at most 40"), "{found:?}");
}

/// As [`Tables`], and every port of 10.0.0.1 is in use.
struct Busy;

impl Large for Busy {
    fn flow(&self, key: &Tuple) -> Result<Option<Flow>, PinnedError> {
        let is_taken = key.destination == ip("10.0.0.1");
        Ok(is_taken.then(|| {
            let translated = sent("192.0.2.1:80", TcpFlags::ACK).tuple.reversed();
            let mut flow = Flow::new(Direction::Reply, translated, 1, 1, false, 0);
            flow.set_state(FlowState::Established);
            flow
        }))
    }

    fn maglev_line(&self, line: u32) -> Result<Option<MaglevLine>, PinnedError> {
        Tables.maglev_line(line)
    }
}

#[test]
fn ports_that_run_out() {
    let mut busy = node();
    busy.large = Rc::new(Busy);
    let found = explained(&busy, "192.0.2.1:80");
    assert_eq!((found.verdict, found.reason), ("drop", "snat-exhausted"));
    assert!(!steps(&found).contains(&"source"), "{found:?}");

    busy.snat_addresses.insert(SnatAddressKey::new(7, Family::V4, 1), ip("10.0.0.21"));
    let found = explained(&busy, "192.0.2.1:80");
    assert_eq!((found.verdict, found.reason), ("forward", "remote-new"));
    let ends = found.translated.as_ref().expect("translated");
    assert_eq!(ends.source.ip().to_string(), "10.0.0.21");
    assert_eq!(steps(&found).last(), Some(&"source"));
}

#[test]
fn nothing_is_written() {
    let copied = node();
    explain(&copied.clone(), &sent("192.0.2.1:80", TcpFlags::SYN), false).expect("explained");
    // A later packet finds no flow that the first would have opened.
    let later = explain(&copied, &sent("192.0.2.1:80", TcpFlags::ACK), false).expect("explained");
    assert_eq!(later.reason, "no-flow");
}
