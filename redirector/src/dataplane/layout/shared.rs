//! What services share, counted: it goes with the last that has it.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use redirector_common::node::{PORTS_PER_BLOCK, PortBlock, port_index};
use redirector_common::{Address, BackendId, Port, PortFlags, Protocol};

use super::part::{Lines, Part, PortBit};
use crate::dataplane::contents::Ports;
use crate::dataplane::encode::{Capacity, roomy};
use crate::model::maglev::Density;

/// How many services have what.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Shared {
    lines: Lines,
    backends: BTreeMap<BackendId, u32>,
    vips: BTreeMap<Address, u32>,
    ports: BTreeMap<PortBit, u32>,
    /// Flags that ports should have, by what is counted.
    wanted: Ports,
}

/// What a change touches of it.
#[derive(Debug, Default)]
pub(super) struct Touched {
    pub(super) backends: BTreeSet<BackendId>,
    pub(super) vips: BTreeSet<Address>,
    /// Blocks.
    pub(super) ports: BTreeSet<u32>,
}

impl Touched {
    /// Notes what a service has.
    pub(super) fn note(&mut self, part: &Part) {
        self.vips.extend(&part.vips);
        self.ports.extend(part.blocks());
    }
}

impl Shared {
    /// Without services: the ports for translation alone.
    pub(super) fn new(snat: RangeInclusive<u16>) -> Self {
        let mut shared = Self::default();
        for port in snat {
            for protocol in Protocol::ALL {
                let (block, position) = port_index(protocol, Port::new(port));
                shared.ports.insert((block, position, PortFlags::SNAT.0), 1);
                shared.wanted.add(protocol, Port::new(port), PortFlags::SNAT);
            }
        }
        shared
    }

    /// Counts what a service has.
    pub(super) fn add(&mut self, part: &Part, backends: &BTreeSet<BackendId>) {
        for (sum, lines) in self.lines.iter_mut().zip(part.lines) {
            *sum += lines;
        }
        backends.iter().for_each(|id| *self.backends.entry(*id).or_default() += 1);
        part.vips.iter().for_each(|address| *self.vips.entry(*address).or_default() += 1);
        part.ports.iter().for_each(|bit| *self.ports.entry(*bit).or_default() += 1);
    }

    /// Counts it no longer.
    pub(super) fn remove(&mut self, part: &Part, backends: &BTreeSet<BackendId>) {
        for (sum, lines) in self.lines.iter_mut().zip(part.lines) {
            *sum = sum.saturating_sub(lines);
        }
        backends.iter().for_each(|id| decrease(&mut self.backends, *id));
        part.vips.iter().for_each(|address| decrease(&mut self.vips, *address));
        part.ports.iter().for_each(|bit| decrease(&mut self.ports, *bit));
    }

    pub(super) fn has_backend(&self, id: BackendId) -> bool {
        self.backends.contains_key(&id)
    }

    pub(super) fn has_vip(&self, address: Address) -> bool {
        self.vips.contains_key(&address)
    }

    pub(super) fn has_vips(&self) -> bool {
        !self.vips.is_empty()
    }

    /// Flags that ports should have.
    pub(super) const fn wanted(&self) -> &Ports {
        &self.wanted
    }

    /// Makes the flags of a block of ports what is counted.
    pub(super) fn renew_block(&mut self, block: u32) {
        let bits = self.ports.range((block, 0, 0)..=(block, PORTS_PER_BLOCK as usize, u8::MAX));
        let mut value = PortBlock::default();
        for (_, position, bit) in bits.map(|(key, _)| *key) {
            if let Some(flags) = value.flags.get_mut(position) {
                *flags |= bit;
            }
        }
        if value == PortBlock::default() {
            self.wanted.blocks.remove(&block);
        } else {
            self.wanted.blocks.insert(block, value);
        }
    }

    /// The same of all of them.
    pub(super) fn renew_blocks(&mut self) {
        let blocks: BTreeSet<u32> = self.ports.keys().map(|(block, ..)| *block).collect();
        blocks.into_iter().for_each(|block| self.renew_block(block));
    }

    /// The densest tables that there is room for.
    pub(super) fn fitting(&self, capacity: Capacity) -> Density {
        let mut all = Density::ALL.into_iter().zip(self.lines);
        let fits = all.find(|(_, lines)| *lines <= roomy(capacity));
        let [.., sparsest] = Density::ALL;
        fits.map_or(sparsest, |(density, _)| density)
    }
}

fn decrease<K: Ord>(counts: &mut BTreeMap<K, u32>, key: K) {
    if let Entry::Occupied(mut count) = counts.entry(key) {
        if *count.get() > 1 {
            *count.get_mut() -= 1;
        } else {
            count.remove();
        }
    }
}
