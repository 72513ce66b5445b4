//! Single packets, put together by `etherparse`: every checksum is computed in full, by code that
//! is not ours.

mod bytes;

use std::net::SocketAddr;

pub use crate::extension::Extension;

/// TCP's control bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// Opens a connection.
    pub syn: bool,
    /// Acknowledges.
    pub ack: bool,
    /// Ends one direction.
    pub fin: bool,
    /// Ends both.
    pub rst: bool,
}

impl Flags {
    /// None.
    pub const NONE: Self = Self { syn: false, ack: false, fin: false, rst: false };
    /// SYN.
    pub const SYN: Self = Self { syn: true, ..Self::NONE };
    /// SYN and ACK.
    pub const SYN_ACK: Self = Self { ack: true, ..Self::SYN };
    /// ACK.
    pub const ACK: Self = Self { ack: true, ..Self::NONE };
    /// FIN and ACK.
    pub const FIN_ACK: Self = Self { fin: true, ..Self::ACK };
    /// RST.
    pub const RST: Self = Self { rst: true, ..Self::NONE };
}

/// What the packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP with these control bits.
    Tcp(Flags),
    /// UDP.
    Udp,
}

/// What stands in the transport header's checksum field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// The right one.
    Right,
    /// The right one plus this, in one's complement.
    WrongBy(u16),
    /// Zero: "none was computed".
    Absent,
    /// The pseudo-header's sum: the rest is left to the network card.
    Partial,
}

/// A packet's description. Its methods change one thing each, so that what comes out can be
/// described by how it differs from what went in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Hardware addresses: destination, source.
    macs: [[u8; 6]; 2],
    vlans: Vec<u16>,
    source: SocketAddr,
    destination: SocketAddr,
    transport: Transport,
    ttl: u8,
    traffic_class: u8,
    options: Vec<u8>,
    extensions: Vec<Extension>,
    tcp_options: Vec<u8>,
    fragment: Option<(u16, bool)>,
    checksum: Checksum,
    payload: Vec<u8>,
}

impl Packet {
    /// A packet with a short payload. Both addresses are of one family.
    #[must_use]
    pub fn new(transport: Transport, source: SocketAddr, destination: SocketAddr) -> Self {
        Self {
            macs: [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]],
            vlans: Vec::new(),
            source,
            destination,
            transport,
            ttl: 64,
            traffic_class: 0,
            options: Vec::new(),
            extensions: Vec::new(),
            tcp_options: Vec::new(),
            fragment: None,
            checksum: Checksum::Right,
            // An odd number of bytes, all different.
            payload: (1..=33).collect(),
        }
    }

    /// TCP.
    #[must_use]
    pub fn tcp(flags: Flags, source: SocketAddr, destination: SocketAddr) -> Self {
        Self::new(Transport::Tcp(flags), source, destination)
    }

    /// UDP.
    #[must_use]
    pub fn udp(source: SocketAddr, destination: SocketAddr) -> Self {
        Self::new(Transport::Udp, source, destination)
    }

    /// With this source.
    #[must_use]
    pub fn coming_from(self, source: SocketAddr) -> Self {
        Self { source, ..self }
    }

    /// With this destination.
    #[must_use]
    pub fn going_to(self, destination: SocketAddr) -> Self {
        Self { destination, ..self }
    }

    /// With these hardware addresses.
    #[must_use]
    pub fn macs(self, destination: [u8; 6], source: [u8; 6]) -> Self {
        Self { macs: [destination, source], ..self }
    }

    /// With these VLAN tags, the outermost first.
    #[must_use]
    pub fn vlans(self, vlans: &[u16]) -> Self {
        Self { vlans: vlans.to_vec(), ..self }
    }

    /// With this TTL or hop limit.
    #[must_use]
    pub fn ttl(self, ttl: u8) -> Self {
        Self { ttl, ..self }
    }

    /// With this type of service or traffic class.
    #[must_use]
    pub fn traffic_class(self, traffic_class: u8) -> Self {
        Self { traffic_class, ..self }
    }

    /// With IPv4 options of `4 * words` bytes, all "no operation".
    #[must_use]
    pub fn options(self, words: usize) -> Self {
        Self { options: vec![1; words * 4], ..self }
    }

    /// With TCP options of `4 * words` bytes, all "no operation".
    #[must_use]
    pub fn tcp_options(self, words: usize) -> Self {
        Self { tcp_options: vec![1; words * 4], ..self }
    }

    /// With these TCP options, and as many bytes of zero as fill the last word.
    #[must_use]
    pub fn tcp_option_bytes(self, options: &[u8]) -> Self {
        Self { tcp_options: options.to_vec(), ..self }
    }

    /// With these IPv6 extension headers.
    #[must_use]
    pub fn extensions(self, extensions: &[Extension]) -> Self {
        Self { extensions: extensions.to_vec(), ..self }
    }

    /// As an IPv4 fragment; the offset in units of eight bytes.
    #[must_use]
    pub fn fragment(self, offset: u16, more: bool) -> Self {
        Self { fragment: Some((offset, more)), ..self }
    }

    /// With this in the checksum field.
    #[must_use]
    pub fn checksum(self, checksum: Checksum) -> Self {
        Self { checksum, ..self }
    }

    /// With a payload of `len` bytes.
    #[must_use]
    pub fn payload(self, len: usize) -> Self {
        let payload = (0..len).map(|i| (i % 251) as u8).collect();
        Self { payload, ..self }
    }

    /// With this payload.
    #[must_use]
    pub fn payload_bytes(self, payload: &[u8]) -> Self {
        Self { payload: payload.to_vec(), ..self }
    }

    /// With these control bits.
    #[must_use]
    pub fn flags(self, flags: Flags) -> Self {
        Self { transport: Transport::Tcp(flags), ..self }
    }

    /// Whether it carries TCP.
    #[must_use]
    pub const fn is_tcp(&self) -> bool {
        matches!(self.transport, Transport::Tcp(_))
    }

    /// The source.
    #[must_use]
    pub const fn source(&self) -> SocketAddr {
        self.source
    }

    /// The destination.
    #[must_use]
    pub const fn destination(&self) -> SocketAddr {
        self.destination
    }

    /// Length of the IP packet in bytes.
    #[must_use]
    pub fn ip_len(&self) -> usize {
        self.bytes().len() - 14 - 4 * self.vlans.len()
    }

    /// Offset of the IP header.
    #[must_use]
    pub fn network(&self) -> usize {
        14 + 4 * self.vlans.len()
    }

    /// Offset of the TCP or UDP header.
    #[must_use]
    pub fn transport(&self) -> usize {
        let extensions: usize = self.extensions.iter().map(|e| e.bytes.len()).sum();
        match self.source {
            SocketAddr::V4(_) => self.network() + 20 + self.options.len(),
            SocketAddr::V6(_) => self.network() + 40 + extensions,
        }
    }

    /// Length of the TCP or UDP header without options.
    #[must_use]
    pub const fn transport_len(&self) -> usize {
        match self.transport {
            Transport::Tcp(_) => 20,
            Transport::Udp => 8,
        }
    }
}
