//! Headers: Ethernet, VLAN tags, IPv4, IPv6 with extension headers; then those of [`super::transport`].
//!
//! The only place where `network-types`' headers are interpreted; its known pitfalls (header
//! lengths in bytes, subtraction below zero) are dealt with here once.

use network_types::eth::EthHdr;
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use super::extensions::walk_extensions;
use super::transport::{TcpFlags, Transport, destination_of, parse_tcp, parse_udp};
use super::{PacketBuf, tunnel};
use crate::{Address, Family, Port, Protocol, Reason, Tuple};

const ETHER_TYPE_IPV4: u16 = 0x0800;
const ETHER_TYPE_IPV6: u16 = 0x86dd;
const ETHER_TYPE_VLAN: u16 = 0x8100;
const ETHER_TYPE_QINQ: u16 = 0x88a8;

/// VLAN tags that are walked: a service tag and a customer tag.
const MAX_VLAN_TAGS: usize = 2;

/// IPv4's control messages.
pub(super) const ICMP: u8 = 1;
/// IPv6's.
pub(super) const ICMPV6: u8 = 58;

/// More fragments follow, and the offset, of IPv4's flags and fragment offset field.
const IPV4_MORE_FRAGMENTS: u16 = 0x2000;
const IPV4_FRAGMENT_OFFSET: u16 = 0x1fff;

/// Where a TCP or UDP packet's headers are, and what the data path needs of them.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Addresses, ports, protocol.
    pub tuple: Tuple,
    /// Offset of the IP header from the start of the frame, in bytes.
    pub network: u16,
    /// Offset of the TCP or UDP header from the start of the frame, in bytes.
    pub transport: u16,
    /// Length of the IP packet in bytes.
    pub ip_len: u16,
    /// Length of the TCP or UDP header in bytes.
    pub transport_header_len: u16,
    /// IPv4's type of service or IPv6's traffic class.
    pub traffic_class: u8,
    /// Time to live or hop limit.
    pub ttl: u8,
    /// TCP's control bits; zero for UDP.
    pub flags: TcpFlags,
    /// VLAN tags in the frame.
    pub vlan_tags: u8,
    /// Offset of the identification from the start of the frame, in bytes, where this is one of
    /// several fragments; 0 where it is a whole packet.
    pub identification: u16,
    /// Whether it came in a packet of another node that runs redirector: 1, or else 0.
    pub tunnelled: u16,
    /// TCP's or UDP's checksum, as loaded from memory.
    pub checksum: u16,
    /// Zero: the words that others copy are whole.
    pub reserved: u16,
}

impl Packet {
    /// No packet yet: for [`parse`] to fill in.
    pub const EMPTY: Self = Self {
        tuple: Tuple::new(
            Protocol::Udp,
            (Address::UNSPECIFIED, Port::ZERO),
            (Address::UNSPECIFIED, Port::ZERO),
        ),
        network: 0,
        transport: 0,
        ip_len: 0,
        transport_header_len: 0,
        traffic_class: 0,
        ttl: 0,
        flags: TcpFlags(0),
        vlan_tags: 0,
        identification: 0,
        tunnelled: 0,
        checksum: 0,
        reserved: 0,
    };

    /// Finds the headers of `bytes`; see [`parse`].
    ///
    /// # Errors
    ///
    /// As [`parse`].
    pub fn of<P: PacketBuf>(bytes: &P) -> Result<Self, Reason> {
        let mut packet = Self::EMPTY;
        parse(bytes, &mut packet)?;
        Ok(packet)
    }

    /// Whether an established flow's state can't change by it, and nothing about it asks for more
    /// than to be translated.
    #[inline(always)]
    #[must_use]
    pub const fn is_plain(&self) -> bool {
        !self.flags.any(TcpFlags::SYN | TcpFlags::FIN | TcpFlags::RST)
            && !self.is_first_fragment()
            && self.ttl > 1
    }

    /// Whether it came in a packet of another node that runs redirector.
    #[inline(always)]
    #[must_use]
    pub const fn is_tunnelled(&self) -> bool {
        self.tunnelled != 0
    }

    /// Whether this is the first of several fragments: those that [`parse`] finds are.
    #[inline(always)]
    #[must_use]
    pub const fn is_first_fragment(&self) -> bool {
        self.identification != 0
    }

    /// The packet's address family.
    #[inline(always)]
    #[must_use]
    pub const fn family(&self) -> Family {
        self.tuple.source.family()
    }
}

/// The network layer's part.
pub(super) struct Network {
    /// Both halves of the address, as loaded from memory.
    pub(super) source: [u64; 2],
    pub(super) destination: [u64; 2],
    pub(super) protocol: u8,
    pub(super) transport: usize,
    pub(super) ip_len: usize,
    pub(super) traffic_class: u8,
    pub(super) ttl: u8,
    pub(super) fragment: Fragment,
}

