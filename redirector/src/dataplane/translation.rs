//! How much of the translation block is in use.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use redirector_common::{
    Address, Direction, Family, Flow, Interface, NodeConfig, SnatAddressKey, Tuple,
};
use serde::Serialize;

use super::pinned::{Pinned, PinnedError};

/// The use of the ports for translation. Each address of this host has all of them towards each
/// backend elsewhere; what counts is the backend towards which the fewest are left of those that
/// the addresses of one interface have. Flows of addresses that are gone take none from new ones.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PortUse {
    /// Ports that there are.
    pub ports: usize,
    /// Ports in use towards that backend.
    pub used: usize,
    /// That backend, as `address:port/protocol`; `None`: none is in use.
    pub backend: Option<String>,
}

impl PortUse {
    /// From the flow table, and the addresses that flows are translated to.
    #[must_use]
    pub fn of(flows: &BTreeMap<Tuple, Flow>, node: &NodeConfig, sources: &Sources) -> Self {
        let mut pairs: BTreeMap<Tuple, usize> = BTreeMap::new();
        for flow in flows.values().filter(|flow| is_translated(flow)) {
            let mut pair = flow.translated;
            let Some(first) = sources.first(pair.source) else {
                continue;
            };
            pair.source = first;
            pair.source_port = pair.destination_port;
            *pairs.entry(pair).or_default() += 1;
        }
        let block = usize::from(node.snat_count);
        let uses = pairs.into_iter().map(|(pair, used)| {
            let end = SocketAddr::new(pair.destination.into(), pair.destination_port.number());
            Self {
                ports: block * sources.number(pair.source),
                used,
                backend: Some(format!("{end}/{}", pair.protocol().name().to_ascii_lowercase())),
            }
        });
        let busiest =
            uses.min_by_key(|it| (it.ports.saturating_sub(it.used), usize::MAX - it.used));
        busiest.unwrap_or(Self { ports: block, used: 0, backend: None })
    }
}

/// The addresses that sources are translated to, by interface.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The first address of an interface, for each that it has.
    first: BTreeMap<Address, Address>,
}

impl Sources {
    /// What the maps have.
    ///
    /// # Errors
    ///
    /// If one cannot be read.
    pub fn read(maps: &Pinned) -> Result<Self, PinnedError> {
        Ok(Self::new(&maps.interfaces()?, &maps.snat_addresses()?))
    }

    fn new(
        interfaces: &BTreeMap<u32, Interface>,
        further: &BTreeMap<SnatAddressKey, Address>,
    ) -> Self {
        let first = |address: &Address, ifindex| {
            Some((*address, interfaces.get(ifindex)?.source(address.family())))
        };
        let further = further.iter().filter_map(|(key, address)| first(address, &key.ifindex));
        let families = [Family::V4, Family::V6].into_iter();
        let all = families.flat_map(|it| interfaces.values().map(move |entry| entry.source(it)));
        Self { first: further.chain(all.map(|address| (address, address))).collect() }
    }

    fn first(&self, address: Address) -> Option<Address> {
        self.first.get(&address).copied()
    }

    /// How many addresses an interface has whose first one this is.
    fn number(&self, first: Address) -> usize {
        self.first.values().filter(|address| **address == first).count()
    }
}

/// Whether a flow has a port of the block: clients of programs and pods here keep their own.
fn is_translated(flow: &Flow) -> bool {
    flow.direction() == Direction::Forward && !flow.is_local() && !flow.manner().hands_over()
}

#[cfg(test)]
mod tests {
    use redirector_common::{Manner, Port, Protocol};

    use super::*;

    const NODE: NodeConfig = NodeConfig {
        snat_first: 50_000,
        snat_count: 4,
        lookup_ifindex: 1,
        cache_sets: 0,
        ring_slots: 0,
        netns_cookie: 0,
        moving_until: 0,
        flags: 0,
        reserved: 0,
    };

    fn own(host: u8) -> Address {
        Address::from_v4([10, 0, 0, host])
    }

    /// Two interfaces, with the addresses 1 and 21, and 31.
    fn sources() -> Sources {
        let interface = |host| Interface::new(1, own(host), Address::UNSPECIFIED, false);
        let further = [(SnatAddressKey::new(2, Family::V4, 1), own(21))];
        Sources::new(&[(2, interface(1)), (3, interface(31))].into(), &further.into())
    }

    #[derive(Default)]
    struct Flows(BTreeMap<Tuple, Flow>);

    impl Flows {
        /// A flow by one of the node's addresses and ports to a backend.
        fn add(&mut self, protocol: Protocol, source: (u8, u16), to: u8, local: bool, by: Manner) {
            let end = |host, port| (own(host), Port::new(port));
            let client = self.0.len() as u16;
            let forward = Tuple::new(protocol, end(9, client), end(1, 80));
            let translated = Tuple::new(protocol, end(source.0, source.1), end(to, 8080));
            let mut flow = Flow::new(Direction::Forward, translated, 1, 1, local, 0);
            flow.set_manner(by);
            self.0.insert(forward, flow);
            let mut reply = Flow::new(Direction::Reply, forward.reversed(), 1, 1, local, 0);
            reply.set_manner(by);
            self.0.insert(translated.reversed(), reply);
        }

        fn translate(&mut self, source: u8, ports: std::ops::Range<u16>, to: u8) {
            for port in ports {
                self.add(Protocol::Tcp, (source, port), to, false, Manner::Translate);
            }
        }

        fn busiest(&self) -> PortUse {
            PortUse::of(&self.0, &NODE, &sources())
        }
    }

    fn used(used: usize, ports: usize, backend: &str) -> PortUse {
        PortUse { ports, used, backend: Some(backend.to_owned()) }
    }

    #[test]
    fn the_busiest_backend_counts() {
        let mut flows = Flows::default();
        assert_eq!(flows.busiest(), PortUse { ports: 4, used: 0, backend: None });
        flows.add(Protocol::Udp, (31, 50_003), 2, false, Manner::Translate);
        flows.translate(31, 50_000..50_002, 2);
        flows.translate(31, 50_002..50_003, 3);
        for port in 50_010..50_020 {
            flows.add(Protocol::Tcp, (31, port), 4, true, Manner::Translate);
            flows.add(Protocol::Udp, (31, port), 5, false, Manner::Tunnel);
        }
        assert_eq!(flows.busiest(), used(2, 4, "10.0.0.2:8080/tcp"));
    }

    #[test]
    fn the_addresses_of_an_interface_count_together() {
        let mut flows = Flows::default();
        flows.translate(1, 50_000..50_004, 2);
        flows.translate(21, 50_000..50_001, 2);
        assert_eq!(flows.busiest(), used(5, 8, "10.0.0.2:8080/tcp"));
        // Fewer are left to who has fewer addresses.
        flows.translate(31, 50_000..50_002, 3);
        assert_eq!(flows.busiest(), used(2, 4, "10.0.0.3:8080/tcp"));
        // They end with the address, and nobody else can have their ports.
        flows.translate(99, 50_000..50_004, 4);
        assert_eq!(flows.busiest(), used(2, 4, "10.0.0.3:8080/tcp"));
        flows.translate(21, 50_001..50_004, 2);
        assert_eq!(flows.busiest(), used(8, 8, "10.0.0.2:8080/tcp"));
    }
}
