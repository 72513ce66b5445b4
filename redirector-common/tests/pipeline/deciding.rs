//! Decisions, flow by flow.

use redirector_common::packet::{Hook, IcmpError, Packet, Route, Step, TcpFlags};
use redirector_common::{
    Address, Backend, FlowState, Port, Protocol, Reason, Service, SourceRange, Tuple,
};

use crate::host::{Host, SECOND, v4};

const SYN: u8 = TcpFlags::SYN;
const ACK: u8 = TcpFlags::ACK;
const FIN: u8 = TcpFlags::FIN;
const RST: u8 = TcpFlags::RST;

pub(crate) fn client(port: u16) -> (Address, Port) {
    (Address::from_v4([198, 51, 100, 9]), Port::new(port))
}

pub(crate) fn node(port: u16) -> (Address, Port) {
    (v4(1), Port::new(port))
}

pub(crate) fn remote(port: u16) -> (Address, Port) {
    (v4(50), Port::new(port))
}

pub(crate) fn packet(tuple: Tuple, flags: u8) -> Packet {
    Packet { tuple, ip_len: 60, ttl: 64, flags: TcpFlags(flags), ..Packet::EMPTY }
}

pub(crate) fn tcp(source: (Address, Port), destination: (Address, Port), flags: u8) -> Packet {
    packet(Tuple::new(Protocol::Tcp, source, destination), flags)
}

pub(crate) fn udp(source: (Address, Port), destination: (Address, Port)) -> Packet {
    packet(Tuple::new(Protocol::Udp, source, destination), 0)
}

fn state(host: &Host, tuple: &Tuple) -> FlowState {
    host.flows()[tuple].state()
}

#[test]
fn local_flow_keeps_the_client_and_comes_back_as_the_frontend() {
    let mut host = Host::new();
    host.serve(&[80], Protocol::Tcp, Some(Backend::local(Port::new(8080))));
    let (decision, outcome) = host.ingress(&tcp(client(4000), node(80), SYN));
    assert_eq!((decision.step, decision.reason), (Step::Deliver, Reason::LocalNew));
    assert_eq!(outcome.translated, Tuple::new(Protocol::Tcp, client(4000), node(8080)));

    let (decision, outcome) = host.egress(&tcp(node(8080), client(4000), SYN | ACK));
    assert_eq!((decision.step, decision.reason), (Step::Deliver, Reason::LocalReply));
    assert_eq!(outcome.translated, Tuple::new(Protocol::Tcp, node(80), client(4000)));
    host.assert_whole();
}

#[test]
fn remote_flow_is_translated_both_ways() {
    let mut host = Host::new();
    host.serve(&[80], Protocol::Tcp, Some(Backend::remote(v4(50), Port::new(8080))));
    let (decision, outcome) = host.ingress(&tcp(client(4000), node(80), SYN));
    assert_eq!((decision.step, decision.reason), (Step::Forward, Reason::RemoteNew));
    let sent = outcome.translated;
    assert_eq!((sent.source, sent.destination), (v4(1), v4(50)));
    assert!((50000..50004).contains(&sent.source_port.number()));

    let (decision, outcome) = host.ingress(&packet(sent.reversed(), SYN | ACK));
    assert_eq!((decision.step, decision.reason), (Step::Forward, Reason::RemoteReply));
    assert_eq!(outcome.translated, Tuple::new(Protocol::Tcp, node(80), client(4000)));
    host.assert_whole();
}

#[test]
fn xdp_leaves_local_delivery_and_errors_to_tc() {
    let mut host = Host::new();
    host.serve(&[80], Protocol::Tcp, Some(Backend::local(Port::new(8080))));
    host.serve(&[81], Protocol::Tcp, Some(Backend::remote(v4(50), Port::new(8080))));
    let local = tcp(client(4000), node(80), SYN);
    assert_eq!(host.at(Hook::Xdp, &local).0.step, Step::HandOver);
    for route in [Route::Unresolved, Route::TooBig] {
        host.route.set(route);
        let remote = tcp(client(4000), node(81), SYN);
        assert_eq!(host.at(Hook::Xdp, &remote).0.step, Step::HandOver, "{route:?}");
    }
    assert!(host.flows().is_empty(), "a packet handed over leaves no trace");
}

