//! Direct server return, as two nodes see it: A, which gets the client's packets, and B, which has
//! the backend.

use redirector_common::packet::{Hook, IcmpError, Packet, Route, Step, TcpFlags};
use redirector_common::{
    Address, Backend, Family, FlowState, Frontend, FrontendKey, Interface, Manner, NodeConfig,
    Origin, Peer, Port, PortFlags, Protocol, Reason, Service, SnatAddressKey, Tuple,
};

use crate::deciding::{client, node, packet, remote, tcp, udp};
use crate::host::{Host, IFINDEX, SECOND, v4};

const SYN: u8 = TcpFlags::SYN;
const ACK: u8 = TcpFlags::ACK;
const FIN: u8 = TcpFlags::FIN;

/// Another host on the way.
const ROUTER: Address = Address::from_v4([192, 0, 2, 254]);

/// A: 192.0.2.1, of which the ports 80 and 81 have their backend on B.
fn a(protocol: Protocol) -> Host {
    let mut host = Host::new();
    host.peers.insert(v4(50), Peer::taking());
    for port in [80, 81] {
        host.serve(&[port], protocol, Some(Backend::remote(v4(50), Port::new(8080))));
    }
    for service in host.services.values_mut() {
        service.flags |= Service::FLAG_DSR;
    }
    host
}

/// B: 192.0.2.50, with the program.
fn b(protocol: Protocol) -> Host {
    let mut host = Host::new();
    host.peers.insert(v4(1), Peer::known());
    host.interface = Some(Interface::new(1, v4(50), Address::UNSPECIFIED, true));
    host.serve(&[80], protocol, Some(Backend::local_at(v4(50), Port::new(8080))));
    for service in host.services.values_mut() {
        service.flags |= Service::FLAG_DSR;
        (service.peer_offset, service.peer_size) = (service.table_offset, service.table_size);
    }
    let key = FrontendKey::new(v4(1), Port::new(80), protocol);
    host.frontends.insert(key, Frontend::foreign(1, v4(50)));
    host
}

fn manner(host: &Host, tuple: &Tuple) -> Manner {
    host.flows()[tuple].manner()
}

fn state(host: &Host, tuple: &Tuple) -> FlowState {
    host.flows()[tuple].state()
}

const fn tunnelled(packet: Packet) -> Packet {
    Packet { tunnelled: 1, ..packet }
}

#[test]
fn the_client_is_answered_by_the_other_node() {
    for router in [None, Some(ROUTER)] {
        let (a, b) = (a(Protocol::Tcp), b(Protocol::Tcp));
        a.router.set(router);
        let expected = if router.is_none() { Manner::Layer2 } else { Manner::Tunnel };
        let at_b = |packet: Packet| if router.is_none() { packet } else { tunnelled(packet) };
        let there = Tuple::new(Protocol::Tcp, client(4000), node(80));
        for (flags, reasons) in [
            (SYN, (Reason::DsrNew, Reason::LocalNew)),
            (ACK, (Reason::DsrEstablished, Reason::LocalEstablished)),
            (ACK, (Reason::DsrEstablished, Reason::LocalEstablished)),
            (ACK, (Reason::DsrEstablished, Reason::LocalEstablished)),
        ] {
            for hook in [Hook::Xdp, Hook::Ingress] {
                if flags == SYN && hook == Hook::Ingress {
                    continue;
                }
                let (decision, outcome) = a.at(hook, &packet(there, flags));
                assert_eq!((decision.step, decision.reason), (Step::Forward, reasons.0));
                assert_eq!(outcome.manner, expected);
                assert_eq!(outcome.translated.destination, v4(50));
                assert_eq!(outcome.next_hop.mtu, if router.is_none() { 1280 } else { 1260 });
            }
            let (decision, outcome) = b.ingress(&at_b(packet(there, flags)));
            assert_eq!((decision.step, decision.reason), (Step::Deliver, reasons.1));
            assert_eq!(outcome.translated, Tuple::new(Protocol::Tcp, client(4000), remote(8080)));
            let (decision, outcome) = b.egress(&tcp(remote(8080), client(4000), ACK));
            assert_eq!((decision.step, decision.reason), (Step::Deliver, Reason::LocalReply));
            assert_eq!(outcome.translated, there.reversed());
        }
        assert_eq!(manner(&a, &there), expected);
        assert_eq!(state(&a, &there), FlowState::Established);
        // What is settled does not ask again.
        let asked = a.asked.get();
        assert_eq!(a.ingress(&packet(there, ACK)).0.reason, Reason::DsrEstablished);
        assert_eq!(a.asked.get(), asked);
        a.assert_whole();
        b.assert_whole();
    }
}

