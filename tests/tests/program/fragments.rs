//! Fragments: the first one has the ports, and those after it follow it.

use anyhow::Result;
use redirector::dataplane::pins::Hook;
use redirector_common::{Family, FlowState, Protocol, Reason};
use redirector_tests::{
    packet::{Extension, Flags, Packet, Transport},
    topology::{Addresses, FAMILIES},
};

use crate::{
    case::{Case, INWARD, check_all},
    given::{
        Given, from_backend, from_local, to_backend, to_client, to_frontend, towards, transports,
    },
    world::{self, CLIENT, NODE, NODE_INSIDE, OTHER_CLIENT, at},
};

/// This packet as a fragment; the offset in units of eight bytes.
pub(crate) fn fragment(packet: &Packet, offset: u16, more: bool) -> Packet {
    match packet.source().is_ipv4() {
        true => packet.clone().fragment(offset, more),
        false => packet.clone().extensions(&[Extension::fragment(offset, more)]),
    }
}

/// The headers of the one, up to where the transport header would be, and the rest of the other:
/// what a later fragment that looks like `original` leaves as.
pub(crate) fn headers_alone(translated: &Packet, original: &Packet) -> Vec<u8> {
    let (headers, rest) = (translated.bytes(), original.bytes());
    [&headers[..translated.transport()], &rest[original.transport()..]].concat()
}

/// A middle one and the last.
const LATER: [(&str, u16, bool); 2] = [("middle", 10, true), ("last", 20, false)];

/// The first one and those after it, to backends here and elsewhere, and back.
#[test]
fn in_order() -> Result<()> {
    let mut cases = Vec::new();
    for family in FAMILIES {
        for (protocol, opening) in transports(Flags::SYN) {
            let name = format!("{protocol} over {family:?}");
            let (remote, local) = (Given::remote(protocol, family), Given::local(protocol, family));

            let packet = to_frontend(opening, family, world::REMOTE);
            let first = fragment(&packet, 0, true);
            // TC alone takes notes.
            cases.push(
                Case::new(format!("first fragment of new {name}"), Hook::Xdp, &first)
                    .passes(Reason::RemoteNew),
            );
            cases.push(
                Case::new(format!("first fragment of new {name}"), Hook::Ingress, &first)
                    .forwards(Reason::RemoteNew, &to_backend(&first, family)),
            );
            for (which, offset, more) in LATER {
                let later = fragment(&packet, offset, more);
                let sent = headers_alone(&to_backend(&later, family), &later);
                let what = format!("{which} fragment of new {name}");
                cases.push(
                    Case::new(&what, Hook::Xdp, &later)
                        .following(&first)
                        .passes(Reason::RemoteEstablished),
                );
                cases.push(
                    Case::new(&what, Hook::Ingress, &later)
                        .following(&first)
                        .sends(Reason::RemoteEstablished, sent),
                );
            }

            let packet = to_frontend(opening, family, world::LOCAL_INSIDE);
            let deliver = |packet: &Packet| {
                packet.clone().going_to(at(NODE_INSIDE, family, world::LOCAL_PORT + 1))
            };
            let first = fragment(&packet, 0, true);
            cases.push(
                Case::new(format!("first fragment of {name}, local"), Hook::Ingress, &first)
                    .delivers(Reason::LocalNew, &deliver(&first)),
            );
            for (which, offset, more) in LATER {
                let later = fragment(&packet, offset, more);
                let delivered = headers_alone(&deliver(&later), &later);
                cases.push(
                    Case::new(format!("{which} fragment of {name}, local"), Hook::Ingress, &later)
                        .following(&first)
                        .delivers_bytes(Reason::LocalEstablished, delivered),
                );
            }

            let packet = from_backend(later_of(opening), family);
            let first = fragment(&packet, 0, true);
            cases.push(
                Case::new(format!("first fragment of {name}'s reply"), Hook::Ingress, &first)
                    .by("eth1")
                    .given(remote)
                    .forwards(Reason::RemoteReply, &to_client(&first, family)),
            );
            for (which, offset, more) in LATER {
                let later = fragment(&packet, offset, more);
                let sent = headers_alone(&to_client(&later, family), &later);
                cases.push(
                    Case::new(format!("{which} fragment of {name}'s reply"), Hook::Ingress, &later)
                        .by("eth1")
                        .given(remote)
                        .following(&first)
                        .sends(Reason::RemoteReply, sent),
                );
            }

            // A local backend that listens on the node's other address.
            let inside = local.frontend(at(NODE, family, world::LOCAL_INSIDE)).backend(at(
                NODE_INSIDE,
                family,
                world::LOCAL_PORT,
            ));
            let packet = from_local(later_of(opening), family).coming_from(at(
                NODE_INSIDE,
                family,
                world::LOCAL_PORT,
            ));
            let leave =
                |packet: &Packet| packet.clone().coming_from(at(NODE, family, world::LOCAL_INSIDE));
            let first = fragment(&packet, 0, true);
            cases.push(
                Case::new(format!("first fragment of {name}'s local reply"), Hook::Egress, &first)
                    .given(inside)
                    .delivers(Reason::LocalReply, &leave(&first)),
            );
            for (which, offset, more) in LATER {
                let later = fragment(&packet, offset, more);
                let what = format!("{which} fragment of {name}'s local reply");
                cases.push(
                    Case::new(what, Hook::Egress, &later)
                        .given(inside)
                        .following(&first)
                        .delivers_bytes(Reason::LocalReply, headers_alone(&leave(&later), &later)),
                );
            }
        }
    }
    check_all(cases)
}

