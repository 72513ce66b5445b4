//! A row of the tables: a packet, where it goes in, and what must come of it.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use redirector::dataplane::pins::Hook;
use redirector_common::{
    Direction, Family, Flow, FlowState, Port, Protocol, Reason, Tuple, map_name::MapName,
};
use redirector_tests::{
    packet::{Flags, Packet, Transport},
    program::{Counted, Programs, Verdict, check_pairs},
    topology::Addresses,
    wait,
};

use crate::world::{self, BACKEND, CLIENT, NODE, NODE_INSIDE, at};

/// Longer than any age that a case asks for.
const PATIENCE: Duration = Duration::from_secs(60);

/// The client's port in most cases.
pub(crate) const CLIENT_PORT: u16 = 40000;

/// What must come of a packet.
#[derive(Clone, Debug)]
pub(crate) enum Expected {
    /// Passed on, byte for byte; counted so by TC ingress, and by the others not at all.
    Pass(Reason),
    /// Gone.
    Drop(Reason),
    /// Passed to this host's stack or out of it, as these bytes.
    Deliver(Reason, Vec<u8>),
    /// Sent out of an interface, as these bytes.
    Forward(Reason, Vec<u8>),
    /// Sent out of the interface that it came in by, as these bytes.
    Return(Reason, Vec<u8>),
}

/// A row.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    description: String,
    hook: Hook,
    interface: &'static str,
    block: u16,
    flows: Vec<Given>,
    input: Vec<u8>,
    expected: Expected,
    after: Option<(Tuple, FlowState)>,
}

impl Case {
    /// `packet` comes in by `eth0` (at egress: goes out of it).
    pub(crate) fn new(description: impl Into<String>, hook: Hook, packet: &Packet) -> Self {
        Self::raw(description, hook, packet.bytes())
    }

    /// As [`Self::new`], for bytes that are no whole packet.
    pub(crate) fn raw(description: impl Into<String>, hook: Hook, input: Vec<u8>) -> Self {
        Self {
            description: format!("{}, {}", description.into(), hook.name()),
            hook,
            interface: "eth0",
            block: 1,
            flows: Vec::new(),
            input,
            expected: Expected::Pass(Reason::NotOurs),
            after: None,
        }
    }

    /// By this interface instead.
    pub(crate) fn by(self, interface: &'static str) -> Self {
        Self { interface, ..self }
    }

    /// With a translation block of this many ports instead of one.
    pub(crate) fn block(self, block: u16) -> Self {
        Self { block, ..self }
    }

    /// With this flow in the table.
    pub(crate) fn given(mut self, flow: Given) -> Self {
        self.flows.push(flow);
        self
    }

    /// The packet passes, for this Reason.
    pub(crate) fn passes(self, reason: Reason) -> Self {
        Self { expected: Expected::Pass(reason), ..self }
    }

    /// The packet is dropped, for this Reason.
    pub(crate) fn drops(self, reason: Reason) -> Self {
        Self { expected: Expected::Drop(reason), ..self }
    }

    /// The packet goes on to the stack, or from it, like this.
    pub(crate) fn delivers(self, reason: Reason, packet: &Packet) -> Self {
        Self { expected: Expected::Deliver(reason, packet.bytes()), ..self }
    }

    /// The packet leaves by another interface like this.
    pub(crate) fn forwards(self, reason: Reason, packet: &Packet) -> Self {
        self.forwards_bytes(reason, packet.bytes())
    }

    /// As [`Self::forwards`], for bytes that are more than a packet.
    pub(crate) fn forwards_bytes(self, reason: Reason, bytes: Vec<u8>) -> Self {
        Self { expected: Expected::Forward(reason, bytes), ..self }
    }

    /// This leaves by the same interface.
    pub(crate) fn returns(self, reason: Reason, packet: Vec<u8>) -> Self {
        Self { expected: Expected::Return(reason, packet), ..self }
    }

    /// Afterwards both halves of this flow are in this state, and the one that the packet
    /// belongs to has counted it.
    pub(crate) fn then(self, flow: &Given, state: FlowState) -> Self {
        Self { after: Some((flow.forward_key(), state)), ..self }
    }

    /// Runs the row.
    pub(crate) fn check(&self, programs: &mut Programs) -> Result<()> {
        programs.clear_flows()?;
        world::set_block(programs, self.block)?;
        for flow in &self.flows {
            flow.insert(programs)?;
        }
        let before = programs.flows()?;
        let outcome = programs.run(self.hook, world::ifindex(self.interface)?, &self.input)?;
        let (verdict, reason, bytes) = self.expectation();
        let counts = !matches!(self.expected, Expected::Pass(_)) || self.hook == Hook::Ingress;
        let counted: Vec<_> = outcome.counted.iter().map(|(name, counted)| (*name, *counted)).collect();
        let size = Counted { packets: 1, bytes: self.input.len() as u64 };
        let expected = if counts { vec![(reason.name(), size)] } else { Vec::new() };
        ensure!(
            outcome.verdict == verdict && counted == expected,
            "{:?} counted as {counted:?}; expected {verdict:?} as {expected:?}",
            outcome.verdict
        );
        if let Some(bytes) = bytes {
            compare(&outcome.packet, bytes)?;
        }
        let after = programs.flows()?;
        check_pairs(&after)?;
        if matches!(self.expected, Expected::Pass(_) | Expected::Drop(_)) {
            ensure!(before == after, "flows changed from {before:?} to {after:?}");
        }
        self.check_flow(&before, &after)
    }