#[test]
fn one_backend_behind_two_frontends_tells_clients_with_one_port_apart() {
    let mut host = Host::new();
    host.serve(&[80, 81], Protocol::Udp, Some(Backend::local(Port::new(8080))));
    let (_, first) = host.ingress(&udp(client(4000), node(80)));
    let (_, second) = host.ingress(&udp(client(4000), node(81)));
    assert_eq!(first.translated.source_port, Port::new(4000));
    assert!((50000..50004).contains(&second.translated.source_port.number()));
    for (sent, frontend) in [(first, 80), (second, 81)] {
        let (_, back) = host.egress(&packet(sent.translated.reversed(), 0));
        assert_eq!(back.translated, Tuple::new(Protocol::Udp, node(frontend), client(4000)));
    }
    host.assert_whole();
}

#[test]
fn hairpin_comes_from_this_node() {
    let mut host = Host::new();
    host.serve(&[80], Protocol::Tcp, Some(Backend::remote(v4(50), Port::new(8080))));
    let (_, outcome) = host.ingress(&tcp(remote(4000), node(80), SYN));
    assert_eq!((outcome.translated.source, outcome.translated.destination), (v4(1), v4(50)));
    let (_, back) = host.ingress(&packet(outcome.translated.reversed(), SYN | ACK));
    assert_eq!(back.translated, Tuple::new(Protocol::Tcp, node(80), remote(4000)));
}

#[test]
fn every_port_is_used_before_exhaustion_and_freed_ones_at_once() {
    let mut host = Host::new();
    host.serve(&[53], Protocol::Udp, Some(Backend::remote(v4(50), Port::new(5353))));
    let mut ports: Vec<u16> = (0..4)
        .map(|i| {
            let (decision, outcome) = host.ingress(&udp(client(4000 + i), node(53)));
            assert_eq!(decision.reason, Reason::RemoteNew);
            let _ = host.ingress(&packet(outcome.translated.reversed(), 0));
            outcome.translated.source_port.number()
        })
        .collect();
    ports.sort_unstable();
    assert_eq!(ports, [50000, 50001, 50002, 50003]);
    let late = udp(client(5000), node(53));
    let (decision, _) = host.ingress(&late);
    assert_eq!((decision.step, decision.reason), (Step::Drop, Reason::SnatExhausted));
    assert_eq!(host.ingress(&udp(client(4000), node(53))).0.reason, Reason::RemoteEstablished);
    host.assert_whole();

    let (key, flow) = host
        .flows()
        .into_iter()
        .find(|(key, _)| *key == udp(client(4001), node(53)).tuple)
        .unwrap();
    use redirector_common::packet::Environment;
    host.remove_flow(&key);
    host.remove_flow(&flow.translated.reversed());
    assert_eq!(host.ingress(&late).0.reason, Reason::RemoteNew);
    host.assert_whole();
}

#[test]
fn a_full_table_never_keeps_half_a_flow() {
    let mut host = Host::new();
    host.serve(&[53], Protocol::Udp, Some(Backend::remote(v4(50), Port::new(5353))));
    for capacity in 0..2 {
        host.flow_capacity.set(capacity);
        let (decision, _) = host.ingress(&udp(client(4000), node(53)));
        assert_eq!((decision.step, decision.reason), (Step::Drop, Reason::FlowTableFull));
        assert!(host.flows().is_empty());
    }
}

