//! Direct server return: packets handed over to other nodes, and those that they hand over.
//!
//! ```text
//! eth0  CLIENT, NEAR (a node: frontends on its address are here too)
//! eth1  BACKEND (a node), and ROUTER (none), behind which FAR is (a node)
//! ```

use anyhow::Result;
use redirector::dataplane::pins::Hook;
use redirector_common::{
    Address, Backend, Family, FlowState, Frontend, FrontendKey, Manner, Peer, Port, PortFlags,
    Protocol, Reason, Service, map_name::MapName, service::MaglevLine,
};
use redirector_tests::{
    namespace::run,
    packet::{Flags, Packet, Transport},
    program::Programs,
    topology::{Addresses, FAMILIES},
    tunnel::cover,
};

use crate::{
    case::{Case, INWARD, check_all_in},
    given::{CLIENT_PORT, Given, to_frontend, towards, transports},
    world::{self, BACKEND, CLIENT, LOCAL_PORT, NEAR, NODE, NODE_INSIDE, REMOTE_PORT, at, mac},
};

const ROUTER: Addresses = Addresses::new(2, 3);
pub(crate) const FAR: Addresses = Addresses::new(6, 2);

/// A frontend whose backend is on [`BACKEND`].
const NEXT: u16 = 120;
/// One whose backend is on [`FAR`].
const ROUTED: u16 = 121;
/// One whose backend is on a host that runs no redirector.
const ALONE: u16 = 122;
/// One with a backend on this host.
pub(crate) const HERE: u16 = 123;
/// One without a backend on this host.
const NOT_HERE: u16 = 124;
/// One with a backend on this host, that is not for other nodes' packets.
const PLAIN: u16 = 125;

pub(crate) fn prepare(programs: &mut Programs) -> Result<()> {
    let lladdr = mac(2, 3).map(|byte| format!("{byte:02x}")).join(":");
    for family in FAMILIES {
        let (router, far) = (ROUTER.of(family).to_string(), FAR.of(family).to_string());
        run(
            "ip",
            ["neighbour", "add", &router, "lladdr", &lladdr, "dev", "eth1", "nud", "permanent"],
        )?;
        run("ip", ["route", "add", &far, "via", &router])?;
        let (known, taking) = (Peer::known(), Peer::taking());
        for (node, peer) in [(BACKEND, taking), (FAR, taking), (NEAR, known)] {
            programs.insert(MapName::Peers, Address::from(node.of(family)), peer)?;
        }
    }
    let mut id = 200;
    for family in FAMILIES {
        for (port, backend) in [(NEXT, BACKEND), (ROUTED, FAR), (ALONE, ROUTER)] {
            id += 1;
            let backend = Backend::remote(backend.of(family).into(), Port::new(REMOTE_PORT));
            let table = (id * 16, 1);
            let service = Service {
                table_offset: table.0,
                table_size: table.1,
                flags: Service::FLAG_DSR,
                ..Service::default()
            };
            add(programs, family, port, (id, backend), service, PortFlags::REMOTE)?;
        }
        for (port, flags, peer_size) in
            [(HERE, Service::FLAG_DSR, 1), (NOT_HERE, Service::FLAG_DSR, 0), (PLAIN, 0, 0)]
        {
            id += 1;
            let backend = Backend::local(Port::new(LOCAL_PORT));
            let service = Service {
                table_offset: id * 16,
                table_size: 1,
                peer_offset: id * 16,
                peer_size,
                flags,
                ..Service::default()
            };
            add(programs, family, port, (id, backend), service, PortFlags::default())?;
        }
    }
    Ok(())
}

fn add(
    programs: &mut Programs,
    family: Family,
    port: u16,
    (id, backend): (u32, Backend),
    service: Service,
    bits: PortFlags,
) -> Result<()> {
    programs.set(MapName::Backends, id, backend)?;
    programs.set(MapName::Maglev, id, MaglevLine { entries: [id; 16] })?;
    programs.set(MapName::Services, id, service)?;
    let own = NODE.of(family).into();
    for protocol in Protocol::ALL {
        let key = |address| FrontendKey::new(address, Port::new(port), protocol);
        programs.insert(MapName::Frontends, key(own), Frontend::new(id, own))?;
        if service.is_dsr() {
            let near = NEAR.of(family).into();
            programs.insert(MapName::Frontends, key(near), Frontend::foreign(id, own))?;
        }
        world::mark(programs, protocol, port, PortFlags::FRONTEND.union(bits))?;
    }
    Ok(())
}

