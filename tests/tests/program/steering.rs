//! Packets of connections that sockets of the node have on a frontend itself.
//!
//! `BPF_PROG_TEST_RUN` does not count as TC ingress for the helper that hands a packet to a socket,
//! which then refuses: what opens a connection takes the way that is left. That it is handed over
//! is shown between hosts, in the netns tier.

use std::net::TcpListener;

use anyhow::{Context as _, Result};
use redirector::dataplane::pins::Hook;
use redirector_common::{Family, FlowState, Protocol, Reason};
use redirector_tests::{
    connection::one_sided,
    packet::{Flags, Transport},
    topology::FAMILIES,
    wait::until_free,
};
use socket2::Socket;

use crate::{
    case::{Case, INWARD, check_all_with},
    given::{CLIENT_PORT, Given, to_frontend},
    world::{CLIENT, NODE, STEERED, STEERED_MIXED, STEERED_PORT, at},
};

/// Both kinds of frontend: where nothing goes elsewhere, and where something may.
const PORTS: [u16; 2] = [STEERED, STEERED_MIXED];

fn connections() -> Result<Vec<Socket>> {
    let mut sockets = Vec::new();
    for family in FAMILIES {
        for port in PORTS {
            sockets.push(one_sided(at(NODE, family, port), at(CLIENT, family, CLIENT_PORT))?);
        }
    }
    Ok(sockets)
}

/// Whatever belongs to a connection passes as it is; XDP leaves it alone.
#[test]
fn connections_own_their_packets() -> Result<()> {
    let mut cases = Vec::new();
    for family in FAMILIES {
        for port in PORTS {
            for flags in [Flags::ACK, Flags::SYN, Flags::FIN_ACK, Flags::RST] {
                let packet = to_frontend(Transport::Tcp(flags), family, port);
                for hook in INWARD {
                    let name = format!("{flags:?} to {port} over {family:?}");
                    cases.push(Case::new(name, hook, &packet).passes(Reason::SteeredEstablished));
                }
            }
            let flow = given(family, port).frontend(at(NODE, family, port + 100));
            let packet = to_frontend(Transport::Tcp(Flags::ACK), family, port);
            let name = format!("with a flow of another frontend, to {port} over {family:?}");
            let case = Case::new(name, Hook::Ingress, &packet).given(flow);
            cases.push(case.passes(Reason::SteeredEstablished));
        }
    }
    check_all_with(connections, cases)
}

fn given(family: Family, port: u16) -> Given {
    Given::local(Protocol::Tcp, family).frontend(at(NODE, family, port)).backend(at(
        NODE,
        family,
        STEERED_PORT,
    ))
}

/// A flow that was opened by translation goes on so.
#[test]
fn flows_go_on() -> Result<()> {
    let mut cases = Vec::new();
    for family in FAMILIES {
        for port in PORTS {
            let flow = given(family, port);
            let packet = to_frontend(Transport::Tcp(Flags::ACK), family, port);
            let delivered = packet.clone().going_to(at(NODE, family, STEERED_PORT));
            cases.push(
                Case::new(format!("to {port} over {family:?}"), Hook::Ingress, &packet)
                    .given(flow)
                    .delivers(Reason::LocalEstablished, &delivered)
                    .then(&flow, FlowState::Established),
            );
        }
        // Of a flow to a backend elsewhere the flow table knows, and not a socket that is there.
        let flow = Given::remote(Protocol::Tcp, family).frontend(at(NODE, family, STEERED_MIXED));
        let packet = to_frontend(Transport::Tcp(Flags::ACK), family, STEERED_MIXED);
        for hook in INWARD {
            cases.push(
                Case::new(format!("elsewhere over {family:?}"), hook, &packet)
                    .given(flow)
                    .forwards(Reason::RemoteEstablished, &crate::given::to_backend(&packet, family))
                    .then(&flow, FlowState::Established),
            );
        }
    }
    let sockets = || {
        FAMILIES
            .map(|family| {
                one_sided(at(NODE, family, STEERED_MIXED), at(CLIENT, family, CLIENT_PORT))
            })
            .into_iter()
            .collect::<Result<Vec<_>>>()
    };
    check_all_with(sockets, cases)
}

/// Where no socket can have it, what opens a connection is translated, and nothing else is.
#[test]
fn without_a_socket() -> Result<()> {
    let mut cases = Vec::new();
    for family in FAMILIES {
        for port in PORTS {
            let name = format!("to {port} over {family:?}");
            let packet = to_frontend(Transport::Tcp(Flags::SYN), family, port);
            let delivered = packet.clone().going_to(at(NODE, family, STEERED_PORT));
            cases.push(
                Case::new(format!("SYN {name}"), Hook::Ingress, &packet)
                    .delivers(Reason::LocalNew, &delivered)
                    .then(&given(family, port), FlowState::SynSent),
            );
            for flags in [Flags::ACK, Flags::FIN_ACK, Flags::RST, Flags::SYN_ACK] {
                let packet = to_frontend(Transport::Tcp(flags), family, port);
                let name = format!("{flags:?} {name}");
                cases.push(Case::new(name, Hook::Ingress, &packet).passes(Reason::NoFlow));
            }
        }
    }
    // Neither a listener on the frontend's own port nor one behind it owns packets.
    let listeners = || {
        [STEERED, STEERED_PORT]
            .map(|port| until_free(|| TcpListener::bind(("::", port))))
            .into_iter()
            .collect::<Result<Vec<_>, _>>()
            .context("listening")
    };
    check_all_with(|| Ok(()), cases.clone())?;
    check_all_with(listeners, cases)
}
