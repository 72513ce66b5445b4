//! ICMP errors as a router would send them, put together by `etherparse`.
#![expect(clippy::expect_used, reason = "a packet that contradicts itself is a mistake in a test")]

use std::net::IpAddr;

use etherparse::{
    Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, IpNumber, Ipv4Header, Ipv6Header, icmpv4,
    icmpv6,
};

use crate::packet::Packet;

/// What the sender is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// Nothing answers at this port.
    PortUnreachable,
    /// It has passed too many routers.
    TimeExceeded,
    /// It is larger than this.
    TooBig(u16),
    /// The byte at this offset of it makes no sense.
    Malformed(u8),
}

/// The frame that tells `packet`'s sender of the error, in the name of its destination. Quotes
/// the IP header and the transport header without options, at least RFC 792's eight bytes.
///
/// # Panics
///
/// If `packet` contradicts itself.
#[must_use]
pub fn error(packet: &Packet, error: Error) -> Vec<u8> {
    let frame = packet.bytes();
    let mut macs = [[0; 6]; 2];
    macs[0].copy_from_slice(&frame[6..12]);
    macs[1].copy_from_slice(&frame[..6]);
    Report {
        macs,
        // RFC 1812 §4.3.2.5: precedence "internetwork control".
        precedence: 0x30,
        ..Report::new(error, packet, packet.destination().ip())
    }
    .bytes()
}

/// An error message and what carries it.
#[derive(Clone, Debug)]
pub struct Report {
    /// Hardware addresses: destination, source.
    pub macs: [[u8; 6]; 2],
    /// VLAN tag.
    pub vlan: Option<u16>,
    /// Who sends it.
    pub from: IpAddr,
    /// To whom.
    pub to: IpAddr,
    /// TTL or hop limit.
    pub ttl: u8,
    /// IPv4's precedence, six bits.
    pub precedence: u8,
    /// What it says.
    pub error: Error,
    /// The packet that it is about.
    pub packet: Packet,
    /// How many bytes are quoted of what comes after its IP header and extension headers.
    pub quoted: usize,
}

impl Report {
    /// Of an error about `packet`, to its sender, quoting the transport header without options.
    #[must_use]
    pub fn new(error: Error, packet: &Packet, from: IpAddr) -> Self {
        Self {
            macs: [[0; 6]; 2],
            vlan: None,
            from,
            to: packet.source().ip(),
            ttl: 64,
            precedence: 0,
            error,
            packet: packet.clone(),
            quoted: packet.transport_len(),
        }
    }

    /// The frame.
    ///
    /// # Panics
    ///
    /// If it contradicts itself: both families at once, or more is quoted than there is.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let packet = self.packet.bytes();
        let quote = &packet[self.packet.network()..self.packet.transport() + self.quoted];
        let ether_type: u16 = if self.from.is_ipv4() { 0x0800 } else { 0x86dd };
        let mut frame = self.macs.concat();
        if let Some(vlan) = self.vlan {
            frame.extend_from_slice(&[0x81, 0]);
            frame.extend_from_slice(&vlan.to_be_bytes());
        }
        frame.extend_from_slice(&ether_type.to_be_bytes());
        match (self.from, self.to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let header = Icmpv4Header::with_checksum(ipv4_type(self.error), quote);
                let mut ip = Ipv4Header {
                    dscp: self.precedence.try_into().expect("six bits"),
                    total_len: u16::try_from(20 + 8 + quote.len()).expect("short"),
                    dont_fragment: false,
                    time_to_live: self.ttl,
                    protocol: IpNumber::ICMP,
                    source: from.octets(),
                    destination: to.octets(),
                    ..Ipv4Header::default()
                };
                ip.header_checksum = ip.calc_header_checksum();
                frame.extend_from_slice(&ip.to_bytes());
                frame.extend_from_slice(&header.to_bytes());
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let (source, destination) = (from.octets(), to.octets());
                let kind = ipv6_type(self.error);
                let header = Icmpv6Header::with_checksum(kind, source, destination, quote);
                let ip = Ipv6Header {
                    payload_length: u16::try_from(8 + quote.len()).expect("short"),
                    next_header: IpNumber::IPV6_ICMP,
                    hop_limit: self.ttl,
                    source,
                    destination,
                    ..Ipv6Header::default()
                };
                frame.extend_from_slice(&ip.to_bytes());
                frame.extend_from_slice(&header.expect("short").to_bytes());
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {
                panic!("a packet of two families: {self:?}")
            }
        }
        frame.extend_from_slice(quote);
        frame
    }
}

fn ipv4_type(error: Error) -> Icmpv4Type {
    match error {
        Error::PortUnreachable => {
            Icmpv4Type::DestinationUnreachable(icmpv4::DestUnreachableHeader::Port)
        }
        Error::TimeExceeded => {
            Icmpv4Type::TimeExceeded(icmpv4::TimeExceededCode::TtlExceededInTransit)
        }
        Error::TooBig(next_hop_mtu) => {
            Icmpv4Type::DestinationUnreachable(icmpv4::DestUnreachableHeader::FragmentationNeeded {
                next_hop_mtu,
            })
        }
        Error::Malformed(offset) => Icmpv4Type::ParameterProblem(
            icmpv4::ParameterProblemHeader::PointerIndicatesError(offset),
        ),
    }
}

fn ipv6_type(error: Error) -> Icmpv6Type {
    match error {
        Error::PortUnreachable => {
            Icmpv6Type::DestinationUnreachable(icmpv6::DestUnreachableCode::Port)
        }
        Error::TimeExceeded => Icmpv6Type::TimeExceeded(icmpv6::TimeExceededCode::HopLimitExceeded),
        Error::TooBig(mtu) => Icmpv6Type::PacketTooBig { mtu: mtu.into() },
        Error::Malformed(offset) => Icmpv6Type::ParameterProblem(icmpv6::ParameterProblemHeader {
            code: icmpv6::ParameterProblemCode::ErroneousHeaderField,
            pointer: offset.into(),
        }),
    }
}
