//! Reading the pinned maps, whether or not an agent runs.
//!
//! Everything is read into ordered maps of plain values, so that what is made of them needs no
//! kernel and comes out in the same order each time.

mod error;
mod events;
mod facts;
mod flows;

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use aya::Pod;
use aya::maps::{Array, Map, MapData, MapError, PerCpuArray};
use redirector_common::map_name::MapName;
use redirector_common::node::{
    Counter, CounterBlock, PORTS_PER_BLOCK, PortBlock, SysctlKey, SysctlValue, Text,
};
use redirector_common::reason::REASON_CAPACITY;
use redirector_common::service::MaglevLine;
use redirector_common::{
    Address, Affinity, AffinityKey, Backend, BackendId, Endpoint, FirstFragment, FragmentKey,
    Frontend, FrontendKey, Interface, NodeConfig, Peer, PortFlags, Protocol, Service, ServiceId,
    ServiceInfo, SlotKey, SlotValue, SnatAddressKey, SocketKey, SourceRange, SteeredKey, Taker,
    TakerKey,
};

use super::batch::{self, BatchError};
use super::info::{Info, InfoText};
use super::pins::Pins;
use super::ports;
use super::regions::Regions;
use super::table::read_ranges;
use error::{os_error, refused, unreadable};

pub use error::PinnedError;
pub use facts::Facts;

/// The maps under one bpffs directory.
#[derive(Clone, Debug)]
pub struct Pinned {
    pins: Pins,
}