const fn later_of(opening: Transport) -> Transport {
    match opening {
        Transport::Tcp(_) => Transport::Tcp(Flags::ACK),
        Transport::Udp => Transport::Udp,
    }
}

/// Nothing is known of those before the first, nor of others' packets.
#[test]
fn without_the_first() -> Result<()> {
    let mut cases = Vec::new();
    for family in FAMILIES {
        for (protocol, transport) in transports(Flags::ACK) {
            let name = format!("{protocol} over {family:?}");
            let remote = Given::remote(protocol, family);
            let packet = to_frontend(transport, family, world::REMOTE);
            let first = fragment(&packet, 0, true);
            for (which, offset, more) in LATER {
                let later = fragment(&packet, offset, more);
                for hook in INWARD {
                    cases.push(
                        Case::new(format!("{which} fragment of {name}, no first"), hook, &later)
                            .given(remote)
                            .passes(Reason::FragmentWithoutFirst),
                    );
                }
                let other = later.clone().coming_from(at(OTHER_CLIENT, family, 1));
                cases.push(
                    Case::new(
                        format!("{which} fragment of {name}, another's"),
                        Hook::Ingress,
                        &other,
                    )
                    .given(remote)
                    .following(&first)
                    .passes(Reason::FragmentWithoutFirst),
                );
                let own = from_local(transport, family);
                cases.push(
                    Case::new(
                        format!("{which} fragment of {name} of the node's own"),
                        Hook::Egress,
                        &fragment(&own, offset, more),
                    )
                    .given(Given::local(protocol, family))
                    .passes(Reason::FragmentWithoutFirst),
                );
            }
            // A first one that is not ours leaves no note.
            let foreign = to_frontend(transport, family, 79);
            cases.push(
                Case::new(
                    format!("fragment of foreign {name}"),
                    Hook::Ingress,
                    &fragment(&foreign, 9, true),
                )
                .following(&fragment(&foreign, 0, true))
                .passes(Reason::FragmentWithoutFirst),
            );
            // Nor does one that is turned away.
            let refused = to_frontend(transport, family, world::SILENT);
            cases.push(
                Case::new(
                    format!("fragment of refused {name}"),
                    Hook::Ingress,
                    &fragment(&refused, 9, true),
                )
                .following(&fragment(&refused, 0, true))
                .passes(Reason::FragmentWithoutFirst),
            );
        }
        // The kernel's own affair.
        let packet = fragment(&to_frontend(Transport::Udp, family, world::REMOTE), 9, true);
        let mut frame = packet.bytes();
        let protocol =
            if matches!(family, Family::V4) { packet.network() + 9 } else { packet.network() + 40 };
        frame[protocol] = 47;
        for hook in INWARD {
            cases.push(
                Case::raw(format!("fragment of GRE over {family:?}"), hook, frame.clone())
                    .passes(Reason::Fragment),
            );
        }
    }
    check_all(cases)
}

