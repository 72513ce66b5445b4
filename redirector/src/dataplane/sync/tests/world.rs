//! The maps as packets see them, which check after each single write that every way is whole.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use redirector_common::node::PortBlock;
use redirector_common::service::{MAGLEV_LINE, MaglevLine};
use redirector_common::{Address, BackendId, Origin, PortFlags, Service, ServiceId};

use crate::dataplane::contents::Contents;
use crate::dataplane::lines::{LineTable, lines_of};
use crate::dataplane::ports::PortTable;
use crate::dataplane::sync::{DynTable, Tables};
use crate::dataplane::table::{Table, TableError};

/// The maps as packets see them.
#[derive(Default)]
pub(super) struct World {
    pub(super) contents: Contents,
    pub(super) lines: Lines,
    /// What packets may still be looking at although nothing leads there any more.
    watched: Option<(Contents, Lines)>,
    /// Before and after.
    between: Option<(Contents, Contents)>,
    /// Whether packets to other ports ask for addresses that only frontends have.
    pub(super) vips: bool,
}

type Lines = BTreeMap<u32, MaglevLine>;

impl World {
    /// Checks from here on what happens between two states.
    pub(super) fn begin(&mut self, before: &Contents, after: &Contents) {
        let used = before.services.values().flat_map(lines_of);
        let used = used.flat_map(|(first, lines)| first..first + lines);
        let used = used.map(|line| (line, self.lines[&line])).collect();
        self.watched = Some((before.clone(), used));
        self.between = Some((before.clone(), after.clone()));
    }

    pub(super) fn end(&mut self) {
        self.watched = None;
        self.between = None;
    }

    /// The entries of a service's table.
    pub(super) fn table(&self, service: &Service, origin: Origin) -> Vec<BackendId> {
        let (offset, size) = service.table(origin);
        let entry = |entry: u32| {
            let line = self.lines.get(&(entry / MAGLEV_LINE)).expect("the table is whole");
            line.entries[(entry % MAGLEV_LINE) as usize]
        };
        (offset..offset + size).map(entry).collect()
    }

    fn check(&self) {
        self.check_ways();
        if let Some((before, after)) = &self.between {
            check_sources(before, &self.contents, after);
        }
        if let Some((watched, lines)) = &self.watched {
            for (line, value) in lines {
                assert_eq!(self.lines.get(line), Some(value), "line {line} in use");
            }
            for (id, value) in &watched.backends {
                assert_eq!(self.contents.backends.get(id), Some(value), "backend {id} in use");
            }
            for id in watched.services.keys() {
                assert!(self.contents.services.contains_key(id), "service {id} in use");
            }
            for range in watched.ranges.keys() {
                assert!(self.contents.ranges.contains_key(range), "{range:?} in use");
            }
        }
    }

    fn check_ways(&self) {
        let contents = &self.contents;
        for (frontend, value) in &contents.frontends {
            let service = contents.services.get(&value.service);
            let service = service.unwrap_or_else(|| panic!("{frontend:?} leads to no service"));
            for origin in Origin::ALL {
                let table = self.table(service, origin);
                for backend in &table {
                    let found = contents.backends.contains_key(backend);
                    assert!(found, "{frontend:?} leads to no backend from {origin:?}");
                }
            }
            let flags = contents.ports.get(frontend.protocol(), frontend.port);
            assert!(flags.intersects(PortFlags::FRONTEND), "{frontend:?} is not looked up");
            assert!(contents.infos.contains_key(&value.service), "{frontend:?} has no name");
        }
    }

    /// Between two states TC alone may serve a frontend; in a state XDP takes part where it can.
    pub(super) fn check_remote(&self) {
        let contents = &self.contents;
        for (frontend, value) in &contents.frontends {
            let service = &contents.services[&value.service];
            let table = self.table(service, Origin::Outside);
            let remote = table.iter().any(|id| !contents.backends[id].is_local());
            let flags = contents.ports.get(frontend.protocol(), frontend.port);
            assert!(!remote || flags.intersects(PortFlags::REMOTE), "{frontend:?} passes XDP");
        }
    }

    /// Clients may stay with exactly those backends that new flows may go to.
    pub(super) fn check_takers(&self) {
        let contents = &self.contents;
        for (id, service) in &contents.services {
            for origin in Origin::ALL {
                let table = self.table(service, origin);
                let expected: BTreeSet<_> = match service.has_affinity() {
                    true => table.into_iter().collect(),
                    false => BTreeSet::new(),
                };
                let takers = contents.takers.iter();
                let found: BTreeSet<_> = takers
                    .filter(|(key, taker)| key.service == *id && taker.takes_from(origin))
                    .map(|(key, _)| key.backend)
                    .collect();
                assert_eq!(found, expected, "service {id} from {origin:?}");
            }
        }
    }
}

