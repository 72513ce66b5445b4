//! Collecting flows that are over.
//!
//! Packets go on meanwhile, so what is read here may be old when it is acted upon: a flow is looked
//! at again just before it is removed.

use std::collections::BTreeSet;

use nix::time::{ClockId, clock_gettime};
use redirector_common::{BackendId, Direction, Flow, PortFlags, Protocol, ServiceId, Tuple};

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
    /// Where TCP flows of other backends are led; `None`: they are left alone.
    pub dead_end: Option<DeadEnd>,
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
        let partner = flow.translated.reversed();
        let halves = match find_partner(&*table, &key, &flow)? {
            Some(_) => vec![key, partner],
            None => vec![key],
        };
        for half in &halves {
            table.remove_half(half, fate == Fate::Orphaned)?;
        }
        let count =
            if fate == Fate::Orphaned { &mut collected.orphaned } else { &mut collected.expired };
        *count += halves.len() as u64;
    }
    Ok(collected)
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
    if key.protocol() == Protocol::Udp && !is_listed {
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
mod tests {
    use std::collections::BTreeMap;
    use std::net::{IpAddr, Ipv4Addr};

    use redirector_common::{Address, FlowState, Port};

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    impl FlowTable for BTreeMap<Tuple, Flow> {
        fn read(&self, each: &mut dyn FnMut(Vec<(Tuple, Flow)>)) -> Result<(), TableError> {
            for (key, flow) in self {
                each(vec![(*key, *flow)]);
            }
            Ok(())
        }

        fn half(&self, key: &Tuple) -> Result<Option<Flow>, TableError> {
            Ok(self.get(key).copied())
        }

        fn put_half(&mut self, key: &Tuple, flow: &Flow) -> Result<(), TableError> {
            self.insert(*key, *flow);
            Ok(())
        }

        fn remove_half(&mut self, key: &Tuple, _: bool) -> Result<(), TableError> {
            self.remove(key);
            Ok(())
        }
    }

    fn keep(listed: &BTreeSet<(ServiceId, BackendId)>) -> Keep<'_> {
        Keep { listed: Some(listed), dead_end: None }
    }

    fn end(host: u8, port: u16) -> (Address, Port) {
        (IpAddr::V4(Ipv4Addr::new(10, 0, 0, host)).into(), Port::new(port))
    }

    /// A flow of client 9 through frontend 1:80 to backend 2:8080.
    fn add(table: &mut BTreeMap<Tuple, Flow>, protocol: Protocol, port: u16, seen: (u64, u64)) {
        let forward = Tuple::new(protocol, end(9, port), end(1, 80));
        let translated = Tuple::new(protocol, end(1, port), end(2, 8080));
        let mut there = Flow::new(Direction::Forward, translated, 1, 1, false, seen.0);
        let mut back = Flow::new(Direction::Reply, forward.reversed(), 1, 1, false, seen.1);
        if protocol == Protocol::Tcp {
            there.set_state(FlowState::SynReceived);
            back.set_state(FlowState::SynReceived);
        }
        table.insert(forward, there);
        table.insert(translated.reversed(), back);
    }

    #[test]
    fn a_flow_is_idle_for_as_long_as_its_less_idle_half() {
        let mut table = BTreeMap::new();
        add(&mut table, Protocol::Tcp, 1000, (0, 0));
        add(&mut table, Protocol::Tcp, 1001, (0, 60 * SECOND));
        add(&mut table, Protocol::Tcp, 1002, (60 * SECOND, 0));
        let collected =
            collect(&mut table, keep(&BTreeSet::new()), 61 * SECOND).expect("collected");
        assert_eq!((collected.halves, collected.expired), (4, 2));
        assert_eq!(table.len(), 4);
        let flags = collected.in_use.get(Protocol::Tcp, Port::new(80));
        assert_eq!(flags, PortFlags::FRONTEND.union(PortFlags::REMOTE));
        let flags = collected.in_use.get(Protocol::Tcp, Port::new(1001));
        assert_eq!(flags, PortFlags::SNAT);
        assert_eq!(collected.in_use.get(Protocol::Tcp, Port::new(1000)), PortFlags(0));
    }

    #[test]
    fn a_half_alone_goes_after_its_own_timeout() {
        let mut table = BTreeMap::new();
        add(&mut table, Protocol::Tcp, 1000, (0, 0));
        table.pop_first();
        let listed = BTreeSet::new();
        assert_eq!(collect(&mut table, keep(&listed), 60 * SECOND).expect("collected").expired, 0);
        assert_eq!(collect(&mut table, keep(&listed), 61 * SECOND).expect("collected").expired, 1);
        assert!(table.is_empty());
    }

    #[test]
    fn udp_flows_end_with_their_backend() {
        let mut table = BTreeMap::new();
        add(&mut table, Protocol::Tcp, 1000, (0, 0));
        add(&mut table, Protocol::Udp, 1000, (0, 0));
        let listed = BTreeSet::from([(1, 1)]);
        assert_eq!(collect(&mut table, keep(&listed), 1).expect("collected").orphaned, 0);
        let unknown = Keep { listed: None, dead_end: None };
        assert_eq!(collect(&mut table, unknown, 1).expect("collected").orphaned, 0);
        let collected = collect(&mut table, keep(&BTreeSet::new()), 1).expect("collected");
        assert_eq!((collected.halves, collected.orphaned), (2, 2));
        assert!(table.keys().all(|key| key.protocol() == Protocol::Tcp));
    }

    #[test]
    fn tcp_flows_that_lose_their_backend_are_led_to_the_dead_end() {
        let mut table = BTreeMap::new();
        add(&mut table, Protocol::Tcp, 1000, (0, 0));
        add(&mut table, Protocol::Tcp, 1001, (0, 0));
        for (_, flow) in table.iter_mut().filter(|(key, _)| {
            key.source_port == Port::new(1000) || key.destination_port == Port::new(1000)
        }) {
            flow.set_state(FlowState::Established);
        }
        let (none, listed) = (BTreeSet::new(), BTreeSet::from([(1, 1)]));
        let (address, port) = end(1, 49152);
        let dead_end = Some(DeadEnd { v4: Some(address), v6: None, first: 49152, last: 49153 });
        let mut led = |listed, dead_end| {
            collect(&mut table, Keep { listed: Some(listed), dead_end }, 1).expect("collected")
        };
        assert_eq!(led(&none, None).led, 0);
        assert_eq!(led(&listed, dead_end).led, 0);
        // The one that is not established will not be waited for.
        let collected = led(&none, dead_end);
        assert_eq!((collected.led, collected.halves), (2, 4));
        let flags = collected.in_use.get(Protocol::Tcp, port);
        assert_eq!(flags.union(PortFlags::LOCAL_BACKEND), flags);
        // It stays there.
        assert_eq!(led(&none, dead_end).led, 0);
        assert_eq!(table.len(), 4);
        let forward = Tuple::new(Protocol::Tcp, end(9, 1000), end(1, 80));
        let half = table[&forward];
        assert_eq!(half.translated, Tuple::new(Protocol::Tcp, end(9, 1000), (address, port)));
        assert!(half.is_local() && half.state() == FlowState::Established);
        let reply = table[&half.translated.reversed()];
        assert_eq!((reply.translated, reply.is_local()), (forward.reversed(), true));
        assert_eq!(reply.direction(), Direction::Reply);
    }

    /// A client may use one port of its own towards many frontends.
    #[test]
    fn flows_that_would_look_the_same_there_have_ports_of_their_own() {
        let mut table = BTreeMap::new();
        for frontend in [80, 81, 82] {
            let forward = Tuple::new(Protocol::Tcp, end(9, 1000), end(1, frontend));
            let translated = Tuple::new(Protocol::Tcp, end(1, 50000 + frontend), end(2, 8080));
            let mut flow = Flow::new(Direction::Forward, translated, 1, 1, false, 0);
            flow.set_state(FlowState::Established);
            table.insert(forward, flow);
        }
        let none = BTreeSet::new();
        let (address, _) = end(1, 0);
        let dead_end = Some(DeadEnd { v4: Some(address), v6: None, first: 49152, last: 49153 });
        let keep = Keep { listed: Some(&none), dead_end };
        assert_eq!(collect(&mut table, keep, 1).expect("collected").led, 4);
        let ends = |table: &BTreeMap<Tuple, Flow>| -> Vec<u16> {
            let led = table.values().filter(|flow| flow.is_local());
            let there = led.filter(|flow| flow.direction() == Direction::Forward);
            there.map(|flow| flow.translated.destination_port.number()).collect()
        };
        assert_eq!(ends(&table), [49152, 49153]);
        // The third one's turn comes when one of them has been reset.
        assert_eq!(collect(&mut table, keep, 1).expect("collected").led, 0);
        table.retain(|key, flow| {
            key.destination_port.number() != 80 && flow.translated.source_port.number() != 80
        });
        assert_eq!(collect(&mut table, keep, 1).expect("collected").led, 2);
        assert_eq!(ends(&table), [49153, 49152]);
    }
}
