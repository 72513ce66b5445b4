//! Bringing the maps from what they hold to what they should hold, while packets flow.

use std::collections::BTreeMap;

use redirector_common::service::MaglevLine;
use redirector_common::{
    Address, Backend, BackendId, Frontend, FrontendKey, Peer, Service, ServiceId, SlotKey,
    SlotValue, SourceRange, Taker, TakerKey,
};

use super::contents::{Contents, Ports};
use super::delta::surplus;
use super::encode::Encoded;
use super::info::InfoText;
use super::layout::Step;
use super::lines::{LineTable, lines_of};
use super::ports::PortTable;
use super::table::{Table, TableError};

type DynTable<K, V> = Box<dyn Table<K, V> + Send>;

/// The maps of services.
pub struct Tables {
    /// `FRONTENDS`.
    pub frontends: DynTable<FrontendKey, Frontend>,
    /// `SERVICES`.
    pub services: DynTable<ServiceId, Service>,
    /// `SOURCE_RANGES`.
    pub ranges: DynTable<SourceRange, u32>,
    /// `MAGLEV`.
    pub maglev: Box<dyn LineTable + Send>,
    /// `BACKENDS`.
    pub backends: DynTable<BackendId, Backend>,
    /// `TAKERS`.
    pub takers: DynTable<TakerKey, Taker>,
    /// `VIPS`.
    pub vips: DynTable<Address, u32>,
    /// `PEERS`.
    pub peers: DynTable<Address, Peer>,
    /// `SLOTS`.
    pub slots: DynTable<SlotKey, SlotValue>,
    /// `SERVICE_INFO`.
    pub infos: DynTable<ServiceId, InfoText>,
    /// `PORTS`.
    pub ports: Box<dyn PortTable + Send>,
    /// Waits until no packet is being looked at that was when this was called.
    pub wait_for_packets: Box<dyn FnMut() + Send>,
}

/// How much was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Writes {
    /// Entries written.
    pub set: usize,
    /// Entries removed.
    pub removed: usize,
    /// System calls that it took.
    pub calls: usize,
}

impl Writes {
    /// Whether nothing had to be written.
    #[must_use]
    pub const fn is_none(self) -> bool {
        self.set == 0 && self.removed == 0
    }
}

impl std::ops::AddAssign for Writes {
    fn add_assign(&mut self, other: Self) {
        self.set += other.set;
        self.removed += other.removed;
        self.calls += other.calls;
    }
}