/// How a packet leaves towards [`BACKEND`]: as it came.
fn to_next(packet: &Packet) -> Packet {
    packet.clone().macs(mac(2, 2), mac(2, 1))
}

/// How a packet leaves towards [`FAR`].
fn to_far(packet: &Packet, family: Family, class: u8) -> Vec<u8> {
    let ends = (NODE_INSIDE.of(family), FAR.of(family));
    cover(&packet.clone().ttl(63).bytes(), [mac(2, 3), mac(2, 1)], ends, class)
}

#[test]
fn new_flows() -> Result<()> {
    let mut cases = Vec::new();
    for family in FAMILIES {
        for (protocol, opening) in transports(Flags::SYN) {
            for hook in INWARD {
                let name = format!("new {protocol} over {family:?}");
                let packet = to_frontend(opening, family, NEXT).ttl(2);
                cases.push(
                    Case::new(format!("{name} to the next node"), hook, &packet)
                        .forwards(Reason::DsrNew, &to_next(&packet)),
                );
                let packet = to_frontend(opening, family, ROUTED).traffic_class(0xb9);
                cases.push(
                    Case::new(format!("{name} to a node behind a router"), hook, &packet)
                        .sends(Reason::DsrNew, to_far(&packet, family, 0xb9)),
                );
                let packet = to_frontend(opening, family, ALONE);
                cases.push(Case::new(format!("{name} to no node"), hook, &packet).forwards(
                    Reason::RemoteNew,
                    &towards(&packet, NODE_INSIDE, ROUTER, 2, family).macs(mac(2, 3), mac(2, 1)),
                ));
                // Another flow of the client's has the same port towards the same backend.
                let packet = to_frontend(opening, family, NEXT);
                let other = Given::handed_over(protocol, family, Manner::Layer2);
                cases.push(
                    Case::new(format!("{name} with a taken port"), hook, &packet)
                        .given(other)
                        .forwards(
                            Reason::RemoteNew,
                            &towards(&packet, NODE_INSIDE, BACKEND, 2, family),
                        ),
                );
            }
        }
    }
    check_all_in(prepare, cases)
}

