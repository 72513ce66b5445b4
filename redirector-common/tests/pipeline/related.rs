//! Later fragments and ICMP errors, from their bytes to their bytes.

use etherparse::{
    IcmpEchoHeader, Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, PacketBuilder, icmpv4,
};
use proptest::prelude::*;
use redirector_common::packet::quoted::Quoted;
use redirector_common::packet::related::{
    complete, decide_related, decide_related_reply, parse_related, rewrite_related,
};
use redirector_common::packet::{Bytes, Kind, Outcome, Packet, Route, Step, fragment, parse};
use redirector_common::{Address, Backend, Port, Protocol, Reason, Tuple};

use crate::host::{Host, SECOND, v4};
use crate::packets::{Recipe, recipe_and_ends};

const CLIENT: [u8; 4] = [198, 51, 100, 9];
const NODE: [u8; 4] = [192, 0, 2, 1];
const BACKEND: [u8; 4] = [192, 0, 2, 50];
const ROUTER: [u8; 4] = [203, 0, 113, 7];

fn udp(source: ([u8; 4], u16), destination: ([u8; 4], u16)) -> Tuple {
    let end = |(address, port)| (Address::from_v4(address), Port::new(port));
    Tuple::new(Protocol::Udp, end(source), end(destination))
}

/// A whole UDP datagram, of which the IPv4 header is then changed.
fn datagram(source: ([u8; 4], u16), destination: ([u8; 4], u16), fragment: u16) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv4(source.0, destination.0, 64)
        .udp(source.1, destination.1)
        .write(&mut frame, &[7; 32])
        .unwrap();
    frame[18..20].copy_from_slice(&0x4321_u16.to_be_bytes());
    frame[20..22].copy_from_slice(&fragment.to_be_bytes());
    frame[24..26].fill(0);
    let sum = ipv4_sum(&frame[14..34]);
    frame[24..26].copy_from_slice(&(!sum).to_be_bytes());
    frame
}

/// The one's-complement sum of an IPv4 header: all ones where its checksum is right.
fn ipv4_sum(header: &[u8]) -> u16 {
    let mut sum: u32 =
        header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap()
}

/// A node with a backend elsewhere behind port 53, and a local one behind port 54.
fn host() -> Host {
    let mut host = Host::new();
    let remote = Backend::remote(v4(50), Port::new(5353));
    host.serve(&[53], Protocol::Udp, Some(remote));
    host.serve(&[54], Protocol::Udp, Some(Backend::local_at(v4(2), Port::new(5354))));
    host
}

/// Decides about a packet as TC ingress does, from its bytes on.
fn ingress(host: &Host, frame: &mut [u8]) -> (Step, Reason, Tuple) {
    let mut outcome = Outcome::EMPTY;
    let mut packet = Packet::EMPTY;
    let bytes = Bytes::new(frame);
    let decision = match parse(&bytes, &mut packet) {
        Ok(()) => {
            let (decision, found) = host.ingress(&packet);
            outcome = found;
            if packet.is_first_fragment() && !matches!(decision.step, Step::Pass | Step::Drop) {
                fragment::note(host, &bytes, &packet).unwrap();
            }
            decision
        }
        Err(_) => {
            let mut quoted = Quoted::NONE;
            let kind = match parse_related(&bytes, &mut packet) {
                Ok(kind) => kind,
                Err(reason) => return (Step::Pass, reason, packet.tuple),
            };
            if let Err(reason) = complete(host, &bytes, &mut packet, kind, &mut quoted) {
                return (Step::Pass, reason, packet.tuple);
            }
            decide_related(host, &packet, kind, &mut outcome)
        }
    };
    (decision.step, decision.reason, outcome.translated)
}

const MORE: u16 = 0x2000;

