//! Checksums: a wrong one stays wrong, none stays none, zero is written as each protocol writes it.

use anyhow::{Result, ensure};
use redirector::dataplane::pins::Hook;
use redirector_common::{Family, Protocol, Reason};
use redirector_tests::{
    packet::{Checksum, Flags, Packet, Transport},
    topology::FAMILIES,
};

use crate::{
    case::{Case, INWARD, check_all},
    given::{Given, from_backend, from_local, to_backend, to_client, to_frontend, transports},
    world::{self, NODE, at},
};

/// Every translation of a packet with this in its checksum field.
fn everywhere(cases: &mut Vec<Case>, family: Family, transport: Transport, checksum: Checksum) {
    let protocol = match transport {
        Transport::Tcp(_) => Protocol::Tcp,
        Transport::Udp => Protocol::Udp,
    };
    let what = format!("{protocol} over {family:?}, checksum {checksum:?}");
    let remote = Given::remote(protocol, family);
    let local = Given::local(protocol, family);
    for hook in INWARD {
        let packet = to_frontend(transport, family, world::REMOTE).checksum(checksum);
        cases.push(
            Case::new(format!("{what}, to a backend elsewhere"), hook, &packet)
                .given(remote)
                .forwards(Reason::RemoteEstablished, &to_backend(&packet, family)),
        );
        let reply = from_backend(transport, family).checksum(checksum);
        cases.push(
            Case::new(format!("{what}, from a backend elsewhere"), hook, &reply)
                .by("eth1")
                .given(remote)
                .forwards(Reason::RemoteReply, &to_client(&reply, family)),
        );
    }
    let packet = to_frontend(transport, family, world::LOCAL).checksum(checksum);
    let delivered = packet.clone().going_to(at(NODE, family, world::LOCAL_PORT));
    cases.push(
        Case::new(format!("{what}, to a local backend"), Hook::Ingress, &packet)
            .given(local)
            .delivers(Reason::LocalEstablished, &delivered),
    );
    let reply = from_local(transport, family).checksum(checksum);
    let sent = reply.clone().coming_from(at(NODE, family, world::LOCAL));
    cases.push(
        Case::new(format!("{what}, from a local backend"), Hook::Egress, &reply)
            .given(local)
            .delivers(Reason::LocalReply, &sent),
    );
}

#[test]
fn wrong_stays_wrong_by_the_same_amount() -> Result<()> {
    let mut cases = Vec::new();
    for family in FAMILIES {
        for (_, transport) in transports(Flags::ACK) {
            for error in [1, 0x100, 0x1234, 0xfffe] {
                everywhere(&mut cases, family, transport, Checksum::WrongBy(error));
            }
        }
    }
    check_all(cases)
}

#[test]
fn none_stays_none() -> Result<()> {
    let mut cases = Vec::new();
    for family in FAMILIES {
        everywhere(&mut cases, family, Transport::Udp, Checksum::Absent);
    }
    check_all(cases)
}

/// XDP can't say of a frame that it sends that the rest is still to be done.
#[test]
fn what_is_left_to_the_card_is_left_to_tc() -> Result<()> {
    let mut cases = Vec::new();
    for family in FAMILIES {
        for flags in [Flags::ACK, Flags::SYN] {
            for (protocol, transport) in transports(flags) {
                let flow = Given::remote(protocol, family);
                let to = to_frontend(transport, family, world::REMOTE);
                let from = from_backend(transport, family);
                for (way, packet, interface) in [("to", to, "eth0"), ("from", from, "eth1")] {
                    for payload in [0, 1, 1000] {
                        let packet = packet.clone().payload(payload).checksum(Checksum::Partial);
                        cases.push(
                            Case::new(
                                format!("{protocol} over {family:?}, {way} a backend, {payload}"),
                                Hook::Xdp,
                                &packet,
                            )
                            .by(interface)
                            .given(flow)
                            .passes(Reason::NotOurs),
                        );
                    }
                }
            }
        }
    }
    check_all(cases)
}

/// A payload with which the packet's checksum comes out as zero: for UDP written as all ones.
fn payload_for_zero(shape: impl Fn(Packet) -> Packet, packet: &Packet) -> Result<Packet> {
    let field = |packet: &Packet| {
        let shaped = shape(packet.clone());
        let frame = shaped.bytes();
        let at = shaped.transport() + if frame.len() - shaped.transport() > 20 { 16 } else { 6 };
        [frame[at], frame[at + 1]]
    };
    let without = packet.clone().payload_bytes(&[0, 0]);
    let with = packet.clone().payload_bytes(&field(&without));
    ensure!([[0, 0], [0xff, 0xff]].contains(&field(&with)), "{:?} is not zero", field(&with));
    Ok(with)
}

#[test]
fn zero() -> Result<()> {
    let mut cases = Vec::new();
    for family in FAMILIES {
        for (protocol, transport) in transports(Flags::ACK) {
            for hook in INWARD {
                let what = format!("{protocol} over {family:?} whose checksum");
                let flow = Given::remote(protocol, family);
                let packet = to_frontend(transport, family, world::REMOTE);
                let becomes = payload_for_zero(|p| to_backend(&p, family), &packet)?;
                cases.push(
                    Case::new(format!("{what} becomes zero"), hook, &becomes)
                        .given(flow)
                        .forwards(Reason::RemoteEstablished, &to_backend(&becomes, family)),
                );
                let was = payload_for_zero(|p| p, &packet)?;
                cases.push(
                    Case::new(format!("{what} was zero"), hook, &was)
                        .given(flow)
                        .forwards(Reason::RemoteEstablished, &to_backend(&was, family)),
                );
            }
            let what = format!("{protocol} over {family:?} whose checksum");
            let flow = Given::local(protocol, family);
            let packet = to_frontend(transport, family, world::LOCAL);
            let deliver = |p: Packet| p.going_to(at(NODE, family, world::LOCAL_PORT));
            for (which, packet) in [
                ("becomes", payload_for_zero(deliver, &packet)?),
                ("was", payload_for_zero(|p| p, &packet)?),
            ] {
                cases.push(
                    Case::new(format!("{what} {which} zero, local"), Hook::Ingress, &packet)
                        .given(flow)
                        .delivers(Reason::LocalEstablished, &deliver(packet.clone())),
                );
            }
        }
    }
    check_all(cases)
}
