//! What the maps hold, by service: so that a change of one service costs writes and work for that
//! service alone, however many others there are.
//!
//! [`encode`](super::encode::encode) lays everything out anew, and compares everything. Here the
//! entries of a service are found in what the maps hold, and only they are replaced. What services
//! share (backends, ports, addresses that only frontends have) is counted.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use redirector_common::service::MaglevLine;
use redirector_common::{BackendId, Family, ServiceId, SlotKey, SlotValue, TakerKey};

use self::part::Part;
use self::shared::{Shared, Touched};
use super::contents::{Contents, Ports};
use super::encode::{Capacity, EncodeError, Encoded, Encoder, VIP};
use super::ids::{Cursors, Ids};
use super::lines::{LineTable, lines_of};
use super::regions::Regions;
use crate::model::ServiceKey;
use crate::model::desired::{Desired, DesiredService};
use crate::model::maglev::Density;
use crate::model::state::State;

mod part;
mod shared;

type Key = (ServiceKey, Family);

/// What the maps hold, by service.
#[derive(Debug)]
pub struct Layout {
    capacity: Capacity,
    density: Density,
    ids: Ids,
    regions: Regions,
    parts: BTreeMap<Key, Part>,
    shared: Shared,
    /// Backends listed in each service.
    listed: BTreeSet<(ServiceId, BackendId)>,
}

