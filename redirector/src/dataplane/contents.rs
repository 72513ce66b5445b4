//! Everything that the maps hold of services, as plain values: what is there, and what should be.

use std::collections::{BTreeMap, BTreeSet};

use redirector_common::node::{PORTS_PER_BLOCK, PortBlock, port_index};
use redirector_common::{
    Address, Backend, BackendId, Frontend, FrontendKey, Peer, Port, PortFlags, Protocol, Service,
    ServiceId, SlotKey, SlotValue, SourceRange, Taker, TakerKey,
};

use super::info::InfoText;

/// Contents of the maps of services, without the [lines](super::lines) of tables. Unused array
/// elements are absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// `FRONTENDS`.
    pub frontends: BTreeMap<FrontendKey, Frontend>,
    /// `SERVICES`.
    pub services: BTreeMap<ServiceId, Service>,
    /// `SOURCE_RANGES`.
    pub ranges: BTreeMap<SourceRange, u32>,
    /// `BACKENDS`.
    pub backends: BTreeMap<BackendId, Backend>,
    /// `TAKERS`.
    pub takers: BTreeMap<TakerKey, Taker>,
    /// `VIPS`.
    pub vips: BTreeMap<Address, u32>,
    /// `PEERS`.
    pub peers: BTreeMap<Address, Peer>,
    /// `SLOTS`.
    pub slots: BTreeMap<SlotKey, SlotValue>,
    /// `SERVICE_INFO`.
    pub infos: BTreeMap<ServiceId, InfoText>,
    /// `PORTS`.
    pub ports: Ports,
}

impl Contents {
    /// Adds what `other` has besides.
    pub fn keep(&mut self, other: &Self) {
        fn keep<K: Ord + Copy, V: Clone>(map: &mut BTreeMap<K, V>, other: &BTreeMap<K, V>) {
            for (key, value) in other {
                map.entry(*key).or_insert_with(|| value.clone());
            }
        }
        keep(&mut self.frontends, &other.frontends);
        keep(&mut self.services, &other.services);
        keep(&mut self.ranges, &other.ranges);
        keep(&mut self.backends, &other.backends);
        keep(&mut self.takers, &other.takers);
        keep(&mut self.vips, &other.vips);
        for (address, peer) in &other.peers {
            let known = self.peers.entry(*address).or_default();
            *known = known.union(*peer);
        }
        keep(&mut self.slots, &other.slots);
        keep(&mut self.infos, &other.infos);
        self.ports = self.ports.union(&other.ports);
    }

    /// Backends listed in each service: those whose flows may live on.
    #[must_use]
    pub fn listed(&self) -> BTreeSet<(ServiceId, BackendId)> {
        self.slots.iter().map(|(key, value)| (key.service, value.backend)).collect()
    }
}

/// Flags of ports, by block of the `PORTS` array.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ports {
    /// Blocks with any flag set.
    pub blocks: BTreeMap<u32, PortBlock>,
}

impl Ports {
    /// Adds flags to a port.
    pub fn add(&mut self, protocol: Protocol, port: Port, flags: PortFlags) {
        let (block, position) = port_index(protocol, port);
        let block = self.blocks.entry(block).or_default();
        if let Some(byte) = block.flags.get_mut(position) {
            *byte = PortFlags(*byte).union(flags).0;
        }
    }

    /// The flags of a port.
    #[must_use]
    pub fn get(&self, protocol: Protocol, port: Port) -> PortFlags {
        let (block, position) = port_index(protocol, port);
        let flags = self.blocks.get(&block).and_then(|block| block.flags.get(position));
        PortFlags(flags.copied().unwrap_or_default())
    }

    /// The flags of both.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        self.combine(other, |a, b| a | b)
    }

    /// The flags that both have.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        self.combine(other, |a, b| a & b)
    }

    fn combine(&self, other: &Self, flags: impl Fn(u8, u8) -> u8) -> Self {
        let mut blocks = BTreeMap::new();
        for index in self.blocks.keys().chain(other.blocks.keys()) {
            let a = self.blocks.get(index).copied().unwrap_or_default();
            let b = other.blocks.get(index).copied().unwrap_or_default();
            let mut block = PortBlock::default();
            for position in 0..PORTS_PER_BLOCK as usize {
                block.flags[position] = flags(a.flags[position], b.flags[position]);
            }
            if block != PortBlock::default() {
                blocks.insert(*index, block);
            }
        }
        Self { blocks }
    }
}
