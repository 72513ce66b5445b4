//! Numbers of services and backends. They are read back from the maps, so they survive restarts
//! and whatever else changes.

use std::collections::BTreeMap;

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
}

/// Numbers in use, and those handed out since.
#[derive(Debug)]
pub(crate) struct Ids {
    services: BTreeMap<(ServiceKey, Family), ServiceId>,
    backends: BTreeMap<(Address, Port, bool), BackendId>,
    used_services: Numbers,
    used_backends: Numbers,
}

impl Ids {
    /// Reads them back from what the maps hold.
    pub(crate) fn read(actual: &Contents, capacity: (u32, u32), cursors: Cursors) -> Self {
        let mut services = BTreeMap::new();
        for (id, value) in &actual.infos {
            // What cannot be read is nobody's, and is removed as such.
            if let Ok(info) = Info::decode(value) {
                services.entry((info.key, info.family)).or_insert(*id);
            }
        }
        let mut backends = BTreeMap::new();
        for (id, backend) in &actual.backends {
            backends.entry(content(backend)).or_insert(*id);
        }
        let used = actual.services.keys().chain(actual.infos.keys());
        Self {
            services,
            backends,
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
        if let Some(id) = self.backends.get(&content(backend)) {
            return Some(*id);
        }
        let id = self.used_backends.next()?;
        self.backends.insert(content(backend), id);
        Some(id)
    }

    /// Where the next search goes on.
    pub(crate) fn cursors(&self) -> Cursors {
        Cursors { service: self.used_services.cursor, backend: self.used_backends.cursor }
    }
}

fn content(backend: &Backend) -> (Address, Port, bool) {
    (backend.address, backend.port, backend.is_local())
}

/// Indices of an array, without 0, which stands for "none".
#[derive(Debug)]
struct Numbers {
    used: std::collections::BTreeSet<u32>,
    capacity: u32,
    cursor: u32,
}

impl Numbers {
    fn new<'a>(used: impl Iterator<Item = &'a u32>, capacity: u32, cursor: u32) -> Self {
        let used: std::collections::BTreeSet<u32> = used.copied().collect();
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
