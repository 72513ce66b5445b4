//! ICMP and ICMPv6 errors about a packet that was not delivered (RFC 792, RFC 4443).

use super::checksum::fold;
use super::{IcmpError, Packet};
use crate::{Address, Family, Protocol};

/// Longest quotation, in 32-bit words: the longest IPv4 header, or IPv6 with 24 octets of
/// extension headers, and a TCP header without options.
pub const MAX_QUOTED_WORDS: usize = 21;

/// IPv4 and ICMP header.
pub const V4_HEADER_LEN: usize = 20 + 8;
/// IPv6 and ICMPv6 header.
pub const V6_HEADER_LEN: usize = 40 + 8;

/// An error message in the making.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// IP and ICMP header; for IPv4 only the first [`V4_HEADER_LEN`] bytes. They go between the
    /// Ethernet header and the quotation.
    pub header: [u8; V6_HEADER_LEN],
    /// Octets of the offending packet, from its IP header on, filled up with zeros. Summed as a
    /// whole: a loop over as many words as there are would be walked by the verifier for every
    /// length that there may be.
    pub quotation: [u32; MAX_QUOTED_WORDS],
}

/// Octets of `packet` that an error about it quotes, from its IP header on; `None`: its headers
/// are too long.
#[inline(always)]
#[must_use]
pub fn quoted(packet: &Packet) -> Option<u16> {
    let quoted = packet.transport - packet.network + quoted_transport(packet.tuple.protocol());
    (usize::from(quoted) <= MAX_QUOTED_WORDS * 4).then_some(quoted)
}

/// Writes the header of the message that tells `packet`'s sender of `error`, in the name of the
/// address that it sent to, with `mtu` where it was too big. The quotation is there already.
#[inline(always)]
pub fn write(message: &mut Message, packet: &Packet, error: IcmpError, mtu: u16, quoted: u16) {
    let mut sum = 0u64;
    for word in message.quotation {
        sum += u64::from(word);
    }
    message.header = [0; V6_HEADER_LEN];
    match packet.family() {
        Family::V4 => write_v4(&mut message.header, packet, error, mtu, quoted, sum),
        Family::V6 => write_v6(&mut message.header, packet, error, mtu, quoted, sum),
    }
}

/// Octets of the transport header that are quoted. RFC 792 asks for eight, which hold the ports;
/// the kernel does not let a packet be cut before a checksum field that it has left to a network
/// card to fill in, so of TCP it is the whole header without options.
#[inline(always)]
const fn quoted_transport(protocol: Protocol) -> u16 {
    match protocol {
        Protocol::Tcp => 20,
        Protocol::Udp => 8,
    }
}

#[inline(always)]
fn write_v4(
    header: &mut [u8; V6_HEADER_LEN],
    packet: &Packet,
    error: IcmpError,
    mtu: u16,
    quoted: u16,
    sum: u64,
) {
    let [len_high, len_low] = (quoted + V4_HEADER_LEN as u16).to_be_bytes();
    // Version and header length; precedence "internetwork control" (RFC 1812 §4.3.2.5).
    header[0] = 0x45;
    header[1] = 0xc0;
    header[2] = len_high;
    header[3] = len_low;
    header[8] = 64;
    header[9] = 1;
    header[12..16].copy_from_slice(&packet.tuple.destination.v4_bytes());
    header[16..20].copy_from_slice(&packet.tuple.source.v4_bytes());
    let check = !fold(sum_of(&header[..20]));
    header[10..12].copy_from_slice(&check.to_ne_bytes());
    let (kind, code, value) = match error {
        IcmpError::PortUnreachable => (3, 3, 0),
        IcmpError::TooBig => (3, 4, mtu),
        IcmpError::TimeExceeded => (11, 0, 0),
    };
    header[20] = kind;
    header[21] = code;
    header[26..28].copy_from_slice(&value.to_be_bytes());
    let check = !fold(sum + sum_of(&header[20..28]));
    header[22..24].copy_from_slice(&check.to_ne_bytes());
}

#[inline(always)]
fn write_v6(
    header: &mut [u8; V6_HEADER_LEN],
    packet: &Packet,
    error: IcmpError,
    mtu: u16,
    quoted: u16,
    sum: u64,
) {
    let payload = quoted + 8;
    let [len_high, len_low] = payload.to_be_bytes();
    header[0] = 0x60;
    header[4] = len_high;
    header[5] = len_low;
    header[6] = 58;
    header[7] = 64;
    write_address(header, 8, &packet.tuple.destination);
    write_address(header, 24, &packet.tuple.source);
    let (kind, code, value) = match error {
        IcmpError::PortUnreachable => (1, 4, 0),
        IcmpError::TooBig => (2, 0, mtu),
        IcmpError::TimeExceeded => (3, 0, 0),
    };
    header[40] = kind;
    header[41] = code;
    header[46..48].copy_from_slice(&value.to_be_bytes());
    // RFC 4443 §2.3: the pseudo-header is addresses, payload length, next header.
    let pseudo = u64::from(payload.to_be()) + u64::from(58u16.to_be());
    let check = !fold(sum + pseudo + sum_of(&header[8..48]));
    header[42..44].copy_from_slice(&check.to_ne_bytes());
}

#[inline(always)]
fn write_address(header: &mut [u8; V6_HEADER_LEN], at: usize, address: &Address) {
    header[at..at + 16].copy_from_slice(&address.v6_bytes());
}

/// The one's-complement sum of an even number of bytes, not folded.
#[inline(always)]
fn sum_of(bytes: &[u8]) -> u64 {
    let mut sum = 0;
    for pair in bytes.chunks_exact(2) {
        sum += u64::from(u16::from_ne_bytes([pair[0], pair[1]]));
    }
    sum
}
