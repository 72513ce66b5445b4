//! New, established and reply packets of flows to local backends and to backends elsewhere.

use anyhow::Result;
use redirector::dataplane::pins::Hook;
use redirector_common::{FlowState, Protocol, Reason};
use redirector_tests::{
    packet::{Flags, Packet, Transport},
    topology::FAMILIES,
};

use crate::{
    case::{Case, INWARD, check_all},
    given::{
        CLIENT_PORT, Given, from_backend, from_local, to_backend, to_client, to_frontend,
        transports,
    },
    world::{self, BACKEND, CLIENT, NEAR, NODE, NODE_INSIDE, at, mac},
};

const fn first_state(protocol: Protocol) -> FlowState {
    match protocol {
        Protocol::Tcp => FlowState::SynSent,
        Protocol::Udp => FlowState::Unreplied,
    }
}

const fn later_state(protocol: Protocol) -> FlowState {
    match protocol {
        Protocol::Tcp => FlowState::Established,
        Protocol::Udp => FlowState::Replied,
    }
}

/// XDP leaves what goes to a local backend to TC, which delivers it with the client's address.
#[test]
fn local_backends() -> Result<()> {
    let mut cases = Vec::new();
    for family in FAMILIES {
        for (protocol, opening) in transports(Flags::SYN) {
            let name = format!("{protocol} over {family:?}");
            let flow = Given::local(protocol, family);
            let packet = to_frontend(opening, family, world::LOCAL);
            let delivered = packet.clone().going_to(at(NODE, family, world::LOCAL_PORT));
            cases.push(
                Case::new(format!("new {name}"), Hook::Xdp, &packet).passes(Reason::LocalNew),
            );
            cases.push(
                Case::new(format!("new {name}"), Hook::Ingress, &packet)
                    .delivers(Reason::LocalNew, &delivered)
                    .then(&flow, first_state(protocol)),
            );

            let packet = to_frontend(opening, family, world::LOCAL_INSIDE);
            let inside = packet.clone().going_to(at(NODE_INSIDE, family, world::LOCAL_PORT + 1));
            cases.push(
                Case::new(format!("new {name} to another address"), Hook::Ingress, &packet)
                    .delivers(Reason::LocalNew, &inside),
            );
        }
        for (protocol, later) in transports(Flags::ACK) {
            let name = format!("{protocol} over {family:?}");
            let flow = Given::local(protocol, family);
            let packet = to_frontend(later, family, world::LOCAL);
            let delivered = packet.clone().going_to(at(NODE, family, world::LOCAL_PORT));
            cases.push(
                Case::new(format!("established {name}"), Hook::Xdp, &packet)
                    .given(flow)
                    .passes(Reason::LocalEstablished),
            );
            cases.push(
                Case::new(format!("established {name}"), Hook::Ingress, &packet)
                    .given(flow)
                    .delivers(Reason::LocalEstablished, &delivered)
                    .then(&flow, later_state(protocol)),
            );

            let reply = from_local(later, family);
            let sent = reply.clone().coming_from(at(NODE, family, world::LOCAL));
            cases.push(
                Case::new(format!("reply of {name}"), Hook::Egress, &reply)
                    .given(flow)
                    .delivers(Reason::LocalReply, &sent)
                    .then(&flow, later_state(protocol)),
            );
            cases.push(
                Case::new(format!("reply of {name} without a flow"), Hook::Egress, &reply)
                    .passes(Reason::NotOurs),
            );
            let direct = reply.clone().going_to(at(CLIENT, family, CLIENT_PORT + 1));
            cases.push(
                Case::new(format!("{name} with the backend's own port"), Hook::Egress, &direct)
                    .given(flow)
                    .passes(Reason::NotOurs),
            );
        }
    }
    check_all(cases)
}

