//! Packets of ours that can't go where they should: dropped, and the sender is told.

use anyhow::Result;
use redirector::dataplane::pins::Hook;
use redirector_common::{Family, Protocol, Reason};
use redirector_tests::{
    icmp::{self, Error},
    packet::{Extension, Flags, Packet, Transport},
    topology::{Addresses, FAMILIES},
};

use crate::{
    case::{Case, check_all},
    given::{Given, from_backend, to_backend, to_frontend, towards, transports},
    world::{self, NODE, at},
};

/// What becomes of a packet that comes in.
#[derive(Clone, Debug)]
enum End {
    /// Dropped, wherever it is seen first.
    Drop,
    /// XDP leaves it to TC, which drops it.
    DropAtTc,
    /// XDP leaves it to TC, which drops it and tells the sender.
    Tell(Error),
    /// It leaves like this, wherever it is seen first.
    Send(Packet),
    /// XDP leaves it to TC, from where it leaves like this.
    SendAtTc(Packet),
}

/// A protocol over a family.
struct Kind {
    protocol: Protocol,
    transport: Transport,
    family: Family,
}

impl Kind {
    /// A packet of the client to a frontend's port.
    fn to(&self, port: u16) -> Packet {
        to_frontend(self.transport, self.family, port)
    }

    /// How it leaves towards host `next` of network `net`.
    fn towards(&self, packet: &Packet, net: u8, next: u8) -> Packet {
        let (source, backend) = (Addresses::new(net, 1), Addresses::new(net, next));
        towards(packet, source, backend, net, self.family)
    }

    fn row(&self, what: &str, hook: Hook, packet: &Packet) -> Case {
        Case::new(format!("{} over {:?}, {what}", self.protocol, self.family), hook, packet)
    }

    /// The rows of a packet at both hooks.
    fn rows(&self, what: &str, packet: &Packet, reason: Reason, end: End) -> Vec<Case> {
        let xdp = self.row(what, Hook::Xdp, packet);
        let tc = self.row(what, Hook::Ingress, packet);
        match end {
            End::Drop => vec![xdp.drops(reason), tc.drops(reason)],
            End::DropAtTc => vec![xdp.passes(reason), tc.drops(reason)],
            End::Tell(error) => {
                vec![xdp.passes(reason), tc.sends(reason, icmp::error(packet, error))]
            }
            End::Send(sent) => vec![xdp.forwards(reason, &sent), tc.forwards(reason, &sent)],
            End::SendAtTc(sent) => vec![xdp.passes(reason), tc.forwards(reason, &sent)],
        }
    }
}

/// Checks the rows of each kind: of TCP packets with these flags, and UDP.
fn check_each(flags: Flags, rows: impl Fn(&Kind) -> Vec<Vec<Case>>) -> Result<()> {
    let kinds = FAMILIES.into_iter().flat_map(|family| {
        transports(flags).map(|(protocol, transport)| Kind { protocol, transport, family })
    });
    check_all(kinds.flat_map(|kind| rows(&kind)).flatten().collect())
}

#[test]
fn no_backend() -> Result<()> {
    check_each(Flags::SYN, |kind| {
        let packet = kind.to(world::EMPTY);
        let behind_a_long_header = match kind.family {
            Family::V4 => packet.clone().options(10),
            Family::V6 => packet.clone().extensions(&[Extension::destination_options(2)]),
        };
        let refused = |what: &str, packet: &Packet| {
            kind.rows(what, packet, Reason::NoBackend, End::Tell(Error::PortUnreachable))
        };
        let silent = kind.to(world::SILENT);
        let missing = kind.to(world::MISSING);
        vec![
            refused("no backend", &packet),
            refused("no backend, without payload", &packet.clone().payload(0)),
            refused("no backend, with one byte", &packet.clone().payload(1)),
            refused("no backend, with many bytes", &packet.clone().payload(1400)),
            refused("no backend, behind a long header", &behind_a_long_header),
            kind.rows("no backend here", &silent, Reason::NoLocalBackend, End::DropAtTc),
            kind.rows("a backend that is not there", &missing, Reason::Inconsistent, End::Drop),
        ]
    })
}

