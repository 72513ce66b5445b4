//! Headers of every length in front of and inside the packets that are translated.

use anyhow::Result;
use redirector::dataplane::pins::Hook;
use redirector_common::{Family, Protocol, Reason};
use redirector_tests::{
    packet::{Extension, Flags, Packet, Transport},
    topology::FAMILIES,
};

use crate::{
    case::{Case, INWARD, check_all},
    given::{Given, from_local, to_backend, to_frontend, transports},
    world::{self, NODE, at},
};

const SYN: Transport = Transport::Tcp(Flags::SYN);

/// A packet is translated at both hooks, for both kinds of backends, whatever its headers.
fn translated(cases: &mut Vec<Case>, what: &str, packet: &Packet, family: Family) {
    for hook in INWARD {
        cases.push(
            Case::new(format!("{what}, remote"), hook, packet)
                .forwards(Reason::RemoteNew, &to_backend(packet, family)),
        );
    }
    let local = packet.clone().going_to(at(NODE, family, world::LOCAL));
    cases.push(
        Case::new(format!("{what}, local"), Hook::Ingress, &local).delivers(
            Reason::LocalNew,
            &local.clone().going_to(at(NODE, family, world::LOCAL_PORT)),
        ),
    );
}

#[test]
fn ipv4_options() -> Result<()> {
    let mut cases = Vec::new();
    for words in 0..=10 {
        for (protocol, transport) in transports(Flags::SYN) {
            let packet = to_frontend(transport, Family::V4, world::REMOTE).options(words);
            let what = format!("{protocol} behind an IPv4 header of {} words", 5 + words);
            translated(&mut cases, &what, &packet, Family::V4);
        }
    }
    check_all(cases)
}

#[test]
fn tcp_options() -> Result<()> {
    let mut cases = Vec::new();
    for family in FAMILIES {
        for words in [1, 3, 10] {
            let packet = to_frontend(SYN, family, world::REMOTE).tcp_options(words);
            let what = format!("TCP header of {} words over {family:?}", 5 + words);
            translated(&mut cases, &what, &packet, family);
        }
    }
    check_all(cases)
}

#[test]
fn payloads() -> Result<()> {
    let mut cases = Vec::new();
    for family in FAMILIES {
        for (protocol, transport) in transports(Flags::SYN) {
            let empty = to_frontend(transport, family, world::REMOTE).payload(0);
            let full = 1500 - empty.ip_len();
            for len in [0, 1, 2, full] {
                let what = format!("{protocol} with {len} bytes over {family:?}");
                translated(&mut cases, &what, &empty.clone().payload(len), family);
            }
        }
    }
    check_all(cases)
}

/// Type of service, and the padding that makes a short frame long enough for Ethernet.
#[test]
fn what_is_not_touched() -> Result<()> {
    let mut cases = Vec::new();
    for family in FAMILIES {
        for (protocol, transport) in transports(Flags::SYN) {
            let packet = to_frontend(transport, family, world::REMOTE).traffic_class(0xb8 | 1);
            let what = format!("{protocol} with a class and ECN over {family:?}");
            translated(&mut cases, &what, &packet, family);

            let packet = to_frontend(transport, family, world::REMOTE).payload(3);
            let padding = [0xaa; 20];
            for hook in INWARD {
                let input = [packet.bytes(), padding.to_vec()].concat();
                let output = [to_backend(&packet, family).bytes(), padding.to_vec()].concat();
                cases.push(
                    Case::raw(format!("padded {protocol} over {family:?}"), hook, input)
                        .sends(Reason::RemoteNew, output),
                );
            }
        }
    }
    check_all(cases)
}

