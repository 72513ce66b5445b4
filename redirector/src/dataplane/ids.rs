//! Numbers of services and backends. They are read back from the maps, so they survive restarts
//! and whatever else changes.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use redirector_common::{Address, Backend, BackendId, Family, Port, ServiceId};

use super::contents::Contents;
use super::info::Info;
use crate::model::ServiceKey;

/// Where the search for free numbers goes on. A number that was freed is taken again as late as
/// possible, because flows that are still listed may name it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cursors {
    service: u32,
    backend: u32,
    group: u32,
    /// Old tables were in the way of new ones as dense as there will be room for.
    pub(crate) is_crowded: bool,
}

impl Cursors {
    /// Whether the same state, encoded again now that it is written, would be better.
    #[must_use]
    pub const fn is_crowded(&self) -> bool {
        self.is_crowded
    }
}

/// Numbers in use, and those handed out since.
#[derive(Debug)]
pub(crate) struct Ids {
    services: BTreeMap<(ServiceKey, Family), ServiceId>,
    backends: HashMap<(Address, Port, bool), BackendId>,
    groups: BTreeMap<GroupKey, u32>,
    used_services: Numbers,
    used_backends: Numbers,
    used_groups: Numbers,
}

/// Who shares what is remembered of clients.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum GroupKey {
    /// Both families of one service.
    Own(ServiceKey),
    /// Every service that names it.
    Named(String),
}

impl GroupKey {
    fn new(service: &ServiceKey, name: Option<&str>) -> Self {
        match name {
            Some(name) => Self::Named(name.to_owned()),
            None => Self::Own(service.clone()),
        }
    }
}

impl Ids {
    /// Reads them back from what the maps hold.
    pub(crate) fn read(actual: &Contents, capacity: (u32, u32), cursors: Cursors) -> Self {
        let mut services = BTreeMap::new();
        let mut groups = BTreeMap::new();
        for (id, value) in &actual.infos {
            // What cannot be read is nobody's, and is removed as such.
            if let Ok(info) = Info::decode(value) {
                if let Some(service) = actual.services.get(id).filter(|it| it.has_affinity()) {
                    let key = GroupKey::new(&info.key, info.group.as_deref());
                    groups.entry(key).or_insert(service.affinity_group);
                }
                services.entry((info.key, info.family)).or_insert(*id);
            }
        }
        let mut backends = HashMap::with_capacity(actual.backends.len());
        for (id, backend) in &actual.backends {
            backends.entry(content(backend)).or_insert(*id);
        }
        let used = actual.services.keys().chain(actual.infos.keys());
        let used_groups = actual.services.values().map(|service| &service.affinity_group);
        Self {
            services,
            backends,
            used_groups: Numbers::new(used_groups, u32::MAX, cursors.group),
            groups,
            used_services: Numbers::new(used, capacity.0, cursors.service),
            used_backends: Numbers::new(actual.backends.keys(), capacity.1, cursors.backend),
        }
    }

    /// The number of a service; `None` if there is none left.
    pub(crate) fn service(&mut self, key: &(ServiceKey, Family)) -> Option<ServiceId> {
        if let Some(id) = self.services.get(key) {
            return Some(*id);
        }
        let id = self.used_services.next()?;
        self.services.insert(key.clone(), id);
        Some(id)
    }

    /// The number of a backend; `None` if there is none left.
    pub(crate) fn backend(&mut self, backend: &Backend) -> Option<BackendId> {
        match self.backends.entry(content(backend)) {
            Entry::Occupied(known) => Some(*known.get()),
            Entry::Vacant(vacant) => Some(*vacant.insert(self.used_backends.next()?)),
        }
    }

    /// The number of the affinity group `name`, or of the service's own; `None` if there is none
    /// left.
    pub(crate) fn group(&mut self, service: &ServiceKey, name: Option<&str>) -> Option<u32> {
        let key = GroupKey::new(service, name);
        if let Some(id) = self.groups.get(&key) {
            return Some(*id);
        }
        let id = self.used_groups.next()?;
        self.groups.insert(key, id);
        Some(id)
    }

    /// Frees the number of a service. Its affinity group keeps its own: others may share it.
    pub(crate) fn free_service(&mut self, key: &(ServiceKey, Family)) {
        if let Some(id) = self.services.remove(key) {
            self.used_services.used.remove(&id);
        }
    }

    /// Frees the number of a backend.
    pub(crate) fn free_backend(&mut self, id: BackendId, backend: &Backend) {
        let key = content(backend);
        if self.backends.get(&key) == Some(&id) {
            self.backends.remove(&key);
        }
        self.used_backends.used.remove(&id);
    }

    /// Where the next search goes on.
    pub(crate) fn cursors(&self) -> Cursors {
        Cursors {
            service: self.used_services.cursor,
            backend: self.used_backends.cursor,
            group: self.used_groups.cursor,
            is_crowded: false,
        }
    }
}

fn content(backend: &Backend) -> (Address, Port, bool) {
    (backend.address, backend.port, backend.is_local())
}

/// Indices of an array, without 0, which stands for "none".
#[derive(Debug)]
struct Numbers {
    used: BTreeSet<u32>,
    capacity: u32,
    cursor: u32,
}

impl Numbers {
    fn new<'a>(used: impl Iterator<Item = &'a u32>, capacity: u32, cursor: u32) -> Self {
        let used: BTreeSet<u32> = used.copied().collect();
        let cursor = cursor.max(used.last().copied().unwrap_or(0));
        Self { used, capacity, cursor }
    }

    fn next(&mut self) -> Option<u32> {
        let after = self.cursor.saturating_add(1)..self.capacity;
        let before = 1..self.capacity;
        let free = after.chain(before).find(|id| !self.used.contains(id))?;
        self.used.insert(free);
        self.cursor = free;
        Some(free)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freed_numbers_are_taken_last() {
        let mut numbers = Numbers::new([1, 2].iter(), 5, 3);
        assert_eq!(numbers.next(), Some(4));
        assert_eq!(numbers.next(), Some(3));
        assert_eq!(numbers.next(), None);
    }
}