#[test]
fn ttl_of_new_flows() -> Result<()> {
    check_each(Flags::SYN, |kind| {
        let packet = kind.to(world::REMOTE);
        let (last, lasts) = (packet.clone().ttl(1), packet.clone().ttl(2));
        let sent = to_backend(&lasts, kind.family).ttl(1);
        let ended = |what: &str, packet: &Packet| {
            kind.rows(what, packet, Reason::TtlExceeded, End::Tell(Error::TimeExceeded))
        };
        // The packet has arrived: nobody forwards it.
        let local = kind.to(world::LOCAL).ttl(1);
        let delivered = local.clone().going_to(at(NODE, kind.family, world::LOCAL_PORT));
        vec![
            ended("TTL 0", &packet.clone().ttl(0)),
            ended("TTL 1", &last),
            kind.rows("TTL 2", &lasts, Reason::RemoteNew, End::Send(sent)),
            vec![
                kind.row("TTL 1, local", Hook::Ingress, &local)
                    .delivers(Reason::LocalNew, &delivered),
            ],
        ]
    })
}

#[test]
fn ttl_of_established_flows() -> Result<()> {
    check_each(Flags::ACK, |kind| {
        let flow = Given::remote(kind.protocol, kind.family);
        let ended = |what: &str, packet: &Packet, interface: &'static str| {
            kind.rows(what, packet, Reason::TtlExceeded, End::Tell(Error::TimeExceeded))
                .into_iter()
                .map(|row| row.by(interface).given(flow))
                .collect()
        };
        let reply = from_backend(kind.transport, kind.family).ttl(1);
        vec![
            ended("established, TTL 1", &kind.to(world::REMOTE).ttl(1), "eth0"),
            ended("reply, TTL 1", &reply, "eth1"),
        ]
    })
}

/// Bytes of payload that fit into a packet to [`world::NARROW`].
fn room(kind: &Kind) -> usize {
    1300 - kind.to(world::NARROW).payload(0).ip_len()
}

#[test]
fn mtu() -> Result<()> {
    check_each(Flags::SYN, |kind| {
        let of = |len| kind.to(world::NARROW).payload(len);
        let room = room(kind);
        let sent = kind.towards(&of(room), 3, 2);
        let refused = |what: &str, packet: &Packet| {
            kind.rows(what, packet, Reason::TooBig, End::Tell(Error::TooBig(1300)))
        };
        vec![
            kind.rows("as large as fits", &of(room), Reason::RemoteNew, End::Send(sent)),
            refused("one byte too large", &of(room + 1)),
            refused("200 bytes too large", &of(room + 200)),
        ]
    })
}

/// What counts is the size of the segments, not that of the super-packet.
#[test]
fn super_packets() -> Result<()> {
    check_each(Flags::SYN, |kind| {
        let large = kind.to(world::NARROW).payload(3000);
        let room = room(kind) as u32;
        let sent = kind.towards(&large, 3, 2);
        let error = icmp::error(&large, Error::TooBig(1300));
        let local = kind.to(world::LOCAL).payload(3000);
        let delivered = local.clone().going_to(at(NODE, kind.family, world::LOCAL_PORT));
        let row = |what, packet, size| kind.row(what, Hook::Ingress, packet).segments(size);
        vec![vec![
            row("segments that fit", &large, room).forwards(Reason::RemoteNew, &sent),
            row("segments that do not", &large, room + 1).sends(Reason::TooBig, error),
            row("local", &local, 1400).delivers(Reason::LocalNew, &delivered),
        ]]
    })
}

#[test]
fn ways() -> Result<()> {
    check_each(Flags::SYN, |kind| {
        let (unrouted, unnamed) = (kind.to(world::UNROUTED), kind.to(world::UNNAMED));
        let (no_xdp, unresolved) = (kind.to(world::NO_XDP), kind.to(world::UNRESOLVED));
        let by_tc = kind.towards(&no_xdp, 4, 2);
        // The kernel finds the hardware addresses while it sends the packet.
        let as_yet = kind.towards(&unresolved, 2, 9).macs(world::mac(1, 1), world::mac(1, 2));
        vec![
            kind.rows("no route", &unrouted, Reason::NoRoute, End::Drop),
            kind.rows("no address to translate to", &unnamed, Reason::NoSourceAddress, End::Drop),
            // XDP can't transmit there: TC can.
            kind.rows("a driver without XDP", &no_xdp, Reason::RemoteNew, End::SendAtTc(by_tc)),
            kind.rows(
                "an unknown neighbour",
                &unresolved,
                Reason::RemoteNew,
                End::SendAtTc(as_yet),
            ),
        ]
    })
}