impl Pinned {
    /// The maps under `pins`.
    ///
    /// # Errors
    ///
    /// If there are none, or they may not be read.
    pub fn open(pins: Pins) -> Result<Self, PinnedError> {
        let dir = pins.maps();
        match std::fs::metadata(&dir) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Err(PinnedError::Denied { path: dir });
            }
            Err(_) => {
                return Err(PinnedError::Missing { dir: pins.dir().to_owned() });
            }
        }
        Ok(Self { pins })
    }

    /// Where the pins stand.
    #[must_use]
    pub fn pins(&self) -> &Pins {
        &self.pins
    }

    /// Frontends and their services.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn frontends(&self) -> Result<BTreeMap<FrontendKey, Frontend>, PinnedError> {
        self.table(MapName::Frontends)
    }

    /// Backends in use.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn backends(&self) -> Result<BTreeMap<BackendId, Backend>, PinnedError> {
        let mut backends = self.table::<_, Backend>(MapName::Backends)?;
        backends.retain(|_, backend| backend.is_some());
        Ok(backends)
    }

    /// Services that have a name.
    ///
    /// # Errors
    ///
    /// If the maps cannot be read.
    pub fn services(&self) -> Result<BTreeMap<ServiceId, Service>, PinnedError> {
        let named = self.table::<ServiceId, ServiceInfo>(MapName::ServiceInfo)?;
        let mut services = self.table::<ServiceId, Service>(MapName::Services)?;
        services.retain(|id, _| named.contains_key(id));
        Ok(services)
    }

    /// What people call the services.
    ///
    /// # Errors
    ///
    /// If the map cannot be read or holds something else.
    pub fn infos(&self) -> Result<BTreeMap<ServiceId, Info>, PinnedError> {
        self.table::<ServiceId, ServiceInfo>(MapName::ServiceInfo)?
            .into_iter()
            .map(|(id, value)| match Info::decode(&InfoText::from(&value)) {
                Ok(info) => Ok((id, info)),
                Err(error) => Err(unreadable(MapName::ServiceInfo, format!("entry {id}: {error}"))),
            })
            .collect()
    }

    /// Each service's backends.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn slots(&self) -> Result<BTreeMap<SlotKey, SlotValue>, PinnedError> {
        self.table(MapName::Slots)
    }

    /// Networks that clients of each service may come from.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn source_ranges(&self) -> Result<BTreeSet<SourceRange>, PinnedError> {
        let name = MapName::SourceRanges;
        let ranges = read_ranges(&self.open_as(name)?).map_err(|error| refused(name, &error))?;
        Ok(ranges.into_keys().collect())
    }

    /// What sockets on this machine asked for, by what they got.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn sockets(&self) -> Result<BTreeMap<SocketKey, Endpoint>, PinnedError> {
        self.table(MapName::Sockets)
    }

    /// Connections that were handed to listening sockets.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn steered(&self) -> Result<BTreeMap<SteeredKey, u64>, PinnedError> {
        self.table(MapName::Steered)
    }

    /// Clients that are remembered, and the backends that they stay with; also those past their
    /// time.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn affinities(&self) -> Result<BTreeMap<AffinityKey, Affinity>, PinnedError> {
        self.table(MapName::Affinity)
    }

    /// Backends that clients may stay with.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn takers(&self) -> Result<BTreeMap<TakerKey, Taker>, PinnedError> {
        self.table(MapName::Takers)
    }

    /// Addresses that only frontends have.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn vips(&self) -> Result<BTreeSet<Address>, PinnedError> {
        Ok(self.table::<Address, u32>(MapName::Vips)?.into_keys().collect())
    }

    /// What is known of other nodes, by address.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn peers(&self) -> Result<BTreeMap<Address, Peer>, PinnedError> {
        self.table(MapName::Peers)
    }

    /// First fragments of packets that came in pieces, not long ago.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn fragments(&self) -> Result<BTreeMap<FragmentKey, FirstFragment>, PinnedError> {
        Ok(self.entries_of(MapName::Fragments)?.into_iter().collect())
    }

    /// The lines of Maglev tables that services use.
    ///
    /// # Errors
    ///
    /// If the maps cannot be read.
    pub fn maglev(&self) -> Result<BTreeMap<u32, MaglevLine>, PinnedError> {
        let used = Regions::of(self.services()?.values(), u32::MAX);
        let mut lines = self.table::<u32, MaglevLine>(MapName::Maglev)?;
        lines.retain(|line, _| used.contains(*line));
        Ok(lines)
    }

    /// One line of the Maglev tables.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn maglev_line(&self, line: u32) -> Result<Option<MaglevLine>, PinnedError> {
        let name = MapName::Maglev;
        let map: Array<_, MaglevLine> = self.open_as(name)?;
        match map.get(&line, 0) {
            Ok(found) => Ok(Some(found)),
            Err(MapError::OutOfBounds { .. }) => Ok(None),
            Err(error) => Err(refused(name, &error)),
        }
    }

    /// Ports that concern us.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn ports(&self) -> Result<BTreeMap<(Protocol, u32), PortFlags>, PinnedError> {
        let blocks = self.port_blocks()?;
        let per_protocol = 65536 / PORTS_PER_BLOCK;
        let mut ports = BTreeMap::new();
        for (index, block) in blocks {
            let protocol = if index < per_protocol { Protocol::Tcp } else { Protocol::Udp };
            let first = (index % per_protocol) * PORTS_PER_BLOCK;
            for (port, flags) in (first..).zip(block.flags) {
                if flags != 0 {
                    ports.insert((protocol, port), PortFlags(flags));
                }
            }
        }
        Ok(ports)
    }

    /// Elements of `PORTS` with a port that concerns us.
    fn port_blocks(&self) -> Result<BTreeMap<u32, PortBlock>, PinnedError> {
        let mut blocks = self.table::<u32, PortBlock>(MapName::Ports)?;
        blocks.values_mut().for_each(ports::unmark);
        blocks.retain(|_, block| *block != PortBlock::default());
        Ok(blocks)
    }

    /// Interfaces that the agent knows, by index.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn interfaces(&self) -> Result<BTreeMap<u32, Interface>, PinnedError> {
        let mut interfaces = self.table(MapName::Interfaces)?;
        interfaces.retain(|_, interface| *interface != Interface::NONE);
        Ok(interfaces)
    }

    /// Further addresses of interfaces that sources may be translated to.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn snat_addresses(&self) -> Result<BTreeMap<SnatAddressKey, Address>, PinnedError> {
        self.table(MapName::SnatAddresses)
    }

    /// The node's settings.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn node(&self) -> Result<NodeConfig, PinnedError> {
        let node = self.table::<u32, NodeConfig>(MapName::Node)?;
        Ok(node.get(&0).copied().unwrap_or_default())
    }

    /// Counters by interface slot, summed over the CPUs; slots that counted nothing are left out.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn counters(&self) -> Result<BTreeMap<u32, CounterBlock>, PinnedError> {
        let name = MapName::Counters;
        let map: PerCpuArray<_, CounterBlock> = self.open_as(name)?;
        let mut counters = BTreeMap::new();
        for slot in 0..map.len() {
            let sum = sum(map.get(&slot, 0).map_err(|error| refused(name, &error))?.iter());
            if sum.reasons.iter().any(|counter| counter.packets != 0) {
                counters.insert(slot, sum);
            }
        }
        Ok(counters)
    }

    /// What the agent last said of itself, as JSON; empty before it has said anything.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn status_text(&self) -> Result<String, PinnedError> {
        let status = self.table::<u32, Text>(MapName::Status)?;
        let text = status.get(&0).and_then(|text| text.as_str());
        Ok(text.unwrap_or_default().to_owned())
    }

    /// Kernel settings as they were before the agent changed them.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn sysctls(&self) -> Result<BTreeMap<String, String>, PinnedError> {
        let sysctls = self.entries_of::<SysctlKey, SysctlValue>(MapName::Sysctls)?;
        Ok(sysctls
            .into_iter()
            .map(|(key, value)| (key.as_str().to_owned(), value.as_str().to_owned()))
            .collect())
    }

    fn table<K: Pod + Ord, V: Pod>(&self, name: MapName) -> Result<BTreeMap<K, V>, PinnedError> {
        Ok(self.entries_of(name)?.into_iter().collect())
    }

    fn entries_of<K: Pod, V: Pod>(&self, name: MapName) -> Result<Vec<(K, V)>, PinnedError> {
        let data = self.data(name)?;
        batch::read_all(&data).map_err(|error: BatchError| unreadable(name, error.to_string()))
    }

    fn open_as<M>(&self, name: MapName) -> Result<M, PinnedError>
    where
        M: TryFrom<Map, Error = MapError>,
    {
        let map = Map::from_map_data(self.data(name)?);
        map.and_then(M::try_from).map_err(|error| refused(name, &error))
    }

    fn data(&self, name: MapName) -> Result<MapData, PinnedError> {
        let path = self.pins.map(name);
        MapData::from_pin(&path).map_err(|error| match os_error(&error) {
            Some(libc::ENOENT) => {
                PinnedError::Version { dir: self.pins.maps(), file: Pins::map_file(name) }
            }
            Some(libc::EACCES | libc::EPERM) => PinnedError::Denied { path },
            _ => refused(name, &error),
        })
    }
}

/// The counters of all CPUs together.
fn sum<'a>(cpus: impl Iterator<Item = &'a CounterBlock>) -> CounterBlock {
    let mut sum = CounterBlock { reasons: [Counter::default(); REASON_CAPACITY as usize] };
    for cpu in cpus {
        for (total, counter) in sum.reasons.iter_mut().zip(cpu.reasons) {
            total.packets = total.packets.wrapping_add(counter.packets);
            total.bytes = total.bytes.wrapping_add(counter.bytes);
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_without_pins_says_what_to_do() {
        let error = Pinned::open(Pins::new("/nowhere/redirector")).expect_err("nothing there");
        assert_eq!(
            error.to_string(),
            "nothing is installed under /nowhere/redirector: start the agent with \
             'redirector run' (or name the directory with --bpffs)"
        );
    }

    #[test]
    fn cpus_are_added_up() {
        let mut block = sum(std::iter::empty());
        block.reasons[3] = Counter { packets: 2, bytes: 120 };
        let total = sum([block, block].iter());
        assert_eq!(total.reasons[3].packets, 4);
        assert_eq!(total.reasons[3].bytes, 240);
    }
}