/// What a header says of fragmentation.
#[derive(Clone, Copy)]
pub(super) struct Fragment {
    /// Offset of the identification from the start of the frame; 0: a whole packet.
    pub(super) identification: usize,
    /// Not the first one: no transport header follows.
    pub(super) later: bool,
}

impl Fragment {
    pub(super) const NONE: Self = Self { identification: 0, later: false };
}

/// Finds the headers of a TCP or UDP packet and notes them in `packet`, which is given from
/// outside because a program's stack is small.
///
/// # Errors
///
/// The Reason for which the packet is none of ours; its verdict is always "pass". What `packet`
/// holds is then unspecified.
#[inline(always)]
pub fn parse<P: PacketBuf>(bytes: &P, packet: &mut Packet) -> Result<(), Reason> {
    parse_claimed(bytes, packet, |_, _| true)
}

/// As [`parse`]. Packets of whose protocol and destination port `is_claimed` says no are none of
/// ours, and nothing more is spent on them.
#[inline(always)]
pub fn parse_claimed<P: PacketBuf>(
    bytes: &P,
    packet: &mut Packet,
    is_claimed: impl FnOnce(Protocol, Port) -> bool,
) -> Result<(), Reason> {
    let (ether_type, network, vlan_tags) = parse_link(bytes)?;
    parse_packet(bytes, ether_type, network, vlan_tags, packet, is_claimed)
}

/// As [`parse`], of the IP packet at `network`.
#[inline(always)]
pub(super) fn parse_packet<P: PacketBuf>(
    bytes: &P,
    ether_type: u16,
    network: usize,
    vlan_tags: u8,
    packet: &mut Packet,
    is_claimed: impl FnOnce(Protocol, Port) -> bool,
) -> Result<(), Reason> {
    let ip = parse_network(bytes, ether_type, network)?;
    if ip.fragment.later {
        return Err(Reason::Fragment);
    }
    let Some(protocol) = Protocol::from_number(ip.protocol) else {
        return Err(match ip.protocol {
            ICMP | ICMPV6 => Reason::Icmp,
            tunnel::IPV4 | tunnel::IPV6 => Reason::IpInIp,
            _ => Reason::NotTcpUdp,
        });
    };
    let Transport { ports, checksum, header_len, flags } = match protocol {
        Protocol::Tcp => parse_tcp(bytes, ip.transport)?,
        Protocol::Udp => parse_udp(bytes, ip.transport)?,
    };
    let header_end = ip.transport + header_len - network;
    if header_end > ip.ip_len {
        return Err(Reason::Malformed);
    }
    if !is_claimed(protocol, destination_of(ports)) {
        return Err(Reason::NotOurs);
    }
    packet.tunnelled = 0;
    packet.tuple.set(protocol, ip.source, ip.destination, ports);
    packet.network = network as u16;
    packet.transport = ip.transport as u16;
    packet.ip_len = ip.ip_len as u16;
    packet.transport_header_len = header_len as u16;
    packet.traffic_class = ip.traffic_class;
    packet.ttl = ip.ttl;
    packet.flags = flags;
    packet.vlan_tags = vlan_tags;
    packet.checksum = checksum;
    packet.identification = ip.fragment.identification as u16;
    Ok(())
}

/// The type that Ethernet has for a family.
#[inline(always)]
pub(super) const fn ether_type(family: Family) -> u16 {
    match family {
        Family::V4 => ETHER_TYPE_IPV4,
        Family::V6 => ETHER_TYPE_IPV6,
    }
}

/// The type of what follows Ethernet and its VLAN tags, its offset, and the number of tags.
#[inline(always)]
pub(super) fn parse_link<P: PacketBuf>(packet: &P) -> Result<(u16, usize, u8), Reason> {
    let ether_type: u16 = packet.read(EthHdr::LEN - 2).ok_or(Reason::Malformed)?;
    let mut ether_type = u16::from_be(ether_type);
    let mut offset = EthHdr::LEN;
    let mut tags = 0;
    for _ in 0..MAX_VLAN_TAGS {
        if ether_type != ETHER_TYPE_VLAN && ether_type != ETHER_TYPE_QINQ {
            break;
        }
        // IEEE 802.1Q: two bytes of priority and identifier, then the type of what follows.
        let inner: u16 = packet.read(offset + 2).ok_or(Reason::Malformed)?;
        ether_type = u16::from_be(inner);
        offset += 4;
        tags += 1;
    }
    Ok((ether_type, offset, tags))
}