    fn expectation(&self) -> (Verdict, Reason, Option<&[u8]>) {
        let same = match self.hook {
            Hook::Xdp => Verdict::Transmit,
            Hook::Ingress | Hook::Egress => Verdict::Redirect,
        };
        match &self.expected {
            Expected::Pass(reason) => (Verdict::Pass, *reason, Some(&self.input)),
            Expected::Drop(reason) => (Verdict::Drop, *reason, None),
            Expected::Deliver(reason, bytes) => (Verdict::Pass, *reason, Some(bytes)),
            Expected::Forward(reason, bytes) => (Verdict::Redirect, *reason, Some(bytes)),
            Expected::Return(reason, bytes) => (same, *reason, Some(bytes)),
        }
    }

    fn check_flow(
        &self,
        before: &std::collections::BTreeMap<Tuple, Flow>,
        after: &std::collections::BTreeMap<Tuple, Flow>,
    ) -> Result<()> {
        let Some((key, state)) = self.after else {
            return Ok(());
        };
        let forward = after.get(&key).context("the flow is not there afterwards")?;
        let reply_key = forward.translated.reversed();
        let reply = after.get(&reply_key).context("its reply half is not there afterwards")?;
        ensure!(
            forward.state() == state && reply.state() == state,
            "halves are {:?} and {:?}; expected {state:?}",
            forward.state(),
            reply.state()
        );
        ensure!(
            forward.direction() == Direction::Forward && reply.direction() == Direction::Reply,
            "halves are {:?} and {:?}",
            forward.direction(),
            reply.direction()
        );
        let packets = |flows: &std::collections::BTreeMap<Tuple, Flow>| {
            [key, reply_key].map(|key| flows.get(&key).map_or(0, |flow| flow.packets))
        };
        let counted: u64 = packets(after).iter().sum();
        // A flow that began anew starts from zero.
        let counted_before: u64 = if before.get(&key).map(|f| f.created) == Some(forward.created) {
            packets(before).iter().sum()
        } else {
            0
        };
        ensure!(counted == counted_before + 1, "{counted} packets after {counted_before}");
        Ok(())
    }
}

/// Runs every row and fails with all that failed.
pub(crate) fn check_all(cases: Vec<Case>) -> Result<()> {
    let node = world::build_node()?;
    node.enter(move || {
        let mut programs = Programs::load()?;
        world::fill_maps(&mut programs)?;
        let mut failures = Vec::new();
        for case in &cases {
            if let Err(error) = case.check(&mut programs) {
                failures.push(format!("{}: {error:#}", case.description));
            }
        }
        println!("{} cases", cases.len());
        if !failures.is_empty() {
            bail!("{} of {} cases:\n{}", failures.len(), cases.len(), failures.join("\n"));
        }
        Ok(())
    })
}

fn compare(actual: &[u8], expected: &[u8]) -> Result<()> {
    let differs = actual.iter().zip(expected).position(|(a, b)| a != b);
    ensure!(
        actual.len() == expected.len() && differs.is_none(),
        "{} bytes came out and {} were expected; the first difference is at {differs:?}\n  \
         out      {}\n  expected {}",
        actual.len(),
        expected.len(),
        hex(actual),
        hex(expected)
    );
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    let shown = bytes.iter().take(120).map(|byte| format!("{byte:02x}"));
    shown.collect::<Vec<_>>().join(" ")
}

/// A flow that is in the table before the packet comes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Given {
    protocol: Protocol,
    client: SocketAddr,
    frontend: SocketAddr,
    source: SocketAddr,
    backend: SocketAddr,
    local: bool,
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
            state,
            fins: [false; 2],
            idle: 0,
        }
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

    fn insert(&self, programs: &mut Programs) -> Result<()> {
        // A machine that was just started has no flows as old as that.
        let age = self.idle * 1_000_000_000;
        let now = wait::until("the machine to be up for long enough", PATIENCE, || {
            Ok(monotonic_now()?.checked_sub(age))
        })?;
        let half = |direction, translated, fin| {
            let mut flow = Flow::new(direction, translated, 1, 1, self.local, now);
            flow.set_state(self.state);
            if fin {
                flow.set_fin_seen();
            }
            flow
        };
        let [client_fin, backend_fin] = self.fins;
        let there = self.tuple(self.source, self.backend);
        let back = self.tuple(self.frontend, self.client);
        let forward = half(Direction::Forward, there, client_fin);
        let reply = half(Direction::Reply, back, backend_fin);
        programs.insert(MapName::Flows, there.reversed(), reply)?;
        programs.insert(MapName::Flows, self.forward_key(), forward)
    }
}

fn monotonic_now() -> Result<u64> {
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

/// Both hooks that see what comes in.
pub(crate) const INWARD: [Hook; 2] = [Hook::Xdp, Hook::Ingress];