#[test]
fn tcp_states_follow_the_handshake_and_the_close() {
    let mut host = Host::new();
    host.serve(&[80], Protocol::Tcp, Some(Backend::local(Port::new(8080))));
    let forward = |flags| tcp(client(4000), node(80), flags);
    let reply = |flags| tcp(node(8080), client(4000), flags);
    let key = forward(0).tuple;
    type Case = (bool, u8, FlowState);
    let script: [Case; 8] = [
        (true, SYN, FlowState::SynSent),
        (true, SYN, FlowState::SynSent),
        (false, SYN | ACK, FlowState::SynReceived),
        (true, ACK, FlowState::Established),
        (false, ACK, FlowState::Established),
        (true, FIN | ACK, FlowState::HalfClosed),
        (false, ACK, FlowState::HalfClosed),
        (false, FIN | ACK, FlowState::TimeWait),
    ];
    for (step, (is_forward, flags, expected)) in script.into_iter().enumerate() {
        if is_forward {
            let _ = host.ingress(&forward(flags));
        } else {
            let _ = host.egress(&reply(flags));
        }
        assert_eq!(state(&host, &key), expected, "step {step}");
        host.assert_whole();
    }
    // The same client port again, at once: a new flow.
    let (decision, _) = host.ingress(&forward(SYN));
    assert_eq!(decision.reason, Reason::LocalNew);
    assert_eq!(state(&host, &key), FlowState::SynSent);
    let _ = host.egress(&reply(RST | ACK));
    assert_eq!(state(&host, &key), FlowState::Closed);
    assert_eq!(host.ingress(&forward(SYN)).0.reason, Reason::LocalNew);
    host.assert_whole();
}

#[test]
fn middle_of_an_unknown_connection_goes_to_the_kernel() {
    let mut host = Host::new();
    host.serve(&[80], Protocol::Tcp, Some(Backend::local(Port::new(8080))));
    for flags in [ACK, FIN | ACK, RST, SYN | ACK, SYN | FIN] {
        let (decision, _) = host.ingress(&tcp(client(4000), node(80), flags));
        assert_eq!((decision.step, decision.reason), (Step::Pass, Reason::NoFlow), "{flags:#x}");
    }
    assert!(host.flows().is_empty());
}

#[test]
fn udp_flow_past_its_timeout_is_made_anew() {
    let mut host = Host::new();
    host.serve(&[53], Protocol::Udp, Some(Backend::local(Port::new(5353))));
    let query = udp(client(4000), node(53));
    let answer = udp(node(5353), client(4000));
    assert_eq!(host.ingress(&query).0.reason, Reason::LocalNew);
    let _ = host.egress(&answer);
    assert_eq!(state(&host, &query.tuple), FlowState::Replied);
    host.now.set(host.now.get() + 100 * SECOND);
    assert_eq!(host.ingress(&query).0.reason, Reason::LocalEstablished);
    // The reply half has been idle for 200 seconds, the forward half for 100: not over.
    host.now.set(host.now.get() + 100 * SECOND);
    assert_eq!(host.ingress(&query).0.reason, Reason::LocalEstablished);
    host.now.set(host.now.get() + 121 * SECOND);
    assert_eq!(host.ingress(&query).0.reason, Reason::LocalNew);
    assert_eq!(state(&host, &query.tuple), FlowState::Unreplied);
    host.assert_whole();
}

#[test]
fn no_backend_is_refused_loudly_or_silently() {
    let mut host = Host::new();
    host.serve(&[80], Protocol::Tcp, None);
    let (decision, outcome) = host.ingress(&tcp(client(4000), node(80), SYN));
    assert_eq!((decision.step, decision.reason), (Step::Reject, Reason::NoBackend));
    assert_eq!(outcome.error, IcmpError::PortUnreachable);
    host.services.values_mut().for_each(|s| s.flags = Service::FLAG_SILENT);
    let (decision, _) = host.ingress(&tcp(client(4000), node(80), SYN));
    assert_eq!((decision.step, decision.reason), (Step::Drop, Reason::NoLocalBackend));
}

