//! The headers of TCP and UDP, as far as they are ours to look at.

use super::PacketBuf;
use super::parse::read_words;
use crate::{Port, Reason};

/// Length of TCP's header without options.
pub const TCP_HEADER_LEN: u16 = 20;

/// TCP's control bits.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset the connection.
    pub const RST: u8 = 0x04;
    /// Acknowledgement field significant.
    pub const ACK: u8 = 0x10;

    /// Whether any of `bits` is set.
    #[inline(always)]
    #[must_use]
    pub const fn any(self, bits: u8) -> bool {
        self.0 & bits != 0
    }

    /// Whether this is of a connection whose handshake has begun: ACK without SYN or RST.
    #[inline(always)]
    #[must_use]
    pub const fn acknowledges(self) -> bool {
        self.0 & (Self::SYN | Self::ACK | Self::RST) == Self::ACK
    }

    /// Whether the sender has no more to say: FIN and ACK, without SYN or RST.
    #[inline(always)]
    #[must_use]
    pub const fn closes(self) -> bool {
        self.acknowledges() && self.any(Self::FIN)
    }

    /// Whether this answers one that opens a connection: SYN and ACK, without RST or FIN.
    #[inline(always)]
    #[must_use]
    pub const fn answers(self) -> bool {
        self.0 & (Self::SYN | Self::ACK | Self::RST | Self::FIN) == Self::SYN | Self::ACK
    }

    /// Whether this opens a connection: SYN without ACK, RST or FIN.
    #[inline(always)]
    #[must_use]
    pub const fn opens(self) -> bool {
        self.0 & (Self::SYN | Self::ACK | Self::RST | Self::FIN) == Self::SYN
    }
}

/// What a header says.
pub(super) struct Transport {
    /// Both, as loaded from memory.
    pub(super) ports: u32,
    /// As loaded from memory.
    pub(super) checksum: u16,
    /// In bytes.
    pub(super) header_len: usize,
    pub(super) flags: TcpFlags,
}

/// The second of two ports that were loaded together.
#[inline(always)]
pub(super) const fn destination_of(ports: u32) -> Port {
    let [_, _, high, low] = ports.to_ne_bytes();
    Port::from_bytes([high, low])
}

#[inline(always)]
pub(super) fn parse_tcp<P: PacketBuf>(packet: &P, offset: usize) -> Result<Transport, Reason> {
    // RFC 9293 §3.1: ports, sequence, acknowledgement, data offset in words, control bits, window,
    // checksum.
    let header: *mut [u8; 20] = packet.at(offset).ok_or(Reason::Malformed)?;
    // SAFETY: `at` checked the bounds; bytes are never misaligned.
    let header = unsafe { &*header };
    let header_len = usize::from(header[12] >> 4) * 4;
    if header_len < usize::from(TCP_HEADER_LEN) {
        return Err(Reason::Malformed);
    }
    let [ports] = read_words(header.first_chunk::<4>().ok_or(Reason::Malformed)?);
    let checksum = u16::from_ne_bytes([header[16], header[17]]);
    Ok(Transport { ports, checksum, header_len, flags: TcpFlags(header[13]) })
}

#[inline(always)]
pub(super) fn parse_udp<P: PacketBuf>(packet: &P, offset: usize) -> Result<Transport, Reason> {
    // RFC 768: ports, length, checksum.
    let header: *mut [u8; 8] = packet.at(offset).ok_or(Reason::Malformed)?;
    // SAFETY: `at` checked the bounds; bytes are never misaligned.
    let header = unsafe { &*header };
    let [ports] = read_words(header.first_chunk::<4>().ok_or(Reason::Malformed)?);
    let checksum = u16::from_ne_bytes([header[6], header[7]]);
    Ok(Transport { ports, checksum, header_len: 8, flags: TcpFlags(0) })
}
