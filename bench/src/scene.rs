//! Cases: which packets, through which program, and what has to come of them.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use redirector_common::packet::{Packet, parse};
use redirector_common::{Family, Manner, Protocol, Reason};
use redirector_tests::tunnel::cover;

use crate::floor::Floor;
use crate::frame::Frame;
use crate::harness::{CONSTANT, Hook, Packets, Ran};
use crate::layout::FIRST_PORT;
use crate::node::{
    BACKENDS, CLIENTS, INSIDE_MAC, NODE, NODE_INSIDE, NODE_MAC, ROUTER_A, ROUTER_B, ifindex,
};
use crate::ours::{
    BACKEND_COUNT, BACKEND_PORT, FAMILIES, LOCAL_BACKEND, LOCAL_FRONTEND, Ours, SNAT_FIRST,
    STEERED_FRONTEND, backend_address, tuple,
};
use crate::steer::Sockets;

/// A port that nothing of ours uses.
const FOREIGN_PORT: u16 = 7;

/// What packets meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Case {
    Established,
    Reply,
    New,
    NotOurs,
    DsrLayer2,
    DsrTunnel,
    LocalEstablished,
    SteerEstablished,
    SteerSyn,
}

impl Case {
    pub(crate) const ALL: [Self; 9] = [
        Self::Established,
        Self::Reply,
        Self::New,
        Self::NotOurs,
        Self::DsrLayer2,
        Self::DsrTunnel,
        Self::LocalEstablished,
        Self::SteerEstablished,
        Self::SteerSyn,
    ];

    pub(crate) const fn name(self, protocol: Protocol) -> &'static str {
        match (self, protocol) {
            (Self::Established, Protocol::Tcp) => "established",
            (Self::Established, Protocol::Udp) => "established-udp",
            (Self::Reply, Protocol::Tcp) => "reply",
            (Self::Reply, Protocol::Udp) => "reply-udp",
            (Self::New, Protocol::Tcp) => "new",
            (Self::New, Protocol::Udp) => "new-udp",
            (Self::NotOurs, Protocol::Tcp) => "not-ours",
            (Self::NotOurs, Protocol::Udp) => "not-ours-udp",
            (Self::DsrLayer2, Protocol::Tcp) => "dsr-l2",
            (Self::DsrLayer2, Protocol::Udp) => "dsr-l2-udp",
            (Self::DsrTunnel, Protocol::Tcp) => "dsr-ipip",
            (Self::DsrTunnel, Protocol::Udp) => "dsr-ipip-udp",
            (Self::LocalEstablished, Protocol::Tcp) => "local-established",
            (Self::LocalEstablished, Protocol::Udp) => "local-established-udp",
            // There is no such thing with UDP; `Scene::has` says so.
            (Self::SteerEstablished, _) => "steer-established",
            (Self::SteerSyn, _) => "steer-syn",
        }
    }

    pub(crate) const fn hook(self) -> Hook {
        match self {
            Self::Established
            | Self::Reply
            | Self::New
            | Self::NotOurs
            | Self::DsrLayer2
            | Self::DsrTunnel => Hook::Xdp,
            Self::LocalEstablished | Self::SteerEstablished | Self::SteerSyn => Hook::Tc,
        }
    }

    /// What its cost is compared with.
    pub(crate) const fn floor(self, flows: u32) -> Floor {
        match self {
            // So many that a flow cache of any sensible size only misses.
            Self::Established | Self::Reply if flows > 262_144 => Floor::PathMaps,
            // Those of direct server return are compared with those that are translated.
            Self::Established | Self::Reply | Self::DsrLayer2 | Self::DsrTunnel => Floor::PathCache,
            Self::New => Floor::LruInsert,
            Self::NotOurs => Floor::Parse,
            Self::LocalEstablished | Self::SteerSyn => Floor::SkcLookup,
            Self::SteerEstablished => Floor::SkcConnection,
        }
    }

    /// What the packets are counted as; XDP leaves foreign packets to TC to count.
    pub(crate) const fn reason(self) -> Option<Reason> {
        match self {
            Self::Established => Some(Reason::RemoteEstablished),
            Self::Reply => Some(Reason::RemoteReply),
            Self::New => Some(Reason::RemoteNew),
            Self::NotOurs => None,
            Self::DsrLayer2 | Self::DsrTunnel => Some(Reason::DsrEstablished),
            Self::LocalEstablished => Some(Reason::LocalEstablished),
            Self::SteerEstablished => Some(Reason::SteeredEstablished),
            Self::SteerSyn => Some(Reason::SteeredNew),
        }
    }

    /// The verdict's number.
    pub(crate) const fn verdict(self) -> u32 {
        const XDP_PASS: u32 = 2;
        const XDP_REDIRECT: u32 = 4;
        const TC_ACT_OK: u32 = 0;
        match self {
            Self::Established | Self::Reply | Self::New | Self::DsrLayer2 | Self::DsrTunnel => {
                XDP_REDIRECT
            }
            Self::NotOurs => XDP_PASS,
            Self::LocalEstablished | Self::SteerEstablished | Self::SteerSyn => TC_ACT_OK,
        }
    }
}

