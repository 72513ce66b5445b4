//! The pinned maps, opened for reading and writing.

use aya::Pod;
use aya::maps::lpm_trie::LpmTrie;
use aya::maps::{Array, HashMap, Map, MapData, MapError};
use redirector_common::map_name::MapName;
use redirector_common::node::{PortBlock, SysctlKey, SysctlValue, Text};
use redirector_common::service::{MAGLEV_LINE, MaglevLine};
use redirector_common::{
    Address, Backend, Flow, Interface, NodeConfig, Service, SnatAddressKey, Tuple,
};

use super::encode::Capacity;
use super::info::InfoTable;
use super::pins::Pins;
use super::ports::MarkedPorts;
use super::sizes::CHOSEN;
use super::sync::Tables;
use super::syscall;
use super::table::{ArrayTable, HashTable, RangeTable, TableError, io_error};

/// What an unused element of `MAGLEV` holds.
const NO_LINE: MaglevLine = MaglevLine { entries: [0; MAGLEV_LINE as usize] };

/// Every map that the agent writes.
pub struct Maps {
    /// Those of services.
    pub services: Tables,
    /// Room in them.
    pub capacity: Capacity,
    /// `INTERFACES`.
    pub interfaces: ArrayTable<Interface>,
    /// `SNAT_ADDRESSES`.
    pub snat_addresses: HashTable<SnatAddressKey, Address>,
    /// `NODE`.
    pub node: ArrayTable<NodeConfig>,
    /// `STATUS`.
    pub status: ArrayTable<Text>,
    /// `SYSCTLS`.
    pub sysctls: HashTable<SysctlKey, SysctlValue>,
}

impl Maps {
    /// Opens them.
    ///
    /// # Errors
    ///
    /// If one is missing or not what its name says.
    pub fn open(pins: &Pins) -> Result<Self, TableError> {
        let services = array(pins, MapName::Services, Service::default())?;
        let backends = array(pins, MapName::Backends, Backend::NONE)?;
        let maglev = array(pins, MapName::Maglev, NO_LINE)?;
        Ok(Self {
            capacity: Capacity {
                services: services.len(),
                backends: backends.len(),
                lines: maglev.len(),
            },
            services: Tables {
                frontends: Box::new(hash(pins, MapName::Frontends)?),
                services: Box::new(services),
                ranges: Box::new(ranges(pins)?),
                maglev: Box::new(maglev),
                backends: Box::new(backends),
                slots: Box::new(hash(pins, MapName::Slots)?),
                infos: Box::new(InfoTable::new(hash(pins, MapName::ServiceInfo)?)),
                takers: Box::new(hash(pins, MapName::Takers)?),
                vips: Box::new(hash(pins, MapName::Vips)?),
                peers: Box::new(hash(pins, MapName::Peers)?),
                ports: Box::new(MarkedPorts::new(array(
                    pins,
                    MapName::Ports,
                    PortBlock::default(),
                )?)),
                wait_for_packets: Box::new(syscall::wait_for_programs),
            },
            interfaces: array(pins, MapName::Interfaces, Interface::NONE)?,
            snat_addresses: hash(pins, MapName::SnatAddresses)?,
            node: node(pins)?,
            status: array(pins, MapName::Status, Text::new(""))?,
            sysctls: sysctls(pins)?,
        })
    }
}

/// The flow table.
///
/// # Errors
///
/// If it is missing or not what its name says.
pub fn flows(pins: &Pins) -> Result<HashTable<Tuple, Flow>, TableError> {
    hash(pins, MapName::Flows)
}

/// Elements of the flow cache that each of so many CPUs may use, a power of two: of the map as it
/// is, which may have been made for other numbers.
///
/// # Errors
///
/// If the map is missing or not what its name says.
pub fn cache_sets(pins: &Pins, cpus: u32) -> Result<u32, TableError> {
    Ok(power_of_two(capacity(pins, MapName::FlowCache)? / cpus.max(1)))
}

/// Slots of the ring of flows, a power of two: of the map as it is.
///
/// # Errors
///
/// If the map is missing or not what its name says.
pub fn ring_slots(pins: &Pins) -> Result<u32, TableError> {
    Ok(power_of_two(capacity(pins, MapName::FlowRing)?))
}

/// The largest that is not larger; 0 where there is none.
const fn power_of_two(number: u32) -> u32 {
    if number == 0 { 0 } else { 1 << number.ilog2() }
}

/// Entries that a map has room for.
///
/// # Errors
///
/// If the map is missing.
pub fn capacity(pins: &Pins, name: MapName) -> Result<u32, TableError> {
    let entries = open(pins, name).and_then(|data| Ok(data.info()?.max_entries()));
    entries.map_err(|error| TableError::new(name, "opening", io_error(error)))
}

/// The kernel's numbers of the maps that are pinned now, of those whose size can be chosen.
///
/// # Errors
///
/// If one is missing.
pub fn ids(pins: &Pins) -> Result<Vec<u32>, TableError> {
    let id = |name| {
        let id = open(pins, name).and_then(|data| Ok(data.info()?.id()));
        id.map_err(|error| TableError::new(name, "opening", io_error(error)))
    };
    CHOSEN.into_iter().map(|(name, ..)| id(name)).collect()
}

/// Settings of the node.
///
/// # Errors
///
/// If the map is missing or not what its name says.
pub fn node(pins: &Pins) -> Result<ArrayTable<NodeConfig>, TableError> {
    array(pins, MapName::Node, NodeConfig::default())
}

/// Settings as they were before.
///
/// # Errors
///
/// If the map is missing or not what its name says.
pub fn sysctls(pins: &Pins) -> Result<HashTable<SysctlKey, SysctlValue>, TableError> {
    hash(pins, MapName::Sysctls)
}

fn hash<K: Pod, V: Pod>(pins: &Pins, name: MapName) -> Result<HashTable<K, V>, TableError> {
    let map = open(pins, name).and_then(|data| HashMap::try_from(Map::from_map_data(data)?));
    map.map(|map| HashTable::new(name, map))
        .map_err(|error| TableError::new(name, "opening", io_error(error)))
}

pub(super) fn array<V: Pod>(
    pins: &Pins,
    name: MapName,
    unused: V,
) -> Result<ArrayTable<V>, TableError> {
    let map = open(pins, name).and_then(|data| Array::try_from(Map::from_map_data(data)?));
    map.map(|map| ArrayTable::new(name, map, unused))
        .map_err(|error| TableError::new(name, "opening", io_error(error)))
}

fn ranges(pins: &Pins) -> Result<RangeTable, TableError> {
    let name = MapName::SourceRanges;
    let map = open(pins, name).and_then(|data| LpmTrie::try_from(Map::from_map_data(data)?));
    map.map(|map| RangeTable::new(name, map))
        .map_err(|error| TableError::new(name, "opening", io_error(error)))
}

fn open(pins: &Pins, name: MapName) -> Result<MapData, MapError> {
    MapData::from_pin(pins.map(name))
}
