//! Collecting flows that are over.
//!
//! Packets go on meanwhile, so what is read here may be old when it is acted upon: a flow is looked
//! at again just before it is removed.

use std::collections::{BTreeMap, BTreeSet};

use nix::time::{ClockId, clock_gettime};
use redirector_common::{
    BackendId, Direction, Flow, Frontend, FrontendKey, PortFlags, Protocol, ServiceId, Tuple,
};

use super::contents::Ports;
use super::dead_end::DeadEnd;
use super::epochs::Epochs;
use super::maps;
use super::pins::Pins;
use super::table::{HashTable, Table, TableError};

/// What a pass over the flow table found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Halves that are left.
    pub halves: u64,
    /// Halves removed because they were idle for too long.
    pub expired: u64,
    /// Halves removed because their backend is no longer one of their service.
    pub orphaned: u64,
    /// Halves led to the dead end because their backend is no longer one of their service.
    pub led: u64,
    /// Ports that the flows that are left need looked up.
    pub in_use: Ports,
}

/// The flow table as the collector sees it.
pub trait FlowTable {
    /// All entries, some at a time.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    fn read(&self, each: &mut dyn FnMut(Vec<(Tuple, Flow)>)) -> Result<(), TableError>;

    /// One half.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    fn half(&self, key: &Tuple) -> Result<Option<Flow>, TableError>;

    /// Writes a half, in place of what has its key.
    ///
    /// # Errors
    ///
    /// If the kernel refuses, or there is no room.
    fn put_half(&mut self, key: &Tuple, flow: &Flow) -> Result<(), TableError>;

    /// Removes a half; none is no error. `early`: packets may still come.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    fn remove_half(&mut self, key: &Tuple, early: bool) -> Result<(), TableError>;
}

/// The flow table in the kernel, with what stands in front of it.
pub struct KernelFlows {
    table: HashTable<Tuple, Flow>,
    epochs: Epochs,
}

impl KernelFlows {
    /// Opens it.
    ///
    /// # Errors
    ///
    /// If a map is missing or not what its name says.
    pub fn open(pins: &Pins) -> Result<Self, TableError> {
        Ok(Self { table: maps::flows(pins)?, epochs: Epochs::open(pins)? })
    }
}

impl FlowTable for KernelFlows {
    fn read(&self, each: &mut dyn FnMut(Vec<(Tuple, Flow)>)) -> Result<(), TableError> {
        self.table.read(|chunk| each(chunk.collect()))
    }

    fn half(&self, key: &Tuple) -> Result<Option<Flow>, TableError> {
        self.table.get(key)
    }

    fn put_half(&mut self, key: &Tuple, flow: &Flow) -> Result<(), TableError> {
        self.table.set(key, flow)?;
        self.epochs.raise(key)
    }

    fn remove_half(&mut self, key: &Tuple, early: bool) -> Result<(), TableError> {
        self.table.remove(key)?;
        // What is idle for longer than the cache believes anything needs no word of it.
        if early { self.epochs.raise(key) } else { Ok(()) }
    }
}

/// `CLOCK_MONOTONIC` nanoseconds: the clock of the programs.
#[must_use]
pub fn now() -> u64 {
    // The clock always exists.
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(std::time::Duration::from);
    now.map_or(0, |now| u64::try_from(now.as_nanos()).unwrap_or(u64::MAX))
}

/// Whose flows live on.
#[derive(Clone, Copy, Debug)]
pub struct Keep<'a> {
    /// Backends of services; `None`: nobody knows at the moment. A UDP flow of any other goes: its
    /// client would go on to send to that backend for ever.
    pub listed: Option<&'a BTreeSet<(ServiceId, BackendId)>>,
    /// Whose frontends are whose: a UDP flow of one that has become another service's goes, too.
    pub frontends: Option<&'a BTreeMap<FrontendKey, Frontend>>,
    /// Where TCP flows of other backends are led; `None`: they are left alone.
    pub dead_end: Option<DeadEnd>,
}

impl Keep<'_> {
    /// Whether the flow's frontend is another service's by now.
    fn is_moved(&self, key: &Tuple, flow: &Flow) -> bool {
        let (address, port) = match flow.direction() {
            Direction::Forward => (key.destination, key.destination_port),
            Direction::Reply => (flow.translated.source, flow.translated.source_port),
        };
        let frontend = FrontendKey::new(address, port, key.protocol());
        let owner = self.frontends.and_then(|frontends| frontends.get(&frontend));
        owner.is_some_and(|owner| owner.service != flow.service)
    }
}

