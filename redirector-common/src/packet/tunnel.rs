//! Packets in packets: how a node hands a client's packet over to another that is not on its
//! segment. IPv4 in IPv4 (RFC 2003), IPv6 in IPv6 (RFC 2473).

use network_types::eth::EthHdr;
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use super::parse::{ether_type, parse_packet, read_words};
use super::related::parse_related_packet;
use super::{Delta, Environment, Kind, NextHop, Packet, PacketBuf, Route};
use crate::{Address, Family, FrontendKey, Port, Reason, Tuple, words};

/// Protocol number of IPv4 in IP.
pub(super) const IPV4: u8 = 4;
/// Protocol number of IPv6 in IP.
pub(super) const IPV6: u8 = 41;

/// Length of the longer of both outer headers, in words.
pub const MAX_WORDS: usize = 10;

/// Hops that a tunnel may have.
const TTL: u8 = 64;

/// Length of the header around a packet, in bytes.
#[inline(always)]
#[must_use]
pub const fn header_len(family: Family) -> u16 {
    match family {
        Family::V4 => 20,
        Family::V6 => 40,
    }
}

/// Puts together the header around a packet: as words as they are to stand in memory, of which
/// [`header_len`] bytes count.
#[inline(always)]
pub fn write_header(
    header: &mut [u32; MAX_WORDS],
    packet: &Packet,
    source: &Address,
    destination: &Address,
) {
    match packet.family() {
        Family::V4 => write_ipv4(header, packet, source, destination),
        Family::V6 => write_ipv6(header, packet, source, destination),
    }
}

#[inline(always)]
fn write_ipv4(
    header: &mut [u32; MAX_WORDS],
    packet: &Packet,
    source: &Address,
    destination: &Address,
) {
    let len = packet.ip_len.saturating_add(header_len(Family::V4));
    let [high, low] = len.to_be_bytes();
    header[0] = u32::from_ne_bytes([0x45, packet.traffic_class, high, low]);
    // RFC 6864: what must not be fragmented needs no identification.
    header[1] = u32::from_ne_bytes([0, 0, 0x40, 0]);
    header[2] = u32::from_ne_bytes([TTL, IPV4, 0, 0]);
    header[3] = source.words()[3];
    header[4] = destination.words()[3];
    let sum: u64 = u64::from(header[0])
        + u64::from(header[1])
        + u64::from(header[2])
        + u64::from(header[3])
        + u64::from(header[4]);
    // One's complement, in any byte order: RFC 1071 §2B.
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let [high, low] = (!(sum as u16)).to_ne_bytes();
    header[2] = u32::from_ne_bytes([TTL, IPV4, high, low]);
}

#[inline(always)]
fn write_ipv6(
    header: &mut [u32; MAX_WORDS],
    packet: &Packet,
    source: &Address,
    destination: &Address,
) {
    let class = packet.traffic_class;
    let [high, low] = packet.ip_len.to_be_bytes();
    header[0] = u32::from_ne_bytes([0x60 | class >> 4, class << 4, 0, 0]);
    header[1] = u32::from_ne_bytes([high, low, IPV6, TTL]);
    [header[2], header[3], header[4], header[5]] = *source.words();
    [header[6], header[7], header[8], header[9]] = *destination.words();
}

/// What is known of a packet that holds another.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunnelled {
    /// Where the tunnel begins.
    source: Address,
    /// Where the tunnel ends.
    destination: Address,
    /// Offset of the packet inside from the start of the frame, in bytes.
    inner: u32,
    /// Length of the packet with its outer header, in bytes; 0 where that has none because it is
    /// too large.
    ip_len: u32,
}

impl Tunnelled {
    /// Nothing yet.
    pub const NONE: Self = Self {
        source: Address::UNSPECIFIED,
        destination: Address::UNSPECIFIED,
        inner: 0,
        ip_len: 0,
    };
}

/// Finds the packet inside of one that another node of redirector's has sent, without a VLAN tag
/// in the frame: nothing but that packet follows the outer header, which is as
/// [`write_header`] makes it.
///
/// `None`: it is none of ours.
#[inline(always)]
pub fn find_inner<P: PacketBuf, E: Environment>(
    environment: &E,
    bytes: &P,
    tunnelled: &mut Tunnelled,
) -> Option<()> {
    let found: u16 = bytes.read(EthHdr::LEN - 2)?;
    let found = u16::from_be(found);
    if found == ether_type(Family::V4) {
        find_in_ipv4(bytes, tunnelled)?;
    } else if found == ether_type(Family::V6) {
        find_in_ipv6(bytes, tunnelled)?;
    } else {
        return None;
    }
    environment.peer(&tunnelled.source).is_known().then_some(())
}

#[inline(always)]
fn find_in_ipv4<P: PacketBuf>(bytes: &P, tunnelled: &mut Tunnelled) -> Option<()> {
    const FRAGMENT: u16 = 0x3fff;
    let header: *mut Ipv4Hdr = bytes.at(EthHdr::LEN)?;
    // SAFETY: `at` checked the bounds; the fields are bytes, so nothing is misaligned.
    let header = unsafe { &*header };
    if header.vihl != 0x45
        || header.proto != IPV4
        || u16::from_be_bytes(header.frags) & FRAGMENT != 0
    {
        return None;
    }
    let source = Address::from_v4_word(read_words::<4, 1>(&header.src_addr)[0]);
    let destination = Address::from_v4_word(read_words::<4, 1>(&header.dst_addr)[0]);
    words::copy(&source, &mut tunnelled.source);
    words::copy(&destination, &mut tunnelled.destination);
    tunnelled.inner = (EthHdr::LEN + Ipv4Hdr::LEN) as u32;
    tunnelled.ip_len = u16::from_be_bytes(header.tot_len).into();
    Some(())
}