#[test]
fn later_fragments_follow_the_first() {
    let host = host();
    for (port, step, reason) in
        [(53, Step::Forward, Reason::RemoteNew), (54, Step::Deliver, Reason::LocalNew)]
    {
        let mut first = datagram((CLIENT, 4000), (NODE, port), MORE);
        let mut later = datagram((CLIENT, 9), (NODE, 9), 5);
        let stray = (Step::Pass, Reason::FragmentWithoutFirst);
        let (a, b, _) = ingress(&host, &mut later);
        assert_eq!((a, b), stray, "before the first");
        let (a, b, translated) = ingress(&host, &mut first);
        assert_eq!((a, b), (step, reason));
        let (a, b, followed) = ingress(&host, &mut later);
        let established = if step == Step::Forward {
            Reason::RemoteEstablished
        } else {
            Reason::LocalEstablished
        };
        assert_eq!((a, b, followed), (step, established, translated));
        let flow = host.flows()[&udp((CLIENT, 4000), (NODE, port))];
        assert_eq!(flow.packets, 2, "a fragment is one of the flow's packets");

        host.now.set(host.now.get() + 61 * SECOND);
        let (a, b, _) = ingress(&host, &mut later);
        assert_eq!((a, b), stray, "the identification may be in use again");
        host.fragments.borrow_mut().clear();
    }
    host.assert_whole();
}

#[test]
fn a_fragment_whose_flow_has_gone_passes() {
    use redirector_common::packet::Environment;
    let host = host();
    let _ = ingress(&host, &mut datagram((CLIENT, 4000), (NODE, 53), MORE));
    for key in host.flows().into_keys() {
        host.remove_flow(&key);
    }
    let (step, reason, _) = ingress(&host, &mut datagram((CLIENT, 9), (NODE, 9), 5));
    assert_eq!((step, reason), (Step::Pass, Reason::FragmentWithoutFirst));
    assert!(host.flows().is_empty(), "a later fragment opens no flow");
}

#[test]
fn nobody_is_told_of_fragments_and_errors_that_are_stopped() {
    let host = host();
    let _ = ingress(&host, &mut datagram((CLIENT, 4000), (NODE, 53), MORE));
    let mut later = datagram((CLIENT, 9), (NODE, 9), 5);
    let sent = host.flows()[&udp((CLIENT, 4000), (NODE, 53))].translated;
    let mut error = unreachable(BACKEND, NODE, &sent);
    for (route, fragment, reason) in [
        (Route::TooBig, Reason::FragmentNotForwarded, Reason::ErrorNotForwarded),
        (Route::Unreachable, Reason::NoRoute, Reason::NoRoute),
    ] {
        host.route.set(route);
        assert_eq!(ingress(&host, &mut later).1, fragment, "{route:?}");
        assert_eq!(ingress(&host, &mut error).1, reason, "{route:?}");
    }
    host.route.set(Route::Unresolved);
    assert_eq!(ingress(&host, &mut later).0, Step::ForwardUnresolved);
    assert_eq!(ingress(&host, &mut error).0, Step::ForwardUnresolved);
}

/// "Port unreachable" about a packet with this tuple.
fn unreachable(from: [u8; 4], to: [u8; 4], about: &Tuple) -> Vec<u8> {
    let end = |address: &Address, port: Port| (address.v4_bytes(), port.number());
    let quoted = datagram(
        end(&about.source, about.source_port),
        end(&about.destination, about.destination_port),
        0,
    );
    let kind = Icmpv4Type::DestinationUnreachable(icmpv4::DestUnreachableHeader::Port);
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv4(from, to, 64)
        .icmpv4(kind)
        .write(&mut frame, &quoted[14..42])
        .unwrap();
    frame
}

