//! Flows that would look the same to the backend are kept apart by the source port.

use anyhow::Result;
use redirector::dataplane::pins::Hook;
use redirector_common::{FlowState, Protocol, Reason};
use redirector_tests::{
    packet::{Flags, Packet},
    program::Programs,
    topology::FAMILIES,
};

use crate::{
    case::{Case, INWARD, check_all},
    given::{
        CLIENT_PORT, Given, from_backend, from_local, to_backend, to_client, to_frontend,
        transports,
    },
    world::{self, BACKEND, CLIENT, NEAR, NODE, NODE_INSIDE, OTHER_CLIENT, at, mac},
};

#[test]
fn elsewhere() -> Result<()> {
    let mut cases = Vec::new();
    for family in FAMILIES {
        for hook in INWARD {
            for (protocol, transport) in transports(Flags::SYN) {
                let name = format!("{protocol} over {family:?}");
                let flow = Given::remote(protocol, family);
                let second = |packet: &Packet| {
                    let source = at(NODE_INSIDE, family, world::SNAT + 1);
                    to_backend(packet, family).coming_from(source)
                };

                let packet = to_frontend(transport, family, world::REMOTE).coming_from(at(
                    OTHER_CLIENT,
                    family,
                    CLIENT_PORT,
                ));
                cases.push(
                    Case::new(format!("{name} of two clients with one port"), hook, &packet)
                        .block(2)
                        .given(flow)
                        .forwards(Reason::RemoteNew, &second(&packet))
                        .then(&flow.client(packet.source()), first(protocol)),
                );
                cases.push(
                    Case::new(format!("{name}, every port in use"), hook, &packet)
                        .given(flow)
                        .drops(Reason::SnatExhausted),
                );

                let packet = to_frontend(transport, family, world::REMOTE_ALIAS);
                cases.push(
                    Case::new(format!("{name}, one backend, two frontends"), hook, &packet)
                        .block(2)
                        .given(flow)
                        .forwards(Reason::RemoteNew, &second(&packet))
                        .then(&flow.frontend(packet.destination()), first(protocol)),
                );

                // The same port towards another backend is another flow.
                let elsewhere = flow.backend(at(NEAR, family, world::REMOTE_PORT));
                let packet = to_frontend(transport, family, world::REMOTE).coming_from(at(
                    OTHER_CLIENT,
                    family,
                    CLIENT_PORT,
                ));
                cases.push(
                    Case::new(format!("{name}, one port, two backends"), hook, &packet)
                        .given(elsewhere)
                        .forwards(Reason::RemoteNew, &to_backend(&packet, family)),
                );
            }
        }
    }
    check_all(cases)
}

/// Answers find the right one of two flows that differ in nothing but the translated port.
#[test]
fn replies() -> Result<()> {
    let mut cases = Vec::new();
    for family in FAMILIES {
        for (protocol, transport) in transports(Flags::ACK) {
            let name = format!("{protocol} over {family:?}");
            let one = Given::remote(protocol, family);
            let two = one.client(at(OTHER_CLIENT, family, CLIENT_PORT)).source(at(
                NODE_INSIDE,
                family,
                world::SNAT + 1,
            ));
            for hook in INWARD {
                let reply = from_backend(transport, family);
                cases.push(
                    Case::new(format!("{name}, reply to the first"), hook, &reply)
                        .by("eth1")
                        .given(one)
                        .given(two)
                        .forwards(Reason::RemoteReply, &to_client(&reply, family)),
                );
                let reply = reply.going_to(at(NODE_INSIDE, family, world::SNAT + 1));
                let sent = to_client(&reply, family)
                    .going_to(at(OTHER_CLIENT, family, CLIENT_PORT))
                    .macs(mac(1, 4), mac(1, 1));
                cases.push(
                    Case::new(format!("{name}, reply to the second"), hook, &reply)
                        .by("eth1")
                        .given(one)
                        .given(two)
                        .forwards(Reason::RemoteReply, &sent),
                );
            }
        }
    }
    check_all(cases)
}

