//! What is not ours, or not whole, passes byte for byte.

use anyhow::Result;
use redirector::dataplane::pins::Hook;
use redirector_common::{Family, Protocol, Reason};
use redirector_tests::{
    packet::{Extension, Flags, Packet, Transport},
    topology::FAMILIES,
};

use crate::{
    case::{Case, INWARD, check_all},
    given::{Given, from_local, to_frontend, transports},
    world::{self, BACKEND, NODE, NODE_INSIDE, at},
};

/// The same bytes pass at both inward hooks.
fn passes(cases: &mut Vec<Case>, what: &str, bytes: &[u8], reason: Reason) {
    for hook in INWARD {
        cases.push(Case::raw(what, hook, bytes.to_vec()).passes(reason));
    }
}

/// Packets that would be translated if they were whole, in every shape.
fn shapes(port: u16) -> Vec<(String, Packet)> {
    let mut shapes = Vec::new();
    for family in FAMILIES {
        for (protocol, transport) in transports(Flags::SYN) {
            for tags in [[].as_slice(), &[100], &[100, 200]] {
                let packet = to_frontend(transport, family, port).vlans(tags);
                let what = format!("{protocol} over {family:?} with {} tags", tags.len());
                shapes.push((format!("{what} and options"), with_options(&packet, family)));
                shapes.push((what, packet));
            }
        }
    }
    shapes
}

fn with_options(packet: &Packet, family: Family) -> Packet {
    match family {
        Family::V4 => packet.clone().options(3),
        Family::V6 => {
            let extensions = [Extension::hop_by_hop(), Extension::destination_options(2)];
            packet.clone().extensions(&extensions)
        }
    }
}

/// The least that the kernel lets one run a hook's program on: a socket buffer is refused where it
/// is said to be IP (not: tagged) and has no whole IP header.
fn shortest(hook: Hook, packet: &Packet) -> usize {
    match (hook, packet.network()) {
        (Hook::Xdp, _) => 14,
        (Hook::Ingress | Hook::Egress, 14) if packet.source().is_ipv4() => 14 + 20,
        (Hook::Ingress | Hook::Egress, 14) => 14 + 40,
        (Hook::Ingress | Hook::Egress, _) => 15,
    }
}

/// Cut off at every byte, the header boundaries among them.
#[test]
fn truncated() -> Result<()> {
    let mut cases = Vec::new();
    for (what, packet) in shapes(world::REMOTE) {
        let frame = packet.bytes();
        for hook in INWARD {
            for len in shortest(hook, &packet)..frame.len() {
                let what = format!("{what}, cut after {len} of {} bytes", frame.len());
                cases.push(Case::raw(what, hook, frame[..len].to_vec()).passes(Reason::Malformed));
            }
        }
    }
    check_all(cases)
}

/// The IP header says that the packet ends inside the transport header, though there are more
/// bytes in the frame.
#[test]
fn ending_early() -> Result<()> {
    let mut cases = Vec::new();
    for (what, packet) in shapes(world::REMOTE) {
        let frame = packet.bytes();
        let (network, headers) = (packet.network(), packet.transport() - packet.network());
        let transport = if what.starts_with("TCP") { 20 } else { 8 };
        for len in [headers, headers + 1, headers + transport - 1] {
            let mut cut = frame.clone();
            // IPv4 counts its own header, IPv6 does not.
            let (field, base) = if cut[network] >> 4 == 4 { (2, 0) } else { (4, 40) };
            let [high, low] = u16::try_from(len - base)?.to_be_bytes();
            cut[network + field] = high;
            cut[network + field + 1] = low;
            let what = format!("{what}, said to end after {len} bytes of IP");
            passes(&mut cases, &what, &cut, Reason::Malformed);
        }
    }
    check_all(cases)
}