/// A change that is worked out and not written yet.
#[derive(Debug, Default)]
pub struct Step {
    /// What the maps hold of the services that change.
    pub before: Contents,
    /// What they should hold of them.
    pub after: Contents,
    /// Lines of their new tables.
    pub lines: Vec<(u32, MaglevLine)>,
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
    /// Of what the maps hold, which is what `state` asks for, `desired`, laid out in full.
    #[must_use]
    pub fn new(
        state: &State,
        desired: &Desired,
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
            shared: Shared::new(snat),
            listed: actual.listed(),
        };
        let part = |(key, service): (&Key, &DesiredService)| {
            let part = Part::new(layout.ids.service(key)?, state, service);
            layout.shared.add(&part, &backends_of(actual, part.id));
            Some((key.clone(), part))
        };
        layout.parts = desired.services.iter().filter_map(part).collect();
        layout.shared.renew_blocks();
        layout.density = layout.shared.fitting(capacity);
        layout
    }

    /// Flags that ports should have.
    #[must_use]
    pub const fn wanted_ports(&self) -> &Ports {
        self.shared.wanted()
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
        self.shared.has_vips()
    }

    /// Works out what has to be written where these services have become others, given what the
    /// maps hold. What comes out has to be written and [committed](Self::commit); after an error
    /// the layout is of no use.
    ///
    /// # Errors
    ///
    /// If everything has to be laid out anew.
    pub fn change(
        &mut self,
        state: &State,
        services: &BTreeSet<ServiceKey>,
        actual: &Contents,
        lines: &dyn LineTable,
    ) -> Result<Step, LayoutError> {
        let mut step = Step::default();
        let mut touched = Touched::default();
        for service in services {
            for family in [Family::V4, Family::V6] {
                let key = (service.clone(), family);
                let desired = state.desired(&key.0, family);
                if let Some(old) = self.parts.remove(&key) {
                    self.take_out(&old, actual, &mut step, &mut touched);
                    if desired.is_none() {
                        step.gone.push((key.clone(), old.id));
                    }
                }
                if let Some(desired) = desired {
                    let part = self.put_in(&key, &desired, state, actual, lines, &mut step)?;
                    touched.note(&part);
                    self.parts.insert(key, part);
                }
            }
        }
        if self.shared.fitting(self.capacity) != self.density {
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
    pub fn commit(&mut self, step: Step, actual: &mut Contents) {
        let Step { before, after, .. } = step;
        for (key, _) in &step.gone {
            self.ids.free_service(key);
        }
        for id in &step.unused {
            if let Some(backend) = before.backends.get(id) {
                self.ids.free_backend(*id, backend);
            }
        }
        let kept: BTreeSet<u32> = after.services.values().flat_map(regions_of).collect();
        for first in step.regions.difference(&kept) {
            self.regions.release(*first);
        }
        for (key, slot) in &before.slots {
            self.listed.remove(&(key.service, slot.backend));
        }
        for (key, slot) in &after.slots {
            self.listed.insert((key.service, slot.backend));
        }
        // Ports lose their flags later, when no flow needs them.
        let ports = before.ports.union(&after.ports);
        replace(&mut actual.frontends, before.frontends, after.frontends);
        replace(&mut actual.services, before.services, after.services);
        replace(&mut actual.ranges, before.ranges, after.ranges);
        replace(&mut actual.backends, before.backends, after.backends);
        replace(&mut actual.takers, before.takers, after.takers);
        replace(&mut actual.vips, before.vips, after.vips);
        replace(&mut actual.peers, before.peers, after.peers);
        replace(&mut actual.slots, before.slots, after.slots);
        replace(&mut actual.infos, before.infos, after.infos);
        replace(&mut actual.ports.blocks, before.ports.blocks, ports.blocks);
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
        step.regions.extend(actual.services.get(&id).into_iter().flat_map(regions_of));
        let backends = backends_of(actual, id);
        self.shared.remove(part, &backends);
        touched.backends.extend(backends);
        touched.note(part);
    }

    /// Lays a service out.
    fn put_in(
        &mut self,
        key: &Key,
        service: &DesiredService,
        state: &State,
        actual: &Contents,
        lines: &dyn LineTable,
        step: &mut Step,
    ) -> Result<Part, EncodeError> {
        let mut encoder = Encoder {
            actual,
            lines,
            capacity: self.capacity,
            density: self.density,
            ids: &mut self.ids,
            regions: &mut self.regions,
            encoded: Encoded::default(),
        };
        encoder.add_service(key, service)?;
        let Encoded { contents, lines } = encoder.encoded;
        let id = contents.services.keys().next().copied().unwrap_or_default();
        let part = Part::new(id, state, service);
        self.shared.add(&part, &backends_of(&contents, id));
        step.lines.extend(lines);
        let after = &mut step.after;
        after.frontends.extend(contents.frontends);
        after.services.extend(contents.services);
        after.ranges.extend(contents.ranges);
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
            if !self.shared.has_backend(id) {
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
            if self.shared.has_vip(address) {
                step.after.vips.insert(address, VIP);
            }
        }
        for block in touched.ports {
            self.shared.renew_block(block);
            let known = actual.ports.blocks.get(&block);
            step.before.ports.blocks.extend(known.map(|value| (block, *value)));
            let wanted = self.wanted_ports().blocks.get(&block);
            step.after.ports.blocks.extend(wanted.map(|value| (block, *value)));
        }
    }
}

/// First lines of the tables that a service has.
fn regions_of(service: &redirector_common::Service) -> impl Iterator<Item = u32> + use<> {
    lines_of(service).into_iter().filter(|(_, lines)| *lines > 0).map(|(first, _)| first)
}

fn slots_of(
    contents: &Contents,
    service: ServiceId,
) -> impl Iterator<Item = (SlotKey, SlotValue)> + '_ {
    let keys = SlotKey { service, slot: 0 }..=SlotKey { service, slot: u32::MAX };
    contents.slots.range(keys).map(|(key, value)| (*key, *value))
}

fn backends_of(contents: &Contents, service: ServiceId) -> BTreeSet<BackendId> {
    slots_of(contents, service).map(|(_, slot)| slot.backend).collect()
}

fn copy<K: Ord + Copy, V: Clone>(to: &mut BTreeMap<K, V>, from: &BTreeMap<K, V>, keys: &[K]) {
    to.extend(keys.iter().filter_map(|key| Some((*key, from.get(key)?.clone()))));
}

/// Puts what was written in the place of what was there before.
fn replace<K: Ord, V>(all: &mut BTreeMap<K, V>, before: BTreeMap<K, V>, written: BTreeMap<K, V>) {
    for key in before.into_keys().filter(|key| !written.contains_key(key)) {
        all.remove(&key);
    }
    all.extend(written);
}

#[cfg(test)]
mod tests;
