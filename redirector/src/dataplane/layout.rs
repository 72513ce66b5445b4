//! What the maps hold, by service: so that a change of one service costs writes and work for that
//! service alone, however many others there are.
//!
//! [`encode`](super::encode::encode) lays everything out anew, and compares everything. Here the
//! entries of a service are found in what the maps hold, and only they are replaced. What services
//! share (backends, ports, addresses that only frontends have) is counted.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use redirector_common::node::{PORTS_PER_BLOCK, port_index};
use redirector_common::{
    Address, BackendId, Family, FrontendKey, Port, PortFlags, Protocol, ServiceId, SlotKey,
    SourceRange, TakerKey,
};

use super::contents::{Contents, Ports, lines_of};
use super::encode::{Capacity, EncodeError, Encoder, VIP, lines_of_tables, roomy};
use super::ids::{Cursors, Ids};
use super::regions::Regions;
use crate::model::ServiceKey;
use crate::model::desired::DesiredService;
use crate::model::maglev::Density;
use crate::model::state::State;

type Key = (ServiceKey, Family);

/// One flag of one port: block of the map, position in it, bit.
type PortBit = (u32, usize, u8);

/// What the maps hold, by service.
#[derive(Debug)]
pub struct Layout {
    capacity: Capacity,
    density: Density,
    ids: Ids,
    regions: Regions,
    parts: BTreeMap<Key, Part>,
    /// Lines of tables that all services would take at each density.
    lines: [u64; Density::ALL.len()],
    backends: BTreeMap<BackendId, u32>,
    vips: BTreeMap<Address, u32>,
    ports: BTreeMap<PortBit, u32>,
    /// Flags that ports should have.
    wanted: Ports,
    /// Backends listed in each service.
    listed: BTreeSet<(ServiceId, BackendId)>,
}

/// What cannot be found by the number of a service.
#[derive(Debug, Default)]
struct Part {
    id: ServiceId,
    frontends: Vec<FrontendKey>,
    ranges: Vec<SourceRange>,
    vips: Vec<Address>,
    ports: Vec<PortBit>,
    lines: [u64; Density::ALL.len()],
}

/// A change that is worked out and not written yet.
#[derive(Debug, Default)]
pub struct Step {
    /// What the maps hold of the services that change.
    pub before: Contents,
    /// What they should hold of them.
    pub after: Contents,
    gone: Vec<(Key, ServiceId)>,
    unused: Vec<BackendId>,
    regions: BTreeSet<u32>,
}

/// Why everything has to be laid out anew.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// There would be room for denser tables, or there is none for those that there are.
    #[error("tables of another density fit")]
    Density,
    /// It does not fit.
    #[error(transparent)]
    Encode(#[from] EncodeError),
}

impl Layout {
    /// Of what the maps hold, which is what `state` asks for, laid out in full.
    #[must_use]
    pub fn new(
        state: &State,
        actual: &Contents,
        snat: RangeInclusive<u16>,
        capacity: Capacity,
        cursors: Cursors,
    ) -> Self {
        let mut layout = Self {
            capacity,
            density: Density::FULL,
            ids: Ids::read(actual, (capacity.services, capacity.backends), cursors),
            regions: Regions::of(actual.services.values(), capacity.lines),
            parts: BTreeMap::new(),
            lines: Default::default(),
            backends: BTreeMap::new(),
            vips: BTreeMap::new(),
            ports: BTreeMap::new(),
            wanted: Ports::default(),
            listed: actual.listed(),
        };
        for port in snat {
            for protocol in Protocol::ALL {
                let (block, position) = port_index(protocol, Port::new(port));
                layout.ports.insert((block, position, PortFlags::SNAT.0), 1);
                layout.wanted.add(protocol, Port::new(port), PortFlags::SNAT);
            }
        }
        for (key, service) in state.iter() {
            let Some(id) = layout.ids.service(&key) else {
                continue;
            };
            let part = Part::new(id, state, &service);
            for backend in layout.backends_of(actual, id) {
                *layout.backends.entry(backend).or_default() += 1;
            }
            layout.count(&part, true);
            layout.parts.insert(key, part);
        }
        let blocks: BTreeSet<u32> = layout.ports.keys().map(|(block, ..)| *block).collect();
        for block in blocks {
            layout.renew_block(block);
        }
        layout.density = layout.fitting();
        layout
    }

