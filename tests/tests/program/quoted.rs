//! ICMP errors about packets that were translated: they go to whom they are for, and quote the
//! packet as that one knows it.

use std::net::IpAddr;

use anyhow::Result;
use redirector::dataplane::pins::Hook;
use redirector_common::{Family, Reason};
use redirector_tests::{
    icmp::{Error, Report},
    packet::{Checksum, Extension, Flags, Packet, Transport},
    topology::{Addresses, FAMILIES},
};

use crate::{
    case::{Case, INWARD, check_all},
    given::{
        CLIENT_PORT, Given, from_backend, from_local, to_backend, to_client, to_frontend,
        transports,
    },
    world::{self, BACKEND, CLIENT, NODE, NODE_INSIDE, at, mac},
};

/// A router somewhere.
const ROUTER: Addresses = Addresses::new(99, 9);

const ERRORS: [Error; 4] =
    [Error::PortUnreachable, Error::TimeExceeded, Error::TooBig(1280), Error::Malformed(20)];

/// How much of the transport header and what follows it is quoted: what RFC 792 asks for, up to
/// TCP's checksum, with it, and an odd number of bytes.
const QUOTED: [usize; 4] = [8, 16, 18, 31];

/// What happens to one error: as it comes, and as it leaves.
struct Journey {
    name: &'static str,
    hook: Hook,
    interface: &'static str,
    flow: Given,
    reason: Reason,
    before: Report,
    after: Report,
}

impl Journey {
    fn case(&self, what: &str) -> Case {
        let what = format!("{}, {what}", self.name);
        let bytes = self.after.bytes();
        let case =
            Case::raw(what, self.hook, self.before.bytes()).by(self.interface).given(self.flow);
        if self.reason == Reason::ErrorForwarded {
            case.sends(self.reason, bytes)
        } else {
            case.delivers_bytes(self.reason, bytes)
        }
    }

    /// With another of its fields changed, on both ends of the journey.
    fn with(mut self, change: impl Fn(&mut Report)) -> Self {
        change(&mut self.before);
        change(&mut self.after);
        self
    }

    /// As it comes, with something wrong, for which it passes.
    fn refused(&self, what: &str, change: impl Fn(&mut Report)) -> Case {
        let mut report = self.before.clone();
        change(&mut report);
        Case::raw(format!("{}, {what}", self.name), self.hook, report.bytes())
            .by(self.interface)
            .given(self.flow)
            .passes(Reason::Icmp)
    }
}

/// An error about `packet` that comes from `from` by the wire with these hardware addresses.
fn report(packet: &Packet, from: IpAddr, macs: [[u8; 6]; 2]) -> Report {
    Report { macs, ..Report::new(Error::TooBig(1280), packet, from) }
}