/// Those that can't go on are dropped, and nobody is told: an error would have to quote ports.
#[test]
fn at_the_end_of_the_way() -> Result<()> {
    let mut cases = Vec::new();
    for family in FAMILIES {
        let packet = to_frontend(Transport::Udp, family, world::REMOTE);
        let first = fragment(&packet, 0, true);
        for (ttl, expected) in [(1, None), (2, Some(1))] {
            let later = fragment(&packet, 10, false).ttl(ttl);
            let case = Case::new(format!("TTL {ttl} over {family:?}"), Hook::Ingress, &later)
                .following(&first);
            cases.push(match expected {
                None => case.drops(Reason::FragmentNotForwarded),
                Some(left) => {
                    let sent = to_backend(&later, family).ttl(left);
                    case.sends(Reason::RemoteEstablished, headers_alone(&sent, &later))
                }
            });
        }
        let packet = to_frontend(Transport::Udp, family, world::NARROW);
        let first = fragment(&packet, 0, true);
        let large = fragment(&packet.clone().payload(1400), 10, false);
        cases.push(
            Case::new(format!("too large over {family:?}"), Hook::Ingress, &large)
                .following(&first)
                .drops(Reason::FragmentNotForwarded),
        );
        let fits = fragment(&packet.payload(1000), 10, false);
        let sent = towards(&fits, Addresses::new(3, 1), Addresses::new(3, 2), 3, family);
        cases.push(
            Case::new(format!("narrow over {family:?}"), Hook::Ingress, &fits)
                .following(&first)
                .sends(Reason::RemoteEstablished, headers_alone(&sent, &fits)),
        );
    }
    check_all(cases)
}

/// Whatever stands before the fragment header; tags that the frame has.
#[test]
fn headers() -> Result<()> {
    let mut cases = Vec::new();
    let packet = to_frontend(Transport::Udp, Family::V6, world::REMOTE);
    let before = [
        vec![Extension::hop_by_hop()],
        vec![Extension::destination_options(3)],
        vec![Extension::hop_by_hop(), Extension::destination_options(1), Extension::routing(0)],
    ];
    for extensions in before {
        let with = |offset, more| {
            let all = [extensions.clone(), vec![Extension::fragment(offset, more)]].concat();
            packet.clone().extensions(&all)
        };
        let (first, later) = (with(0, true), with(5, false));
        let sent = headers_alone(&to_backend(&later, Family::V6), &later);
        cases.push(
            Case::new(format!("behind {} headers", extensions.len()), Hook::Ingress, &later)
                .following(&first)
                .sends(Reason::RemoteEstablished, sent),
        );
    }
    for family in FAMILIES {
        let packet = to_frontend(Transport::Udp, family, world::REMOTE);
        let first = fragment(&packet, 0, true).vlans(&[9]);
        let later = fragment(&packet, 9, false).vlans(&[9]);
        let untagged = fragment(&packet, 9, false);
        cases.push(
            Case::new(format!("tagged over {family:?}"), Hook::Ingress, &later)
                .following(&first)
                .sends(
                    Reason::RemoteEstablished,
                    headers_alone(&to_backend(&untagged, family), &untagged),
                ),
        );
    }
    let packet = to_frontend(Transport::Udp, Family::V4, world::REMOTE).options(10);
    let (first, later) = (fragment(&packet, 0, true), fragment(&packet, 9, false));
    cases.push(
        Case::new("behind options", Hook::Ingress, &later).following(&first).sends(
            Reason::RemoteEstablished,
            headers_alone(&to_backend(&later, Family::V4), &later),
        ),
    );
    check_all(cases)
}

/// Each fragment is one of the flow's packets, and none changes its state.
#[test]
fn counted_in_the_flow() -> Result<()> {
    let mut cases = Vec::new();
    for family in FAMILIES {
        let flow = Given::remote(Protocol::Udp, family).client(at(
            CLIENT,
            family,
            crate::given::CLIENT_PORT,
        ));
        let packet = to_frontend(Transport::Udp, family, world::REMOTE);
        let later = fragment(&packet, 9, false);
        cases.push(
            Case::new(format!("over {family:?}"), Hook::Ingress, &later)
                .given(flow.state(FlowState::Unreplied))
                .following(&fragment(&packet, 0, true))
                .sends(
                    Reason::RemoteEstablished,
                    headers_alone(&to_backend(&later, family), &later),
                )
                .then(&flow, FlowState::Unreplied),
        );
    }
    check_all(cases)
}
