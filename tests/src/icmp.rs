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
    let quote = &frame[packet.network()..packet.transport() + packet.transport_len()];
    let mut answer = [&frame[6..12], &frame[..6], &frame[12..14]].concat();
    match (packet.source().ip(), packet.destination().ip()) {
        (IpAddr::V4(sender), IpAddr::V4(destination)) => {
            let header = Icmpv4Header::with_checksum(ipv4_type(error), quote);
            let mut ip = Ipv4Header {
                // RFC 1812 §4.3.2.5: precedence "internetwork control".
                dscp: 0x30.try_into().expect("six bits"),
                total_len: u16::try_from(20 + 8 + quote.len()).expect("short"),
                dont_fragment: false,
                time_to_live: 64,
                protocol: IpNumber::ICMP,
                source: destination.octets(),
                destination: sender.octets(),
                ..Ipv4Header::default()
            };
            ip.header_checksum = ip.calc_header_checksum();
            answer.extend_from_slice(&ip.to_bytes());
            answer.extend_from_slice(&header.to_bytes());
        }
        (IpAddr::V6(sender), IpAddr::V6(destination)) => {
            let (source, destination) = (destination.octets(), sender.octets());
            let header = Icmpv6Header::with_checksum(ipv6_type(error), source, destination, quote)
                .expect("short");
            let ip = Ipv6Header {
                payload_length: u16::try_from(8 + quote.len()).expect("short"),
                next_header: IpNumber::IPV6_ICMP,
                hop_limit: 64,
                source,
                destination,
                ..Ipv6Header::default()
            };
            answer.extend_from_slice(&ip.to_bytes());
            answer.extend_from_slice(&header.to_bytes());
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {
            panic!("a packet of two families: {packet:?}")
        }
    }
    answer.extend_from_slice(quote);
    answer
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
    }
}

fn ipv6_type(error: Error) -> Icmpv6Type {
    match error {
        Error::PortUnreachable => {
            Icmpv6Type::DestinationUnreachable(icmpv6::DestUnreachableCode::Port)
        }
        Error::TimeExceeded => Icmpv6Type::TimeExceeded(icmpv6::TimeExceededCode::HopLimitExceeded),
        Error::TooBig(mtu) => Icmpv6Type::PacketTooBig { mtu: mtu.into() },
    }
}