    /// Flags that ports should have.
    #[must_use]
    pub const fn wanted_ports(&self) -> &Ports {
        &self.wanted
    }

    /// Backends listed in each service: those whose flows may live on.
    #[must_use]
    pub const fn listed(&self) -> &BTreeSet<(ServiceId, BackendId)> {
        &self.listed
    }

    /// Where searches for free numbers go on.
    #[must_use]
    pub fn cursors(&self) -> Cursors {
        self.ids.cursors()
    }

    /// Whether there are addresses that only frontends have.
    #[must_use]
    pub fn has_vips(&self) -> bool {
        !self.vips.is_empty()
    }

    /// Works out what has to be written where these services have become others. What comes out
    /// has to be written and [committed](Self::commit); after an error the layout is of no use.
    ///
    /// # Errors
    ///
    /// If everything has to be laid out anew.
    pub fn change(
        &mut self,
        state: &State,
        services: &BTreeSet<ServiceKey>,
        actual: &Contents,
    ) -> Result<Step, LayoutError> {
        let mut step = Step::default();
        let mut touched = Touched::default();
        for service in services {
            for family in [Family::V4, Family::V6] {
                let key = (service.clone(), family);
                if let Some(old) = self.parts.remove(&key) {
                    self.take_out(&old, actual, &mut step, &mut touched);
                    if state.desired(&key.0, family).is_none() {
                        step.gone.push((key.clone(), old.id));
                    }
                }
                if let Some(desired) = state.desired(&key.0, family) {
                    let part = self.put_in(&key, &desired, state, actual, &mut step)?;
                    touched.ports.extend(part.ports.iter().map(|(block, ..)| *block));
                    touched.vips.extend(part.vips.iter().copied());
                    self.parts.insert(key, part);
                }
            }
        }
        if self.fitting() != self.density {
            return Err(LayoutError::Density);
        }
        self.settle(actual, &mut step, touched);
        let peers = state.peers();
        if *peers != actual.peers {
            step.before.peers.clone_from(&actual.peers);
            step.after.peers.clone_from(peers);
        }
        Ok(step)
    }

    /// Notes that a step was written: `actual`, which the maps held before it, follows.
    pub fn commit(&mut self, step: Step, written: Contents, actual: &mut Contents) {
        for (key, _) in &step.gone {
            self.ids.free_service(key);
        }
        for id in &step.unused {
            if let Some(backend) = step.before.backends.get(id) {
                self.ids.free_backend(*id, backend);
            }
        }
        let kept: BTreeSet<u32> = written
            .services
            .values()
            .flat_map(lines_of)
            .filter(|(_, lines)| *lines > 0)
            .map(|(first, _)| first)
            .collect();
        for first in step.regions.difference(&kept) {
            self.regions.release(*first);
        }
        for (key, slot) in &step.before.slots {
            self.listed.remove(&(key.service, slot.backend));
        }
        for (key, slot) in &written.slots {
            self.listed.insert((key.service, slot.backend));
        }
        replace(&mut actual.frontends, step.before.frontends, written.frontends);
        replace(&mut actual.services, step.before.services, written.services);
        replace(&mut actual.ranges, step.before.ranges, written.ranges);
        replace(&mut actual.maglev, step.before.maglev, written.maglev);
        replace(&mut actual.backends, step.before.backends, written.backends);
        replace(&mut actual.takers, step.before.takers, written.takers);
        replace(&mut actual.vips, step.before.vips, written.vips);
        replace(&mut actual.peers, step.before.peers, written.peers);
        replace(&mut actual.slots, step.before.slots, written.slots);
        replace(&mut actual.infos, step.before.infos, written.infos);
        replace(&mut actual.ports.blocks, step.before.ports.blocks, written.ports.blocks);
    }

