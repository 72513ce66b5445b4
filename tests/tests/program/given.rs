//! Flows that are in the table before a packet comes, and the packets that belong to them.

use std::{net::SocketAddr, time::Duration};

use anyhow::Result;
use redirector_common::{
    Direction, Family, Flow, FlowState, Manner, Port, Protocol, Tuple, map_name::MapName,
};
use redirector_tests::{
    packet::{Flags, Packet, Transport},
    program::Programs,
    topology::Addresses,
    wait,
};

use crate::world::{self, BACKEND, CLIENT, NODE, NODE_INSIDE, at};

/// Longer than any age that a case asks for.
const PATIENCE: Duration = Duration::from_secs(60);

/// The client's port in most cases.
pub(crate) const CLIENT_PORT: u16 = 40000;

/// A flow that is in the table before the packet comes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Given {
    protocol: Protocol,
    client: SocketAddr,
    frontend: SocketAddr,
    source: SocketAddr,
    backend: SocketAddr,
    local: bool,
    manner: Manner,
    clamps_mss: bool,
    state: FlowState,
    fins: [bool; 2],
    /// How long both halves have been idle, in seconds.
    idle: u64,
}

impl Given {
    /// The client's flow to the local backend behind [`world::LOCAL`].
    pub(crate) fn local(protocol: Protocol, family: Family) -> Self {
        Self {
            source: at(CLIENT, family, CLIENT_PORT),
            backend: at(NODE, family, world::LOCAL_PORT),
            frontend: at(NODE, family, world::LOCAL),
            local: true,
            ..Self::remote(protocol, family)
        }
    }

    /// The client's flow to the backend elsewhere behind [`world::REMOTE`].
    pub(crate) fn remote(protocol: Protocol, family: Family) -> Self {
        let state = match protocol {
            Protocol::Tcp => FlowState::Established,
            Protocol::Udp => FlowState::Replied,
        };
        Self {
            protocol,
            client: at(CLIENT, family, CLIENT_PORT),
            frontend: at(NODE, family, world::REMOTE),
            source: at(NODE_INSIDE, family, world::SNAT),
            backend: at(BACKEND, family, world::REMOTE_PORT),
            local: false,
            manner: Manner::Translate,
            clamps_mss: false,
            state,
            fins: [false; 2],
            idle: 0,
        }
    }

    /// To [`BACKEND`], which gets the client's packets in this manner, through [`world::REMOTE`].
    pub(crate) fn handed_over(protocol: Protocol, family: Family, manner: Manner) -> Self {
        let source = at(CLIENT, family, CLIENT_PORT);
        Self { manner, source, ..Self::remote(protocol, family) }
    }

    /// Of a client whose packets come by a tunnel.
    pub(crate) fn by_tunnel(self) -> Self {
        Self { clamps_mss: true, ..self }
    }

    /// Whether its client is told of smaller segments, when the answer is decided about.
    pub(crate) fn is_clamped(&self) -> bool {
        self.clamps_mss
    }

    /// In this state.
    pub(crate) fn state(self, state: FlowState) -> Self {
        Self { state, ..self }
    }

    /// With FINs seen from the client and from the backend.
    pub(crate) fn fins(self, client: bool, backend: bool) -> Self {
        Self { fins: [client, backend], ..self }
    }

    /// Idle for this long.
    pub(crate) fn idle(self, seconds: u64) -> Self {
        Self { idle: seconds, ..self }
    }

    /// Of this client.
    pub(crate) fn client(self, client: SocketAddr) -> Self {
        Self { client, ..self }
    }

    /// Through this frontend.
    pub(crate) fn frontend(self, frontend: SocketAddr) -> Self {
        Self { frontend, ..self }
    }

    /// Seen by the backend as coming from here.
    pub(crate) fn source(self, source: SocketAddr) -> Self {
        Self { source, ..self }
    }

    /// To this backend.
    pub(crate) fn backend(self, backend: SocketAddr) -> Self {
        Self { backend, ..self }
    }