#[test]
fn established_flows() -> Result<()> {
    let mut cases = Vec::new();
    for family in FAMILIES {
        for (protocol, later) in transports(Flags::ACK) {
            for hook in INWARD {
                let name = format!("established {protocol} over {family:?}");
                let packet = to_frontend(later, family, world::REMOTE);
                let flow = Given::handed_over(protocol, family, Manner::Layer2);
                let state = match protocol {
                    Protocol::Tcp => FlowState::Established,
                    Protocol::Udp => FlowState::Replied,
                };
                cases.push(
                    Case::new(format!("{name} to the next node"), hook, &packet)
                        .given(flow)
                        .forwards(Reason::DsrEstablished, &to_next(&packet))
                        .then(&flow, state),
                );
                let flow = Given::handed_over(protocol, family, Manner::Tunnel).backend(at(
                    FAR,
                    family,
                    REMOTE_PORT,
                ));
                cases.push(
                    Case::new(format!("{name} to a node behind a router"), hook, &packet)
                        .given(flow)
                        .sends(Reason::DsrEstablished, to_far(&packet, family, 0))
                        .then(&flow, state),
                );
                // No longer behind a router, but it goes on as it began.
                let flow = Given::handed_over(protocol, family, Manner::Tunnel);
                let covered = cover(
                    &packet.clone().ttl(63).bytes(),
                    [mac(2, 2), mac(2, 1)],
                    (NODE_INSIDE.of(family), BACKEND.of(family)),
                    0,
                );
                cases.push(
                    Case::new(format!("{name} in a tunnel to the next node"), hook, &packet)
                        .given(flow)
                        .sends(Reason::DsrEstablished, covered),
                );
                // Behind a router now.
                let flow = Given::handed_over(protocol, family, Manner::Layer2).backend(at(
                    FAR,
                    family,
                    REMOTE_PORT,
                ));
                cases.push(
                    Case::new(format!("{name} to a node that moved"), hook, &packet)
                        .given(flow)
                        .sends(Reason::DsrEstablished, to_far(&packet, family, 0)),
                );
            }
            let packet = to_frontend(later, family, world::REMOTE);
            if protocol == Protocol::Tcp {
                let flow =
                    Given::handed_over(protocol, family, Manner::Layer2).state(FlowState::SynSent);
                cases.push(
                    Case::new("an acknowledgement shows an answer", Hook::Xdp, &packet)
                        .given(flow)
                        .forwards(Reason::DsrEstablished, &to_next(&packet))
                        .then(&flow, FlowState::Established),
                );
            }
            // What a backend would answer if it were asked itself is none of ours.
            let packet = Packet::new(
                later,
                at(BACKEND, family, REMOTE_PORT),
                at(CLIENT, family, world::SNAT),
            );
            let flow = Given::handed_over(protocol, family, Manner::Layer2)
                .client(at(CLIENT, family, world::SNAT))
                .source(at(CLIENT, family, world::SNAT));
            cases.push(
                Case::new(format!("{protocol} of the backend's own"), Hook::Ingress, &packet)
                    .by("eth1")
                    .given(flow)
                    .passes(Reason::NotOurs),
            );
        }
    }
    check_all_in(prepare, cases)
}

/// A packet of the client to a port of another node, as that node hands it over.
pub(crate) fn from_near(transport: Transport, family: Family, port: u16) -> Packet {
    Packet::new(transport, at(CLIENT, family, CLIENT_PORT), at(NEAR, family, port))
        .macs(mac(1, 1), mac(1, 3))
}

pub(crate) fn local(family: Family) -> std::net::SocketAddr {
    at(NODE, family, LOCAL_PORT)
}

pub(crate) fn given(protocol: Protocol, family: Family) -> Given {
    Given::local(protocol, family).frontend(at(NEAR, family, HERE))
}

#[test]
fn handed_over_as_they_are() -> Result<()> {
    let mut cases = Vec::new();
    for family in FAMILIES {
        for (protocol, opening) in transports(Flags::SYN) {
            let name = format!("{protocol} over {family:?}");
            let packet = from_near(opening, family, HERE);
            cases
                .push(Case::new(format!("new {name}"), Hook::Xdp, &packet).passes(Reason::NotOurs));
            cases.push(
                Case::new(format!("new {name}"), Hook::Ingress, &packet)
                    .delivers(Reason::LocalNew, &packet.clone().going_to(local(family))),
            );
            let packet = from_near(opening, family, NOT_HERE);
            cases.push(
                Case::new(format!("new {name} for nobody here"), Hook::Ingress, &packet)
                    .passes(Reason::NotOurs),
            );
        }
        for (protocol, later) in transports(Flags::ACK) {
            let name = format!("established {protocol} over {family:?}");
            let packet = from_near(later, family, HERE);
            cases.push(
                Case::new(name, Hook::Ingress, &packet)
                    .given(given(protocol, family))
                    .delivers(Reason::LocalEstablished, &packet.clone().going_to(local(family))),
            );
            let reply = Packet::new(later, local(family), at(CLIENT, family, CLIENT_PORT));
            cases.push(
                Case::new(format!("reply of {protocol}"), Hook::Egress, &reply)
                    .given(given(protocol, family))
                    .delivers(
                        Reason::LocalReply,
                        &reply.clone().coming_from(at(NEAR, family, HERE)),
                    ),
            );
        }
        let packet = from_near(Transport::Tcp(Flags::ACK), family, HERE);
        cases.push(Case::new("TCP of no flow", Hook::Ingress, &packet).passes(Reason::NoFlow));
    }
    check_all_in(prepare, cases)
}

