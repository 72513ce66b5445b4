//! Captures, read back by libraries that did not write them.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "not our own enums: what we write, and the rest"
)]

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use pcap_parser::{
    Block, OptionCode, PcapNGOption, pcapng::parse_block_le, traits::PcapNGPacketBlock as _,
};

/// A packet of a capture.
#[derive(Clone, Debug)]
pub(super) struct Captured {
    pub(super) interface: String,
    /// Since 1970.
    pub(super) time: Duration,
    pub(super) comment: String,
    pub(super) source: SocketAddr,
    pub(super) destination: SocketAddr,
    pub(super) payload: Vec<u8>,
    /// Of the IP header, and of TCP or UDP.
    pub(super) has_right_checksums: bool,
}

impl Captured {
    /// The packets of a file.
    pub(super) fn parse(file: &[u8]) -> Result<Vec<Self>> {
        let mut interfaces = Vec::new();
        let mut packets = Vec::new();
        for block in blocks(file)? {
            match block {
                Block::SectionHeader(header) => ensure!(!header.big_endian(), "{header:?}"),
                Block::InterfaceDescription(interface) => {
                    ensure!(interface.if_tsresol == 9, "{interface:?}");
                    interfaces.push(text(&interface.options, OptionCode::IfName)?);
                }
                Block::EnhancedPacket(packet) => {
                    let interface = interfaces.get(packet.if_id as usize).context("undescribed")?;
                    let time = u64::from(packet.ts_high) << 32 | u64::from(packet.ts_low);
                    packets.push(Self {
                        interface: interface.clone(),
                        time: Duration::from_nanos(time),
                        comment: text(&packet.options, OptionCode::Comment)?,
                        ..Self::of(packet.packet_data())?
                    });
                }
                other => bail!("{other:?}"),
            }
        }
        Ok(packets)
    }

    /// How long ago it was.
    pub(super) fn age(&self) -> Result<Duration> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        now.checked_sub(self.time).context("it is yet to come")
    }

    fn of(bytes: &[u8]) -> Result<Self> {
        let packet = SlicedPacket::from_ethernet(bytes)?;
        let net = packet.net.context("not IP")?;
        let (addresses, header_is_right): ([IpAddr; 2], bool) = match &net {
            NetSlice::Ipv4(ip) => {
                let header = ip.header().to_header();
                let right = header.header_checksum == header.calc_header_checksum();
                ([header.source.into(), header.destination.into()], right)
            }
            NetSlice::Ipv6(ip) => {
                let header = ip.header().to_header();
                ([header.source.into(), header.destination.into()], true)
            }
            NetSlice::Arp(_) => bail!("not IP"),
        };
        let [source, destination] = addresses;
        let (ports, payload, is, should_be) = match packet.transport.context("no transport")? {
            TransportSlice::Tcp(tcp) => {
                let header = tcp.to_header();
                let payload = tcp.payload();
                let sum = match addresses {
                    [IpAddr::V4(from), IpAddr::V4(to)] => {
                        header.calc_checksum_ipv4_raw(from.octets(), to.octets(), payload)?
                    }
                    [IpAddr::V6(from), IpAddr::V6(to)] => {
                        header.calc_checksum_ipv6_raw(from.octets(), to.octets(), payload)?
                    }
                    _ => bail!("{addresses:?}"),
                };
                let ports = [header.source_port, header.destination_port];
                (ports, payload.to_vec(), header.checksum, sum)
            }
            other => bail!("{other:?}"),
        };
        Ok(Self {
            interface: String::new(),
            time: Duration::ZERO,
            comment: String::new(),
            source: SocketAddr::new(source, ports[0]),
            destination: SocketAddr::new(destination, ports[1]),
            payload,
            has_right_checksums: header_is_right && is == should_be,
        })
    }
}

/// Bytes of each packet of a file that were kept, and those that there were.
pub(super) fn lengths(file: &[u8]) -> Result<Vec<(u32, u32)>> {
    let lengths = blocks(file)?.into_iter().filter_map(|block| match block {
        Block::EnhancedPacket(packet) => Some((packet.caplen, packet.origlen)),
        _ => None,
    });
    Ok(lengths.collect())
}

fn blocks(mut rest: &[u8]) -> Result<Vec<Block<'_>>> {
    let mut blocks = Vec::new();
    while !rest.is_empty() {
        let (after, block) = parse_block_le(rest).map_err(|error| anyhow!("{error:?}"))?;
        blocks.push(block);
        rest = after;
    }
    Ok(blocks)
}

fn text(options: &[PcapNGOption<'_>], code: OptionCode) -> Result<String> {
    let option =
        options.iter().find(|option| option.code == code).context("an option is missing")?;
    let text = option.as_str().map_err(|error| anyhow!("{error:?}"))?;
    Ok(text.to_owned())
}
