//! ICMP and ICMPv6 errors about packets of ours (RFC 792, RFC 4443), which quote the packet that
//! they are about as it was on the wire: translated. Whom the error is for knows the packet
//! untranslated.
//!
//! An error travels against the packet that it quotes. So it belongs to the half of the flow whose
//! packets travel that way, and is translated as they are: the quoted packet, turned around, has
//! the half's key before and the half's translation after.

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use super::checksum::{checksum_at, sum_of};
use super::extensions::walk_extensions;
use super::fragment::addresses;
use super::parse::{ICMP, ICMPV6, ipv4_fragment, read_words};
use super::rewrite::{write_ipv4, write_ipv6};
use super::{Delta, Packet, PacketBuf};
use crate::{Address, Family, Port, Protocol, Reason, Tuple};

/// Octets of an ICMP header.
pub(super) const ICMP_LEN: usize = 8;
/// Octets of the quoted transport header that are always there (RFC 792).
const TRANSPORT_LEN: usize = 8;

/// Where the headers of the quoted packet are, in bytes from the IP header of the error.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quoted {
    /// IP header.
    network: u16,
    /// TCP or UDP header.
    transport: u16,
    /// TCP's or UDP's checksum; 0 where the quotation ends before it does.
    checksum: u16,
}

impl Quoted {
    /// Nothing yet.
    pub const NONE: Self = Self { network: 0, transport: 0, checksum: 0 };
}

/// Finds the headers of the packet that the ICMP error `packet` quotes, and notes the quoted
/// packet's tuple, turned around, in place of the error's own.
///
/// # Errors
///
/// The Reason for which it is none of ours.
#[inline(always)]
pub fn parse_quoted<P: PacketBuf>(
    bytes: &P,
    packet: &mut Packet,
    quoted: &mut Quoted,
) -> Result<(), Reason> {
    let network = usize::from(packet.network);
    let inner = usize::from(packet.transport) + ICMP_LEN;
    let (protocol, source, destination, transport) = match packet.family() {
        Family::V4 => quoted_ipv4(bytes, inner)?,
        Family::V6 => quoted_ipv6(bytes, inner)?,
    };
    // An error goes to whoever sent the packet that it is about.
    if source != packet.tuple.destination {
        return Err(Reason::Icmp);
    }
    let Some(protocol) = Protocol::from_number(protocol) else {
        return Err(Reason::Icmp);
    };
    let [a, b, c, d, ..]: [u8; TRANSPORT_LEN] = bytes.read(transport).ok_or(Reason::Icmp)?;
    let end = network + usize::from(packet.ip_len);
    if transport + TRANSPORT_LEN > end {
        return Err(Reason::Icmp);
    }
    let checksum = checksum_at(protocol, transport);
    packet.tuple = Tuple::new(
        protocol,
        (destination, Port::from_bytes([c, d])),
        (source, Port::from_bytes([a, b])),
    );
    quoted.network = (inner - network) as u16;
    quoted.transport = (transport - network) as u16;
    quoted.checksum = if checksum + 2 <= end { (checksum - network) as u16 } else { 0 };
    Ok(())
}

/// Whether an ICMP message says that a packet was not delivered. Source quench and redirects do not.
#[inline(always)]
pub(super) const fn is_error(family: Family, protocol: u8, kind: u8) -> bool {
    match (family, protocol) {
        // Destination unreachable, time exceeded, parameter problem.
        (Family::V4, ICMP) => matches!(kind, 3 | 11 | 12),
        // Destination unreachable, packet too big, time exceeded, parameter problem.
        (Family::V6, ICMPV6) => matches!(kind, 1..=4),
        _ => false,
    }
}

/// Protocol, source, destination, and where the transport header begins.
type Inner = (u8, Address, Address, usize);

/// The quoted header, of which the length says what the packet had, not what is quoted of it.
#[inline(always)]
fn quoted_ipv4<P: PacketBuf>(bytes: &P, offset: usize) -> Result<Inner, Reason> {
    let header: *mut Ipv4Hdr = bytes.at(offset).ok_or(Reason::Icmp)?;
    // SAFETY: `at` checked the bounds; the fields are bytes, so nothing is misaligned.
    let header = unsafe { &*header };
    let header_len = usize::from(header.vihl & 0x0f) * 4;
    let is_later = ipv4_fragment(header, offset).later;
    if header.vihl >> 4 != 4 || header_len < Ipv4Hdr::LEN || is_later {
        return Err(Reason::Icmp);
    }
    let source = Address::from_v4_word(read_words::<4, 1>(&header.src_addr)[0]);
    let destination = Address::from_v4_word(read_words::<4, 1>(&header.dst_addr)[0]);
    Ok((header.proto, source, destination, offset + header_len))
}

