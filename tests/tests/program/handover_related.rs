//! Later fragments and ICMP errors of flows that are handed over, and of those that were.

use anyhow::Result;
use redirector::dataplane::pins::Hook;
use redirector_common::{Manner, Protocol, Reason};
use redirector_tests::{
    icmp::{Error, Report},
    packet::{Flags, Packet},
    topology::{Addresses, FAMILIES},
    tunnel::cover,
};

use crate::{
    case::{Case, check_all_in},
    fragments::{fragment, headers_alone},
    given::{Given, to_frontend, transports},
    handover::{FAR, HERE, from_near, given, local, prepare},
    world::{self, BACKEND, CLIENT, LOCAL_PORT, NEAR, NODE, NODE_INSIDE, REMOTE_PORT, at, mac},
};

/// A router somewhere.
const ROUTER: Addresses = Addresses::new(99, 9);

/// `frame` with other hardware addresses.
fn by(frame: &[u8], destination: [u8; 6], source: [u8; 6]) -> Vec<u8> {
    [&destination, &source, &frame[12..]].concat()
}

#[test]
fn fragments() -> Result<()> {
    let mut cases = Vec::new();
    for family in FAMILIES {
        for (protocol, later) in transports(Flags::ACK) {
            let name = format!("last fragment of {protocol} over {family:?}");
            let packet = to_frontend(later, family, world::REMOTE);
            let first = fragment(&packet, 0, true);
            let last = fragment(&packet, 20, false);
            let next = Given::handed_over(protocol, family, Manner::Layer2);
            let far = Given::handed_over(protocol, family, Manner::Tunnel).backend(at(
                FAR,
                family,
                REMOTE_PORT,
            ));
            cases.push(
                Case::new(format!("{name} to the next node"), Hook::Ingress, &last)
                    .given(next)
                    .following(&first)
                    .sends(Reason::DsrEstablished, by(&last.bytes(), mac(2, 2), mac(2, 1))),
            );
            let covered = cover(
                &last.clone().ttl(63).bytes(),
                [mac(2, 3), mac(2, 1)],
                (NODE_INSIDE.of(family), FAR.of(family)),
                0,
            );
            cases.push(
                Case::new(format!("{name} to a node behind a router"), Hook::Ingress, &last)
                    .given(far)
                    .following(&first)
                    .sends(Reason::DsrEstablished, covered),
            );

            let packet = from_near(later, family, HERE);
            let first = fragment(&packet, 0, true);
            let last = fragment(&packet, 20, false);
            let covered =
                |packet: &Packet| inside(&packet.bytes(), NEAR.of(family), NODE.of(family));
            let delivered = headers_alone(&last.clone().going_to(local(family)), &last);
            cases.push(
                Case::raw(format!("{name} in a tunnel"), Hook::Ingress, covered(&last))
                    .given(given(protocol, family))
                    .following_bytes(covered(&first))
                    .delivers_bytes(Reason::LocalEstablished, delivered),
            );
            cases.push(
                Case::raw(format!("{name} in a tunnel, alone"), Hook::Ingress, covered(&last))
                    .given(given(protocol, family))
                    .passes(Reason::IpInIp),
            );
        }
    }
    check_all_in(prepare, cases)
}

fn inside(frame: &[u8], from: std::net::IpAddr, to: std::net::IpAddr) -> Vec<u8> {
    cover(frame, [mac(1, 1), mac(1, 3)], (from, to), 0)
}

/// What routers say of answers that never came this way is for the node that sent them.
#[test]
fn errors() -> Result<()> {
    let mut cases = Vec::new();
    for family in FAMILIES {
        for (protocol, transport) in transports(Flags::ACK) {
            let name = format!("error about {protocol} over {family:?}");
            let request = to_frontend(transport, family, world::REMOTE);
            let reply = Packet::new(transport, request.destination(), request.source());
            let report = Report {
                macs: [mac(1, 1), mac(1, 2)],
                ..Report::new(Error::TooBig(1280), &reply, ROUTER.of(family))
            };
            let next = Given::handed_over(protocol, family, Manner::Layer2);
            cases.push(
                Case::raw(format!("{name} to the next node"), Hook::Ingress, report.bytes())
                    .given(next)
                    .sends(Reason::ErrorForwarded, by(&report.bytes(), mac(2, 2), mac(2, 1))),
            );
            let far = Given::handed_over(protocol, family, Manner::Tunnel).backend(at(
                FAR,
                family,
                REMOTE_PORT,
            ));
            let sent = Report { ttl: report.ttl - 1, ..report.clone() };
            let ends = (NODE_INSIDE.of(family), FAR.of(family));
            let covered = cover(&sent.bytes(), [mac(2, 3), mac(2, 1)], ends, 0);
            cases.push(
                Case::raw(format!("{name} behind a router"), Hook::Ingress, report.bytes())
                    .given(far)
                    .sends(Reason::ErrorForwarded, covered),
            );

            let reply = Packet::new(transport, at(NEAR, family, HERE), at(CLIENT, family, 40000));
            let macs = [mac(1, 1), mac(1, 3)];
            let report =
                Report { macs, ..Report::new(Error::TooBig(1280), &reply, ROUTER.of(family)) };
            let own = reply.clone().coming_from(at(NODE, family, LOCAL_PORT));
            let delivered =
                Report { macs, ..Report::new(Error::TooBig(1280), &own, ROUTER.of(family)) };
            let frame = inside(&report.bytes(), BACKEND.of(family), NODE.of(family));
            cases.push(
                Case::raw(format!("{name} in a tunnel"), Hook::Ingress, frame.clone())
                    .given(given(protocol, family))
                    .delivers_bytes(Reason::ErrorDelivered, delivered.bytes()),
            );
            if protocol == Protocol::Udp {
                cases.push(
                    Case::raw(format!("{name} in a tunnel of nobody's"), Hook::Ingress, frame)
                        .passes(Reason::IpInIp),
                );
            }
        }
    }
    check_all_in(prepare, cases)
}