/// Every way that there is.
fn journeys(family: Family, transport: Transport) -> Vec<Journey> {
    let protocol = transports(Flags::ACK)
        .into_iter()
        .find(|(_, other)| std::mem::discriminant(other) == std::mem::discriminant(&transport))
        .map_or(redirector_common::Protocol::Udp, |(protocol, _)| protocol);
    let (remote, local) = (Given::remote(protocol, family), Given::local(protocol, family));
    let (client, node) = (CLIENT.of(family), NODE.of(family));
    let (backend, inside) = (BACKEND.of(family), NODE_INSIDE.of(family));
    let router = ROUTER.of(family);
    let mut journeys = Vec::new();

    // About a reply, from the client or a router on the way to it.
    let reply = from_backend(transport, family).ttl(63);
    for (name, from) in
        [("to a backend, from a router", router), ("to a backend, from the client", client)]
    {
        let seen = to_client(&reply, family);
        let after = report(&reply, inside, [mac(2, 2), mac(2, 1)]);
        journeys.push(Journey {
            name,
            hook: Hook::Ingress,
            interface: "eth0",
            flow: remote,
            reason: Reason::ErrorForwarded,
            before: report(&seen, from, [mac(1, 1), mac(1, 2)]),
            after: Report { ttl: 63, to: backend, packet: reply.clone().ttl(63), ..after },
        });
    }
    // About a client's packet, from the backend or a router on the way to it.
    let packet = to_frontend(transport, family, world::REMOTE).ttl(63);
    for (name, from) in
        [("to a client, from a router", router), ("to a client, from the backend", backend)]
    {
        let seen = to_backend(&packet, family);
        let after = report(&packet, node, [mac(1, 2), mac(1, 1)]);
        journeys.push(Journey {
            name,
            hook: Hook::Ingress,
            interface: "eth1",
            flow: remote,
            reason: Reason::ErrorForwarded,
            before: report(&seen, from, [mac(2, 1), mac(2, 2)]),
            after: Report { ttl: 63, ..after },
        });
    }
    // About a local backend's reply.
    let reply = from_local(transport, family);
    let seen = reply.clone().coming_from(at(NODE, family, world::LOCAL));
    journeys.push(Journey {
        name: "to a local backend",
        hook: Hook::Ingress,
        interface: "eth0",
        flow: local,
        reason: Reason::ErrorDelivered,
        before: report(&seen, router, [mac(1, 1), mac(1, 2)]),
        after: report(&reply, router, [mac(1, 1), mac(1, 2)]),
    });
    let elsewhere = local.frontend(at(NODE, family, world::LOCAL_INSIDE)).backend(at(
        NODE_INSIDE,
        family,
        world::LOCAL_PORT,
    ));
    let reply = reply.coming_from(at(NODE_INSIDE, family, world::LOCAL_PORT));
    let seen = reply.clone().coming_from(at(NODE, family, world::LOCAL_INSIDE));
    journeys.push(Journey {
        name: "to a local backend on another address",
        hook: Hook::Ingress,
        interface: "eth0",
        flow: elsewhere,
        reason: Reason::ErrorDelivered,
        before: report(&seen, router, [mac(1, 1), mac(1, 2)]),
        after: report(&reply, router, [mac(1, 1), mac(1, 2)]),
    });
    // About a client's packet to a local backend, by this host's own stack.
    let packet = to_frontend(transport, family, world::LOCAL);
    let seen = packet.clone().going_to(at(NODE, family, world::LOCAL_PORT));
    journeys.push(Journey {
        name: "of the node's own",
        hook: Hook::Egress,
        interface: "eth0",
        flow: local,
        reason: Reason::ErrorReply,
        before: report(&seen, node, [mac(1, 2), mac(1, 1)]),
        after: report(&packet, node, [mac(1, 2), mac(1, 1)]),
    });
    let packet = to_frontend(transport, family, world::LOCAL_INSIDE);
    let seen = packet.clone().going_to(at(NODE_INSIDE, family, world::LOCAL_PORT));
    journeys.push(Journey {
        name: "of the node's other address",
        hook: Hook::Egress,
        interface: "eth0",
        flow: elsewhere,
        reason: Reason::ErrorReply,
        before: report(&seen, inside, [mac(1, 2), mac(1, 1)]),
        after: report(&packet, node, [mac(1, 2), mac(1, 1)]),
    });
    journeys
}

/// Every kind of error on every way, whatever is quoted. XDP leaves all of them to TC.
#[test]
fn every_way() -> Result<()> {
    let mut cases = Vec::new();
    for family in FAMILIES {
        for (protocol, transport) in transports(Flags::ACK) {
            for error in ERRORS {
                for quoted in QUOTED {
                    let what =
                        format!("{error:?} about {protocol} over {family:?}, {quoted} bytes");
                    for journey in journeys(family, transport) {
                        let journey = journey.with(|report| {
                            report.error = error;
                            report.quoted = quoted;
                        });
                        cases.push(journey.case(&what));
                        if matches!(journey.hook, Hook::Ingress) {
                            let bytes = journey.before.bytes();
                            cases.push(
                                Case::raw(&what, Hook::Xdp, bytes)
                                    .by(journey.interface)
                                    .given(journey.flow)
                                    .passes(journey.reason),
                            );
                        }
                    }
                }
            }
        }
    }
    check_all(cases)
}