#[test]
fn last_hop_and_narrow_way_are_told_to_the_sender() {
    let mut host = Host::new();
    host.serve(&[80], Protocol::Tcp, Some(Backend::remote(v4(50), Port::new(8080))));
    let mut syn = tcp(client(4000), node(80), SYN);
    syn.ttl = 1;
    let (decision, outcome) = host.ingress(&syn);
    assert_eq!((decision.step, decision.reason), (Step::Reject, Reason::TtlExceeded));
    assert_eq!(outcome.error, IcmpError::TimeExceeded);
    syn.ttl = 64;
    host.route.set(Route::TooBig);
    let (decision, outcome) = host.ingress(&syn);
    assert_eq!((decision.step, decision.reason), (Step::Reject, Reason::TooBig));
    assert_eq!((outcome.error, outcome.next_hop.mtu), (IcmpError::TooBig, 1280));
    host.route.set(Route::Unreachable);
    assert_eq!(host.ingress(&syn).0.reason, Reason::NoRoute);
    assert!(host.flows().is_empty());
}

#[test]
fn foreign_traffic_is_left_alone() {
    let mut host = Host::new();
    host.serve(&[80], Protocol::Tcp, Some(Backend::local(Port::new(8080))));
    let cases = [
        (tcp(client(4000), node(8080), SYN), Reason::NotOurs),
        (tcp(client(4000), (v4(2), Port::new(80)), SYN), Reason::NotOurs),
        (udp(client(4000), node(80)), Reason::NotOurs),
        (tcp(remote(8080), node(50001), ACK), Reason::NoReplyFlow),
    ];
    for (packet, reason) in cases {
        let (decision, _) = host.ingress(&packet);
        assert_eq!((decision.step, decision.reason), (Step::Pass, reason), "{:?}", packet.tuple);
    }
    assert_eq!(host.egress(&tcp(node(8080), client(4000), ACK)).0.step, Step::Pass);
}

#[test]
fn source_ranges_are_asked_for_new_flows_alone() {
    let mut host = Host::new();
    host.serve(&[80], Protocol::Tcp, Some(Backend::remote(v4(50), Port::new(8080))));
    host.serve(&[81], Protocol::Tcp, Some(Backend::local(Port::new(8080))));
    host.serve(&[82], Protocol::Tcp, None);
    let limit = |host: &mut Host| {
        host.services.values_mut().for_each(|s| s.flags = Service::FLAG_SOURCE_RANGES);
    };
    let inside = |port| tcp(client(4000), node(port), SYN);
    let outside = |port| tcp(remote(4000), node(port), SYN);
    // Without the flag nobody asks; this one is there before the ranges are.
    assert_eq!(host.ingress(&outside(80)).0.reason, Reason::RemoteNew);

    limit(&mut host);
    host.sources = (1..=3).map(|id| SourceRange::new(id, client(0).0, 24)).collect();
    assert_eq!(host.at(Hook::Xdp, &inside(80)).0.reason, Reason::RemoteNew);
    assert_eq!(host.ingress(&inside(81)).0.reason, Reason::LocalNew);
    assert_eq!(host.ingress(&inside(82)).0.reason, Reason::NoBackend);
    for (hook, port) in
        [(Hook::Xdp, 80), (Hook::Ingress, 80), (Hook::Ingress, 81), (Hook::Ingress, 82)]
    {
        let packet = tcp(remote(4001), node(port), SYN);
        let (decision, _) = host.at(hook, &packet);
        assert_eq!((decision.step, decision.reason), (Step::Drop, Reason::SourceDenied));
        assert!(!host.flows().contains_key(&packet.tuple));
    }
    let (decision, _) = host.ingress(&tcp(remote(4000), node(80), ACK));
    assert_eq!((decision.step, decision.reason), (Step::Forward, Reason::RemoteEstablished));

    // Another service's ranges admit nobody here.
    host.sources = vec![SourceRange::new(2, client(0).0, 24)];
    let late = tcp(client(4001), node(80), SYN);
    assert_eq!(host.ingress(&late).0.reason, Reason::SourceDenied);
    assert_eq!(host.ingress(&tcp(client(4000), node(80), ACK)).0.reason, Reason::RemoteEstablished);
    host.assert_whole();
}
