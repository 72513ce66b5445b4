//! Making room: half-open flows have a budget, and what is over gives way.

use redirector_common::packet::{Packet, TcpFlags};
use redirector_common::ring::half_open_budget;
use redirector_common::{Address, Backend, FlowState, Port, Protocol, Reason, Tuple};

use crate::deciding::{node, packet, remote, tcp, udp};
use crate::host::{Host, RING_SLOTS, SECOND, v4};

const SYN: u8 = TcpFlags::SYN;
const ACK: u8 = TcpFlags::ACK;
const BUDGET: usize = half_open_budget(RING_SLOTS) as usize;

/// A node with a ring, and a backend on it behind port 80 and one elsewhere behind 81.
fn host() -> Host {
    let mut host = Host::new();
    host.node.ring_slots = RING_SLOTS;
    host.node.snat_count = 1000;
    for protocol in Protocol::ALL {
        host.serve(&[80], protocol, Some(Backend::local(Port::new(8080))));
        host.serve(&[81], protocol, Some(Backend::remote(v4(50), Port::new(8080))));
    }
    host
}

fn source(number: u16) -> (Address, Port) {
    let [high, low] = number.to_be_bytes();
    (Address::from_v4([10, 9, high, low]), Port::new(4000))
}

fn syn(number: u16, port: u16) -> Packet {
    tcp(source(number), node(port), SYN)
}

/// Opens a TCP connection to a backend elsewhere, and returns what the reply half matches.
fn establish(host: &Host, number: u16) -> Tuple {
    let (decision, outcome) = host.ingress(&syn(number, 81));
    assert_eq!(decision.reason, Reason::RemoteNew);
    let back = outcome.translated.reversed();
    let _ = host.ingress(&packet(back, SYN | ACK));
    let _ = host.ingress(&tcp(source(number), node(81), ACK));
    assert_eq!(host.flows()[&back].state(), FlowState::Established);
    back
}

fn counted(host: &Host, reason: Reason) -> u32 {
    host.counted.borrow().get(&reason).copied().unwrap_or_default()
}

fn half_open(host: &Host) -> usize {
    let flows = host.flows();
    flows.values().filter(|flow| flow.state().is_half_open()).count() / 2
}

#[test]
fn half_open_flows_have_a_budget_of_their_own() {
    for port in [80, 81] {
        let host = host();
        let established: Vec<Tuple> = (0..20).map(|number| establish(&host, number)).collect();
        for number in 100..1100 {
            let (decision, _) = host.ingress(&syn(number, port));
            assert!(matches!(decision.reason, Reason::LocalNew | Reason::RemoteNew), "{number}");
            assert!(half_open(&host) <= BUDGET, "{number}: {}", half_open(&host));
            host.assert_whole();
        }
        let flows = host.flows();
        assert!(established.iter().all(|key| flows.contains_key(key)), "established ones stay");
        assert!(counted(&host, Reason::HalfOpenDropped) >= 1000 - BUDGET as u32);
        let back = establish(&host, 2000);
        assert_eq!(host.ingress(&packet(back, ACK)).0.reason, Reason::RemoteReply);
    }
}

#[test]
fn a_handshake_that_goes_on_meanwhile_is_completed() {
    let host = host();
    let (_, outcome) = host.ingress(&syn(1, 81));
    for number in 100..100 + BUDGET as u16 - 1 {
        let _ = host.ingress(&syn(number, 81));
    }
    let back = outcome.translated.reversed();
    assert_eq!(host.ingress(&packet(back, SYN | ACK)).0.reason, Reason::RemoteReply);
    let _ = host.ingress(&tcp(source(1), node(81), ACK));
    for number in 200..400 {
        let _ = host.ingress(&syn(number, 81));
    }
    assert_eq!(host.flows()[&back].state(), FlowState::Established);
    host.assert_whole();
}

#[test]
fn datagrams_that_nobody_answers_count_as_half_open_unless_they_go_on_for_long() {
    let host = host();
    let log = udp(source(1), node(81));
    for _ in 0..5 {
        let _ = host.ingress(&log);
        host.now.set(host.now.get() + 10 * SECOND);
    }
    for number in 100..100 + 2 * BUDGET as u16 {
        let _ = host.ingress(&udp(source(number), node(81)));
    }
    assert!(host.flows().contains_key(&log.tuple), "in use for long");
    assert!(!host.flows().contains_key(&udp(source(100), node(81)).tuple));
    assert!((BUDGET..=BUDGET + 1).contains(&half_open(&host)), "{}", half_open(&host));
    host.assert_whole();
}

/// With nobody to collect them.
#[test]
fn flows_that_are_over_go_before_new_ones() {
    let host = host();
    for number in 0..RING_SLOTS as u16 {
        establish(&host, number);
    }
    let timeout = u64::from(FlowState::Established.timeout_seconds());
    host.now.set(host.now.get() + (timeout + 1) * SECOND);
    for number in 1000..1000 + RING_SLOTS as u16 {
        establish(&host, number);
    }
    assert_eq!(host.flows().len(), 2 * RING_SLOTS as usize);
    assert_eq!(counted(&host, Reason::FlowReclaimed), RING_SLOTS);
    host.assert_whole();
}

#[test]
fn a_full_table_takes_room_from_what_is_finished() {
    let host = host();
    host.flow_capacity.set(2 * 20 + 1);
    let flows: Vec<Tuple> = (0..20).map(|number| establish(&host, number)).collect();
    assert_eq!(host.ingress(&syn(100, 81)).0.reason, Reason::FlowTableFull);
    host.assert_whole();
    let _ = host.ingress(&packet(flows[7], TcpFlags::RST | ACK));
    // A few slots are looked at for each packet.
    while host.ingress(&syn(100, 81)).0.reason == Reason::FlowTableFull {}
    assert_eq!(counted(&host, Reason::FlowReclaimed), 1);
    assert!(!host.flows().contains_key(&flows[7]));
    assert_eq!(host.ingress(&packet(flows[8], ACK)).0.reason, Reason::RemoteReply);
    host.assert_whole();
}

/// What the flow cache holds of a finished flow must not be believed for the one in its place.
#[test]
fn what_gives_way_is_forgotten_by_the_cache() {
    let mut host = host();
    host.node.snat_count = 1;
    let back = establish(&host, 1);
    assert_eq!(host.ingress(&packet(back, ACK)).0.reason, Reason::RemoteReply);
    let _ = host.ingress(&tcp(source(1), node(81), TcpFlags::RST));
    let again = establish(&host, 2);
    assert_eq!(again, back, "the only port");
    let (_, outcome) = host.ingress(&packet(again, ACK));
    assert_eq!(outcome.translated.destination, source(2).0);
    host.assert_whole();
}

#[test]
fn ports_are_taken_from_half_open_flows_and_never_from_established_ones() {
    let mut host = host();
    host.node.snat_count = 4;
    for number in 0..3 {
        establish(&host, number);
    }
    for number in 100..110 {
        assert_eq!(host.ingress(&syn(number, 81)).0.reason, Reason::RemoteNew, "{number}");
    }
    establish(&host, 3);
    assert_eq!(host.ingress(&syn(200, 81)).0.reason, Reason::SnatExhausted);
    let _ = host.ingress(&tcp(source(0), node(81), TcpFlags::RST));
    establish(&host, 4);
    assert_eq!(host.ingress(&tcp(remote(9), node(81), SYN)).0.reason, Reason::SnatExhausted);
    host.assert_whole();
}