#[test]
fn errors_go_to_whom_they_are_for() {
    let host = host();
    let _ = ingress(&host, &mut datagram((CLIENT, 4000), (NODE, 53), 0));
    let forward = udp((CLIENT, 4000), (NODE, 53));
    let sent = host.flows()[&forward].translated;
    let before = host.flows();

    // About the client's packet; as the client's neighbour knows it, turned around.
    let (step, reason, to) = ingress(&host, &mut unreachable(ROUTER, NODE, &sent));
    assert_eq!((step, reason, to), (Step::Forward, Reason::ErrorForwarded, forward.reversed()));
    // About the reply.
    let (step, reason, to) = ingress(&host, &mut unreachable(ROUTER, NODE, &forward.reversed()));
    assert_eq!((step, reason, to), (Step::Forward, Reason::ErrorForwarded, sent));
    // To somebody else than the sender of what it quotes.
    let (step, reason, _) = ingress(&host, &mut unreachable(ROUTER, CLIENT, &sent));
    assert_eq!((step, reason), (Step::Pass, Reason::Icmp));
    // About nothing that we know.
    let other = udp((NODE, 53), (CLIENT, 4001));
    let (step, reason, _) = ingress(&host, &mut unreachable(ROUTER, NODE, &other));
    assert_eq!((step, reason), (Step::Pass, Reason::Icmp));

    let _ = ingress(&host, &mut datagram((CLIENT, 4000), (NODE, 54), 0));
    let local = udp((CLIENT, 4000), (NODE, 54));
    let (step, reason, to) = ingress(&host, &mut unreachable(ROUTER, NODE, &local.reversed()));
    let inside = udp((CLIENT, 4000), ([192, 0, 2, 2], 5354));
    assert_eq!((step, reason, to), (Step::Deliver, Reason::ErrorDelivered, inside));
    // From outside, about a packet that never left this host.
    let (step, reason, _) = ingress(&host, &mut unreachable(ROUTER, [192, 0, 2, 2], &inside));
    assert_eq!((step, reason), (Step::Pass, Reason::Icmp));

    // Of this host's own, it goes the other way.
    let (step, reason, to) = egress(&host, &mut unreachable([192, 0, 2, 2], CLIENT, &inside));
    assert_eq!((step, reason, to), (Step::Deliver, Reason::ErrorReply, local.reversed()));
    let (step, reason, _) = egress(&host, &mut unreachable(NODE, CLIENT, &forward));
    assert_eq!((step, reason), (Step::Pass, Reason::Icmp));
    let after = host.flows();
    assert_eq!(before[&forward], after[&forward], "an error is none of the flow's packets");
}

/// Decides about an error as TC egress does.
fn egress(host: &Host, frame: &mut [u8]) -> (Step, Reason, Tuple) {
    let (mut outcome, mut packet, mut quoted) = (Outcome::EMPTY, Packet::EMPTY, Quoted::NONE);
    let bytes = Bytes::new(frame);
    let kind = parse_related(&bytes, &mut packet).unwrap();
    if let Err(reason) = complete(host, &bytes, &mut packet, kind, &mut quoted) {
        return (Step::Pass, reason, packet.tuple);
    }
    let decision = decide_related_reply(host, &packet, kind, &mut outcome);
    (decision.step, decision.reason, outcome.translated)
}

#[test]
fn echoes_are_not_ours() {
    let host = host();
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv4(CLIENT, NODE, 64)
        .icmpv4(Icmpv4Type::EchoRequest(IcmpEchoHeader { id: 1, seq: 1 }))
        .write(&mut frame, &[0; 56])
        .unwrap();
    let (step, reason, _) = ingress(&host, &mut frame);
    assert_eq!((step, reason), (Step::Pass, Reason::Icmp));
}

/// The frame of an error from the destination to the source of `quoted`, which quotes so much of
/// it from its IP header on.
fn error_about(quoted: &Recipe, len: usize) -> Vec<u8> {
    let packet = Recipe { vlan_tags: 0, ..quoted.clone() }.build();
    let quote = &packet[14..packet.len().min(14 + len)];
    let link = PacketBuilder::ethernet2([2; 6], [4; 6]);
    let (from, to) = (quoted.destination.ip(), quoted.source.ip());
    let mut frame = Vec::new();
    match (from, to) {
        (std::net::IpAddr::V4(from), std::net::IpAddr::V4(to)) => link
            .ipv4(from.octets(), to.octets(), 64)
            .icmpv4(Icmpv4Type::TimeExceeded(icmpv4::TimeExceededCode::TtlExceededInTransit))
            .write(&mut frame, quote),
        (std::net::IpAddr::V6(from), std::net::IpAddr::V6(to)) => link
            .ipv6(from.octets(), to.octets(), 64)
            .icmpv6(Icmpv6Type::PacketTooBig { mtu: 1280 })
            .write(&mut frame, quote),
        mixed => panic!("mixed families: {mixed:?}"),
    }
    .unwrap();
    frame
}