#[inline(always)]
fn quoted_ipv6<P: PacketBuf>(bytes: &P, offset: usize) -> Result<Inner, Reason> {
    let header: *mut Ipv6Hdr = bytes.at(offset).ok_or(Reason::Icmp)?;
    // SAFETY: `at` checked the bounds; the fields are bytes, so nothing is misaligned.
    let header = unsafe { &*header };
    if header.vcf[0] >> 4 != 6 {
        return Err(Reason::Icmp);
    }
    let source = Address::from_words(read_words(&header.src_addr));
    let destination = Address::from_words(read_words(&header.dst_addr));
    let extensions = walk_extensions(bytes, header.next_hdr, offset + Ipv6Hdr::LEN)?;
    // As for whole packets: such an address would be taken for IPv4.
    if extensions.fragment.later || matches!(destination.family(), Family::V4) {
        return Err(Reason::Icmp);
    }
    Ok((extensions.next, source, destination, extensions.end))
}

/// Rewrites an error so that the packet that it quotes, turned around, has the tuple `to`, and that
/// it goes where that goes. It comes from whoever sent it, where the flow's client is not
/// translated; else from the end of the flow that its receiver knows: a router's address that is
/// not of this network would be taken for a forgery on the way.
///
/// `None`: it could not be done, and the packet must not be used.
#[inline(always)]
#[must_use]
pub fn rewrite_error<P: PacketBuf>(
    bytes: &mut P,
    packet: &Packet,
    quoted: &Quoted,
    to: &Tuple,
    decrement_ttl: bool,
) -> Option<()> {
    match packet.family() {
        Family::V4 => rewrite_error_v4(bytes, packet, quoted, to, decrement_ttl),
        Family::V6 => rewrite_error_v6(bytes, packet, quoted, to, decrement_ttl),
    }
}

/// As [`rewrite_error`], for IPv4.
#[inline(always)]
#[must_use]
pub fn rewrite_error_v4<P: PacketBuf>(
    bytes: &mut P,
    packet: &Packet,
    quoted: &Quoted,
    to: &Tuple,
    decrement_ttl: bool,
) -> Option<()> {
    check(bytes, packet, quoted)?;
    let message = write_v4(bytes, packet, quoted, to, decrement_ttl)?;
    finish(bytes, packet, quoted, to, message)
}

/// As [`rewrite_error`], for IPv6.
#[inline(always)]
#[must_use]
pub fn rewrite_error_v6<P: PacketBuf>(
    bytes: &mut P,
    packet: &Packet,
    quoted: &Quoted,
    to: &Tuple,
    decrement_ttl: bool,
) -> Option<()> {
    check(bytes, packet, quoted)?;
    let message = write_v6(bytes, packet, quoted, to, decrement_ttl)?;
    finish(bytes, packet, quoted, to, message)
}

/// Everything that can fail comes before the first write.
#[inline(always)]
fn check<P: PacketBuf>(bytes: &P, packet: &Packet, quoted: &Quoted) -> Option<()> {
    let _: *mut [u8; ICMP_LEN] = bytes.at(packet.transport.into())?;
    let _: *mut [u8; TRANSPORT_LEN] = bytes.at(at(packet, quoted.transport))?;
    Some(())
}

/// Writes the ports of the quoted packet, its checksum, and the message's.
#[inline(always)]
fn finish<P: PacketBuf>(
    bytes: &mut P,
    packet: &Packet,
    quoted: &Quoted,
    to: &Tuple,
    message: Delta,
) -> Option<()> {
    let from = &packet.tuple;
    let ports_at: *mut [u8; 4] = bytes.at(at(packet, quoted.transport))?;
    let [a, b] = to.destination_port.bytes();
    let [c, d] = to.source_port.bytes();
    // SAFETY: `at` checked the bounds.
    unsafe { ports_at.write_unaligned([a, b, c, d]) };
    let change = addresses(from, to).plus(Delta::NONE.sums(ports_of(from), ports_of(to)));
    let mut message = message.plus(change);
    if quoted.checksum != 0 {
        let udp = matches!(from.protocol(), Protocol::Udp);
        message = message.plus(update(bytes, at(packet, quoted.checksum), change, udp)?);
    }
    let _ = update(bytes, usize::from(packet.transport) + 2, message, false)?;
    Some(())
}