/// Whatever stands before the transport header is walked over, up to four of them.
#[test]
fn ipv6_extension_headers() -> Result<()> {
    let family = Family::V6;
    let walked = [
        ("hop-by-hop", vec![Extension::hop_by_hop()]),
        ("destination options", vec![Extension::destination_options(1)]),
        ("long destination options", vec![Extension::destination_options(5)]),
        ("routing that has ended", vec![Extension::routing(0)]),
        ("an atomic fragment", vec![Extension::fragment(0, false)]),
        ("two", vec![Extension::hop_by_hop(), Extension::routing(0)]),
        (
            "three",
            vec![Extension::hop_by_hop(), Extension::destination_options(2), Extension::routing(0)],
        ),
        (
            "four",
            vec![
                Extension::hop_by_hop(),
                Extension::destination_options(1),
                Extension::routing(0),
                Extension::fragment(0, false),
            ],
        ),
    ];
    let mut cases = Vec::new();
    for (what, extensions) in walked {
        for (protocol, transport) in transports(Flags::SYN) {
            let packet = to_frontend(transport, family, world::REMOTE).extensions(&extensions);
            translated(&mut cases, &format!("{protocol} behind {what}"), &packet, family);
        }
    }
    let refused = [
        ("routing under way", vec![Extension::routing(1)], Reason::ExtensionHeaders),
        (
            "routing under way after others",
            vec![Extension::hop_by_hop(), Extension::routing(2)],
            Reason::ExtensionHeaders,
        ),
        ("five", vec![Extension::destination_options(1); 5], Reason::ExtensionHeaders),
        ("six", vec![Extension::destination_options(1); 6], Reason::ExtensionHeaders),
        ("authentication", vec![Extension::authentication()], Reason::NotTcpUdp),
    ];
    for (what, extensions, reason) in refused {
        for (protocol, transport) in transports(Flags::SYN) {
            for hook in INWARD {
                let packet = to_frontend(transport, family, world::REMOTE).extensions(&extensions);
                cases.push(
                    Case::new(format!("{protocol} behind {what}"), hook, &packet).passes(reason),
                );
            }
        }
    }
    check_all(cases)
}

/// VLAN tags that are in the frame: XDP leaves them to TC, which delivers with the tags in place
/// and forwards without them.
#[test]
fn vlan_tags() -> Result<()> {
    let mut cases = Vec::new();
    for family in FAMILIES {
        for tags in [[100].as_slice(), &[100, 200]] {
            for (protocol, transport) in transports(Flags::SYN) {
                let what = format!("{protocol} with {} tags over {family:?}", tags.len());
                let packet = to_frontend(transport, family, world::REMOTE).vlans(tags);
                cases.push(
                    Case::new(format!("{what}, remote"), Hook::Xdp, &packet)
                        .passes(Reason::RemoteNew),
                );
                cases.push(
                    Case::new(format!("{what}, remote"), Hook::Ingress, &packet)
                        .forwards(Reason::RemoteNew, &to_backend(&packet, family).vlans(&[])),
                );
                let local = packet.going_to(at(NODE, family, world::LOCAL));
                cases.push(
                    Case::new(format!("{what}, local"), Hook::Xdp, &local).passes(Reason::LocalNew),
                );
                cases.push(Case::new(format!("{what}, local"), Hook::Ingress, &local).delivers(
                    Reason::LocalNew,
                    &local.clone().going_to(at(NODE, family, world::LOCAL_PORT)),
                ));
                let reply = from_local(transport, family).vlans(tags);
                cases.push(
                    Case::new(format!("{what}, reply"), Hook::Egress, &reply)
                        .given(Given::local(protocol, family))
                        .delivers(
                            Reason::LocalReply,
                            &reply.clone().coming_from(at(NODE, family, world::LOCAL)),
                        ),
                );
            }
        }
        for hook in INWARD {
            let three = to_frontend(SYN, family, world::REMOTE).vlans(&[1, 2, 3]);
            cases.push(
                Case::new(format!("three tags over {family:?}"), hook, &three)
                    .passes(Reason::NotIp),
            );
        }
        let reply = from_local(Transport::Tcp(Flags::ACK), family).tcp_options(3);
        cases.push(
            Case::new(format!("reply with TCP options over {family:?}"), Hook::Egress, &reply)
                .given(Given::local(Protocol::Tcp, family))
                .delivers(
                    Reason::LocalReply,
                    &reply.clone().coming_from(at(NODE, family, world::LOCAL)),
                ),
        );
    }
    check_all(cases)
}
