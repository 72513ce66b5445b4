//! IPv6's extension headers.

use super::PacketBuf;
use super::parse::Fragment;
use crate::Reason;

/// IPv6 extension headers that are walked.
const MAX_EXTENSION_HEADERS: usize = 4;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

/// What follows IPv6's extension headers.
pub(super) struct Extensions {
    /// Number of the protocol.
    pub(super) next: u8,
    /// Where it begins.
    pub(super) end: usize,
    pub(super) fragment: Fragment,
}

/// Walks the extension headers from `offset`, of which the first has the number `next`; of a later
/// fragment those before the fragment header, for the rest is not in it.
#[inline(always)]
pub(super) fn walk_extensions<P: PacketBuf>(
    packet: &P,
    mut next: u8,
    offset: usize,
) -> Result<Extensions, Reason> {
    let mut end = offset;
    let mut fragment = Fragment::NONE;
    for _ in 0..MAX_EXTENSION_HEADERS {
        match next {
            HOP_BY_HOP | DESTINATION_OPTIONS | ROUTING => {
                // RFC 8200 §4.2: next header; length in units of eight bytes, not counting the
                // first eight. §4.4: routing type, segments left.
                let [following, len, _, segments_left]: [u8; 4] =
                    packet.read(end).ok_or(Reason::Malformed)?;
                if next == ROUTING && segments_left != 0 {
                    // The destination address is not the last one: not a frontend's packet yet.
                    return Err(Reason::ExtensionHeaders);
                }
                next = following;
                end += (usize::from(len) + 1) * 8;
            }
            FRAGMENT => {
                // RFC 8200 §4.5: next header, reserved, offset and the M flag in the last bit,
                // identification.
                let [following, _, high, low, ..]: [u8; 8] =
                    packet.read(end).ok_or(Reason::Malformed)?;
                let field = u16::from_be_bytes([high, low]);
                next = following;
                // RFC 6946: an atomic fragment is whole.
                if field & 0xfff9 != 0 {
                    fragment = Fragment { identification: end + 4, later: field & 0xfff8 != 0 };
                }
                end += 8;
                if fragment.later {
                    return Ok(Extensions { next, end, fragment });
                }
            }
            _ => break,
        }
    }
    if matches!(next, HOP_BY_HOP | DESTINATION_OPTIONS | ROUTING | FRAGMENT) {
        return Err(Reason::ExtensionHeaders);
    }
    Ok(Extensions { next, end, fragment })
}