impl Tables {
    /// Reads everything but tables.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn read(&self) -> Result<Contents, TableError> {
        let infos = self.infos.entries()?;
        let mut services = self.services.entries()?;
        // In an array, a service without backends looks like an element that is not used.
        for id in infos.keys() {
            services.entry(*id).or_default();
        }
        Ok(Contents {
            frontends: self.frontends.entries()?,
            services,
            ranges: self.ranges.entries()?,
            backends: self.backends.entries()?,
            takers: self.takers.entries()?,
            vips: self.vips.entries()?,
            peers: self.peers.entries()?,
            slots: self.slots.entries()?,
            infos,
            ports: Ports { blocks: self.ports.entries()? },
        })
    }

    /// Writes what differs between `actual`, which the maps hold, and `desired`, in an order in
    /// which every packet finds a whole way from its frontend to a backend, the old or the new.
    /// `actual` follows; after an error it has to be read again.
    ///
    /// A frontend that moves from one service to another may for a moment lead to what the one
    /// it leaves has become.
    ///
    /// A client that may come before and after may come meanwhile, and one that may do neither
    /// may not: a service that changes its source ranges has both for a moment.
    ///
    /// Ports only gain flags here: [`release_ports`](Self::release_ports) takes them away once no
    /// flow needs them.
    ///
    /// # Errors
    ///
    /// If the kernel refuses a write. What was written stays, and is consistent.
    pub fn sync(&mut self, actual: &mut Contents, desired: Encoded) -> Result<Writes, TableError> {
        let Encoded { mut contents, lines } = desired;
        let has_vips = !contents.vips.is_empty();
        let writes = self.write(actual, &contents, &lines, has_vips)?;
        contents.ports = actual.ports.union(&contents.ports);
        *actual = contents;
        Ok(writes)
    }

    /// The same of some services alone. `has_vips`: whether there are addresses that only frontends
    /// have, of any service.
    ///
    /// # Errors
    ///
    /// As [`sync`](Self::sync).
    pub fn sync_step(&mut self, step: &Step, has_vips: bool) -> Result<Writes, TableError> {
        self.write(&step.before, &step.after, &step.lines, has_vips)
    }

    fn write(
        &mut self,
        actual: &Contents,
        desired: &Contents,
        lines: &[(u32, MaglevLine)],
        has_vips: bool,
    ) -> Result<Writes, TableError> {
        let ports = actual.ports.union(&desired.ports).blocks;
        let mut writes = Writes::default();

        // 1. No new flow starts towards what goes. What has become this host's own address gets
        //    all that is sent to it.
        writes += remove(&mut *self.vips, &actual.vips, &desired.vips)?;
        writes += remove(&mut *self.frontends, &actual.frontends, &desired.frontends)?;

        // 2. What new ways lead to. Nothing that a packet can reach is overwritten: numbers and
        //    regions are free ones. Names come first, so that no number is ever without one.
        writes += set(&mut *self.infos, &actual.infos, &desired.infos)?;
        writes += set(&mut *self.backends, &actual.backends, &desired.backends)?;
        for lines in lines.chunks(CHUNK) {
            let calls = self.maglev.set_lines(lines)?;
            writes += Writes { set: lines.len(), removed: 0, calls };
        }
        writes += set(&mut *self.ranges, &actual.ranges, &desired.ranges)?;
        writes += set(&mut *self.takers, &actual.takers, &desired.takers)?;
        writes += set(&mut *self.peers, &actual.peers, &desired.peers)?;
        writes += set(&mut *self.slots, &actual.slots, &desired.slots)?;
        writes += set(&mut *self.ports, &actual.ports.blocks, &ports)?;

        // 3. The new ways: one store moves a service to its new table.
        writes += set(&mut *self.services, &actual.services, &desired.services)?;
        writes += set(&mut *self.frontends, &actual.frontends, &desired.frontends)?;
        //    Clients leave the backends that take no new flows, and what frontends' addresses do
        //    not serve ends here.
        writes += remove(&mut *self.takers, &actual.takers, &desired.takers)?;
        writes += set(&mut *self.vips, &actual.vips, &desired.vips)?;
        self.ports.mark_vips(has_vips)?;

        // 4. What no way leads to any more, once no packet is on an old one. What is left in lines
        //    that no table has is seen by nobody, until they are another's.
        if has_surplus(&actual.services, &desired.services)
            || has_surplus(&actual.ranges, &desired.ranges)
            || has_surplus(&actual.backends, &desired.backends)
            || leaves_lines(&actual.services, &desired.services)
        {
            (self.wait_for_packets)();
        }
        writes += remove(&mut *self.services, &actual.services, &desired.services)?;
        writes += remove(&mut *self.peers, &actual.peers, &desired.peers)?;
        writes += remove(&mut *self.ranges, &actual.ranges, &desired.ranges)?;
        writes += remove(&mut *self.slots, &actual.slots, &desired.slots)?;
        writes += remove(&mut *self.backends, &actual.backends, &desired.backends)?;
        writes += remove(&mut *self.infos, &actual.infos, &desired.infos)?;
        Ok(writes)
    }

    /// Takes flags from ports that are neither desired nor used by a flow. `in_use` must have
    /// been found after the last [`sync`](Self::sync) ended.
    ///
    /// # Errors
    ///
    /// If the kernel refuses a write.
    pub fn release_ports(
        &mut self,
        actual: &mut Contents,
        desired: &Ports,
        in_use: &Ports,
    ) -> Result<Writes, TableError> {
        let keep = desired.union(&actual.ports.intersection(in_use));
        let mut writes = set(&mut *self.ports, &actual.ports.blocks, &keep.blocks)?;
        writes += remove(&mut *self.ports, &actual.ports.blocks, &keep.blocks)?;
        actual.ports = keep;
        Ok(writes)
    }
}

/// Entries written at once: what a large cluster needs is not to stand in memory once more.
const CHUNK: usize = 1024;

/// Writes what is missing or differs.
fn set<K: Ord + Copy, V: PartialEq + Clone>(
    table: &mut dyn Table<K, V>,
    actual: &BTreeMap<K, V>,
    desired: &BTreeMap<K, V>,
) -> Result<Writes, TableError> {
    let mut writes = Writes::default();
    let mut missing = desired.iter().filter(|(key, value)| actual.get(key) != Some(value));
    loop {
        let some = missing.by_ref().take(CHUNK);
        let some: Vec<(K, V)> = some.map(|(key, value)| (*key, value.clone())).collect();
        if some.is_empty() {
            return Ok(writes);
        }
        writes.calls += table.set_all(&some)?;
        writes.set += some.len();
    }
}

fn remove<K: Ord + Copy, V>(
    table: &mut dyn Table<K, V>,
    actual: &BTreeMap<K, V>,
    desired: &BTreeMap<K, V>,
) -> Result<Writes, TableError> {
    let surplus = surplus(actual, desired);
    surplus.iter().try_for_each(|key| table.remove(key))?;
    Ok(Writes { set: 0, removed: surplus.len(), calls: surplus.len() })
}

fn has_surplus<K: Ord, V>(actual: &BTreeMap<K, V>, desired: &BTreeMap<K, V>) -> bool {
    actual.keys().any(|key| !desired.contains_key(key))
}

/// Whether a service leaves lines to others.
fn leaves_lines(
    actual: &BTreeMap<ServiceId, Service>,
    desired: &BTreeMap<ServiceId, Service>,
) -> bool {
    actual.iter().any(|(id, old)| {
        let new = desired.get(id).map(lines_of).unwrap_or_default();
        lines_of(old).iter().any(|lines| lines.1 > 0 && !new.contains(lines))
    })
}

#[cfg(test)]
mod tests;
