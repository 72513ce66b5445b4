//! A packet's bytes, as its description says.
#![expect(clippy::expect_used, reason = "a packet that contradicts itself is a mistake in a test")]

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    EtherType, Ethernet2Header, IpFragOffset, IpNumber, Ipv4Header, Ipv4Options, Ipv6Header,
    SingleVlanHeader, TcpHeader, UdpHeader, VlanId, checksum::Sum16BitWords,
};

use super::{Checksum, Flags, Packet, Transport};

/// Source and destination.
enum Addresses {
    V4([u8; 4], [u8; 4]),
    V6([u8; 16], [u8; 16]),
}

impl Packet {
    /// The frame.
    ///
    /// # Panics
    ///
    /// If the description contradicts itself: both families at once, too long options.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let transport = self.transport_bytes();
        let mut frame = self.link_bytes();
        match self.addresses() {
            Addresses::V4(source, destination) => {
                let header = self.ipv4_header(source, destination, transport.len());
                frame.extend_from_slice(&header.to_bytes());
            }
            Addresses::V6(source, destination) => {
                let extensions = self.extension_bytes();
                let header = Ipv6Header {
                    traffic_class: self.traffic_class,
                    flow_label: 0xabcde.try_into().expect("twenty bits"),
                    payload_length: u16::try_from(extensions.len() + transport.len())
                        .expect("a payload below 64 KiB"),
                    next_header: IpNumber(self.first_extension()),
                    hop_limit: self.ttl,
                    source,
                    destination,
                };
                frame.extend_from_slice(&header.to_bytes());
                frame.extend_from_slice(&extensions);
            }
        }
        frame.extend_from_slice(&transport);
        frame
    }

    fn addresses(&self) -> Addresses {
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                Addresses::V4(source.octets(), destination.octets())
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                Addresses::V6(source.octets(), destination.octets())
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {
                panic!("a packet of two families: {self:?}")
            }
        }
    }

    fn link_bytes(&self) -> Vec<u8> {
        let inner = match self.source {
            SocketAddr::V4(_) => EtherType::IPV4,
            SocketAddr::V6(_) => EtherType::IPV6,
        };
        // IEEE 802.1ad: the outer of two tags has a type of its own.
        let outer = match self.vlans.len() {
            0 => inner,
            1 => EtherType::VLAN_TAGGED_FRAME,
            _ => EtherType::PROVIDER_BRIDGING,
        };
        let [destination, source] = self.macs;
        let ethernet = Ethernet2Header { destination, source, ether_type: outer };
        let mut frame = ethernet.to_bytes().to_vec();
        for (index, &vlan) in self.vlans.iter().enumerate() {
            let last = index + 1 == self.vlans.len();
            let tag = SingleVlanHeader {
                vlan_id: VlanId::try_new(vlan).expect("twelve bits"),
                ether_type: if last { inner } else { EtherType::VLAN_TAGGED_FRAME },
                ..SingleVlanHeader::default()
            };
            frame.extend_from_slice(&tag.to_bytes());
        }
        frame
    }

    fn ipv4_header(&self, source: [u8; 4], destination: [u8; 4], payload: usize) -> Ipv4Header {
        let (offset, more_fragments) = self.fragment.unwrap_or((0, false));
        let mut header = Ipv4Header {
            total_len: u16::try_from(20 + self.options.len() + payload)
                .expect("a packet below 64 KiB"),
            identification: 0x1234,
            dont_fragment: self.fragment.is_none(),
            more_fragments,
            fragment_offset: IpFragOffset::try_new(offset).expect("thirteen bits"),
            time_to_live: self.ttl,
            protocol: IpNumber(self.protocol()),
            source,
            destination,
            options: Ipv4Options::try_from(self.options.as_slice()).expect("up to ten words"),
            ..Ipv4Header::default()
        };
        header.dscp = (self.traffic_class >> 2).try_into().expect("six bits");
        header.ecn = (self.traffic_class & 3).try_into().expect("two bits");
        header.header_checksum = header.calc_header_checksum();
        header
    }

    const fn protocol(&self) -> u8 {
        match self.transport {
            Transport::Tcp(_) => 6,
            Transport::Udp => 17,
        }
    }

    fn first_extension(&self) -> u8 {
        self.extensions.first().map_or(self.protocol(), |extension| extension.number)
    }

    fn extension_bytes(&self) -> Vec<u8> {
        let following = self.extensions.iter().skip(1).map(|extension| extension.number);
        let following = following.chain([self.protocol()]);
        let mut bytes = Vec::new();
        for (extension, next) in self.extensions.iter().zip(following) {
            bytes.push(next);
            bytes.extend_from_slice(&extension.bytes[1..]);
        }
        bytes
    }

    fn transport_bytes(&self) -> Vec<u8> {
        let (mut bytes, right, field) = match self.transport {
            Transport::Tcp(flags) => {
                let header = self.tcp_header(flags);
                let right = self.tcp_checksum(&header);
                (header.to_bytes().to_vec(), right, 16)
            }
            Transport::Udp => {
                let header = self.udp_header();
                (header.to_bytes().to_vec(), header.checksum, 6)
            }
        };
        let checksum = match self.checksum {
            Checksum::Right => right,
            Checksum::WrongBy(error) => add(right, error),
            Checksum::Absent => 0,
            Checksum::Partial => self.pseudo_header_sum(bytes.len() + self.payload.len()),
        };
        bytes[field..field + 2].copy_from_slice(&checksum.to_be_bytes());
        bytes.extend_from_slice(&self.payload);
        bytes
    }

    /// Not complemented, as it stands in the field until the card adds the rest.
    fn pseudo_header_sum(&self, length: usize) -> u16 {
        let length = u16::try_from(length).expect("a payload below 64 KiB");
        let sum = match self.addresses() {
            Addresses::V4(source, destination) => {
                Sum16BitWords::new().add_4bytes(source).add_4bytes(destination)
            }
            Addresses::V6(source, destination) => {
                Sum16BitWords::new().add_16bytes(source).add_16bytes(destination)
            }
        };
        let sum = sum.add_2bytes([0, self.protocol()]).add_2bytes(length.to_be_bytes());
        !sum.ones_complement().to_be()
    }

    fn tcp_header(&self, flags: Flags) -> TcpHeader {
        let (source, destination) = (self.source.port(), self.destination.port());
        let mut header = TcpHeader::new(source, destination, 0x1020_3040, 0xfaf0);
        header.acknowledgment_number = if flags.ack { 0x5060_7080 } else { 0 };
        header.syn = flags.syn;
        header.ack = flags.ack;
        header.fin = flags.fin;
        header.rst = flags.rst;
        header.set_options_raw(&self.tcp_options).expect("up to ten words");
        header
    }

    fn tcp_checksum(&self, header: &TcpHeader) -> u16 {
        let checksum = match self.addresses() {
            Addresses::V4(source, destination) => {
                header.calc_checksum_ipv4_raw(source, destination, &self.payload)
            }
            Addresses::V6(source, destination) => {
                header.calc_checksum_ipv6_raw(source, destination, &self.payload)
            }
        };
        checksum.expect("a payload below 64 KiB")
    }

    fn udp_header(&self) -> UdpHeader {
        let mut header = UdpHeader {
            source_port: self.source.port(),
            destination_port: self.destination.port(),
            length: u16::try_from(8 + self.payload.len()).expect("a payload below 64 KiB"),
            checksum: 0,
        };
        let checksum = match self.addresses() {
            Addresses::V4(source, destination) => {
                header.calc_checksum_ipv4_raw(source, destination, &self.payload)
            }
            Addresses::V6(source, destination) => {
                header.calc_checksum_ipv6_raw(source, destination, &self.payload)
            }
        };
        header.checksum = checksum.expect("a payload below 64 KiB");
        header
    }
}

/// One's-complement addition.
fn add(a: u16, b: u16) -> u16 {
    let (sum, carry) = a.overflowing_add(b);
    sum + u16::from(carry)
}
