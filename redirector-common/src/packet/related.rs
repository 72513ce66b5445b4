//! What becomes of packets that belong to a flow without having its ports: later fragments, and
//! ICMP errors about the flow's packets. They never open a flow and never change its state.

use super::decide::{Decision, Outcome, Step};
use super::fragment::{find_first, rewrite_later};
use super::parse::{parse_link, parse_network};
use super::quoted::{ICMP_LEN, Quoted, is_error, parse_quoted, rewrite_error};
use super::{Environment, FlowEntry, Packet, PacketBuf, Route, TcpFlags, handover};
use crate::{Address, PortFlags, Protocol, Reason, Tuple, words};

/// What the packet is.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A fragment that is not the first.
    Fragment,
    /// An ICMP error.
    Error,
}

/// Finds the headers of a later fragment or an ICMP error: its own. Its tuple has no ports yet.
///
/// # Errors
///
/// The Reason for which it is none of ours.
#[inline(always)]
pub fn parse_related<P: PacketBuf>(bytes: &P, packet: &mut Packet) -> Result<Kind, Reason> {
    let (ether_type, network, vlan_tags) = parse_link(bytes)?;
    parse_related_packet(bytes, ether_type, network, vlan_tags, packet)
}

/// As [`parse_related`], of the IP packet at `network`.
#[inline(always)]
pub(super) fn parse_related_packet<P: PacketBuf>(
    bytes: &P,
    ether_type: u16,
    network: usize,
    vlan_tags: u8,
    packet: &mut Packet,
) -> Result<Kind, Reason> {
    let ip = parse_network(bytes, ether_type, network)?;
    let (kind, protocol) = if ip.fragment.later {
        (Kind::Fragment, Protocol::from_number(ip.protocol).ok_or(Reason::Fragment)?)
    } else {
        let [kind, ..]: [u8; ICMP_LEN] = bytes.read(ip.transport).ok_or(Reason::Icmp)?;
        // Nobody sends errors in pieces.
        let is_whole = ip.fragment.identification == 0;
        if !is_whole || !is_error(Address::from_long_words(ip.source).family(), ip.protocol, kind) {
            return Err(Reason::Icmp);
        }
        // Of the quoted packet; which, is not known yet.
        (Kind::Error, Protocol::Udp)
    };
    packet.tuple.set(protocol, ip.source, ip.destination, 0);
    packet.network = network as u16;
    packet.transport = ip.transport as u16;
    packet.ip_len = ip.ip_len as u16;
    packet.transport_header_len = 0;
    packet.traffic_class = ip.traffic_class;
    packet.ttl = ip.ttl;
    packet.flags = TcpFlags(0);
    packet.vlan_tags = vlan_tags;
    packet.identification = ip.fragment.identification as u16;
    Ok(kind)
}

/// Finds out which packets of a flow it travels with: completes its tuple.
///
/// # Errors
///
/// The Reason for which it is none of ours.
#[inline(always)]
pub fn complete<P: PacketBuf, E: Environment>(
    environment: &E,
    bytes: &P,
    packet: &mut Packet,
    kind: Kind,
    quoted: &mut Quoted,
) -> Result<(), Reason> {
    match kind {
        Kind::Fragment => find_first(environment, bytes, packet),
        Kind::Error => parse_quoted(bytes, packet, quoted),
    }
}

/// Rewrites it as `decide_related` or `decide_related_reply` says.
///
/// `None`: it could not be done, and the packet must not be used.
#[inline(always)]
#[must_use]
pub fn rewrite_related<P: PacketBuf>(
    bytes: &mut P,
    packet: &Packet,
    kind: Kind,
    quoted: &Quoted,
    to: &Tuple,
    decrement_ttl: bool,
) -> Option<()> {
    match kind {
        Kind::Fragment => rewrite_later(bytes, packet, to, decrement_ttl),
        Kind::Error => rewrite_error(bytes, packet, quoted, to, decrement_ttl),
    }
}