/// How many there are of what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scene {
    pub(crate) protocol: Protocol,
    pub(crate) flows: u32,
    pub(crate) services: u32,
}

impl Scene {
    /// The packets of a case.
    pub(crate) fn packets(&self, case: Case, family: Family) -> Result<Packets> {
        let at = |address: IpAddr, port| SocketAddr::new(address, port);
        // The connections that are open have one port; others open some.
        let client_port = match case {
            Case::SteerSyn | Case::DsrTunnel => 2048,
            Case::Established
            | Case::Reply
            | Case::New
            | Case::NotOurs
            | Case::DsrLayer2
            | Case::LocalEstablished
            | Case::SteerEstablished => 1024,
        };
        let client = at(CLIENTS.of(family), client_port);
        let node = NODE.of(family);
        let destination = match case {
            Case::Established | Case::New | Case::DsrLayer2 | Case::DsrTunnel => {
                at(node, FIRST_PORT)
            }
            Case::NotOurs => at(node, FOREIGN_PORT),
            Case::LocalEstablished => at(node, LOCAL_FRONTEND),
            Case::SteerEstablished | Case::SteerSyn => at(node, STEERED_FRONTEND),
            Case::Reply => at(NODE_INSIDE.of(family), SNAT_FIRST),
        };
        let first = Frame {
            link: [NODE_MAC, ROUTER_A],
            protocol: self.protocol,
            source: client,
            destination,
            ttl: 64,
            syn: matches!(case, Case::New | Case::SteerSyn),
            identification: 0,
            balance: 0,
        };
        let packets = Packets {
            hook: case.hook(),
            ifindex: ifindex("eth0")?,
            first,
            flows: self.flows,
            services: match case {
                Case::Established | Case::New | Case::DsrLayer2 | Case::DsrTunnel => self.services,
                Case::Reply
                | Case::NotOurs
                | Case::LocalEstablished
                | Case::SteerEstablished
                | Case::SteerSyn => 1,
            },
            source_mask: 0xffff,
            source_port_shift: 16,
            destination_port_shift: CONSTANT,
        };
        if !matches!(case, Case::Reply) {
            return Ok(packets);
        }
        Ok(Packets {
            ifindex: ifindex("eth1")?,
            first: Frame {
                link: [INSIDE_MAC, ROUTER_B],
                source: at(BACKENDS.of(family), BACKEND_PORT),
                ..first
            },
            source_mask: BACKEND_COUNT - 1,
            source_port_shift: CONSTANT,
            destination_port_shift: BACKEND_COUNT.trailing_zeros(),
            ..packets
        })
    }

    /// What a flow's packets are translated to: source and destination.
    fn translated(&self, family: Family, flow: u32) -> (SocketAddr, SocketAddr) {
        let port = SNAT_FIRST + (flow / BACKEND_COUNT) as u16;
        (
            SocketAddr::new(NODE_INSIDE.of(family), port),
            SocketAddr::new(backend_address(family, flow), BACKEND_PORT),
        )
    }

    /// Records the flows of a family.
    pub(crate) fn add_flows(&self, ours: &mut Ours, family: Family) -> Result<()> {
        let packets = self.packets(Case::Established, family)?;
        ours.add_flows(
            false,
            Manner::Translate,
            (0..self.flows).map(|flow| {
                let (source, destination) = self.translated(family, flow);
                (packets.of_flow(flow), source, destination)
            }),
        )
    }