/// A local backend sees the client's own port, unless it already sees it for another frontend.
#[test]
fn local() -> Result<()> {
    let mut cases = Vec::new();
    for family in FAMILIES {
        for (protocol, transport) in transports(Flags::SYN) {
            let name = format!("{protocol} over {family:?}");
            let one = Given::local(protocol, family);
            let packet = to_frontend(transport, family, world::LOCAL_ALIAS);
            let delivered = packet
                .clone()
                .coming_from(at(CLIENT, family, world::SNAT))
                .going_to(at(NODE, family, world::LOCAL_PORT));
            cases.push(
                Case::new(format!("{name}, two frontends, one port"), Hook::Ingress, &packet)
                    .given(one)
                    .delivers(Reason::LocalNew, &delivered)
                    .then(&one.frontend(packet.destination()), first(protocol)),
            );

            let two = one.frontend(at(NODE, family, world::LOCAL_ALIAS)).source(at(
                CLIENT,
                family,
                world::SNAT,
            ));
            let third = Given::local(protocol, family).frontend(at(NODE, family, world::EMPTY));
            let taken = third.source(at(CLIENT, family, world::SNAT));
            cases.push(
                Case::new(format!("{name}, and no port left"), Hook::Ingress, &packet)
                    .given(one)
                    .given(taken)
                    .drops(Reason::SnatExhausted),
            );

            let reply = from_local(transport, family).going_to(at(CLIENT, family, world::SNAT));
            let sent = reply
                .clone()
                .coming_from(at(NODE, family, world::LOCAL_ALIAS))
                .going_to(at(CLIENT, family, CLIENT_PORT));
            cases.push(
                Case::new(format!("{name}, reply to the second"), Hook::Egress, &reply)
                    .given(one)
                    .given(two)
                    .delivers(Reason::LocalReply, &sent),
            );
        }
    }
    check_all(cases)
}

/// Room for one half only: the other half is not left behind.
#[test]
fn full_table() -> Result<()> {
    let node = world::build_node()?;
    node.enter(|| {
        let mut programs = Programs::load_with_flows(1)?;
        world::fill_maps(&mut programs)?;
        for family in FAMILIES {
            for hook in INWARD {
                for (_, transport) in transports(Flags::SYN) {
                    let packet = to_frontend(transport, family, world::REMOTE);
                    Case::new("a full table", hook, &packet)
                        .drops(Reason::FlowTableFull)
                        .check(&mut programs)?;
                }
            }
            let packet = to_frontend(transports(Flags::SYN)[0].1, family, world::LOCAL);
            Case::new("a full table", Hook::Ingress, &packet)
                .drops(Reason::FlowTableFull)
                .check(&mut programs)?;
        }
        Ok(())
    })
}

const fn first(protocol: Protocol) -> FlowState {
    match protocol {
        Protocol::Tcp => FlowState::SynSent,
        Protocol::Udp => FlowState::Unreplied,
    }
}

/// A flow that has just ended may still see packets: its port is not given away. One towards
/// another port of the same backend is.
#[test]
fn ports_in_use() -> Result<()> {
    let mut cases = Vec::new();
    for family in FAMILIES {
        let (protocol, transport) = transports(Flags::SYN)[0];
        let closed = Given::local(protocol, family).state(FlowState::Closed);
        let packet = to_frontend(transport, family, world::LOCAL_ALIAS);
        let moved = packet.clone().coming_from(at(CLIENT, family, world::SNAT)).going_to(at(
            NODE,
            family,
            world::LOCAL_PORT,
        ));
        cases.push(
            Case::new(format!("a closing flow's port over {family:?}"), Hook::Ingress, &packet)
                .given(closed)
                .delivers(Reason::LocalNew, &moved),
        );
        for hook in INWARD {
            let other = Given::remote(protocol, family).backend(at(
                BACKEND,
                family,
                world::REMOTE_PORT + 1,
            ));
            let packet = to_frontend(transport, family, world::REMOTE_ALIAS);
            cases.push(
                Case::new(
                    format!("a port in use towards another port over {family:?}"),
                    hook,
                    &packet,
                )
                .given(other)
                .forwards(Reason::RemoteNew, &to_backend(&packet, family)),
            );
        }
    }
    check_all(cases)
}
