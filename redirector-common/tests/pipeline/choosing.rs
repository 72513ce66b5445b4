//! Which backend a new flow goes to, and what goes to none.

use std::collections::{BTreeMap, BTreeSet};

use redirector_common::packet::{Hook, Packet, Step, TcpFlags};
use redirector_common::{
    Address, AffinityKey, Backend, BackendId, FrontendKey, Origin, Port, PortFlags, Protocol,
    Reason, Service, Taker, TakerKey, Tuple, Verdict,
};

use crate::host::{Host, SECOND, v4};

/// Affinity group, and timeout in seconds.
const GROUP: u32 = 9;
const TIMEOUT: u64 = 100;

fn client(host: u8) -> Address {
    Address::from_v4([198, 51, 100, host])
}

fn opening(protocol: Protocol, from: (Address, u16), to: (Address, u16)) -> Packet {
    let end = |(address, port)| (address, Port::new(port));
    let flags = match protocol {
        Protocol::Tcp => TcpFlags(TcpFlags::SYN),
        Protocol::Udp => TcpFlags(0),
    };
    let tuple = Tuple::new(protocol, end(from), end(to));
    Packet { tuple, ip_len: 60, ttl: 64, flags, ..Packet::EMPTY }
}

/// Services 1 (ports 80 and 81) and 2 (port 90) of one affinity group, each with backends 1 to 8,
/// of which odd ones are local.
fn crowd() -> Host {
    let mut host = Host::new();
    host.serve(&[80, 81], Protocol::Tcp, None);
    host.serve(&[90], Protocol::Tcp, None);
    host.node.snat_count = 1000;
    host.flow_capacity.set(100_000);
    for id in 1..=8 {
        let port = Port::new(8080 + id);
        let backend = match id % 2 {
            0 => Backend::remote(v4(50), port),
            _ => Backend::local(port),
        };
        host.backends.insert(id.into(), backend);
        host.table.push(id.into());
    }
    for (id, service) in &mut host.services {
        service.table_size = 8;
        service.affinity_group = GROUP;
        service.affinity_seconds = TIMEOUT as u32;
        for backend in 1..=8 {
            let taker = Taker::NONE.and(Origin::Outside).and(Origin::Node);
            host.takers.insert(TakerKey { service: *id, backend }, taker);
        }
    }
    for port in [80, 81, 90] {
        let flags = PortFlags::FRONTEND.union(PortFlags::REMOTE);
        host.ports.borrow_mut().insert((Protocol::Tcp.number(), port), flags);
    }
    host
}

/// The backend that a new connection goes to, as the first hook that takes it decides.
fn connect(host: &Host, from: (Address, u16), port: u16) -> BackendId {
    let packet = opening(Protocol::Tcp, from, (v4(1), port));
    let (decision, _) = host.at(Hook::Xdp, &packet);
    if decision.step == Step::HandOver {
        let (decision, _) = host.at(Hook::Ingress, &packet);
        assert!(matches!(decision.step, Step::Deliver | Step::Forward), "{decision:?}");
    }
    host.assert_whole();
    host.flows()[&packet.tuple].backend
}

fn backends_of(host: &Host, from: Address, ports: std::ops::Range<u16>) -> BTreeSet<BackendId> {
    ports.map(|port| connect(host, (from, port), 80)).collect()
}

#[test]
fn clients_stay_across_frontends_and_services_of_their_group() {
    let host = crowd();
    let mut all = BTreeSet::new();
    for number in 1..60 {
        let first = connect(&host, (client(number), 4000), 80);
        for port in 4001..4004 {
            for frontend in [80, 81, 90] {
                assert_eq!(connect(&host, (client(number), port), frontend), first);
            }
        }
        all.insert(first);
    }
    assert_eq!(all.len(), 8, "each backend has clients");
}

#[test]
fn without_affinity_a_client_goes_everywhere() {
    let mut host = crowd();
    for service in host.services.values_mut() {
        service.affinity_group = 0;
    }
    assert_eq!(backends_of(&host, client(1), 4000..4100).len(), 8);
    assert!(host.affinities.borrow().is_empty(), "nothing is remembered");
}