/// `packet` in a tunnel from one host to another.
pub(crate) fn tunnelled(
    packet: &Packet,
    family: Family,
    from: Addresses,
    to: Addresses,
) -> Vec<u8> {
    cover(&packet.bytes(), [mac(1, 1), mac(1, 3)], (from.of(family), to.of(family)), 0)
}

#[test]
fn handed_over_in_packets() -> Result<()> {
    let mut cases = Vec::new();
    for family in FAMILIES {
        for (protocol, opening) in transports(Flags::SYN) {
            // To another node's address, and to an address that both have.
            for frontend in [NEAR, NODE] {
                let name = format!("new {protocol} over {family:?} to {frontend:?}");
                let packet = from_near(opening, family, HERE).going_to(at(frontend, family, HERE));
                let covered = tunnelled(&packet, family, NEAR, NODE);
                cases.push(Case::raw(&name, Hook::Xdp, covered.clone()).hands_over(packet.bytes()));
                cases.push(
                    Case::raw(&name, Hook::Ingress, covered)
                        .delivers(Reason::LocalNew, &packet.clone().going_to(local(family))),
                );
            }
            let packet = from_near(opening, family, NOT_HERE);
            for hook in INWARD {
                let covered = tunnelled(&packet, family, NEAR, NODE);
                cases.push(
                    Case::raw(format!("new {protocol} for nobody here"), hook, covered)
                        .drops(Reason::TunnelNoBackend),
                );
            }
        }
        for (protocol, later) in transports(Flags::ACK) {
            let name = format!("established {protocol} over {family:?}");
            let packet = from_near(later, family, HERE);
            let covered = tunnelled(&packet, family, FAR, NODE);
            cases.push(
                Case::raw(&name, Hook::Xdp, covered.clone())
                    .given(given(protocol, family))
                    .hands_over(packet.bytes()),
            );
            cases.push(
                Case::raw(&name, Hook::Ingress, covered)
                    .given(given(protocol, family))
                    .delivers(Reason::LocalEstablished, &packet.clone().going_to(local(family))),
            );
        }
        let packet = from_near(Transport::Tcp(Flags::ACK), family, HERE);
        for hook in INWARD {
            let covered = tunnelled(&packet, family, NEAR, NODE);
            cases.push(Case::raw("TCP of no flow", hook, covered).drops(Reason::TunnelNoFlow));
        }
    }
    check_all_in(prepare, cases)
}

#[test]
fn tunnels_of_others() -> Result<()> {
    let mut cases = Vec::new();
    for family in FAMILIES {
        for (protocol, opening) in transports(Flags::SYN) {
            let packet = from_near(opening, family, HERE);
            let right = tunnelled(&packet, family, NEAR, NODE);
            let plain = from_near(opening, family, PLAIN).going_to(at(NODE, family, PLAIN));
            let mut nested = [mac(1, 1), mac(1, 3)].concat();
            nested.extend_from_slice(&right[12..]);
            let ends = (NEAR.of(family), NODE.of(family));
            let nested = cover(&nested, [mac(1, 1), mac(1, 3)], ends, 0);
            let truncated = |len: usize| {
                let inner = &packet.bytes()[..len];
                cover(inner, [mac(1, 1), mac(1, 3)], ends, 0)
            };
            let strange = [
                ("of a stranger", tunnelled(&packet, family, CLIENT, NODE)),
                ("to another node", tunnelled(&packet, family, NEAR, FAR)),
                ("for a service without", tunnelled(&plain, family, NEAR, NODE)),
                ("to a port of nobody", {
                    let packet = from_near(opening, family, 7777);
                    tunnelled(&packet, family, NEAR, NODE)
                }),
                ("with another inside", nested),
                ("with nothing inside", truncated(14)),
                ("with too little inside", truncated(packet.bytes().len() - 1)),
                ("with half a header inside", truncated(50)),
            ];
            for (what, covered) in strange {
                for hook in INWARD {
                    let name = format!("{protocol} over {family:?} in a tunnel {what}");
                    cases.push(Case::raw(name, hook, covered.clone()).passes(Reason::IpInIp));
                }
            }
        }
    }
    check_all_in(prepare, cases)
}