/// XDP takes out what came in a tunnel, and so opens the flow by which TC ingress finds it; it is
/// TC ingress that counts.
#[test]
fn xdp_opens_flows_of_tunnels() {
    let b = b(Protocol::Udp);
    let inner = udp(client(4000), node(80));
    let (decision, _) = b.at(Hook::Xdp, &tunnelled(inner));
    assert_eq!(decision.step, Step::HandOver);
    assert_eq!(b.flows()[&inner.tuple].packets, 0);
    let (decision, outcome) = b.ingress(&inner);
    assert_eq!((decision.step, decision.reason), (Step::Deliver, Reason::LocalEstablished));
    assert_eq!(outcome.translated.destination, v4(50));
    assert_eq!(b.flows()[&inner.tuple].packets, 1);
    b.assert_whole();
}

#[test]
fn who_does_not_run_redirector_gets_translated_packets() {
    let mut a = a(Protocol::Tcp);
    a.peers.clear();
    a.peers.insert(v4(77), Peer::taking());
    let (decision, outcome) = a.ingress(&tcp(client(4000), node(80), SYN));
    assert_eq!((decision.step, decision.reason), (Step::Forward, Reason::RemoteNew));
    assert_eq!((outcome.manner, outcome.translated.source), (Manner::Translate, v4(1)));
    assert_eq!(outcome.next_hop.mtu, 1280);
}

/// A node that is only known, and not to run redirector, gets translated packets; flows that it had
/// before go on as they are, by either manner.
#[test]
fn a_node_that_takes_no_more_keeps_what_it_has() {
    for router in [None, Some(ROUTER)] {
        let mut a = a(Protocol::Tcp);
        a.router.set(router);
        let manner = if router.is_none() { Manner::Layer2 } else { Manner::Tunnel };
        let syn = |port| tcp(client(port), node(80), SYN);
        assert_eq!(a.ingress(&syn(4000)).1.manner, manner);
        a.peers.insert(v4(50), Peer::known());
        let (decision, outcome) = a.ingress(&syn(4001));
        assert_eq!((decision.reason, outcome.manner), (Reason::RemoteNew, Manner::Translate));
        let (decision, outcome) = a.ingress(&tcp(client(4000), node(80), ACK));
        assert_eq!((decision.reason, outcome.manner), (Reason::DsrEstablished, manner));
        a.assert_whole();
    }
}

/// A pod's address is no node's, but the way to it leads to one.
#[test]
fn backends_behind_a_node() {
    let a = a(Protocol::Tcp);
    a.router.set(Some(v4(50)));
    for backend in a.backends.values() {
        assert_eq!(backend.address, v4(50));
    }
    let mut a = a;
    for backend in a.backends.values_mut() {
        backend.address = Address::from_v4([10, 0, 0, 7]);
    }
    let (decision, outcome) = a.ingress(&tcp(client(4000), node(80), SYN));
    assert_eq!((decision.reason, outcome.manner), (Reason::DsrNew, Manner::Layer2));
    // An address that B has too: only a tunnel tells B that A has decided.
    let key = FrontendKey::new(v4(9), Port::new(80), Protocol::Tcp);
    a.frontends.insert(key, Frontend::new(1, v4(1)));
    let vip = (v4(9), Port::new(80));
    let (decision, outcome) = a.ingress(&tcp(client(4000), vip, SYN));
    assert_eq!((decision.reason, outcome.manner), (Reason::RemoteNew, Manner::Translate));
    let (decision, outcome) = a.ingress(&tcp(client(4001), vip, SYN));
    assert_eq!((decision.reason, outcome.manner), (Reason::DsrNew, Manner::Tunnel));
    a.assert_whole();
}

