//! Frames, put together by `etherparse`: what goes in, and what has to come out.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, bail};
use etherparse::{
    EtherType, Ethernet2Header, IpNumber, Ipv4Header, Ipv6Header, NetSlice, SlicedPacket,
    TcpHeader, TransportSlice, UdpHeader,
};
use redirector_common::Protocol;

use crate::layout::{V4_FRAME, V6_FRAME};

const ETHERNET: usize = 14;

/// A frame's description.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    /// Hardware addresses: destination, source.
    pub(crate) link: [[u8; 6]; 2],
    pub(crate) protocol: Protocol,
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
    pub(crate) ttl: u8,
    /// TCP: whether it opens a connection.
    pub(crate) syn: bool,
    /// IPv4's identification.
    pub(crate) identification: u16,
    /// Low half of the TCP sequence number, or the first word of the UDP payload.
    pub(crate) balance: u16,
}

impl Frame {
    /// Its bytes.
    pub(crate) fn bytes(&self) -> Result<Vec<u8>> {
        let total = if self.source.is_ipv4() { V4_FRAME } else { V6_FRAME };
        let ip_number = match self.protocol {
            Protocol::Tcp => IpNumber::TCP,
            Protocol::Udp => IpNumber::UDP,
        };
        let mut bytes = Vec::with_capacity(total);
        let [destination, source] = self.link;
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let ether_type = EtherType::IPV4;
                Ethernet2Header { source, destination, ether_type }.write(&mut bytes)?;
                let payload = total - ETHERNET - Ipv4Header::MIN_LEN;
                let mut header = Ipv4Header::new(
                    u16::try_from(payload)?,
                    self.ttl,
                    ip_number,
                    from.octets(),
                    to.octets(),
                )?;
                header.identification = self.identification;
                header.dont_fragment = true;
                header.header_checksum = header.calc_header_checksum();
                header.write(&mut bytes)?;
                let rest = self.transport(payload)?;
                let checked = match &rest {
                    Transport::Tcp(tcp, data) => tcp.calc_checksum_ipv4(&header, data)?,
                    Transport::Udp(udp, data) => udp.calc_checksum_ipv4(&header, data)?,
                };
                rest.write(checked, &mut bytes)?;
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let ether_type = EtherType::IPV6;
                Ethernet2Header { source, destination, ether_type }.write(&mut bytes)?;
                let payload = total - ETHERNET - Ipv6Header::LEN;
                let header = Ipv6Header {
                    payload_length: u16::try_from(payload)?,
                    next_header: ip_number,
                    hop_limit: self.ttl,
                    source: from.octets(),
                    destination: to.octets(),
                    ..Ipv6Header::default()
                };
                header.write(&mut bytes)?;
                let rest = self.transport(payload)?;
                let checked = match &rest {
                    Transport::Tcp(tcp, data) => tcp.calc_checksum_ipv6(&header, data)?,
                    Transport::Udp(udp, data) => udp.calc_checksum_ipv6(&header, data)?,
                };
                rest.write(checked, &mut bytes)?;
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {
                bail!("a frame from {} to {}", self.source, self.destination)
            }
        }
        Ok(bytes)
    }

    fn transport(&self, len: usize) -> Result<Transport> {
        let (from, to) = (self.source.port(), self.destination.port());
        Ok(match self.protocol {
            Protocol::Tcp => {
                let mut header = TcpHeader::new(from, to, self.balance.into(), 0x7fff);
                header.syn = self.syn;
                header.ack = !self.syn;
                Transport::Tcp(header, vec![0; len - TcpHeader::MIN_LEN])
            }
            Protocol::Udp => {
                let mut data = vec![0; len - UdpHeader::LEN];
                data[..2].copy_from_slice(&self.balance.to_be_bytes());
                Transport::Udp(UdpHeader::without_ipv4_checksum(from, to, data.len())?, data)
            }
        })
    }

    /// Where two frames differ, in words.
    pub(crate) fn check(&self, found: &[u8]) -> Result<()> {
        let expected = self.bytes().context("the expected frame")?;
        if expected != found {
            bail!("expected {self:?}:\n  {expected:02x?}\nfound\n  {found:02x?}");
        }
        Ok(())
    }
}

/// Source and destination of a UDP packet that was captured.
pub(crate) fn addressed(frame: &[u8]) -> Result<(SocketAddr, SocketAddr)> {
    let packet = SlicedPacket::from_ethernet(frame)?;
    let (source, destination): (IpAddr, IpAddr) = match &packet.net {
        Some(NetSlice::Ipv4(v4)) => {
            (v4.header().source_addr().into(), v4.header().destination_addr().into())
        }
        Some(NetSlice::Ipv6(v6)) => {
            (v6.header().source_addr().into(), v6.header().destination_addr().into())
        }
        Some(NetSlice::Arp(_)) | None => bail!("not an IP packet: {frame:02x?}"),
    };
    let Some(TransportSlice::Udp(udp)) = &packet.transport else {
        bail!("not a UDP packet: {frame:02x?}");
    };
    Ok((
        SocketAddr::new(source, udp.source_port()),
        SocketAddr::new(destination, udp.destination_port()),
    ))
}

enum Transport {
    Tcp(TcpHeader, Vec<u8>),
    Udp(UdpHeader, Vec<u8>),
}

impl Transport {
    fn write(self, checksum: u16, bytes: &mut Vec<u8>) -> Result<()> {
        let data = match self {
            Self::Tcp(mut header, data) => {
                header.checksum = checksum;
                header.write(bytes)?;
                data
            }
            Self::Udp(mut header, data) => {
                header.checksum = checksum;
                header.write(bytes)?;
                data
            }
        };
        bytes.extend(data);
        Ok(())
    }
}
