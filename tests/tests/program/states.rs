//! Flows follow what their packets say.

use anyhow::Result;
use redirector::dataplane::pins::Hook;
use redirector_common::{
    Direction::{self, Forward, Reply},
    Family,
    FlowState::{
        self, Closed, Established, HalfClosed, Replied, SynReceived, SynSent, TimeWait, Unreplied,
    },
    Protocol, Reason,
};
use redirector_tests::{
    packet::{Flags, Transport},
    topology::FAMILIES,
};

use crate::{
    case::{Case, INWARD, check_all},
    given::{Given, from_backend, from_local, to_backend, to_client, to_frontend},
    world::{self, NODE, at},
};

/// State before, FINs seen from client and backend, direction and bits of the packet, state after.
const TCP: [(FlowState, [bool; 2], Direction, Flags, FlowState); 34] = [
    (SynSent, [false, false], Forward, Flags::SYN, SynSent),
    (SynSent, [false, false], Reply, Flags::SYN_ACK, SynReceived),
    (SynSent, [false, false], Reply, Flags::RST, Closed),
    (SynSent, [false, false], Forward, Flags::RST, Closed),
    (SynSent, [false, false], Reply, Flags::ACK, SynSent),
    (SynSent, [false, false], Forward, Flags::FIN_ACK, SynSent),
    (SynReceived, [false, false], Reply, Flags::SYN_ACK, SynReceived),
    (SynReceived, [false, false], Forward, Flags::NONE, SynReceived),
    (SynReceived, [false, false], Forward, Flags::SYN, SynReceived),
    (SynReceived, [false, false], Forward, Flags::ACK, Established),
    (SynReceived, [false, false], Reply, Flags::RST, Closed),
    (Established, [false, false], Forward, Flags::ACK, Established),
    (Established, [false, false], Reply, Flags::ACK, Established),
    (Established, [false, false], Forward, Flags::SYN, Established),
    (Established, [false, false], Forward, Flags::FIN_ACK, HalfClosed),
    (Established, [false, false], Reply, Flags::FIN_ACK, HalfClosed),
    (Established, [false, false], Forward, Flags::RST, Closed),
    (Established, [false, false], Reply, Flags::RST, Closed),
    (HalfClosed, [true, false], Forward, Flags::FIN_ACK, HalfClosed),
    (HalfClosed, [true, false], Reply, Flags::ACK, HalfClosed),
    (HalfClosed, [true, false], Reply, Flags::FIN_ACK, TimeWait),
    (HalfClosed, [false, true], Forward, Flags::FIN_ACK, TimeWait),
    (HalfClosed, [false, true], Reply, Flags::FIN_ACK, HalfClosed),
    (HalfClosed, [false, true], Reply, Flags::RST, Closed),
    (HalfClosed, [false, true], Forward, Flags::SYN, HalfClosed),
    (HalfClosed, [false, true], Reply, Flags::SYN_ACK, SynReceived),
    (HalfClosed, [true, true], Forward, Flags::ACK, TimeWait),
    (TimeWait, [true, true], Forward, Flags::ACK, TimeWait),
    (TimeWait, [true, true], Reply, Flags::FIN_ACK, TimeWait),
    (TimeWait, [true, true], Reply, Flags::RST, Closed),
    (TimeWait, [true, true], Reply, Flags::SYN_ACK, TimeWait),
    (Closed, [false, false], Forward, Flags::ACK, Closed),
    (Closed, [false, false], Reply, Flags::ACK, Closed),
    (Closed, [false, false], Reply, Flags::SYN_ACK, SynReceived),
];

/// State before, direction of the datagram, state after.
const UDP: [(FlowState, Direction, FlowState); 4] = [
    (Unreplied, Forward, Unreplied),
    (Unreplied, Reply, Replied),
    (Replied, Forward, Replied),
    (Replied, Reply, Replied),
];

/// The packet of a flow in both its kinds, with the state that it must lead to.
fn step(
    cases: &mut Vec<Case>,
    family: Family,
    (protocol, transport): (Protocol, Transport),
    (state, [client_fin, backend_fin], direction): (FlowState, [bool; 2], Direction),
    next: FlowState,
) {
    let what = format!("{state:?}, {direction:?} {transport:?} over {family:?}");
    let prepare = |flow: Given| flow.state(state).fins(client_fin, backend_fin);
    let (remote, local) =
        (prepare(Given::remote(protocol, family)), prepare(Given::local(protocol, family)));
    for hook in INWARD {
        let case = match direction {
            Forward => {
                let packet = to_frontend(transport, family, world::REMOTE);
                Case::new(what.clone(), hook, &packet)
                    .forwards(Reason::RemoteEstablished, &to_backend(&packet, family))
            }
            Reply => {
                let packet = from_backend(transport, family);
                Case::new(what.clone(), hook, &packet)
                    .by("eth1")
                    .forwards(Reason::RemoteReply, &to_client(&packet, family))
            }
        };
        cases.push(case.given(remote).then(&remote, next));
    }
    let case = match direction {
        Forward => {
            let packet = to_frontend(transport, family, world::LOCAL);
            let delivered = packet.clone().going_to(at(NODE, family, world::LOCAL_PORT));
            Case::new(format!("{what}, local"), Hook::Ingress, &packet)
                .delivers(Reason::LocalEstablished, &delivered)
        }
        Reply => {
            let packet = from_local(transport, family);
            let sent = packet.clone().coming_from(at(NODE, family, world::LOCAL));
            Case::new(format!("{what}, local"), Hook::Egress, &packet)
                .delivers(Reason::LocalReply, &sent)
        }
    };
    cases.push(case.given(local).then(&local, next));
}