/// To the backend, two flows of one client's port through two frontends are one: the second is
/// translated.
#[test]
fn flows_that_look_alike() {
    let a = a(Protocol::Tcp);
    let first = tcp(client(4000), node(80), SYN);
    assert_eq!(a.ingress(&first).0.reason, Reason::DsrNew);
    let second = tcp(client(4000), node(81), SYN);
    let (decision, outcome) = a.ingress(&second);
    assert_eq!((decision.reason, outcome.manner), (Reason::RemoteNew, Manner::Translate));
    assert_eq!(outcome.translated.source, v4(1));
    assert_eq!(manner(&a, &first.tuple), Manner::Layer2);
    assert_eq!(manner(&a, &second.tuple), Manner::Translate);
    // Its answers come back this way; those of the first never do.
    let (decision, reply) = a.ingress(&packet(outcome.translated.reversed(), SYN | ACK));
    assert_eq!(decision.reason, Reason::RemoteReply);
    assert_eq!(reply.translated, second.tuple.reversed());
    a.mark(4000, PortFlags::FRONTEND);
    let (decision, _) = a.ingress(&tcp(remote(8080), client(4000), SYN | ACK));
    assert_eq!((decision.step, decision.reason), (Step::Pass, Reason::NotOurs));
    a.assert_whole();
}

/// B tells clients of segments that fit into the tunnel, where there is one, and once.
/// What has to be translated has all addresses for it.
#[test]
fn flows_that_look_alike_by_several_addresses() {
    let mut a = a(Protocol::Tcp);
    a.node.snat_count = 1;
    a.snat_addresses.insert(SnatAddressKey::new(IFINDEX, Family::V4, 1), v4(21));
    for (port, source) in [(4000, v4(1)), (4001, v4(21))] {
        let (first, _) = a.ingress(&tcp(client(port), node(80), SYN));
        assert_eq!(first.reason, Reason::DsrNew);
        let second = tcp(client(port), node(81), SYN);
        let (decision, outcome) = a.ingress(&second);
        assert_eq!((decision.reason, outcome.manner), (Reason::RemoteNew, Manner::Translate));
        assert_eq!(outcome.translated.source, source);
        assert_eq!(manner(&a, &second.tuple), Manner::Translate);
    }
    a.assert_whole();
}

#[test]
fn segments_that_fit_into_the_tunnel() {
    for (flag, by_tunnel, clamped) in [
        (NodeConfig::FLAG_CLAMP_MSS, true, 1),
        (NodeConfig::FLAG_CLAMP_MSS, false, 0),
        (0, true, 0),
    ] {
        let mut b = b(Protocol::Tcp);
        b.node.flags = flag;
        let there = |flags| {
            let packet = tcp(client(4000), node(80), flags);
            if by_tunnel { tunnelled(packet) } else { packet }
        };
        assert_eq!(b.ingress(&there(SYN)).0.reason, Reason::LocalNew);
        let back = |flags| tcp(remote(8080), client(4000), flags);
        assert_eq!(b.egress(&back(SYN | ACK)).0.reason, Reason::LocalReply);
        for flags in [ACK, ACK, FIN | ACK, TcpFlags::RST] {
            let _ = b.ingress(&there(ACK));
            assert_eq!(b.egress(&back(flags)).0.reason, Reason::LocalReply);
        }
        assert_eq!(b.clamped.get(), clamped, "{flag}, {by_tunnel}");
    }
}

#[test]
fn what_does_not_fit_into_a_tunnel() {
    let a = a(Protocol::Udp);
    a.router.set(Some(ROUTER));
    let large = |len| Packet { ip_len: len, ..udp(client(4000), node(80)) };
    for _ in 0..2 {
        let (decision, outcome) = a.ingress(&large(1261));
        assert_eq!((decision.step, decision.reason), (Step::Reject, Reason::TooBig));
        assert_eq!((outcome.error, outcome.next_hop.mtu), (IcmpError::TooBig, 1260));
        assert_eq!(a.ingress(&large(1260)).0.step, Step::Forward);
    }
}

