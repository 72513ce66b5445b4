//! Translation of a packet's addresses and ports.

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use super::checksum::checksum_at;
use super::{Delta, Packet, PacketBuf};
use crate::{Address, Family, Protocol, Tuple};

/// Rewrites `packet` so that it carries `to`, decrementing the TTL where it is forwarded.
///
/// Both families' tuples must match the packet's. Everything that can fail is checked before the
/// first write, except the checksum update, after whose failure the packet must be dropped.
///
/// `None`: the packet could not be translated.
#[inline(always)]
#[must_use]
pub fn rewrite<P: PacketBuf>(
    bytes: &mut P,
    packet: &Packet,
    to: &Tuple,
    decrement_ttl: bool,
) -> Option<()> {
    let from = &packet.tuple;
    let network = usize::from(packet.network);
    let transport = usize::from(packet.transport);

    let ports: *mut u32 = bytes.at(transport)?;
    let addresses = match packet.family() {
        Family::V4 => {
            let header: *mut Ipv4Hdr = bytes.at(network)?;
            // SAFETY: `at` checked the bounds of both; accesses are unaligned.
            unsafe {
                // Computed again below: kept, it would take a register that the verifier follows.
                let change = ipv4_addresses(from, to);
                write_ipv4(header, change, (&to.source, &to.destination), decrement_ttl);
                write_ports(ports, to);
            }
            ipv4_addresses(from, to)
        }
        Family::V6 => {
            let header: *mut Ipv6Hdr = bytes.at(network)?;
            // SAFETY: as above.
            unsafe {
                write_ipv6(header, (&to.source, &to.destination), decrement_ttl);
                write_ports(ports, to);
            }
            Delta::NONE
                .address(&from.source, &to.source)
                .address(&from.destination, &to.destination)
        }
    };
    let ports = Delta::NONE
        .word(from.source_port.raw(), to.source_port.raw())
        .word(from.destination_port.raw(), to.destination_port.raw());
    let is_udp = matches!(from.protocol(), Protocol::Udp);
    bytes.update_transport_checksum(
        checksum_at(from.protocol(), transport),
        addresses,
        ports,
        is_udp,
    )
}

/// The change of both addresses: of an IPv4 address only one word can.
#[inline(always)]
fn ipv4_addresses(from: &Tuple, to: &Tuple) -> Delta {
    Delta::NONE
        .long_word(from.source.v4_word(), to.source.v4_word())
        .long_word(from.destination.v4_word(), to.destination.v4_word())
}

/// Writes addresses, which are this change.
///
/// # Safety
///
/// `header` is valid for reads and writes.
#[inline(always)]
pub(super) unsafe fn write_ipv4(
    header: *mut Ipv4Hdr,
    mut delta: Delta,
    (source, destination): (&Address, &Address),
    decrement_ttl: bool,
) {
    // SAFETY: the caller's promise; the fields are bytes, so nothing is misaligned.
    let ip = unsafe { &mut *header };
    if decrement_ttl {
        let old = u16::from_ne_bytes([ip.ttl, ip.proto]);
        ip.ttl = ip.ttl.wrapping_sub(1);
        delta = delta.word(old, u16::from_ne_bytes([ip.ttl, ip.proto]));
    }
    ip.check = delta.apply(u16::from_ne_bytes(ip.check)).to_ne_bytes();
    ip.src_addr = source.v4_bytes();
    ip.dst_addr = destination.v4_bytes();
}

/// # Safety
///
/// `header` is valid for reads and writes.
#[inline(always)]
pub(super) unsafe fn write_ipv6(
    header: *mut Ipv6Hdr,
    (source, destination): (&Address, &Address),
    decrement_ttl: bool,
) {
    // SAFETY: the caller's promise; fields are byte arrays, so no reference is misaligned.
    let ip = unsafe { &mut *header };
    if decrement_ttl {
        ip.hop_limit = ip.hop_limit.wrapping_sub(1);
    }
    ip.src_addr = source.v6_bytes();
    ip.dst_addr = destination.v6_bytes();
}

/// # Safety
///
/// `ports` is valid for writes.
#[inline(always)]
unsafe fn write_ports(ports: *mut u32, to: &Tuple) {
    // SAFETY: the caller's promise.
    unsafe { ports.write_unaligned(to.ports()) };
}
