//! Packets of ours that can't go where they should: dropped, and the sender is told.

use anyhow::Result;
use redirector::dataplane::pins::Hook;
use redirector_common::{Family, Reason};
use redirector_tests::{
    icmp::{self, Error},
    packet::{Extension, Flags, Packet},
    topology::{Addresses, FAMILIES},
};

use crate::{
    case::{Case, INWARD, check_all},
    given::{Given, from_backend, to_backend, to_frontend, towards, transports},
    world::{self, NODE, at},
};

/// XDP leaves the packet to TC, which drops it and tells the sender.
fn rejected(cases: &mut Vec<Case>, what: &str, packet: &Packet, reason: Reason, error: Error) {
    cases.push(Case::new(what, Hook::Xdp, packet).passes(reason));
    cases.push(Case::new(what, Hook::Ingress, packet).sends(reason, icmp::error(packet, error)));
}

#[test]
fn no_backend() -> Result<()> {
    let mut cases = Vec::new();
    for family in FAMILIES {
        for (protocol, transport) in transports(Flags::SYN) {
            let name = format!("{protocol} over {family:?}");
            let packet = to_frontend(transport, family, world::EMPTY);
            let (reason, error) = (Reason::NoBackend, Error::PortUnreachable);
            rejected(&mut cases, &format!("{name}, no backend"), &packet, reason, error);
            for len in [0, 1, 1400] {
                let packet = packet.clone().payload(len);
                let what = format!("{name} with {len} bytes, no backend");
                rejected(&mut cases, &what, &packet, reason, error);
            }
            let packet = match family {
                Family::V4 => packet.options(10),
                Family::V6 => packet.extensions(&[Extension::destination_options(3)]),
            };
            let what = format!("{name} behind a long header, no backend");
            rejected(&mut cases, &what, &packet, reason, error);

            let packet = to_frontend(transport, family, world::SILENT);
            let what = format!("{name}, no backend here");
            cases.push(Case::new(&what, Hook::Xdp, &packet).passes(Reason::NoLocalBackend));
            cases.push(Case::new(&what, Hook::Ingress, &packet).drops(Reason::NoLocalBackend));

            let packet = to_frontend(transport, family, world::MISSING);
            for hook in INWARD {
                cases.push(
                    Case::new(format!("{name}, a backend that is not there"), hook, &packet)
                        .drops(Reason::Inconsistent),
                );
            }
        }
    }
    check_all(cases)
}

#[test]
fn ttl() -> Result<()> {
    let mut cases = Vec::new();
    for family in FAMILIES {
        for (protocol, transport) in transports(Flags::SYN) {
            let name = format!("{protocol} over {family:?}");
            let packet = to_frontend(transport, family, world::REMOTE);
            for ttl in [0, 1] {
                let packet = packet.clone().ttl(ttl);
                let what = format!("new {name}, TTL {ttl}");
                rejected(&mut cases, &what, &packet, Reason::TtlExceeded, Error::TimeExceeded);
            }
            for hook in INWARD {
                let packet = packet.clone().ttl(2);
                cases.push(
                    Case::new(format!("new {name}, TTL 2"), hook, &packet)
                        .forwards(Reason::RemoteNew, &to_backend(&packet, family).ttl(1)),
                );
            }
            // The packet has arrived: nobody forwards it.
            let local = packet.going_to(at(NODE, family, world::LOCAL)).ttl(1);
            cases.push(
                Case::new(format!("new {name}, TTL 1, local"), Hook::Ingress, &local).delivers(
                    Reason::LocalNew,
                    &local.clone().going_to(at(NODE, family, world::LOCAL_PORT)),
                ),
            );
        }
        for (protocol, transport) in transports(Flags::ACK) {
            let name = format!("{protocol} over {family:?}");
            let flow = Given::remote(protocol, family);
            let (reason, error) = (Reason::TtlExceeded, Error::TimeExceeded);
            let packet = to_frontend(transport, family, world::REMOTE).ttl(1);
            let what = format!("established {name}, TTL 1");
            cases.push(Case::new(&what, Hook::Xdp, &packet).given(flow).passes(reason));
            cases.push(
                Case::new(&what, Hook::Ingress, &packet)
                    .given(flow)
                    .sends(reason, icmp::error(&packet, error)),
            );
            let reply = from_backend(transport, family).ttl(1);
            let what = format!("reply of {name}, TTL 1");
            cases.push(Case::new(&what, Hook::Xdp, &reply).by("eth1").given(flow).passes(reason));
            cases.push(
                Case::new(&what, Hook::Ingress, &reply)
                    .by("eth1")
                    .given(flow)
                    .sends(reason, icmp::error(&reply, error)),
            );
        }
    }
    check_all(cases)
}