    fn tuple(&self, source: SocketAddr, destination: SocketAddr) -> Tuple {
        let part = |address: SocketAddr| (address.ip().into(), Port::new(address.port()));
        Tuple::new(self.protocol, part(source), part(destination))
    }

    /// What the client's packets look like when they come in.
    pub(crate) fn forward_key(&self) -> Tuple {
        self.tuple(self.client, self.frontend)
    }

    /// Puts both halves into the table.
    pub(crate) fn insert(&self, programs: &mut Programs) -> Result<()> {
        // A machine that was just started has no flows as old as that.
        let age = self.idle * 1_000_000_000;
        let now = wait::until("the machine to be up for long enough", PATIENCE, || {
            Ok(monotonic_now()?.checked_sub(age))
        })?;
        let half = |direction, translated, fin| {
            let mut flow = Flow::new(direction, translated, 1, 1, self.local, now);
            flow.set_state(self.state);
            flow.set_manner(self.manner);
            if fin {
                flow.set_fin_seen();
            }
            flow
        };
        let [client_fin, backend_fin] = self.fins;
        let there = self.tuple(self.source, self.backend);
        let back = self.tuple(self.frontend, self.client);
        let forward = half(Direction::Forward, there, client_fin);
        let mut reply = half(Direction::Reply, back, backend_fin);
        if self.clamps_mss {
            reply.set_clamps_mss();
        }
        programs.insert(MapName::Flows, there.reversed(), reply)?;
        programs.insert(MapName::Flows, self.forward_key(), forward)
    }
}

/// The clock of flows, in nanoseconds.
pub(crate) fn monotonic_now() -> Result<u64> {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)?;
    Ok(u64::try_from(now.tv_sec())? * 1_000_000_000 + u64::try_from(now.tv_nsec())?)
}

/// A packet of the client to a frontend's port, as it comes in.
pub(crate) fn to_frontend(transport: Transport, family: Family, port: u16) -> Packet {
    Packet::new(transport, at(CLIENT, family, CLIENT_PORT), at(NODE, family, port))
        .macs(world::mac(1, 1), world::mac(1, 2))
}

/// How that packet leaves towards [`BACKEND`].
pub(crate) fn to_backend(packet: &Packet, family: Family) -> Packet {
    towards(packet, NODE_INSIDE, BACKEND, 2, family)
}

/// How that packet leaves towards host 2 of another network.
pub(crate) fn towards(
    packet: &Packet,
    source: Addresses,
    backend: Addresses,
    net: u8,
    family: Family,
) -> Packet {
    packet
        .clone()
        .coming_from(at(source, family, world::SNAT))
        .going_to(at(backend, family, world::REMOTE_PORT))
        .macs(world::mac(net, 2), world::mac(net, 1))
        .ttl(63)
}

/// An answer of [`BACKEND`], as it comes in by `eth1`.
pub(crate) fn from_backend(transport: Transport, family: Family) -> Packet {
    let backend = at(BACKEND, family, world::REMOTE_PORT);
    Packet::new(transport, backend, at(NODE_INSIDE, family, world::SNAT))
        .macs(world::mac(2, 1), world::mac(2, 2))
}

/// How that answer leaves towards the client.
pub(crate) fn to_client(packet: &Packet, family: Family) -> Packet {
    packet
        .clone()
        .coming_from(at(NODE, family, world::REMOTE))
        .going_to(at(CLIENT, family, CLIENT_PORT))
        .macs(world::mac(1, 2), world::mac(1, 1))
        .ttl(63)
}

/// An answer of the local backend, as its socket made it.
pub(crate) fn from_local(transport: Transport, family: Family) -> Packet {
    let backend = at(NODE, family, world::LOCAL_PORT);
    Packet::new(transport, backend, at(CLIENT, family, CLIENT_PORT))
        .macs(world::mac(1, 2), world::mac(1, 1))
}

/// A transport with its protocol's number: TCP with these control bits, and UDP.
pub(crate) fn transports(flags: Flags) -> [(Protocol, Transport); 2] {
    [(Protocol::Tcp, Transport::Tcp(flags)), (Protocol::Udp, Transport::Udp)]
}