#[test]
fn each_new_flow_refreshes_and_time_ends_it() {
    let host = crowd();
    let first = connect(&host, (client(1), 4000), 80);
    let key = AffinityKey { group: GROUP, client: client(1) };
    for port in 4001..4050 {
        host.now.set(host.now.get() + (TIMEOUT - 1) * SECOND);
        assert_eq!(connect(&host, (client(1), port), 80), first);
        assert_eq!(host.affinities.borrow()[&key].last_seen, host.now.get());
    }
    let mut seen = BTreeSet::new();
    for port in 5000..5050 {
        host.now.set(host.now.get() + TIMEOUT * SECOND);
        seen.insert(connect(&host, (client(1), port), 80));
    }
    assert!(seen.len() > 4, "{seen:?}");
}

#[test]
fn a_flow_that_goes_on_refreshes_nothing() {
    let host = crowd();
    let packet = opening(Protocol::Tcp, (client(1), 4000), (v4(1), 80));
    connect(&host, (client(1), 4000), 80);
    let before = host.affinities.borrow().clone();
    host.now.set(host.now.get() + 10 * SECOND);
    let more = Packet { flags: TcpFlags(TcpFlags::ACK), ..packet };
    assert!(matches!(host.ingress(&more).0.step, Step::Deliver | Step::Forward));
    assert_eq!(*host.affinities.borrow(), before);
}

#[test]
fn a_backend_that_takes_nothing_is_forgotten() {
    let mut host = crowd();
    let first = connect(&host, (client(1), 4000), 80);
    host.table.retain(|id| *id != first);
    for service in host.services.values_mut() {
        service.table_size = 7;
    }
    host.takers.retain(|key, _| key.backend != first);
    let second = connect(&host, (client(1), 4001), 80);
    assert_ne!(first, second);
    assert_eq!(backends_of(&host, client(1), 4002..4020), BTreeSet::from([second]));

    // That one serves clients on the node alone: as gone, for a client outside.
    host.takers.retain(|key, _| key.backend != second);
    for service in [1, 2] {
        let key = TakerKey { service, backend: second };
        host.takers.insert(key, Taker::NONE.and(Origin::Node));
    }
    host.table.retain(|id| *id != second);
    for service in host.services.values_mut() {
        service.table_size = 6;
    }
    assert_ne!(connect(&host, (client(1), 4021), 80), second);
}

#[test]
fn a_refused_flow_is_not_remembered() {
    let host = crowd();
    host.flow_capacity.set(0);
    let packet = opening(Protocol::Tcp, (client(1), 4000), (v4(1), 80));
    assert_eq!(host.ingress(&packet).0.reason, Reason::FlowTableFull);
    assert!(host.affinities.borrow().is_empty());
}

#[test]
fn random_selection_is_even_whoever_chooses() {
    let mut host = crowd();
    host.node.snat_count = 8;
    for service in host.services.values_mut() {
        service.flags |= Service::FLAG_RANDOM;
        service.affinity_group = 0;
    }
    let mut counts = BTreeMap::new();
    for number in 1..=200 {
        for port in 0..20 {
            let backend = connect(&host, (client(number), 4000 + port), 80);
            *counts.entry(backend).or_insert(0) += 1;
            // Translation ports are few; they are not what is tested.
            host.clear_flows();
        }
    }
    // 500 each; five standard deviations are 105.
    assert_eq!(counts.len(), 8);
    assert!(counts.values().all(|count| (395..605).contains(count)), "{counts:?}");
}

/// Whoever is asked about one connection says the same; the client's next one, later, from the same
/// port, may go elsewhere.
#[test]
fn a_choice_at_random_is_one_for_xdp_and_tc() {
    let mut host = crowd();
    for service in host.services.values_mut() {
        service.flags |= Service::FLAG_RANDOM;
        service.affinity_group = 0;
    }
    let choices = |hook: Option<Hook>| -> Vec<BackendId> {
        let choose = |number: u8| {
            let packet = opening(Protocol::Tcp, (client(number), 4000), (v4(1), 80));
            let backend = match hook {
                Some(hook) => {
                    let _ = host.at(hook, &packet);
                    host.flows()[&packet.tuple].backend
                }
                None => connect(&host, (client(number), 4000), 80),
            };
            host.clear_flows();
            backend
        };
        (1..=100).map(choose).collect()
    };
    let at_tc = choices(Some(Hook::Ingress));
    assert_eq!(choices(None), at_tc);
    host.now.set(host.now.get() + 69 * SECOND);
    let later = choices(None);
    let differ = later.iter().zip(&at_tc).filter(|(one, other)| one != other).count();
    // Seven of eight; six standard deviations are 20.
    assert!(differ > 67, "{differ} differ");
}

#[test]
fn a_random_service_may_have_affinity() {
    let mut host = crowd();
    for service in host.services.values_mut() {
        service.flags |= Service::FLAG_RANDOM;
    }
    assert_eq!(backends_of(&host, client(1), 4000..4040).len(), 1);
}