#[inline(always)]
fn find_in_ipv6<P: PacketBuf>(bytes: &P, tunnelled: &mut Tunnelled) -> Option<()> {
    let header: *mut Ipv6Hdr = bytes.at(EthHdr::LEN)?;
    // SAFETY: as above.
    let header = unsafe { &*header };
    if header.vcf[0] >> 4 != 6 || header.next_hdr != IPV6 {
        return None;
    }
    let source = Address::from_words(read_words(&header.src_addr));
    let destination = Address::from_words(read_words(&header.dst_addr));
    words::copy(&source, &mut tunnelled.source);
    words::copy(&destination, &mut tunnelled.destination);
    tunnelled.inner = (EthHdr::LEN + Ipv6Hdr::LEN) as u32;
    tunnelled.ip_len = match u16::from_be_bytes(header.payload_len) {
        0 => 0,
        len => u32::from(len) + Ipv6Hdr::LEN as u32,
    };
    // Such an address would be taken for IPv4 from here on.
    matches!(tunnelled.destination.family(), Family::V6).then_some(())
}

/// Finds the headers of the packet inside, as they are in the frame with both; of a TCP or UDP
/// packet.
///
/// # Errors
///
/// The Reason for which it is something else.
#[inline(always)]
pub fn parse_inner<P: PacketBuf>(
    bytes: &P,
    tunnelled: &Tunnelled,
    packet: &mut Packet,
) -> Result<(), Reason> {
    let ether_type = ether_type(tunnelled.destination.family());
    parse_packet(bytes, ether_type, tunnelled.inner as usize, 0, packet, |_, _| true)
}

/// As [`parse_inner`], of a later fragment or an ICMP error.
///
/// # Errors
///
/// The Reason for which it is none of ours.
#[inline(always)]
pub fn parse_inner_related<P: PacketBuf>(
    bytes: &P,
    tunnelled: &Tunnelled,
    packet: &mut Packet,
) -> Result<Kind, Reason> {
    let ether_type = ether_type(tunnelled.destination.family());
    parse_related_packet(bytes, ether_type, tunnelled.inner as usize, 0, packet)
}

/// Whether the packet inside is for a backend of this host: of a flow that is there, or, where it
/// may open one, of a service with direct server return. Anything else that nodes send each other
/// in packets is not ours.
#[inline(always)]
pub fn is_accepted<E: Environment>(
    environment: &E,
    packet: &Packet,
    tunnelled: &Tunnelled,
    may_open: bool,
) -> bool {
    let tuple = &packet.tuple;
    let len = u32::from(packet.ip_len) + u32::from(header_len(packet.family()));
    if tunnelled.ip_len != 0 && len > tunnelled.ip_len {
        return false;
    }
    if let Some(entry) = environment.flow(tuple) {
        return entry.is_local()
            && !entry.is_reply()
            && (entry.translated().destination == tunnelled.destination
                || ends_here(environment, packet, tunnelled));
    }
    if !may_open {
        return false;
    }
    let key = FrontendKey::new(tuple.destination, tuple.destination_port, tuple.protocol());
    environment
        .frontend(&key)
        .and_then(|frontend| environment.service(frontend.service))
        .is_some_and(|service| service.is_dsr())
        && ends_here(environment, packet, tunnelled)
}

/// Whether the tunnel's end is this host, or a backend on it that has a network of its own: a node
/// may be the router of others.
#[inline(always)]
fn ends_here<E: Environment>(environment: &E, packet: &Packet, tunnelled: &Tunnelled) -> bool {
    let mut next_hop = NextHop::NONE;
    let to = Tuple::new(
        packet.tuple.protocol(),
        (Address::UNSPECIFIED, Port::ZERO),
        (tunnelled.destination, Port::ZERO),
    );
    match environment.route(packet, &to, 0, &mut next_hop) {
        Route::Unreachable | Route::TooFar => true,
        Route::Via | Route::Unresolved | Route::TooBig => {
            !environment.interface(next_hop.ifindex).is_some_and(|interface| interface.is_ours())
        }
    }
}

/// Takes a hop off a packet that stays as it is otherwise.
///
/// `None`: it ends too early.
#[inline(always)]
#[must_use]
pub fn take_hop<P: PacketBuf>(bytes: &mut P, packet: &Packet) -> Option<()> {
    let network = usize::from(packet.network);
    match packet.family() {
        Family::V4 => {
            let header: *mut Ipv4Hdr = bytes.at(network)?;
            // SAFETY: `at` checked the bounds; the fields are bytes, so nothing is misaligned.
            let header = unsafe { &mut *header };
            let old = u16::from_ne_bytes([header.ttl, header.proto]);
            header.ttl = header.ttl.wrapping_sub(1);
            let new = u16::from_ne_bytes([header.ttl, header.proto]);
            let sum = u16::from_ne_bytes(header.check);
            header.check = Delta::NONE.word(old, new).apply(sum).to_ne_bytes();
        }
        Family::V6 => {
            let header: *mut Ipv6Hdr = bytes.at(network)?;
            // SAFETY: as above.
            let header = unsafe { &mut *header };
            header.hop_limit = header.hop_limit.wrapping_sub(1);
        }
    }
    Some(())
}
