//! The largest TCP segment (MSS) that a backend's answer to a SYN announces to the client, lowered to
//! what fits into the tunnel by which the client's packets come: RFC 9293 §3.7.1.
//!
//! The backend's own answers go to the client directly and may be as large as they are.

use super::checksum::checksum_at;
use super::transport::TCP_HEADER_LEN;
use super::tunnel::header_len;
use super::{Delta, Packet, PacketBuf};
use crate::{Family, Protocol};

/// All options together, in bytes.
const MAX_OPTIONS: u16 = 40;

const END: u8 = 0;
const NO_OPERATION: u8 = 1;
const MAXIMUM_SEGMENT_SIZE: u8 = 2;

/// The largest segment that fits into a tunnel over a link of this MTU, options aside. `None`: none.
#[inline(always)]
#[must_use]
pub fn limit(family: Family, mtu: u32) -> Option<u16> {
    let ip_header_len: u16 = match family {
        Family::V4 => 20,
        Family::V6 => 40,
    };
    let headers = u32::from(header_len(family) + ip_header_len + TCP_HEADER_LEN);
    (mtu > headers).then(|| (mtu - headers).min(u16::MAX.into()) as u16)
}

/// Lowers what `packet` announces to `limit`, and never raises it. A packet that announces nothing, or
/// whose options are malformed, stays as it is.
///
/// `cursor` is where the walk through the options stands: in memory, of which the verifier knows
/// nothing, or it would follow the walk through every arrangement that options can have.
#[inline(always)]
pub fn lower<P: PacketBuf>(bytes: &mut P, packet: &Packet, cursor: &mut u16, limit: u16) {
    let Some(at) = find(bytes, packet, cursor) else {
        return;
    };
    let Some(old) = bytes.read::<u16>(at.into()) else {
        return;
    };
    if u16::from_be(old) <= limit {
        return;
    }
    let new = limit.to_be();
    // A field at an odd offset lies across two of the words that were summed: RFC 1071 §2B.
    let change = if (at - packet.transport).is_multiple_of(2) {
        Delta::NONE.word(old, new)
    } else {
        Delta::NONE.word(old.swap_bytes(), new.swap_bytes())
    };
    let checksum = checksum_at(Protocol::Tcp, usize::from(packet.transport));
    // First, because it can fail.
    if bytes.update_transport_checksum(checksum, Delta::NONE, change, false).is_some()
        && let Some(field) = bytes.at::<u16>(at.into())
    {
        // SAFETY: `at` checked the bounds; the access is unaligned.
        unsafe { field.write_unaligned(new) };
    }
}

/// Offset of the segment size that the packet announces.
#[inline(always)]
fn find<P: PacketBuf>(bytes: &P, packet: &Packet, cursor: &mut u16) -> Option<u16> {
    let first = packet.transport + TCP_HEADER_LEN;
    let len = packet.transport_header_len - TCP_HEADER_LEN;
    let cursor: *mut u16 = cursor;
    // SAFETY: a reference; volatile, so that it is memory and no register.
    unsafe { cursor.write_volatile(0) };
    for _ in 0..MAX_OPTIONS {
        // SAFETY: as above.
        let at = unsafe { cursor.read_volatile() };
        if at >= len {
            return None;
        }
        let kind: u8 = bytes.read(usize::from(first + at))?;
        let option_len = match kind {
            END => return None,
            NO_OPERATION => 1,
            _ => {
                let option_len: u8 = bytes.read(usize::from(first + at + 1))?;
                let option_len = u16::from(option_len);
                if option_len < 2 || at + option_len > len {
                    return None;
                }
                option_len
            }
        };
        if kind == MAXIMUM_SEGMENT_SIZE {
            return (option_len == 4).then_some(first + at + 2);
        }
        // SAFETY: as above.
        unsafe { cursor.write_volatile(at + option_len) };
    }
    None
}