/// XDP and TC forward what goes to a backend elsewhere, and its replies, alike.
#[test]
fn remote_backends() -> Result<()> {
    let mut cases = Vec::new();
    for family in FAMILIES {
        for hook in INWARD {
            for (protocol, opening) in transports(Flags::SYN) {
                let packet = to_frontend(opening, family, world::REMOTE);
                cases.push(
                    Case::new(format!("new {protocol} over {family:?}"), hook, &packet)
                        .forwards(Reason::RemoteNew, &to_backend(&packet, family))
                        .then(&Given::remote(protocol, family), first_state(protocol)),
                );
            }
            for (protocol, later) in transports(Flags::ACK) {
                let name = format!("{protocol} over {family:?}");
                let flow = Given::remote(protocol, family);
                let packet = to_frontend(later, family, world::REMOTE);
                cases.push(
                    Case::new(format!("established {name}"), hook, &packet)
                        .given(flow)
                        .forwards(Reason::RemoteEstablished, &to_backend(&packet, family))
                        .then(&flow, later_state(protocol)),
                );
                let reply = from_backend(later, family);
                cases.push(
                    Case::new(format!("reply of {name}"), hook, &reply)
                        .by("eth1")
                        .given(flow)
                        .forwards(Reason::RemoteReply, &to_client(&reply, family))
                        .then(&flow, later_state(protocol)),
                );
                cases.push(
                    Case::new(format!("reply of {name} without a flow"), hook, &reply)
                        .by("eth1")
                        .passes(Reason::NoReplyFlow),
                );
            }
        }
    }
    check_all(cases)
}

/// A backend on the clients' own side: the packet leaves by the interface that it came in by.
#[test]
fn hairpin() -> Result<()> {
    let mut cases = Vec::new();
    for family in FAMILIES {
        for hook in INWARD {
            for (protocol, opening) in transports(Flags::SYN) {
                let name = format!("{protocol} over {family:?}");
                let packet = to_frontend(opening, family, world::HAIRPIN);
                let sent = packet
                    .clone()
                    .coming_from(at(NODE, family, world::SNAT))
                    .going_to(at(NEAR, family, world::REMOTE_PORT))
                    .macs(mac(1, 3), mac(1, 1))
                    .ttl(63);
                cases.push(
                    Case::new(format!("{name} to a backend beside the client"), hook, &packet)
                        .sends(Reason::RemoteNew, sent.bytes()),
                );

                // The backend is its own client.
                let packet =
                    packet.coming_from(at(NEAR, family, CLIENT_PORT)).macs(mac(1, 1), mac(1, 3));
                cases.push(
                    Case::new(format!("{name} of a backend to itself"), hook, &packet)
                        .sends(Reason::RemoteNew, sent.bytes()),
                );
            }
        }
        let flow = Given::remote(Protocol::Tcp, family)
            .client(at(NEAR, family, CLIENT_PORT))
            .frontend(at(NODE, family, world::HAIRPIN))
            .source(at(NODE, family, world::SNAT))
            .backend(at(NEAR, family, world::REMOTE_PORT));
        let reply = Packet::new(
            Transport::Tcp(Flags::SYN_ACK),
            at(NEAR, family, world::REMOTE_PORT),
            at(NODE, family, world::SNAT),
        )
        .macs(mac(1, 1), mac(1, 3));
        let sent = reply
            .clone()
            .coming_from(at(NODE, family, world::HAIRPIN))
            .going_to(at(NEAR, family, CLIENT_PORT))
            .macs(mac(1, 3), mac(1, 1))
            .ttl(63);
        for hook in INWARD {
            cases.push(
                Case::new(format!("reply of a backend to itself over {family:?}"), hook, &reply)
                    .given(flow.state(FlowState::SynSent))
                    .sends(Reason::RemoteReply, sent.bytes())
                    .then(&flow, FlowState::SynReceived),
            );
        }
    }
    check_all(cases)
}

/// What a flow's key matches, and what merely looks like it.
#[test]
fn look_alikes() -> Result<()> {
    let mut cases = Vec::new();
    for family in FAMILIES {
        for hook in INWARD {
            for (protocol, transport) in transports(Flags::ACK) {
                let name = format!("{protocol} over {family:?}");
                let flow = Given::remote(protocol, family);
                let reply = from_backend(transport, family);
                let other = reply.clone().coming_from(at(BACKEND, family, world::REMOTE_PORT + 1));
                cases.push(
                    Case::new(format!("{name} from another port of the backend"), hook, &other)
                        .by("eth1")
                        .given(flow)
                        .passes(Reason::NoReplyFlow),
                );
                let other = reply.going_to(at(NODE_INSIDE, family, world::SNAT + 1));
                cases.push(
                    Case::new(format!("{name} to another port of the block"), hook, &other)
                        .by("eth1")
                        .given(flow)
                        .passes(Reason::NoReplyFlow),
                );
            }
            let other = Given::remote(Protocol::Udp, family);
            let reply = from_backend(Transport::Tcp(Flags::ACK), family);
            cases.push(
                Case::new(format!("TCP where the flow is UDP, over {family:?}"), hook, &reply)
                    .by("eth1")
                    .given(other)
                    .passes(Reason::NoReplyFlow),
            );
        }
    }
    check_all(cases)
}
