//! Packets made by a library that shares no code with ours.

use std::net::{IpAddr, SocketAddr};

use etherparse::{PacketBuilder, PacketBuilderStep, VlanId};
use proptest::prelude::*;
use redirector_common::{Address, Port, Protocol, Tuple};

/// What a packet is made of.
#[derive(Clone, Debug)]
pub(crate) struct Recipe {
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
    pub(crate) protocol: Protocol,
    pub(crate) ttl: u8,
    pub(crate) vlan_tags: u8,
    pub(crate) payload: Vec<u8>,
}

impl Recipe {
    /// The frame, with every checksum computed in full.
    pub(crate) fn build(&self) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6]);
        let id = VlanId::try_new(42).unwrap();
        match self.vlan_tags {
            0 => self.network(builder),
            1 => self.network(builder.single_vlan(id)),
            _ => self.network(builder.double_vlan(id, VlanId::try_new(7).unwrap())),
        }
    }

    fn network<Step: Network>(&self, builder: Step) -> Vec<u8> {
        let builder = match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(a), IpAddr::V4(b)) => builder.ipv4(a.octets(), b.octets(), self.ttl),
            (IpAddr::V6(a), IpAddr::V6(b)) => builder.ipv6(a.octets(), b.octets(), self.ttl),
            mixed => panic!("mixed families: {mixed:?}"),
        };
        let mut frame = Vec::new();
        match self.protocol {
            Protocol::Tcp => builder
                .tcp(self.source.port(), self.destination.port(), 1, 1024)
                .syn()
                .write(&mut frame, &self.payload),
            Protocol::Udp => builder
                .udp(self.source.port(), self.destination.port())
                .write(&mut frame, &self.payload),
        }
        .unwrap();
        frame
    }

    pub(crate) fn tuple(&self) -> Tuple {
        let end = |socket: SocketAddr| (Address::from(socket.ip()), Port::new(socket.port()));
        Tuple::new(self.protocol, end(self.source), end(self.destination))
    }
}

/// The two steps of the library's builder from which an IP header can be added.
trait Network {
    fn ipv4(self, a: [u8; 4], b: [u8; 4], ttl: u8) -> PacketBuilderStep<etherparse::IpHeaders>;
    fn ipv6(self, a: [u8; 16], b: [u8; 16], ttl: u8) -> PacketBuilderStep<etherparse::IpHeaders>;
}

macro_rules! network {
    ($($step:ty),+) => {$(
        impl Network for PacketBuilderStep<$step> {
            fn ipv4(self, a: [u8; 4], b: [u8; 4], ttl: u8) -> PacketBuilderStep<etherparse::IpHeaders> {
                PacketBuilderStep::<$step>::ipv4(self, a, b, ttl)
            }
            fn ipv6(self, a: [u8; 16], b: [u8; 16], ttl: u8) -> PacketBuilderStep<etherparse::IpHeaders> {
                PacketBuilderStep::<$step>::ipv6(self, a, b, ttl)
            }
        }
    )+};
}

network!(etherparse::Ethernet2Header, etherparse::VlanHeader);

fn socket(v6: bool) -> BoxedStrategy<SocketAddr> {
    if v6 {
        // A global unicast prefix keeps IPv4-mapped addresses out.
        (any::<[u8; 15]>(), 1u16..)
            .prop_map(|(rest, port)| {
                let mut address = [0x20; 16];
                address[1..].copy_from_slice(&rest);
                (IpAddr::from(address), port).into()
            })
            .boxed()
    } else {
        (any::<[u8; 4]>(), 1u16..)
            .prop_map(|(address, port)| (IpAddr::from(address), port).into())
            .boxed()
    }
}

/// Any TCP or UDP packet.
pub(crate) fn recipe() -> impl Strategy<Value = Recipe> {
    any::<bool>().prop_flat_map(|v6| {
        (
            socket(v6),
            socket(v6),
            prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)],
            2u8..,
            0u8..=2,
            proptest::collection::vec(any::<u8>(), 0..64),
        )
            .prop_map(|(source, destination, protocol, ttl, vlan_tags, payload)| Recipe {
                source,
                destination,
                protocol,
                ttl,
                vlan_tags,
                payload,
            })
    })
}

/// Any TCP or UDP packet, and two other ends of the same family.
pub(crate) fn recipe_and_ends() -> impl Strategy<Value = (Recipe, SocketAddr, SocketAddr)> {
    recipe().prop_flat_map(|recipe| {
        let v6 = recipe.source.is_ipv6();
        (Just(recipe), socket(v6), socket(v6))
    })
}