/// Removes flows both of whose halves are idle for too long, and UDP flows that have lost their
/// backend; leads TCP flows that have to the dead end.
///
/// # Errors
///
/// If the kernel refuses.
pub fn collect(
    table: &mut dyn FlowTable,
    keep: Keep<'_>,
    now: u64,
) -> Result<Collected, TableError> {
    let mut collected = Collected::default();
    let mut over = Vec::new();
    let mut outcome = Ok(());
    table.read(&mut |chunk| {
        for (key, flow) in chunk {
            match judge(&*table, &key, &flow, keep, now) {
                Ok(Fate::Lives) => {
                    collected.halves += 1;
                    note_ports(&mut collected.in_use, &key, &flow);
                }
                Ok(fate) => over.push((key, fate)),
                Err(error) => outcome = Err(error),
            }
        }
    })?;
    outcome?;
    for (key, fate) in over {
        // A packet may have come since.
        let Some(flow) = table.half(&key)? else {
            continue;
        };
        if judge(&*table, &key, &flow, keep, now)? != fate {
            collected.halves += 1;
            note_ports(&mut collected.in_use, &key, &flow);
            continue;
        }
        if fate == Fate::Stranded {
            collected.halves += 1;
            let dead_end = keep.dead_end;
            if let Some(halves) = dead_end.and_then(|it| it.lead(table, &key, &flow).transpose()) {
                collected.led += 2;
                for (key, half) in halves? {
                    note_ports(&mut collected.in_use, &key, &half);
                }
            } else {
                note_ports(&mut collected.in_use, &key, &flow);
            }
            continue;
        }
        let removed = remove(table, &key, &flow, fate == Fate::Orphaned)?;
        let count =
            if fate == Fate::Orphaned { &mut collected.orphaned } else { &mut collected.expired };
        *count += removed;
    }
    Ok(collected)
}

/// Removes both halves of a flow, and says how many there were. The reply half first: for as long as
/// the other is there no packet opens the flow again, and would take what is about to go for its own.
fn remove(
    table: &mut dyn FlowTable,
    key: &Tuple,
    flow: &Flow,
    early: bool,
) -> Result<u64, TableError> {
    let partner =
        find_partner(&*table, key, flow)?.map(|partner| (flow.translated.reversed(), partner));
    let mut halves: Vec<_> = [Some((*key, *flow)), partner].into_iter().flatten().collect();
    halves.sort_by_key(|(_, half)| half.direction() == Direction::Forward);
    let mut removed = 0;
    for (key, half) in halves {
        // Unless a client has come again since, with a flow of its own.
        if table.half(&key)?.is_some_and(|found| found.created == half.created) {
            table.remove_half(&key, early)?;
            removed += 1;
        }
    }
    Ok(removed)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Lives,
    Expired,
    Orphaned,
    Stranded,
}

fn judge(
    table: &dyn FlowTable,
    key: &Tuple,
    flow: &Flow,
    keep: Keep<'_>,
    now: u64,
) -> Result<Fate, TableError> {
    let is_listed = keep.listed.is_none_or(|listed| listed.contains(&(flow.service, flow.backend)));
    if key.protocol() == Protocol::Udp && (!is_listed || keep.is_moved(key, flow)) {
        return Ok(Fate::Orphaned);
    }
    if flow.is_expired(now)
        && find_partner(table, key, flow)?.is_none_or(|partner| partner.is_expired(now))
    {
        return Ok(Fate::Expired);
    }
    let is_stranded = !is_listed && keep.dead_end.is_some_and(|it| it.is_for(key, flow));
    Ok(if is_stranded { Fate::Stranded } else { Fate::Lives })
}

/// The other half, if what stands in its place belongs to this one.
fn find_partner(
    table: &dyn FlowTable,
    key: &Tuple,
    flow: &Flow,
) -> Result<Option<Flow>, TableError> {
    let partner = table.half(&flow.translated.reversed())?;
    Ok(partner.filter(|partner| partner.translated.reversed() == *key))
}

fn note_ports(ports: &mut Ports, key: &Tuple, flow: &Flow) {
    let protocol = key.protocol();
    match (flow.direction(), flow.is_local()) {
        (Direction::Forward, true) => {
            ports.add(protocol, key.destination_port, PortFlags::FRONTEND);
        }
        (Direction::Forward, false) => {
            let flags = PortFlags::FRONTEND.union(PortFlags::REMOTE);
            ports.add(protocol, key.destination_port, flags);
        }
        (Direction::Reply, true) => {
            ports.add(protocol, key.source_port, PortFlags::LOCAL_BACKEND);
        }
        (Direction::Reply, false) => {
            ports.add(protocol, key.destination_port, PortFlags::SNAT);
        }
    }
}

#[cfg(test)]
mod tests;