/// Fields that contradict each other or the frame: offset from the IP header, value.
#[test]
fn contradictory() -> Result<()> {
    let mut cases = Vec::new();
    let v4: [(&str, usize, u8); 7] = [
        ("version 6", 0, 0x65),
        ("version 0", 0, 0x05),
        ("a header of no words", 0, 0x40),
        ("a header of four words", 0, 0x44),
        ("a header longer than the packet", 0, 0x4f),
        ("longer than the frame", 2, 0x10),
        ("shorter than its header", 3, 19),
    ];
    let v6: [(&str, usize, u8); 4] = [
        ("version 4", 0, 0x40),
        ("version 0", 0, 0x00),
        ("longer than the frame", 4, 0x10),
        ("empty", 5, 0),
    ];
    for (family, edits) in [(Family::V4, v4.as_slice()), (Family::V6, &v6)] {
        for (protocol, transport) in transports(Flags::SYN) {
            for &(what, offset, value) in edits {
                // No payload: a header of fifteen words then reaches beyond the end.
                let packet = to_frontend(transport, family, world::REMOTE).payload(0);
                let mut frame = packet.bytes();
                frame[packet.network() + offset] = value;
                let what = format!("{protocol} over {family:?}: {what}");
                passes(&mut cases, &what, &frame, Reason::Malformed);
            }
        }
        for (what, value) in
            [("no words", 0x00), ("four words", 0x40), ("more than there is", 0xf0)]
        {
            let packet = to_frontend(Transport::Tcp(Flags::SYN), family, world::REMOTE);
            let packet = packet.payload(5);
            let mut frame = packet.bytes();
            frame[packet.transport() + 12] = value;
            let what = format!("a TCP header of {what} over {family:?}");
            passes(&mut cases, &what, &frame, Reason::Malformed);
        }
    }
    let packet = to_frontend(Transport::Udp, Family::V6, world::REMOTE)
        .extensions(&[Extension::destination_options(1)]);
    let mut frame = packet.bytes();
    frame[packet.network() + 41] = 0xff;
    passes(&mut cases, "an extension header beyond the end", &frame, Reason::Malformed);
    check_all(cases)
}

/// RFC 4942 §2.2: IPv4-mapped addresses on the wire are nobody's, least of all IPv4's.
#[test]
fn mapped_addresses() -> Result<()> {
    let mut cases = Vec::new();
    for (protocol, transport) in transports(Flags::SYN) {
        for offset in [8, 24] {
            let packet = to_frontend(transport, Family::V6, world::REMOTE);
            let mut frame = packet.bytes();
            let start = packet.network() + offset;
            let last = if offset == 8 { [198, 18, 1, 2] } else { [198, 18, 1, 1] };
            frame[start..start + 10].fill(0);
            frame[start + 10..start + 12].fill(0xff);
            frame[start + 12..start + 16].copy_from_slice(&last);
            let what = format!("{protocol}, an IPv4-mapped address at {offset}");
            passes(&mut cases, &what, &frame, Reason::Malformed);
        }
    }
    check_all(cases)
}

/// Ethernet types and IP protocols that concern others.
#[test]
fn other_protocols() -> Result<()> {
    let mut cases = Vec::new();
    let header = [world::mac(1, 1), world::mac(1, 2)].concat();
    let link = |ether_type: u16, body: &[u8]| {
        [header.as_slice(), &ether_type.to_be_bytes(), body].concat()
    };
    // RFC 826: a request for the node's address.
    let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1];
    arp.extend_from_slice(&[2, 0, 0, 0, 1, 2, 198, 18, 1, 2]);
    arp.extend_from_slice(&[0, 0, 0, 0, 0, 0, 198, 18, 1, 1]);
    passes(&mut cases, "ARP", &link(0x0806, &arp), Reason::NotIp);
    passes(&mut cases, "LLDP", &link(0x88cc, &[2, 7, 4, 1, 2, 3, 4, 5, 6]), Reason::NotIp);
    passes(&mut cases, "IEEE 802.3 with a length", &link(60, &[0x42; 60]), Reason::NotIp);
    passes(&mut cases, "MPLS", &link(0x8847, &[0x45; 40]), Reason::NotIp);

    for family in FAMILIES {
        let packet = to_frontend(Transport::Udp, family, world::REMOTE);
        let protocols: [(&str, u8); 6] = [
            ("IGMP", 2),
            ("L2TP", 115),
            ("GRE", 47),
            ("ESP", 50),
            ("SCTP", 132),
            ("UDP-Lite", 136),
        ];
        for (what, number) in protocols {
            let mut frame = packet.bytes();
            let field = if matches!(family, Family::V4) { 9 } else { 6 };
            frame[packet.network() + field] = number;
            let what = format!("{what} over {family:?}");
            passes(&mut cases, &what, &frame, Reason::NotTcpUdp);
        }
    }
    check_all(cases)
}