/// The offset from the start of the frame of what is so far from the error's IP header.
#[inline(always)]
fn at(packet: &Packet, offset: u16) -> usize {
    usize::from(packet.network) + usize::from(offset)
}

/// Updates the checksum at `offset` and returns what that changes in sums over it.
#[inline(always)]
fn update<P: PacketBuf>(bytes: &mut P, offset: usize, change: Delta, udp: bool) -> Option<Delta> {
    let field: *mut u16 = bytes.at(offset)?;
    // SAFETY: `at` checked the bounds; the access is unaligned.
    let old = unsafe { field.read_unaligned() };
    if udp && old == 0 {
        // RFC 768: zero means that the sender computed none.
        return Some(Delta::NONE);
    }
    let mut new = change.apply(old);
    if udp && new == 0 {
        // RFC 768: a computed zero is sent as all ones.
        new = 0xffff;
    }
    // SAFETY: as above.
    unsafe { field.write_unaligned(new) };
    Some(Delta::NONE.word(old, new))
}

/// Writes the addresses of the error and of the packet that it quotes. Returns what changes in the
/// message besides the quoted addresses.
#[inline(always)]
fn write_v4<P: PacketBuf>(
    bytes: &mut P,
    packet: &Packet,
    quoted: &Quoted,
    to: &Tuple,
    decrement_ttl: bool,
) -> Option<Delta> {
    let from = &packet.tuple;
    let quoted: *mut Ipv4Hdr = bytes.at(at(packet, quoted.network))?;
    // SAFETY: `at` checked the bounds; the fields are bytes, so nothing is misaligned.
    let quoted = unsafe { &mut *quoted };
    let old = u16::from_ne_bytes(quoted.check);
    let new = addresses(from, to).apply(old);
    quoted.check = new.to_ne_bytes();
    quoted.src_addr = to.destination.v4_bytes();
    quoted.dst_addr = to.source.v4_bytes();

    let outer: *mut Ipv4Hdr = bytes.at(packet.network.into())?;
    // SAFETY: as above.
    let sender = Address::from_v4_word(read_words::<4, 1>(unsafe { &(*outer).src_addr })[0]);
    let source = sender_after(sender, from, to);
    let change = outer_addresses((&sender, &source), from, to);
    // SAFETY: as above.
    unsafe { write_ipv4(outer, change, (&source, &to.destination), decrement_ttl) };
    Some(Delta::NONE.word(old, new))
}

/// As [`write_v4`]; the message's checksum covers the error's own addresses too.
#[inline(always)]
fn write_v6<P: PacketBuf>(
    bytes: &mut P,
    packet: &Packet,
    quoted: &Quoted,
    to: &Tuple,
    decrement_ttl: bool,
) -> Option<Delta> {
    let from = &packet.tuple;
    let quoted: *mut Ipv6Hdr = bytes.at(at(packet, quoted.network))?;
    // SAFETY: `at` checked the bounds; the fields are bytes, so nothing is misaligned.
    let quoted = unsafe { &mut *quoted };
    quoted.src_addr = to.destination.v6_bytes();
    quoted.dst_addr = to.source.v6_bytes();

    let outer: *mut Ipv6Hdr = bytes.at(packet.network.into())?;
    // SAFETY: as above.
    let sender = Address::from_words(read_words(unsafe { &(*outer).src_addr }));
    let source = sender_after(sender, from, to);
    // SAFETY: as above.
    unsafe { write_ipv6(outer, (&source, &to.destination), decrement_ttl) };
    Some(outer_addresses((&sender, &source), from, to))
}

/// The change of the error's own addresses.
#[inline(always)]
fn outer_addresses((sender, source): (&Address, &Address), from: &Tuple, to: &Tuple) -> Delta {
    let old = sum_of(sender) + sum_of(&from.destination);
    Delta::NONE.sums(old, sum_of(source) + sum_of(&to.destination))
}

#[inline(always)]
fn ports_of(tuple: &Tuple) -> u64 {
    u64::from(tuple.source_port.raw()) + u64::from(tuple.destination_port.raw())
}

/// Whom the error comes from.
#[inline(always)]
fn sender_after(sender: Address, from: &Tuple, to: &Tuple) -> Address {
    if from.source == to.source { sender } else { to.source }
}
