//! Single packets, put together by `etherparse`: every checksum is computed in full, by code that
//! is not ours.
#![expect(clippy::expect_used, reason = "a packet that contradicts itself is a mistake in a test")]

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    EtherType, Ethernet2Header, IpFragOffset, IpNumber, Ipv4Header, Ipv4Options, Ipv6Header,
    SingleVlanHeader, TcpHeader, UdpHeader, VlanId,
};

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

    /// The frame.
    ///
    /// # Panics
    ///
    /// If the description contradicts itself: both families at once, too long options.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let transport = self.transport_bytes();
        let mut frame = self.link_bytes();
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let header =
                    self.ipv4_header(source.octets(), destination.octets(), transport.len());
                frame.extend_from_slice(&header.to_bytes());
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let extensions = self.extension_bytes();
                let header = Ipv6Header {
                    traffic_class: self.traffic_class,
                    flow_label: 0xabcde.try_into().expect("twenty bits"),
                    payload_length: u16::try_from(extensions.len() + transport.len())
                        .expect("a payload below 64 KiB"),
                    next_header: IpNumber(self.first_extension()),
                    hop_limit: self.ttl,
                    source: source.octets(),
                    destination: destination.octets(),
                };
                frame.extend_from_slice(&header.to_bytes());
                frame.extend_from_slice(&extensions);
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {
                panic!("a packet of two families: {self:?}")
            }
        }
        frame.extend_from_slice(&transport);
        frame
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
        };
        bytes[field..field + 2].copy_from_slice(&checksum.to_be_bytes());
        bytes.extend_from_slice(&self.payload);
        bytes
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
        let checksum = match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                header.calc_checksum_ipv4_raw(source.octets(), destination.octets(), &self.payload)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                header.calc_checksum_ipv6_raw(source.octets(), destination.octets(), &self.payload)
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {
                panic!("a packet of two families: {self:?}")
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
        let checksum = match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                header.calc_checksum_ipv4_raw(source.octets(), destination.octets(), &self.payload)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                header.calc_checksum_ipv6_raw(source.octets(), destination.octets(), &self.payload)
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {
                panic!("a packet of two families: {self:?}")
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