/// Who may come to a service before and after may come meanwhile, and who may not, may not.
fn check_sources(before: &Contents, now: &Contents, after: &Contents) {
    for (frontend, value) in &now.frontends {
        let same = |contents: &Contents| contents.frontends.get(frontend) == Some(value);
        if !same(before) || !same(after) {
            continue;
        }
        for client in ["10.1.0.1", "10.2.0.1", "10.2.3.4", "2001:db8:1::1", "2001:db8:2::1"] {
            let client = client.parse::<IpAddr>().expect("an address").into();
            let [was, is, will] = [before, now, after].map(|it| admits(it, value.service, client));
            assert!(was != will || is == was, "{client} to {frontend:?}: {was}, {is}, {will}");
        }
    }
}

/// What packets find.
pub(super) fn admits(contents: &Contents, service: ServiceId, client: Address) -> bool {
    !contents.services[&service].limits_sources()
        || contents.ranges.keys().any(|range| range.admits(service, &client))
}

struct Watched<K, V> {
    world: Arc<Mutex<World>>,
    select: fn(&mut Contents) -> &mut BTreeMap<K, V>,
    /// What an array of the kernel cannot tell from an element that is not there.
    is_unused: fn(&V) -> bool,
}

impl<K: Ord + Copy, V: Clone> Table<K, V> for Watched<K, V> {
    fn entries(&self) -> Result<BTreeMap<K, V>, TableError> {
        let mut world = self.world.lock().expect("not poisoned");
        let mut all = (self.select)(&mut world.contents).clone();
        all.retain(|_, value| !(self.is_unused)(value));
        Ok(all)
    }

    fn set(&mut self, key: &K, value: &V) -> Result<(), TableError> {
        let mut world = self.world.lock().expect("not poisoned");
        (self.select)(&mut world.contents).insert(*key, value.clone());
        world.check();
        Ok(())
    }

    fn remove(&mut self, key: &K) -> Result<(), TableError> {
        let mut world = self.world.lock().expect("not poisoned");
        (self.select)(&mut world.contents).remove(key);
        world.check();
        Ok(())
    }
}

struct WatchedLines(Arc<Mutex<World>>);

impl LineTable for WatchedLines {
    fn lines(&self, first: u32, count: u32) -> Result<Vec<MaglevLine>, TableError> {
        self.0.lock().expect("not poisoned").lines.lines(first, count)
    }

    fn set_lines(&mut self, lines: &[(u32, MaglevLine)]) -> Result<usize, TableError> {
        let mut world = self.0.lock().expect("not poisoned");
        for (line, value) in lines {
            world.lines.insert(*line, *value);
            world.check();
        }
        Ok(1)
    }
}

impl PortTable for Watched<u32, PortBlock> {
    fn mark_vips(&mut self, vips: bool) -> Result<(), TableError> {
        self.world.lock().expect("not poisoned").vips = vips;
        Ok(())
    }
}

pub(super) fn tables(world: &Arc<Mutex<World>>) -> Tables {
    fn table<K: Ord + Copy + Send + 'static, V: Clone + Send + 'static>(
        world: &Arc<Mutex<World>>,
        select: fn(&mut Contents) -> &mut BTreeMap<K, V>,
    ) -> DynTable<K, V> {
        let world = Arc::clone(world);
        Box::new(Watched { world, select, is_unused: |_| false })
    }
    let waiting = Arc::clone(world);
    Tables {
        frontends: table(world, |contents| &mut contents.frontends),
        services: Box::new(Watched {
            world: Arc::clone(world),
            select: |contents| &mut contents.services,
            is_unused: |service| *service == Service::default(),
        }),
        ranges: table(world, |contents| &mut contents.ranges),
        maglev: Box::new(WatchedLines(Arc::clone(world))),
        backends: table(world, |contents| &mut contents.backends),
        slots: table(world, |contents| &mut contents.slots),
        infos: table(world, |contents| &mut contents.infos),
        takers: table(world, |contents| &mut contents.takers),
        vips: table(world, |contents| &mut contents.vips),
        peers: table(world, |contents| &mut contents.peers),
        ports: Box::new(Watched {
            world: Arc::clone(world),
            select: |contents| &mut contents.ports.blocks,
            is_unused: |_| false,
        }),
        wait_for_packets: Box::new(move || waiting.lock().expect("not poisoned").watched = None),
    }
}