/// The network layer's headers.
#[inline(always)]
pub(super) fn parse_network<P: PacketBuf>(
    packet: &P,
    ether_type: u16,
    offset: usize,
) -> Result<Network, Reason> {
    match ether_type {
        ETHER_TYPE_IPV4 => parse_ipv4(packet, offset),
        ETHER_TYPE_IPV6 => parse_ipv6(packet, offset),
        _ => Err(Reason::NotIp),
    }
}

#[inline(always)]
fn parse_ipv4<P: PacketBuf>(packet: &P, offset: usize) -> Result<Network, Reason> {
    let header: *mut Ipv4Hdr = packet.at(offset).ok_or(Reason::Malformed)?;
    // SAFETY: `at` checked the bounds; the fields are bytes, so nothing is misaligned.
    let header = unsafe { &*header };
    let header_len = usize::from(header.vihl & 0x0f) * 4;
    let ip_len = usize::from(u16::from_be_bytes(header.tot_len));
    let available = packet.size() - offset;
    let ip_len = match packet.segment_payload() {
        // A super-packet larger than 64 KiB (BIG TCP) has no length in its header.
        Some(_) if ip_len == 0 => available.min(usize::from(u16::MAX)),
        _ => ip_len,
    };
    if header.vihl >> 4 != 4
        || header_len < Ipv4Hdr::LEN
        || ip_len < header_len
        || ip_len > available
    {
        return Err(Reason::Malformed);
    }
    Ok(Network {
        source: Address::from_v4_word(read_words::<4, 1>(&header.src_addr)[0]).long_words(),
        destination: Address::from_v4_word(read_words::<4, 1>(&header.dst_addr)[0]).long_words(),
        protocol: header.proto,
        transport: offset + header_len,
        ip_len,
        traffic_class: header.tos,
        ttl: header.ttl,
        fragment: ipv4_fragment(header, offset),
    })
}

/// What the IPv4 header at `offset` says of fragmentation.
#[inline(always)]
pub(super) fn ipv4_fragment(header: &Ipv4Hdr, offset: usize) -> Fragment {
    let field = u16::from_be_bytes(header.frags);
    if field & (IPV4_MORE_FRAGMENTS | IPV4_FRAGMENT_OFFSET) == 0 {
        return Fragment::NONE;
    }
    Fragment {
        identification: offset + core::mem::offset_of!(Ipv4Hdr, id),
        later: field & IPV4_FRAGMENT_OFFSET != 0,
    }
}

#[inline(always)]
fn parse_ipv6<P: PacketBuf>(packet: &P, offset: usize) -> Result<Network, Reason> {
    let header: *mut Ipv6Hdr = packet.at(offset).ok_or(Reason::Malformed)?;
    // SAFETY: `at` checked the bounds; the fields are bytes, so nothing is misaligned.
    let header = unsafe { &*header };
    let payload_len = usize::from(u16::from_be_bytes(header.payload_len));
    let available = packet.size() - offset;
    let ip_len = match packet.segment_payload() {
        // As for IPv4: RFC 2675's jumbograms, as the kernel uses them inside a host.
        Some(_) if payload_len == 0 => available.min(usize::from(u16::MAX)),
        _ => payload_len + Ipv6Hdr::LEN,
    };
    if header.vcf[0] >> 4 != 6 || ip_len > available {
        return Err(Reason::Malformed);
    }
    let extensions = walk_extensions(packet, header.next_hdr, offset + Ipv6Hdr::LEN)?;
    let source = read_long_words(&header.src_addr);
    let destination = read_long_words(&header.dst_addr);
    let is_mapped = |words| matches!(Address::from_long_words(words).family(), Family::V4);
    if is_mapped(source) || is_mapped(destination) {
        // RFC 4942 §2.2: IPv4-mapped addresses do not belong on the wire, and would be taken
        // for IPv4 from here on.
        return Err(Reason::Malformed);
    }
    let [a, b, ..] = header.vcf;
    Ok(Network {
        source,
        destination,
        protocol: extensions.next,
        transport: extensions.end,
        ip_len,
        traffic_class: (a << 4) | (b >> 4),
        ttl: header.hop_limit,
        fragment: extensions.fragment,
    })
}

/// The `W` words of an address field, each loaded at once: put together from single bytes, they
/// would fill the program's stack with pieces.
#[inline(always)]
pub(super) fn read_words<const B: usize, const W: usize>(bytes: &[u8; B]) -> [u32; W] {
    const { assert!(B == W * 4) };
    // SAFETY: as many bytes as the words have; the read is unaligned.
    unsafe { bytes.as_ptr().cast::<[u32; W]>().read_unaligned() }
}

/// As [`read_words`]: both halves of an address.
#[inline(always)]
fn read_long_words(bytes: &[u8; 16]) -> [u64; 2] {
    // SAFETY: as many bytes; the read is unaligned.
    unsafe { bytes.as_ptr().cast::<[u64; 2]>().read_unaligned() }
}