fn checksums_are_right(frame: &[u8]) -> bool {
    let sliced = etherparse::SlicedPacket::from_ethernet(frame).unwrap();
    match (&sliced.net, &sliced.transport) {
        (Some(etherparse::NetSlice::Ipv4(ip)), Some(etherparse::TransportSlice::Icmpv4(icmp))) => {
            let header = Icmpv4Header::with_checksum(icmp.icmp_type(), icmp.payload());
            let ip = ip.header().to_header();
            header.checksum == icmp.checksum() && ip.header_checksum == ip.calc_header_checksum()
        }
        (Some(etherparse::NetSlice::Ipv6(ip)), Some(etherparse::TransportSlice::Icmpv6(icmp))) => {
            let ip = ip.header().to_header();
            let header = Icmpv6Header::with_checksum(
                icmp.icmp_type(),
                ip.source,
                ip.destination,
                icmp.payload(),
            );
            header.unwrap().checksum == icmp.checksum()
        }
        other => panic!("neither ICMP nor ICMPv6: {other:?}"),
    }
}

proptest! {
    /// Whatever a quoted packet is translated to, however much of it is quoted, the error is one
    /// about a packet that was built so.
    #[test]
    fn a_rewritten_error_equals_one_built_anew(
        (recipe, source, destination) in recipe_and_ends(),
        tail in 0usize..40,
    ) {
        let ip_len = if recipe.source.is_ipv6() { 40 } else { 20 };
        let quoted_len = ip_len + 8 + tail;
        // Half of a checksum can't be updated.
        prop_assume!(!(recipe.protocol == Protocol::Tcp && tail == 9));
        let translated = Recipe { source, destination, ..recipe.clone() };
        let mut frame = error_about(&recipe, quoted_len);
        let mut packet = Packet::EMPTY;
        let mut quoted = Quoted::NONE;
        let mut bytes = Bytes::new(&mut frame);
        let kind = parse_related(&bytes, &mut packet).unwrap();
        prop_assert_eq!(kind, Kind::Error);
        let host = Host::new();
        complete(&host, &bytes, &mut packet, kind, &mut quoted).unwrap();
        prop_assert_eq!(packet.tuple, recipe.tuple().reversed());
        let to = translated.tuple().reversed();
        rewrite_related(&mut bytes, &packet, kind, &quoted, &to, false).unwrap();
        prop_assert!(checksums_are_right(&frame));
        prop_assert_eq!(frame, error_about(&translated, quoted_len));
    }

    /// Whatever comes, it is walked to an end, and is refused or lies inside of the frame.
    #[test]
    fn survives_nonsense(
        (recipe, ..) in recipe_and_ends(),
        damage in proptest::collection::vec((0usize..160, any::<u8>()), 0..6),
        cut in 0usize..120,
    ) {
        let mut frame = error_about(&recipe, 200);
        for (at, value) in damage {
            if let Some(byte) = frame.get_mut(at) {
                *byte = value;
            }
        }
        frame.truncate(frame.len().saturating_sub(cut));
        let (mut packet, mut quoted) = (Packet::EMPTY, Quoted::NONE);
        let mut bytes = Bytes::new(&mut frame);
        let host = Host::new();
        if let Ok(kind) = parse_related(&bytes, &mut packet)
            && complete(&host, &bytes, &mut packet, kind, &mut quoted).is_ok()
        {
            let to = packet.tuple;
            let _ = rewrite_related(&mut bytes, &packet, kind, &quoted, &to, true);
        }
    }
}
