//! While the flow table is made larger no flow is opened, and what has none is sent again.

use redirector_common::packet::{Hook, Socket, Step, TcpFlags};
use redirector_common::{Port, PortFlags, Reason};

use crate::deciding::{client, node, packet, remote, tcp, udp};
use crate::host::{Host, SECOND, v4};

const SYN: u8 = TcpFlags::SYN;
const ACK: u8 = TcpFlags::ACK;

/// A node with backends elsewhere behind port 80 and one of its own behind 81, of each protocol.
fn host() -> Host {
    Host::serving(&[80], &[81])
}

/// The table moves from now on, for five seconds.
fn hold(host: &mut Host) {
    host.node.moving_until = host.now.get() + 5 * SECOND;
}

#[test]
fn nothing_is_opened_until_it_is_over() {
    let mut host = host();
    hold(&mut host);
    let first = [
        tcp(client(4000), node(80), SYN),
        tcp(client(4000), node(81), SYN),
        udp(client(4000), node(80)),
        udp(client(4000), node(81)),
    ];
    let held = (Step::Drop, Reason::TableMoves);
    for packet in &first {
        let (decision, _) = host.ingress(packet);
        assert_eq!((decision.step, decision.reason), held, "{:?}", packet.tuple);
    }
    let (decision, _) = host.at(Hook::Xdp, &first[0]);
    assert_eq!((decision.step, decision.reason), held);
    assert!(host.flows().is_empty());

    // Whoever held them may have been killed.
    host.now.set(host.node.moving_until);
    for packet in &first {
        assert!(matches!(host.ingress(packet).0.step, Step::Forward | Step::Deliver));
    }
    host.assert_whole();
}

#[test]
fn what_has_no_flow_is_sent_again_and_not_answered_by_the_kernel() {
    let mut host = host();
    hold(&mut host);
    for packet in [
        tcp(client(4000), node(80), ACK),
        tcp(client(4000), node(81), ACK | TcpFlags::FIN),
        tcp(remote(8080), node(50001), ACK),
        udp(remote(8080), node(50001)),
    ] {
        let (decision, _) = host.ingress(&packet);
        assert_eq!((decision.step, decision.reason), (Step::Drop, Reason::TableMoves));
    }
    let (decision, _) = host.egress(&tcp(node(8080), client(4000), ACK));
    assert_eq!((decision.step, decision.reason), (Step::Drop, Reason::TableMoves));
    // What is none of ours is left alone.
    assert_eq!(host.ingress(&tcp(client(4000), node(22), SYN)).0.step, Step::Pass);
    assert_eq!(host.egress(&tcp(node(22), client(4000), ACK)).0.step, Step::Pass);
    let elsewhere = tcp(client(4000), (v4(2), Port::new(80)), SYN);
    assert_eq!(host.ingress(&elsewhere).0.step, Step::Pass);
}

#[test]
fn flows_that_are_there_go_on() {
    let mut host = host();
    let (_, far) = host.ingress(&tcp(client(4000), node(80), SYN));
    let (_, near) = host.ingress(&tcp(client(4000), node(81), SYN));
    hold(&mut host);
    for flags in [SYN | ACK, ACK, TcpFlags::FIN | ACK] {
        let (decision, _) = host.ingress(&packet(far.translated.reversed(), flags));
        assert_eq!(decision.reason, Reason::RemoteReply);
        let (decision, _) = host.egress(&packet(near.translated.reversed(), flags));
        assert_eq!(decision.reason, Reason::LocalReply);
        let there = tcp(client(4000), node(80), ACK);
        assert_eq!(host.ingress(&there).0.reason, Reason::RemoteEstablished);
        let there = tcp(client(4000), node(81), ACK);
        assert_eq!(host.ingress(&there).0.reason, Reason::LocalEstablished);
    }
    // The client's port again, on a flow that is finished: not before the table is there.
    let _ = host.ingress(&tcp(client(4000), node(80), TcpFlags::RST));
    let again = tcp(client(4000), node(80), SYN);
    assert_eq!(host.ingress(&again).0.reason, Reason::TableMoves);
    host.now.set(host.node.moving_until);
    assert_eq!(host.ingress(&again).0.reason, Reason::RemoteNew);
    host.assert_whole();
}

#[test]
fn steered_connections_are_not_held() {
    let mut host = host();
    host.mark(81, PortFlags::STEER);
    host.listeners.borrow_mut().insert((v4(1), 8080));
    hold(&mut host);
    let syn = tcp(client(4000), node(81), SYN);
    assert_eq!(host.ingress(&syn).0.reason, Reason::SteeredNew);
    host.sockets.borrow_mut().insert(syn.tuple, Socket::Open);
    let later = tcp(client(4000), node(81), ACK);
    assert_eq!(host.ingress(&later).0.reason, Reason::SteeredEstablished);
    // No listener: it would be translated.
    host.listeners.borrow_mut().clear();
    let syn = tcp(client(4001), node(81), SYN);
    assert_eq!(host.ingress(&syn).0.reason, Reason::TableMoves);
}
