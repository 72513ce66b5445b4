//! Packets in packets, put together by `etherparse`.
#![expect(clippy::expect_used, reason = "a packet that contradicts itself is a mistake in a test")]

use std::net::IpAddr;

use etherparse::{IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header};

/// Octets of an Ethernet header.
const ETHERNET: usize = 14;

/// `frame` with a header around its IP packet, as a node sends it to another: between these
/// addresses, with these hardware addresses (destination, source), and with the traffic class of
/// what is inside.
#[must_use]
pub fn cover(frame: &[u8], macs: [[u8; 6]; 2], ends: (IpAddr, IpAddr), class: u8) -> Vec<u8> {
    let inner = &frame[ETHERNET..];
    let mut bytes = macs.concat();
    bytes.extend_from_slice(&frame[12..ETHERNET]);
    match ends {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let len = u16::try_from(inner.len()).expect("a packet");
            let octets = (source.octets(), destination.octets());
            let mut header =
                Ipv4Header::new(len, 64, IpNumber::IPV4, octets.0, octets.1).expect("a packet");
            header.dont_fragment = true;
            header.dscp = (class >> 2).try_into().expect("six bits");
            header.ecn = (class & 3).try_into().expect("two bits");
            header.header_checksum = header.calc_header_checksum();
            header.write_raw(&mut bytes).expect("writing to memory");
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let header = Ipv6Header {
                traffic_class: class,
                flow_label: Ipv6FlowLabel::ZERO,
                payload_length: u16::try_from(inner.len()).expect("a packet"),
                next_header: IpNumber::IPV6,
                hop_limit: 64,
                source: source.octets(),
                destination: destination.octets(),
            };
            header.write(&mut bytes).expect("writing to memory");
        }
        _ => unreachable!("ends of one family"),
    }
    bytes.extend_from_slice(inner);
    bytes
}