/// Nothing is handed over twice, and what is not ours passes.
#[test]
fn who_was_handed_a_packet_keeps_it() {
    let mut b = b(Protocol::Tcp);
    let there = |flags| tcp(client(4000), node(80), flags);
    for hook in [Hook::Xdp, Hook::Ingress] {
        assert_eq!(b.at(hook, &tunnelled(there(ACK))).0.reason, Reason::TunnelNoFlow);
    }
    assert_eq!(b.ingress(&there(ACK)).0.step, Step::Pass);
    // Only elsewhere.
    let elsewhere = b.backends.len() as u32 + 1;
    b.backends.insert(elsewhere, Backend::remote(v4(60), Port::new(8080)));
    b.table.push(elsewhere);
    let service = b.services.get_mut(&1).unwrap();
    (service.table_offset, service.table_size) = (b.table.len() as u32 - 1, 1);
    assert_eq!(service.table(Origin::Peer).1, 1);
    assert_eq!(b.ingress(&there(SYN)).0.reason, Reason::LocalNew);
    b.clear_flows();
    b.services.get_mut(&1).unwrap().peer_size = 0;
    let (decision, _) = b.ingress(&there(SYN));
    assert_eq!((decision.step, decision.reason), (Step::Pass, Reason::NotOurs));
    for hook in [Hook::Xdp, Hook::Ingress] {
        let (decision, _) = b.at(hook, &tunnelled(there(SYN)));
        assert_eq!((decision.step, decision.reason), (Step::Drop, Reason::TunnelNoBackend));
    }
}

#[test]
fn a_flow_goes_on_as_it_began() {
    let mut a = a(Protocol::Tcp);
    let there = |port, flags| tcp(client(port), node(80), flags);
    assert_eq!(a.ingress(&there(4000, SYN)).0.reason, Reason::DsrNew);
    for service in a.services.values_mut() {
        service.flags = 0;
    }
    assert_eq!(a.ingress(&there(4000, ACK)).0.reason, Reason::DsrEstablished);
    assert_eq!(a.ingress(&there(4001, SYN)).0.reason, Reason::RemoteNew);
    // The node is behind a router now.
    a.router.set(Some(ROUTER));
    a.raise_all_epochs();
    let (decision, outcome) = a.ingress(&there(4000, ACK));
    assert_eq!((decision.reason, outcome.manner), (Reason::DsrEstablished, Manner::Tunnel));
    assert_eq!(manner(&a, &there(4000, ACK).tuple), Manner::Tunnel);
    // The kernel must find the neighbour: the same.
    a.route.set(Route::Unresolved);
    a.raise_all_epochs();
    let (decision, outcome) = a.ingress(&there(4000, ACK));
    assert_eq!((decision.step, outcome.manner), (Step::ForwardUnresolved, Manner::Tunnel));
}

/// A sees only the client's half.
#[test]
fn states_without_replies() {
    let host = a(Protocol::Tcp);
    let there = |flags| tcp(client(4000), node(80), flags);
    let tuple = there(0).tuple;
    let opened = |host: &Host| host.flows()[&tuple].created;
    let _ = host.ingress(&there(SYN));
    assert_eq!(state(&host, &tuple), FlowState::SynSent);
    let _ = host.ingress(&there(ACK));
    assert_eq!(state(&host, &tuple), FlowState::Established);
    // A SYN that was late changes nothing, one that comes much later begins anew.
    let first = opened(&host);
    host.now.set(host.now.get() + SECOND);
    let _ = host.ingress(&there(SYN));
    assert_eq!(opened(&host), first);
    host.now.set(host.now.get() + 10 * SECOND);
    let _ = host.ingress(&there(SYN));
    assert_ne!(opened(&host), first);
    let _ = host.ingress(&there(ACK));
    let _ = host.ingress(&there(FIN | ACK));
    assert_eq!(state(&host, &tuple), FlowState::HalfClosed);
    let second = opened(&host);
    host.now.set(host.now.get() + 1);
    assert_eq!(host.ingress(&there(SYN)).0.reason, Reason::DsrNew);
    assert_ne!(opened(&host), second);
    host.assert_whole();

    let host = a(Protocol::Udp);
    let there = udp(client(4000), node(80));
    for count in 1..10 {
        let _ = host.ingress(&there);
        let replied = state(&host, &there.tuple) == FlowState::Replied;
        assert_eq!(replied, count > 4, "after {count} packets");
    }
    host.assert_whole();
}
