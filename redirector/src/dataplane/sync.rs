//! Bringing the maps from what they hold to what they should hold, while packets flow.

use redirector_common::service::MaglevLine;
use redirector_common::{
    Address, Backend, BackendId, Frontend, FrontendKey, Service, ServiceId, ServiceInfo, SlotKey,
    SlotValue, SourceRange, Taker, TakerKey,
};

use super::contents::{Contents, Ports};
use super::delta::{Delta, delta};
use super::ports::PortTable;
use super::regions::Regions;
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
    pub maglev: DynTable<u32, MaglevLine>,
    /// `BACKENDS`.
    pub backends: DynTable<BackendId, Backend>,
    /// `TAKERS`.
    pub takers: DynTable<TakerKey, Taker>,
    /// `VIPS`.
    pub vips: DynTable<Address, u32>,
    /// `PEERS`.
    pub peers: DynTable<Address, u32>,
    /// `SLOTS`.
    pub slots: DynTable<SlotKey, SlotValue>,
    /// `SERVICE_INFO`.
    pub infos: DynTable<ServiceId, ServiceInfo>,
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
    /// Reads everything.
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
        // Lines that no table has are never cleared.
        let mut maglev = self.maglev.entries()?;
        let used = Regions::of(services.values(), u32::MAX);
        maglev.retain(|line, _| used.contains(*line));
        Ok(Contents {
            frontends: self.frontends.entries()?,
            services,
            ranges: self.ranges.entries()?,
            maglev,
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
    /// `actual` follows what was written, also when it ends early.
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
    pub fn sync(
        &mut self,
        actual: &mut Contents,
        desired: &Contents,
    ) -> Result<Writes, TableError> {
        self.sync_part(actual, desired, !desired.vips.is_empty())
    }

    /// The same of a part of the maps, of which nothing outside it is spoken of: `actual` and
    /// `desired` have no entries of others. `vips_anywhere`: whether there are
    /// any at all.
    ///
    /// # Errors
    ///
    /// As [`sync`](Self::sync).
    pub fn sync_part(
        &mut self,
        actual: &mut Contents,
        desired: &Contents,
        vips_anywhere: bool,
    ) -> Result<Writes, TableError> {
        let frontends = delta(&actual.frontends, &desired.frontends);
        let services = delta(&actual.services, &desired.services);
        let ranges = delta(&actual.ranges, &desired.ranges);
        let backends = delta(&actual.backends, &desired.backends);
        let takers = delta(&actual.takers, &desired.takers);
        let vips = delta(&actual.vips, &desired.vips);
        let peers = delta(&actual.peers, &desired.peers);
        let maglev = delta(&actual.maglev, &desired.maglev);
        let slots = delta(&actual.slots, &desired.slots);
        let infos = delta(&actual.infos, &desired.infos);
        let ports = delta(&actual.ports.blocks, &actual.ports.union(&desired.ports).blocks);
        let mut writes = Writes::default();

        // 1. No new flow starts towards what goes. What has become this host's own address gets
        //    all that is sent to it.
        writes += remove(&mut *self.vips, &mut actual.vips, &vips)?;
        writes += remove(&mut *self.frontends, &mut actual.frontends, &frontends)?;

        // 2. What new ways lead to. Nothing that a packet can reach is overwritten: numbers and
        //    regions are free ones. Names come first, so that no number is ever without one.
        writes += set(&mut *self.infos, &mut actual.infos, &infos)?;
        writes += set(&mut *self.backends, &mut actual.backends, &backends)?;
        writes += set(&mut *self.maglev, &mut actual.maglev, &maglev)?;
        writes += set(&mut *self.ranges, &mut actual.ranges, &ranges)?;
        writes += set(&mut *self.takers, &mut actual.takers, &takers)?;
        writes += set(&mut *self.peers, &mut actual.peers, &peers)?;
        writes += set(&mut *self.slots, &mut actual.slots, &slots)?;
        writes += set(&mut *self.ports, &mut actual.ports.blocks, &ports)?;

        // 3. The new ways: one store moves a service to its new table.
        writes += set(&mut *self.services, &mut actual.services, &services)?;
        writes += set(&mut *self.frontends, &mut actual.frontends, &frontends)?;
        //    Clients leave the backends that take no new flows, and what frontends' addresses do
        //    not serve ends here.
        writes += remove(&mut *self.takers, &mut actual.takers, &takers)?;
        writes += set(&mut *self.vips, &mut actual.vips, &vips)?;
        self.ports.mark_vips(vips_anywhere)?;

        // 4. What no way leads to any more, once no packet is on an old one.
        let stale = services.remove.len()
            + ranges.remove.len()
            + maglev.remove.len()
            + backends.remove.len();
        if stale > 0 {
            (self.wait_for_packets)();
        }
        writes += remove(&mut *self.services, &mut actual.services, &services)?;
        writes += remove(&mut *self.peers, &mut actual.peers, &peers)?;
        writes += remove(&mut *self.ranges, &mut actual.ranges, &ranges)?;
        writes += remove(&mut *self.slots, &mut actual.slots, &slots)?;
        //    What is left in lines that no table has is seen by nobody.
        actual.maglev.retain(|line, _| desired.maglev.contains_key(line));
        writes += remove(&mut *self.backends, &mut actual.backends, &backends)?;
        writes += remove(&mut *self.infos, &mut actual.infos, &infos)?;
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
        let ports = delta(&actual.ports.blocks, &keep.blocks);
        let mut writes = set(&mut *self.ports, &mut actual.ports.blocks, &ports)?;
        writes += remove(&mut *self.ports, &mut actual.ports.blocks, &ports)?;
        Ok(writes)
    }
}

fn set<K: Ord + Copy, V: Copy>(
    table: &mut dyn Table<K, V>,
    actual: &mut std::collections::BTreeMap<K, V>,
    delta: &Delta<K, V>,
) -> Result<Writes, TableError> {
    if delta.set.is_empty() {
        return Ok(Writes::default());
    }
    let calls = table.set_all(&delta.set)?;
    actual.extend(delta.set.iter().copied());
    Ok(Writes { set: delta.set.len(), removed: 0, calls })
}

fn remove<K: Ord + Copy, V: Copy>(
    table: &mut dyn Table<K, V>,
    actual: &mut std::collections::BTreeMap<K, V>,
    delta: &Delta<K, V>,
) -> Result<Writes, TableError> {
    for key in &delta.remove {
        table.remove(key)?;
        actual.remove(key);
    }
    Ok(Writes { set: 0, removed: delta.remove.len(), calls: delta.remove.len() })
}

#[cfg(test)]
mod tests;
