//! Which packets go to sockets of the node as they are, and what they cost.

use redirector_common::packet::{Hook, Packet, Socket, Step, TcpFlags};
use redirector_common::{
    Address, Backend, FrontendKey, Port, PortFlags, Protocol, Reason, SteeredKey, Tuple,
};

use crate::host::{Host, v4};

const SYN: u8 = TcpFlags::SYN;
const ACK: u8 = TcpFlags::ACK;
const RST: u8 = TcpFlags::RST;

fn tcp(flags: u8) -> Packet {
    let client = (Address::from_v4([198, 51, 100, 9]), Port::new(4000));
    let tuple = Tuple::new(Protocol::Tcp, client, (v4(1), Port::new(80)));
    Packet { tuple, ip_len: 60, ttl: 64, flags: TcpFlags(flags), ..Packet::EMPTY }
}

/// A node whose port 80 leads to a listener on its own port 8080.
fn steering() -> Host {
    let mut host = Host::new();
    host.serve(&[80], Protocol::Tcp, Some(Backend::local(Port::new(8080))));
    host.mark(80, PortFlags::STEER);
    host.listeners.borrow_mut().insert((v4(1), 8080));
    host
}

fn at_ingress(host: &Host, packet: &Packet) -> (Step, Reason) {
    let (decision, _) = host.ingress(packet);
    (decision.step, decision.reason)
}

#[test]
fn a_syn_goes_to_the_listener_and_leaves_no_flow() {
    let host = steering();
    assert_eq!(at_ingress(&host, &tcp(SYN)), (Step::Pass, Reason::SteeredNew));
    assert!(host.flows().is_empty());
}

/// A connection counts for its service and frontend when its SYN is handed over, and only then.
#[test]
fn connections_are_counted_once() {
    let host = steering();
    let steered = || host.steered.borrow().values().sum::<u64>();
    let _ = host.at(Hook::Xdp, &tcp(SYN));
    assert_eq!(steered(), 0);
    let _ = host.ingress(&tcp(SYN));
    assert_eq!(steered(), 1);
    host.sockets.borrow_mut().insert(tcp(ACK).tuple, Socket::Open);
    for flags in [SYN, ACK, RST] {
        let _ = host.ingress(&tcp(flags));
    }
    host.sockets.borrow_mut().clear();
    host.cookies.set(true);
    let _ = host.ingress(&tcp(ACK));
    assert_eq!(steered(), 1);
    let _ = host.ingress(&tcp(SYN));
    let frontend = FrontendKey::new(v4(1), Port::new(80), Protocol::Tcp);
    assert_eq!(*host.steered.borrow(), [(SteeredKey { service: 1, frontend }, 2)].into());
    // What is translated is a flow, which counts by itself.
    host.listeners.borrow_mut().clear();
    let _ = host.ingress(&tcp(SYN));
    assert_eq!(steered(), 2);
}

#[test]
fn a_packet_of_a_connection_costs_one_socket_look_up() {
    let host = steering();
    host.sockets.borrow_mut().insert(tcp(ACK).tuple, Socket::Open);
    for flags in [ACK, SYN, RST] {
        assert_eq!(at_ingress(&host, &tcp(flags)), (Step::Pass, Reason::SteeredEstablished));
    }
    assert_eq!((host.socket_look_ups.get(), host.flow_look_ups.get()), (3, 0));
}

#[test]
fn without_a_listener_a_connection_is_translated() {
    let host = steering();
    host.listeners.borrow_mut().clear();
    assert_eq!(at_ingress(&host, &tcp(SYN)), (Step::Deliver, Reason::LocalNew));
    // And stays so when there is one later.
    host.listeners.borrow_mut().insert((v4(1), 8080));
    assert_eq!(at_ingress(&host, &tcp(ACK)), (Step::Deliver, Reason::LocalEstablished));
    assert_eq!(at_ingress(&host, &tcp(SYN)), (Step::Deliver, Reason::LocalEstablished));
    host.assert_whole();
}

#[test]
fn fragments_and_addresses_of_others_are_translated() {
    let host = steering();
    let fragment = Packet { identification: 1, ..tcp(SYN) };
    assert_eq!(at_ingress(&host, &fragment), (Step::Deliver, Reason::LocalNew));
    let mut host = steering();
    for frontend in host.frontends.values_mut() {
        frontend.local_address = v4(2);
    }
    host.listeners.borrow_mut().insert((v4(2), 8080));
    assert_eq!(at_ingress(&host, &tcp(SYN)), (Step::Deliver, Reason::LocalNew));
}

#[test]
fn the_rest_of_a_connection_has_what_is_late_but_not_the_next_syn() {
    let host = steering();
    host.sockets.borrow_mut().insert(tcp(ACK).tuple, Socket::TimeWait);
    assert_eq!(at_ingress(&host, &tcp(ACK)), (Step::Pass, Reason::SteeredEstablished));
    assert_eq!(at_ingress(&host, &tcp(SYN)), (Step::Deliver, Reason::LocalNew));
    assert_eq!(at_ingress(&host, &tcp(ACK)), (Step::Deliver, Reason::LocalEstablished));
    host.assert_whole();
}

#[test]
fn an_answer_to_a_cookie_goes_to_the_listener() {
    let host = steering();
    assert_eq!(at_ingress(&host, &tcp(ACK)), (Step::Pass, Reason::NoFlow));
    host.cookies.set(true);
    assert_eq!(at_ingress(&host, &tcp(ACK)), (Step::Pass, Reason::SteeredEstablished));
    for flags in [RST, RST | ACK, SYN | ACK] {
        assert_eq!(at_ingress(&host, &tcp(flags)), (Step::Pass, Reason::NoFlow));
    }
    assert!(host.flows().is_empty());
}

#[test]
fn where_flows_go_elsewhere_the_flow_table_decides_first() {
    let mut host = steering();
    host.mark(80, PortFlags::REMOTE);
    host.backends.insert(1, Backend::remote(v4(50), Port::new(8080)));
    assert_eq!(at_ingress(&host, &tcp(SYN)), (Step::Forward, Reason::RemoteNew));
    // What an earlier connection left does not get in its way.
    host.sockets.borrow_mut().insert(tcp(ACK).tuple, Socket::TimeWait);
    for hook in [Hook::Xdp, Hook::Ingress] {
        let (decision, _) = host.at(hook, &tcp(ACK));
        assert_eq!((decision.step, decision.reason), (Step::Forward, Reason::RemoteEstablished));
    }
}

/// The backends change between a SYN and its retransmission.
#[test]
fn a_handshake_that_has_begun_here_stays_here() {
    let mut host = steering();
    host.mark(80, PortFlags::REMOTE);
    assert_eq!(host.at(Hook::Xdp, &tcp(SYN)).0.step, Step::HandOver);
    assert_eq!(at_ingress(&host, &tcp(SYN)), (Step::Pass, Reason::SteeredNew));
    host.sockets.borrow_mut().insert(tcp(ACK).tuple, Socket::Open);
    host.backends.insert(1, Backend::remote(v4(50), Port::new(8080)));
    for flags in [SYN, ACK] {
        assert!(matches!(host.at(Hook::Xdp, &tcp(flags)).0.step, Step::HandOver | Step::Pass));
        assert_eq!(at_ingress(&host, &tcp(flags)), (Step::Pass, Reason::SteeredEstablished));
    }
    assert!(host.flows().is_empty());
}