    /// Takes what a service has from what the maps hold.
    fn take_out(&mut self, part: &Part, actual: &Contents, step: &mut Step, touched: &mut Touched) {
        let before = &mut step.before;
        let id = part.id;
        copy(&mut before.frontends, &actual.frontends, &part.frontends);
        copy(&mut before.ranges, &actual.ranges, &part.ranges);
        copy(&mut before.services, &actual.services, &[id]);
        copy(&mut before.infos, &actual.infos, &[id]);
        before.slots.extend(slots_of(actual, id));
        let takers =
            TakerKey { service: id, backend: 0 }..=TakerKey { service: id, backend: u32::MAX };
        before.takers.extend(actual.takers.range(takers).map(|(key, value)| (*key, *value)));
        for (first, lines) in actual.services.get(&id).into_iter().flat_map(lines_of) {
            let lines = first..first.saturating_add(lines);
            step.regions.extend((!lines.is_empty()).then_some(first));
            before.maglev.extend(actual.maglev.range(lines).map(|(key, value)| (*key, *value)));
        }
        for backend in self.backends_of(actual, id) {
            decrease(&mut self.backends, backend);
            touched.backends.insert(backend);
        }
        touched.vips.extend(part.vips.iter().copied());
        touched.ports.extend(part.ports.iter().map(|(block, ..)| *block));
        self.count(part, false);
    }

    /// Lays a service out.
    fn put_in(
        &mut self,
        key: &Key,
        service: &DesiredService,
        state: &State,
        actual: &Contents,
        step: &mut Step,
    ) -> Result<Part, EncodeError> {
        let mut encoder = Encoder {
            actual,
            capacity: self.capacity,
            density: self.density,
            ids: &mut self.ids,
            regions: &mut self.regions,
            contents: Contents::default(),
        };
        encoder.add_service(key, service)?;
        let contents = encoder.contents;
        let id = contents.services.keys().next().copied().unwrap_or_default();
        let listed: BTreeSet<BackendId> =
            contents.slots.values().map(|slot| slot.backend).collect();
        for backend in listed {
            *self.backends.entry(backend).or_default() += 1;
        }
        let part = Part::new(id, state, service);
        self.count(&part, true);
        let after = &mut step.after;
        after.frontends.extend(contents.frontends);
        after.services.extend(contents.services);
        after.ranges.extend(contents.ranges);
        after.maglev.extend(contents.maglev);
        after.backends.extend(contents.backends);
        after.takers.extend(contents.takers);
        after.slots.extend(contents.slots);
        after.infos.extend(contents.infos);
        Ok(part)
    }

    /// Finds out what becomes of what services share.
    fn settle(&mut self, actual: &Contents, step: &mut Step, mut touched: Touched) {
        touched.backends.extend(step.after.backends.keys());
        for id in touched.backends {
            let known = actual.backends.get(&id);
            step.before.backends.extend(known.map(|backend| (id, *backend)));
            if !self.backends.contains_key(&id) {
                step.unused.push(id);
            } else if let Entry::Vacant(vacant) = step.after.backends.entry(id)
                && let Some(backend) = known
            {
                vacant.insert(*backend);
            }
        }
        for address in touched.vips {
            let known = actual.vips.get(&address);
            step.before.vips.extend(known.map(|value| (address, *value)));
            if self.vips.contains_key(&address) {
                step.after.vips.insert(address, VIP);
            }
        }
        for block in touched.ports {
            self.renew_block(block);
            let known = actual.ports.blocks.get(&block);
            step.before.ports.blocks.extend(known.map(|value| (block, *value)));
            let wanted = self.wanted.blocks.get(&block);
            step.after.ports.blocks.extend(wanted.map(|value| (block, *value)));
        }
    }