/// TCP and UDP that no frontend is named for.
#[test]
fn other_destinations() -> Result<()> {
    let mut cases = Vec::new();
    for family in FAMILIES {
        for (protocol, transport) in transports(Flags::SYN) {
            let name = format!("{protocol} over {family:?}");
            for port in [1, 22, 79, 112, world::LOCAL_PORT, 49999, 65535] {
                let packet = to_frontend(transport, family, port);
                let what = format!("{name} to port {port}");
                passes(&mut cases, &what, &packet.bytes(), Reason::NotOurs);
            }
            for (whose, host) in [("the node's other", NODE_INSIDE), ("another's", BACKEND)] {
                for port in [world::LOCAL, world::REMOTE] {
                    let packet = to_frontend(transport, family, port);
                    let packet = packet.going_to(at(host, family, port));
                    let what = format!("{name} to port {port} of {whose} address");
                    passes(&mut cases, &what, &packet.bytes(), Reason::NotOurs);
                }
            }
            let packet = to_frontend(transport, family, world::SNAT);
            let what = format!("{name} from outside to the translation block");
            passes(&mut cases, &what, &packet.bytes(), Reason::NoReplyFlow);
        }
    }
    check_all(cases)
}

/// What leaves the node and is no reply of a local backend.
#[test]
fn leaving() -> Result<()> {
    let mut cases = Vec::new();
    for family in FAMILIES {
        for (protocol, transport) in transports(Flags::ACK) {
            let name = format!("{protocol} over {family:?}");
            let flow = Given::local(protocol, family);
            let reply = from_local(transport, family);
            let own = reply.clone().coming_from(at(NODE, family, 33000));
            cases.push(
                Case::new(format!("{name} of the node's own"), Hook::Egress, &own)
                    .given(flow)
                    .passes(Reason::NotOurs),
            );
            let inside = reply.clone().coming_from(at(NODE_INSIDE, family, world::LOCAL_PORT));
            cases.push(
                Case::new(format!("{name} from the other address"), Hook::Egress, &inside)
                    .given(flow)
                    .passes(Reason::NotOurs),
            );
            let frame = reply.bytes();
            for len in shortest(Hook::Egress, &reply)..frame.len() {
                cases.push(
                    Case::raw(
                        format!("{name}, {len} bytes of it"),
                        Hook::Egress,
                        frame[..len].to_vec(),
                    )
                    .given(flow)
                    .passes(Reason::Malformed),
                );
            }
            let remote = Given::remote(protocol, family);
            let looped = reply.coming_from(at(BACKEND, family, world::REMOTE_PORT)).going_to(at(
                NODE_INSIDE,
                family,
                world::SNAT,
            ));
            cases.push(
                Case::new(format!("{name} that looks like another's reply"), Hook::Egress, &looped)
                    .given(remote)
                    .passes(Reason::NotOurs),
            );
        }
    }
    // A reply of the backend in the wrong place: from outside, to the client.
    let flow = Given::local(Protocol::Tcp, Family::V4);
    let reply = from_local(Transport::Tcp(Flags::ACK), Family::V4);
    for hook in INWARD {
        cases.push(
            Case::new("a local backend's reply from outside", hook, &reply)
                .given(flow)
                .passes(Reason::NotOurs),
        );
    }
    check_all(cases)
}