    /// Records the flows of a family that other nodes answer themselves.
    pub(crate) fn add_flows_handed_over(&self, ours: &mut Ours, family: Family) -> Result<()> {
        for (case, manner) in [(Case::DsrLayer2, Manner::Layer2), (Case::DsrTunnel, Manner::Tunnel)]
        {
            let packets = self.packets(case, family)?;
            ours.add_flows(
                false,
                manner,
                (0..self.flows).map(|flow| {
                    let frame = packets.of_flow(flow);
                    (frame, frame.source, self.translated(family, flow).1)
                }),
            )?;
        }
        Ok(())
    }

    /// Records the flows of a family to the backend on this host.
    pub(crate) fn add_local_flows(&self, ours: &mut Ours, family: Family) -> Result<()> {
        let packets = self.packets(Case::LocalEstablished, family)?;
        ours.add_flows(
            true,
            Manner::Translate,
            (0..self.flows).map(|flow| {
                let frame = packets.of_flow(flow);
                (frame, frame.source, SocketAddr::new(NODE.of(family), LOCAL_BACKEND))
            }),
        )
    }

    /// The sockets that steered packets are for.
    pub(crate) fn open_sockets(&self) -> Result<Sockets> {
        let mut connections = Vec::new();
        for family in FAMILIES {
            let packets = self.packets(Case::SteerEstablished, family)?;
            for flow in 0..self.flows {
                let frame = packets.of_flow(flow);
                connections.push((frame.destination, frame.source));
            }
        }
        Sockets::open(&connections)
    }

    /// Checks what came of one packet, the first of a sample.
    pub(crate) fn check(&self, case: Case, family: Family, ours: &Ours, ran: &Ran) -> Result<()> {
        let packets = self.packets(case, family)?;
        let flow = packets.first_flow();
        let sent = packets.of_flow(flow);
        ensure!(ran.verdict == case.verdict(), "verdict {}", ran.verdict);
        let (source, destination) = self.translated(family, flow);
        let forwarded = Frame { ttl: sent.ttl - 1, ..sent };
        let expected = match case {
            Case::NotOurs | Case::SteerEstablished | Case::SteerSyn => sent,
            Case::DsrLayer2 => Frame { link: [ROUTER_B, INSIDE_MAC], ..sent },
            Case::DsrTunnel => {
                let ends = (NODE_INSIDE.of(family), destination.ip());
                let found = cover(&forwarded.bytes()?, [ROUTER_B, INSIDE_MAC], ends, 0);
                ensure!(found == ran.packet, "expected {found:02x?}, found {:02x?}", ran.packet);
                return Ok(());
            }
            Case::LocalEstablished => {
                Frame { destination: SocketAddr::new(sent.destination.ip(), LOCAL_BACKEND), ..sent }
            }
            Case::Established => {
                Frame { link: [ROUTER_B, INSIDE_MAC], source, destination, ..forwarded }
            }
            Case::Reply => {
                let request = self.packets(Case::Established, family)?.of_flow(flow);
                let (source, destination) = (request.destination, request.source);
                Frame { link: [ROUTER_A, NODE_MAC], source, destination, ..forwarded }
            }
            // The port was chosen at random: what the table says is to be in the packet.
            Case::New => {
                let key = tuple(sent.protocol, sent.source, sent.destination);
                let flows = ours.flows()?;
                let half = |key| flows.iter().find(|(found, _)| *found == key);
                let (_, flow) = half(key).context("no flow was recorded")?;
                let to = flow.translated;
                let (_, reply) = half(to.reversed()).context("no reply half was recorded")?;
                ensure!(reply.translated == key.reversed(), "the halves do not match");
                let source = SocketAddr::new(to.source.into(), to.source_port.number());
                let destination =
                    SocketAddr::new(to.destination.into(), to.destination_port.number());
                Frame { link: [ROUTER_B, INSIDE_MAC], source, destination, ..forwarded }
            }
        };
        expected.check(&ran.packet)?;
        let mut bytes = ran.packet.clone();
        let mut packet = Packet::EMPTY;
        let parsed = parse(&redirector_common::packet::Bytes::new(&mut bytes), &mut packet);
        ensure!(parsed.is_ok(), "what came out can't be parsed: {parsed:?}");
        Ok(())
    }
}