    /// Counts what a service shares with others, or no longer does.
    fn count(&mut self, part: &Part, is_new: bool) {
        for (sum, lines) in self.lines.iter_mut().zip(part.lines) {
            *sum = if is_new { *sum + lines } else { sum.saturating_sub(lines) };
        }
        for address in &part.vips {
            if is_new {
                *self.vips.entry(*address).or_default() += 1;
            } else {
                decrease(&mut self.vips, *address);
            }
        }
        for bit in &part.ports {
            if is_new {
                *self.ports.entry(*bit).or_default() += 1;
            } else {
                decrease(&mut self.ports, *bit);
            }
        }
    }

    /// Makes the flags of a block of ports what is counted.
    fn renew_block(&mut self, block: u32) {
        self.wanted.blocks.remove(&block);
        let bits = self.ports.range((block, 0, 0)..=(block, PORTS_PER_BLOCK as usize, u8::MAX));
        for (_, position, bit) in bits.map(|(key, _)| *key) {
            let flags = &mut self.wanted.blocks.entry(block).or_default().flags;
            if let Some(flags) = flags.get_mut(position) {
                *flags |= bit;
            }
        }
    }

    fn backends_of(&self, actual: &Contents, id: ServiceId) -> BTreeSet<BackendId> {
        slots_of(actual, id).map(|(_, slot)| slot.backend).collect()
    }

    /// The densest tables that there is room for.
    fn fitting(&self) -> Density {
        let mut all = Density::ALL.into_iter().zip(self.lines);
        let fits = all.find(|(_, lines)| *lines <= roomy(self.capacity));
        let [.., sparsest] = Density::ALL;
        fits.map_or(sparsest, |(density, _)| density)
    }
}

/// What services share and a step touches.
#[derive(Debug, Default)]
struct Touched {
    backends: BTreeSet<BackendId>,
    vips: BTreeSet<Address>,
    /// Blocks.
    ports: BTreeSet<u32>,
}

impl Part {
    fn new(id: ServiceId, state: &State, service: &DesiredService) -> Self {
        let vips: BTreeSet<Address> = state.vips(service).collect();
        let ranges = service.source_ranges.iter().flatten();
        Self {
            id,
            frontends: service
                .frontends
                .keys()
                .chain(service.foreign.keys())
                .chain(&service.localhost)
                .copied()
                .collect(),
            ranges: ranges
                .map(|range| SourceRange::new(id, range.addr().into(), range.prefix_len()))
                .collect(),
            vips: vips.into_iter().collect(),
            ports: port_bits(service),
            lines: Density::ALL.map(|density| lines_of_tables(service, density)),
        }
    }
}

/// The flags of ports that a service needs.
fn port_bits(service: &DesiredService) -> Vec<PortBit> {
    let mut ports = Ports::default();
    Encoder::add_ports(&mut ports, service);
    let mut bits = Vec::new();
    for (block, value) in ports.blocks {
        for (position, flags) in value.flags.into_iter().enumerate() {
            let set = (0..u8::BITS).map(|bit| 1 << bit).filter(|bit| flags & bit != 0);
            bits.extend(set.map(|bit| (block, position, bit)));
        }
    }
    bits
}

fn slots_of(
    actual: &Contents,
    service: ServiceId,
) -> impl Iterator<Item = (SlotKey, redirector_common::SlotValue)> {
    let keys = SlotKey { service, slot: 0 }..=SlotKey { service, slot: u32::MAX };
    actual.slots.range(keys).map(|(key, value)| (*key, *value))
}

fn copy<K: Ord + Copy, V: Copy>(to: &mut BTreeMap<K, V>, from: &BTreeMap<K, V>, keys: &[K]) {
    to.extend(keys.iter().filter_map(|key| Some((*key, *from.get(key)?))));
}

/// Puts what was written in the place of what was there before.
fn replace<K: Ord + Copy, V: Copy>(
    all: &mut BTreeMap<K, V>,
    before: BTreeMap<K, V>,
    written: BTreeMap<K, V>,
) {
    for key in before.into_keys().filter(|key| !written.contains_key(key)) {
        all.remove(&key);
    }
    all.extend(written);
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

#[cfg(test)]
mod tests;