#[test]
fn mtu() -> Result<()> {
    let mut cases = Vec::new();
    for family in FAMILIES {
        for (protocol, transport) in transports(Flags::SYN) {
            let name = format!("{protocol} over {family:?}");
            let packet = to_frontend(transport, family, world::NARROW).payload(0);
            let room = 1300 - packet.ip_len();
            let fits = packet.clone().payload(room);
            let sent = towards(&fits, Addresses::new(3, 1), Addresses::new(3, 2), 3, family);
            for hook in INWARD {
                cases.push(
                    Case::new(format!("{name}, as large as fits"), hook, &fits)
                        .forwards(Reason::RemoteNew, &sent),
                );
            }
            for len in [room + 1, room + 200] {
                let packet = packet.clone().payload(len);
                let what = format!("{name}, {} bytes too large", len - room);
                rejected(&mut cases, &what, &packet, Reason::TooBig, Error::TooBig(1300));
            }
        }
    }
    check_all(cases)
}

/// What counts is the size of the segments, not that of the super-packet.
#[test]
fn super_packets() -> Result<()> {
    let mut cases = Vec::new();
    for family in FAMILIES {
        for (protocol, transport) in transports(Flags::SYN) {
            let name = format!("{protocol} over {family:?}");
            let packet = to_frontend(transport, family, world::NARROW).payload(0);
            let room = 1300 - packet.ip_len();
            let large = packet.payload(3000);
            let sent = towards(&large, Addresses::new(3, 1), Addresses::new(3, 2), 3, family);
            cases.push(
                Case::new(format!("{name}, segments that fit"), Hook::Ingress, &large)
                    .segments(u32::try_from(room)?)
                    .sends(Reason::RemoteNew, sent.bytes()),
            );
            let error = icmp::error(&large, Error::TooBig(1300));
            cases.push(
                Case::new(format!("{name}, segments that do not"), Hook::Ingress, &large)
                    .segments(u32::try_from(room + 1)?)
                    .sends(Reason::TooBig, error),
            );
            let local = large.going_to(at(NODE, family, world::LOCAL));
            cases.push(
                Case::new(format!("{name}, local"), Hook::Ingress, &local).segments(1400).delivers(
                    Reason::LocalNew,
                    &local.clone().going_to(at(NODE, family, world::LOCAL_PORT)),
                ),
            );
        }
    }
    check_all(cases)
}

#[test]
fn ways() -> Result<()> {
    let mut cases = Vec::new();
    for family in FAMILIES {
        for (protocol, transport) in transports(Flags::SYN) {
            let name = format!("{protocol} over {family:?}");
            let packet = to_frontend(transport, family, world::UNROUTED);
            for hook in INWARD {
                cases.push(
                    Case::new(format!("{name}, no route"), hook, &packet).drops(Reason::NoRoute),
                );
            }
            let packet = to_frontend(transport, family, world::UNNAMED);
            for hook in INWARD {
                cases.push(
                    Case::new(format!("{name}, no address to translate to"), hook, &packet)
                        .drops(Reason::NoSourceAddress),
                );
            }

            // XDP can't transmit there: TC can.
            let packet = to_frontend(transport, family, world::NO_XDP);
            let sent = towards(&packet, Addresses::new(4, 1), Addresses::new(4, 2), 4, family);
            let what = format!("{name}, a driver without XDP");
            cases.push(Case::new(&what, Hook::Xdp, &packet).passes(Reason::RemoteNew));
            cases.push(Case::new(&what, Hook::Ingress, &packet).forwards(Reason::RemoteNew, &sent));

            // The kernel finds the hardware addresses while it sends the packet.
            let packet = to_frontend(transport, family, world::UNRESOLVED);
            let sent = towards(&packet, Addresses::new(2, 1), Addresses::new(2, 9), 2, family)
                .macs(world::mac(1, 1), world::mac(1, 2));
            let what = format!("{name}, an unknown neighbour");
            cases.push(Case::new(&what, Hook::Xdp, &packet).passes(Reason::RemoteNew));
            cases.push(Case::new(&what, Hook::Ingress, &packet).forwards(Reason::RemoteNew, &sent));
        }
    }
    check_all(cases)
}