#[test]
fn flows_stay_when_the_algorithm_changes() {
    let mut host = crowd();
    let packets: Vec<Packet> =
        (4000..4040).map(|port| opening(Protocol::Tcp, (client(1), port), (v4(1), 80))).collect();
    for service in host.services.values_mut() {
        service.affinity_group = 0;
    }
    let before: Vec<BackendId> =
        (4000..4040).map(|port| connect(&host, (client(1), port), 80)).collect();
    for flags in [Service::FLAG_RANDOM, 0, Service::FLAG_RANDOM] {
        for service in host.services.values_mut() {
            service.flags = flags;
        }
        for (packet, backend) in packets.iter().zip(&before) {
            let more = Packet { flags: TcpFlags(TcpFlags::ACK), ..*packet };
            let (decision, _) = host.ingress(&more);
            assert!(matches!(
                decision.reason,
                Reason::LocalEstablished | Reason::RemoteEstablished
            ));
            assert_eq!(host.flows()[&packet.tuple].backend, *backend);
        }
    }
}

/// An address that only frontends have, and one of this host's.
#[test]
fn ports_that_no_service_defines() {
    let mut host = crowd();
    let (vip, own) = (v4(77), v4(1));
    host.vips.insert(vip);
    let key = |address, port| FrontendKey::new(address, Port::new(port), Protocol::Tcp);
    let value = host.frontends[&key(own, 80)];
    host.frontends.insert(key(vip, 80), value);
    let rows = [
        (vip, 80, None),
        (own, 80, None),
        // Of no frontend, of another address's frontend, of the translation block.
        (vip, 22, Some((Step::Drop, Reason::UndefinedPort))),
        (vip, 90, Some((Step::Drop, Reason::UndefinedPort))),
        (vip, 50001, Some((Step::Drop, Reason::UndefinedPort))),
        (own, 22, Some((Step::Pass, Reason::NotOurs))),
        (v4(78), 90, Some((Step::Pass, Reason::NotOurs))),
        (own, 50001, Some((Step::Pass, Reason::NoReplyFlow))),
    ];
    for (address, port, wanted) in rows {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let packet = opening(protocol, (client(1), 4000), (address, port));
            let (decision, _) = host.ingress(&packet);
            match wanted {
                Some(wanted) => assert_eq!((decision.step, decision.reason), wanted, "{packet:?}"),
                None if protocol == Protocol::Tcp => {
                    let verdict = decision.reason.verdict();
                    assert!(matches!(verdict, Verdict::Deliver | Verdict::Forward), "{decision:?}");
                }
                None if address == vip => assert_eq!(decision.reason, Reason::UndefinedPort),
                None => assert_eq!(decision.reason, Reason::NotOurs),
            }
            if let Some((Step::Drop, _)) = wanted {
                // XDP drops it too, where it does not leave such ports to TC ingress anyway.
                let (decision, _) = host.at(Hook::Xdp, &packet);
                assert!(matches!(decision.step, Step::Drop | Step::HandOver), "{decision:?}");
            }
        }
    }
}

#[test]
fn errors_beyond_the_budget_are_not_sent() {
    let mut host = Host::new();
    host.serve(&[80], Protocol::Tcp, None);
    host.errors.set(2);
    let reasons: Vec<(Step, Reason)> = (4000..4004)
        .map(|port| {
            let packet = opening(Protocol::Tcp, (client(1), port), (v4(1), 80));
            let (decision, _) = host.ingress(&packet);
            (decision.step, decision.reason)
        })
        .collect();
    let sent = (Step::Reject, Reason::NoBackend);
    let limited = (Step::Drop, Reason::ErrorLimited);
    assert_eq!(reasons, [sent, sent, limited, limited]);
}

#[test]
fn xdp_spends_nothing_of_the_budget() {
    let mut host = Host::new();
    host.serve(&[80], Protocol::Tcp, None);
    let flags = PortFlags::FRONTEND.union(PortFlags::REMOTE);
    host.ports.borrow_mut().insert((Protocol::Tcp.number(), 80), flags);
    host.errors.set(1);
    let packet = opening(Protocol::Tcp, (client(1), 4000), (v4(1), 80));
    for _ in 0..5 {
        assert_eq!(host.at(Hook::Xdp, &packet).0.step, Step::HandOver);
    }
    assert_eq!(host.ingress(&packet).0.step, Step::Reject);
}