#[test]
fn tcp() -> Result<()> {
    let mut cases = Vec::new();
    for family in FAMILIES {
        for (state, fins, direction, flags, next) in TCP {
            let transport = (Protocol::Tcp, Transport::Tcp(flags));
            step(&mut cases, family, transport, (state, fins, direction), next);
        }
    }
    check_all(cases)
}

/// Where both ends go on after a RST, the connection does; unless there never was one, or it had
/// ended.
#[test]
fn going_on_after_a_reset() -> Result<()> {
    let rows = [
        (SynSent, [false, false], Closed),
        (Established, [false, false], Established),
        (HalfClosed, [true, false], HalfClosed),
        (HalfClosed, [false, true], HalfClosed),
        (TimeWait, [true, true], Closed),
    ];
    let mut cases = Vec::new();
    for family in FAMILIES {
        for (state, [client_fin, backend_fin], next) in rows {
            let flow = Given::remote(Protocol::Tcp, family).state(state);
            let flow = flow.fins(client_fin, backend_fin);
            let packet = to_frontend(Transport::Tcp(Flags::ACK), family, world::REMOTE);
            for hook in INWARD {
                cases.push(
                    Case::new(format!("{state:?} and a RST over {family:?}"), hook, &packet)
                        .given(flow)
                        .following(&from_backend(Transport::Tcp(Flags::RST), family))
                        .following(&from_backend(Transport::Tcp(Flags::ACK), family))
                        .forwards(Reason::RemoteEstablished, &to_backend(&packet, family))
                        .then(&flow, next),
                );
            }
        }
    }
    check_all(cases)
}

#[test]
fn udp() -> Result<()> {
    let mut cases = Vec::new();
    for family in FAMILIES {
        for (state, direction, next) in UDP {
            let transport = (Protocol::Udp, Transport::Udp);
            step(&mut cases, family, transport, (state, [false; 2], direction), next);
        }
    }
    check_all(cases)
}

/// A SYN, or a datagram after a long silence, begins a new flow in place of one that is over.
#[test]
fn beginning_anew() -> Result<()> {
    let mut cases = Vec::new();
    let over = [
        (Protocol::Tcp, Transport::Tcp(Flags::SYN), TimeWait, 0, SynSent),
        (Protocol::Tcp, Transport::Tcp(Flags::SYN), Closed, 0, SynSent),
        (Protocol::Udp, Transport::Udp, Unreplied, 31, Unreplied),
    ];
    for family in FAMILIES {
        for (protocol, transport, state, idle, next) in over {
            let what = format!("{transport:?} over {family:?} on a flow in {state:?}");
            let flow = Given::remote(protocol, family).state(state).fins(true, true).idle(idle);
            for hook in INWARD {
                let packet = to_frontend(transport, family, world::REMOTE);
                cases.push(
                    Case::new(what.clone(), hook, &packet)
                        .given(flow)
                        .forwards(Reason::RemoteNew, &to_backend(&packet, family))
                        .then(&flow, next),
                );
            }
            let flow = Given::local(protocol, family).state(state).fins(true, true).idle(idle);
            let packet = to_frontend(transport, family, world::LOCAL);
            let delivered = packet.clone().going_to(at(NODE, family, world::LOCAL_PORT));
            cases.push(
                Case::new(format!("{what}, local"), Hook::Ingress, &packet)
                    .given(flow)
                    .delivers(Reason::LocalNew, &delivered)
                    .then(&flow, next),
            );
        }
    }
    check_all(cases)
}

/// Not a SYN, and no flow: began before we did, or is over. The kernel says what it thinks of it.
#[test]
fn tcp_without_a_flow() -> Result<()> {
    let mut cases = Vec::new();
    for family in FAMILIES {
        for flags in [Flags::ACK, Flags::FIN_ACK, Flags::RST, Flags::SYN_ACK, Flags::NONE] {
            for port in [world::LOCAL, world::REMOTE, world::EMPTY, world::UNROUTED] {
                for hook in INWARD {
                    let packet = to_frontend(Transport::Tcp(flags), family, port);
                    cases.push(
                        Case::new(format!("{flags:?} to {port} over {family:?}"), hook, &packet)
                            .passes(Reason::NoFlow),
                    );
                }
            }
        }
    }
    check_all(cases)
}