/// Decides about such a packet that came in from outside. Its tuple is that of the flow's packets
/// which travel the same way.
#[inline(always)]
pub fn decide_related<E: Environment>(
    environment: &E,
    packet: &Packet,
    kind: Kind,
    outcome: &mut Outcome,
) -> Decision {
    let flags = environment.port_flags(packet.tuple.protocol(), packet.tuple.destination_port);
    if !flags.intersects(PortFlags::FRONTEND.union(PortFlags::SNAT)) {
        return Decision::pass(stranger(kind));
    }
    let Some(entry) = environment.flow(&packet.tuple) else {
        return Decision::pass(stranger(kind));
    };
    words::copy(entry.translated(), &mut outcome.translated);
    outcome.manner = entry.manner();
    let decision = if !entry.is_local() && entry.is_reply() && outcome.manner.hands_over() {
        // Those of nodes that answer by themselves never come this way.
        return Decision::pass(stranger(kind));
    } else if !entry.is_local() {
        forward(environment, packet, kind, entry, outcome)
    } else if entry.is_reply() {
        // Those of local backends leave by TC egress; nobody outside sends them to us.
        return Decision::pass(stranger(kind));
    } else {
        Decision::deliver(match kind {
            Kind::Fragment => Reason::LocalEstablished,
            Kind::Error => Reason::ErrorDelivered,
        })
    };
    count(environment, packet, kind, entry, decision);
    decision
}

/// Decides about such a packet that leaves this host: one of a local backend, or none of ours.
#[inline(always)]
pub fn decide_related_reply<E: Environment>(
    environment: &E,
    packet: &Packet,
    kind: Kind,
    outcome: &mut Outcome,
) -> Decision {
    let flags = environment.port_flags(packet.tuple.protocol(), packet.tuple.source_port);
    if !flags.intersects(PortFlags::LOCAL_BACKEND) {
        return Decision::pass(stranger(kind));
    }
    let entry = match environment.flow(&packet.tuple) {
        Some(entry) if entry.is_reply() && entry.is_local() => entry,
        Some(_) | None => return Decision::pass(stranger(kind)),
    };
    words::copy(entry.translated(), &mut outcome.translated);
    let decision = Decision::deliver(match kind {
        Kind::Fragment => Reason::LocalReply,
        Kind::Error => Reason::ErrorReply,
    });
    count(environment, packet, kind, entry, decision);
    decision
}

/// The way out of this host again. Where there is none, nobody is told: errors are sent neither
/// about errors nor about later fragments (RFC 1122 §3.2.2).
#[inline(always)]
fn forward<E: Environment>(
    environment: &E,
    packet: &Packet,
    kind: Kind,
    entry: FlowEntry,
    outcome: &mut Outcome,
) -> Decision {
    let (reason, stopped) = match kind {
        Kind::Error => (Reason::ErrorForwarded, Reason::ErrorNotForwarded),
        Kind::Fragment if entry.is_reply() => (Reason::RemoteReply, Reason::FragmentNotForwarded),
        Kind::Fragment if outcome.manner.hands_over() => {
            (Reason::DsrEstablished, Reason::FragmentNotForwarded)
        }
        Kind::Fragment => (Reason::RemoteEstablished, Reason::FragmentNotForwarded),
    };
    if packet.ttl <= 1 {
        return Decision::drop(stopped);
    }
    match handover::find_way(environment, packet, packet.ip_len, false, outcome) {
        Route::Via => Decision::new(Step::Forward, reason),
        Route::Unresolved => Decision::new(Step::ForwardUnresolved, reason),
        Route::TooBig => Decision::drop(stopped),
        Route::Unreachable | Route::TooFar => Decision::drop(Reason::NoRoute),
    }
}

/// Counts a fragment in its flow. An error is not one of the flow's packets.
#[inline(always)]
fn count<E: Environment>(
    environment: &E,
    packet: &Packet,
    kind: Kind,
    entry: FlowEntry,
    decision: Decision,
) {
    let goes_on = matches!(decision.step, Step::Forward | Step::ForwardUnresolved | Step::Deliver);
    if goes_on && matches!(kind, Kind::Fragment) {
        entry.count(environment.now(), packet.ip_len);
    }
}

/// Why a packet without a flow passes.
#[inline(always)]
const fn stranger(kind: Kind) -> Reason {
    match kind {
        Kind::Fragment => Reason::FragmentWithoutFirst,
        Kind::Error => Reason::Icmp,
    }
}
