//! How much of the translation block is in use.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use redirector_common::{Direction, Flow, NodeConfig, Tuple};
use serde::Serialize;

/// The use of the ports for translation. Each address of this host has all of them towards each
/// backend elsewhere, so what counts is the pair of which most are in use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PortUse {
    /// Ports that there are.
    pub ports: u16,
    /// Ports in use towards that backend.
    pub used: usize,
    /// That backend, as `address:port/protocol`; `None`: none is in use.
    pub backend: Option<String>,
}

impl PortUse {
    /// From the flow table.
    #[must_use]
    pub fn of(flows: &BTreeMap<Tuple, Flow>, node: &NodeConfig) -> Self {
        let mut pairs: BTreeMap<Tuple, usize> = BTreeMap::new();
        for flow in flows.values().filter(|flow| is_translated(flow)) {
            let mut pair = flow.translated;
            pair.source_port = pair.destination_port;
            *pairs.entry(pair).or_default() += 1;
        }
        let busiest = pairs.into_iter().max_by_key(|(_, used)| *used);
        Self {
            ports: node.snat_count,
            used: busiest.map_or(0, |(_, used)| used),
            backend: busiest.map(|(pair, _)| {
                let address = IpAddr::from(pair.destination);
                let end = SocketAddr::new(address, pair.destination_port.number());
                format!("{end}/{}", pair.protocol().name().to_ascii_lowercase())
            }),
        }
    }
}

/// Whether a flow has a port of the block: clients of programs and pods here keep their own.
fn is_translated(flow: &Flow) -> bool {
    flow.direction() == Direction::Forward && !flow.is_local() && !flow.manner().hands_over()
}

#[cfg(test)]
mod tests {
    use redirector_common::{Address, Manner, Port, Protocol};

    use super::*;

    #[test]
    fn the_busiest_backend_counts() {
        let mut flows = BTreeMap::new();
        let mut add = |protocol, client: u16, host: u8, backend: u16, local, manner| {
            let end = |host, port| (Address::from_v4([10, 0, 0, host]), Port::new(port));
            let forward = Tuple::new(protocol, end(9, client), end(1, 80));
            let translated = Tuple::new(protocol, end(1, client), end(host, backend));
            let mut flow = Flow::new(Direction::Forward, translated, 1, 1, local, 0);
            flow.set_manner(manner);
            flows.insert(forward, flow);
            let mut reply = Flow::new(Direction::Reply, forward.reversed(), 1, 1, local, 0);
            reply.set_manner(manner);
            flows.insert(translated.reversed(), reply);
        };
        let (tcp, udp) = (Protocol::Tcp, Protocol::Udp);
        add(tcp, 50_000, 2, 8080, false, Manner::Translate);
        add(tcp, 50_001, 2, 8080, false, Manner::Translate);
        add(tcp, 50_002, 3, 8080, false, Manner::Translate);
        add(udp, 50_003, 2, 8080, false, Manner::Translate);
        for client in 50_010..50_020 {
            add(tcp, client, 4, 8080, true, Manner::Translate);
            add(udp, client, 5, 8080, false, Manner::Tunnel);
        }
        let node = NodeConfig { snat_count: 8192, ..NodeConfig::default() };
        let expected = PortUse { ports: 8192, used: 2, backend: Some("10.0.0.2:8080/tcp".into()) };
        assert_eq!(PortUse::of(&flows, &node), expected);
        let unused = PortUse { ports: 8192, used: 0, backend: None };
        assert_eq!(PortUse::of(&BTreeMap::new(), &node), unused);
    }
}
