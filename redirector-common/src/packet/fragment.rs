//! Fragments. The first one has the ports and is handled as a packet is; it leaves a note, by
//! which those after it are taken to belong to the same flow.
//!
//! They come in order from every sender that matters, and a note that does not exist yet can't be
//! waited for: a fragment that comes before the first is passed on, and its packet is lost.

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use super::checksum::sum_of;
use super::rewrite::{write_ipv4, write_ipv6};
use super::{Delta, Environment, Packet, PacketBuf};
use crate::fragment::{FirstFragment, FragmentKey};
use crate::{Family, Reason, Tuple};

/// Notes the first fragment of a packet, for those after it to find.
///
/// `None`: the packet ends before its identification does.
#[inline(always)]
pub fn note<P: PacketBuf, E: Environment>(
    environment: &E,
    bytes: &P,
    packet: &Packet,
) -> Option<()> {
    let key = key(bytes, packet)?;
    let first = FirstFragment::new(&packet.tuple, environment.now());
    environment.note_fragment(&key, &first);
    Some(())
}

/// Adds the ports that the first fragment of its packet had to a fragment that is not the first.
///
/// # Errors
///
/// The Reason for which it is none of ours.
#[inline(always)]
pub fn find_first<P: PacketBuf, E: Environment>(
    environment: &E,
    bytes: &P,
    packet: &mut Packet,
) -> Result<(), Reason> {
    let Some(key) = key(bytes, packet) else {
        return Err(Reason::Malformed);
    };
    match environment.fragment(&key) {
        Some(first) if !first.is_over(environment.now()) => {
            packet.tuple.source_port = first.source_port;
            packet.tuple.destination_port = first.destination_port;
            Ok(())
        }
        Some(_) | None => Err(Reason::FragmentWithoutFirst),
    }
}

/// Gives a fragment that is not the first the addresses of `to`.
///
/// `None`: it could not be done, and the packet must not be used.
#[inline(always)]
#[must_use]
pub fn rewrite_later<P: PacketBuf>(
    bytes: &mut P,
    packet: &Packet,
    to: &Tuple,
    decrement_ttl: bool,
) -> Option<()> {
    let network = usize::from(packet.network);
    match packet.family() {
        Family::V4 => {
            let header: *mut Ipv4Hdr = bytes.at(network)?;
            let change = addresses(&packet.tuple, to);
            // SAFETY: `at` checked the bounds.
            unsafe { write_ipv4(header, change, (&to.source, &to.destination), decrement_ttl) };
        }
        Family::V6 => {
            let header: *mut Ipv6Hdr = bytes.at(network)?;
            // SAFETY: as above.
            unsafe { write_ipv6(header, (&to.source, &to.destination), decrement_ttl) };
            // No checksum in this packet makes up for the new addresses.
            bytes.add_to_sum(addresses(&packet.tuple, to));
        }
    }
    Some(())
}

/// The change of addresses.
#[inline(always)]
pub(super) fn addresses(from: &Tuple, to: &Tuple) -> Delta {
    let sum = |tuple: &Tuple| sum_of(&tuple.source) + sum_of(&tuple.destination);
    Delta::NONE.sums(sum(from), sum(to))
}

/// What the fragments of a packet have in common.
#[inline(always)]
fn key<P: PacketBuf>(bytes: &P, packet: &Packet) -> Option<FragmentKey> {
    let identification = usize::from(packet.identification);
    let identification = match packet.family() {
        Family::V4 => u32::from(bytes.read::<u16>(identification)?),
        Family::V6 => bytes.read::<u32>(identification)?,
    };
    Some(FragmentKey::new(&packet.tuple, identification))
}