/// Headers of every length, in the error and in what it quotes.
#[test]
fn headers() -> Result<()> {
    let mut cases = Vec::new();
    for (protocol, transport) in transports(Flags::ACK) {
        for words in [1, 10] {
            for journey in journeys(Family::V4, transport) {
                let journey =
                    journey.with(|report| report.packet = report.packet.clone().options(words));
                cases.push(journey.case(&format!("{protocol} behind {words} words of options")));
            }
        }
        let extensions = [
            vec![Extension::hop_by_hop()],
            vec![Extension::fragment(0, true)],
            vec![Extension::destination_options(2), Extension::routing(0)],
        ];
        for extensions in extensions {
            for journey in journeys(Family::V6, transport) {
                let journey = journey.with(|report| {
                    report.packet = report.packet.clone().extensions(&extensions);
                });
                cases.push(journey.case(&format!("{protocol} behind {extensions:?}")));
            }
        }
        for family in FAMILIES {
            for journey in journeys(family, transport) {
                let mut journey = journey;
                journey.before.vlan = Some(9);
                if !matches!(journey.reason, Reason::ErrorForwarded) {
                    journey.after.vlan = Some(9);
                }
                cases.push(journey.case(&format!("{protocol} over {family:?}, tagged")));
            }
        }
    }
    // The first fragment of a datagram that was too large.
    for journey in journeys(Family::V4, Transport::Udp) {
        let journey =
            journey.with(|report| report.packet = report.packet.clone().fragment(0, true));
        cases.push(journey.case("about a first fragment"));
    }
    // No checksum in the quoted datagram stays none.
    for family in FAMILIES {
        for journey in journeys(family, Transport::Udp) {
            let journey = journey.with(|report| {
                report.packet = report.packet.clone().checksum(Checksum::Absent);
            });
            cases.push(journey.case(&format!("no checksum over {family:?}")));
        }
    }
    check_all(cases)
}

/// What is no error, is about nothing of ours, or is not whole.
#[test]
fn others() -> Result<()> {
    let mut cases = Vec::new();
    for family in FAMILIES {
        for journey in journeys(family, Transport::Udp) {
            if matches!(journey.hook, Hook::Egress) {
                continue;
            }
            let name = |what: &str| format!("{what} over {family:?}");
            cases.push(journey.refused(&name("about another flow"), |report| {
                let client = at(CLIENT, family, CLIENT_PORT + 1);
                let backend = at(BACKEND, family, world::REMOTE_PORT + 1);
                let other = if report.packet.destination().port() == world::REMOTE_PORT {
                    backend
                } else {
                    client
                };
                report.packet = report.packet.clone().going_to(other);
            }));
            cases.push(journey.refused(&name("about a port of nobody's"), |report| {
                let source = std::net::SocketAddr::new(report.packet.source().ip(), 79);
                report.packet = report.packet.clone().coming_from(source);
            }));
            cases.push(journey.refused(&name("to another than the packet's sender"), |report| {
                report.to = ROUTER.of(family);
            }));
            cases.push(journey.refused(&name("cut before the ports' end"), |report| {
                report.quoted = 7;
            }));
            cases.push(journey.refused(&name("about a later fragment"), |report| {
                report.packet = match family {
                    Family::V4 => report.packet.clone().fragment(5, false),
                    Family::V6 => {
                        report.packet.clone().extensions(&[Extension::fragment(5, false)])
                    }
                };
            }));
            // The kind is the first byte after the IP header.
            let at = if matches!(family, Family::V4) { 34 } else { 54 };
            let kinds: &[u8] = if matches!(family, Family::V4) {
                &[0, 4, 5, 8, 13]
            } else {
                &[128, 129, 133, 137]
            };
            for &kind in kinds {
                let mut frame = journey.before.bytes();
                frame[at] = kind;
                for hook in INWARD {
                    cases.push(
                        Case::raw(name(&format!("of kind {kind}")), hook, frame.clone())
                            .by(journey.interface)
                            .given(journey.flow)
                            .passes(Reason::Icmp),
                    );
                }
            }
        }
    }
    check_all(cases)
}

/// Without a way on they are dropped: there are no errors about errors.
#[test]
fn at_the_end_of_the_way() -> Result<()> {
    let mut cases = Vec::new();
    for family in FAMILIES {
        for journey in journeys(family, Transport::Udp) {
            let reason = journey.reason;
            let mut journey = journey.with(|report| report.ttl = 1);
            if matches!(reason, Reason::ErrorForwarded) {
                cases.push(
                    Case::raw(
                        format!("TTL 1 over {family:?}"),
                        Hook::Ingress,
                        journey.before.bytes(),
                    )
                    .by(journey.interface)
                    .given(journey.flow)
                    .drops(Reason::ErrorNotForwarded),
                );
                journey.before.ttl = 2;
            }
            cases.push(journey.case("at the end of the way"));
        }
        let unrouted = Given::remote(redirector_common::Protocol::Udp, family).backend(at(
            Addresses::new(77, 2),
            family,
            world::REMOTE_PORT,
        ));
        let reply = to_client(&from_backend(Transport::Udp, family), family);
        let lost = report(&reply, ROUTER.of(family), [mac(1, 1), mac(1, 2)]);
        cases.push(
            Case::raw(format!("no route over {family:?}"), Hook::Ingress, lost.bytes())
                .given(unrouted)
                .drops(Reason::NoRoute),
        );
    }
    check_all(cases)
}
