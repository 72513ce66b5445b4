//! How large each map is, and how full.

use aya::maps::{MapData, MapType};
use redirector_common::map_name::MapName;
use redirector_common::{Flow, Tuple};

use super::error::refused;
use super::{Pinned, PinnedError};
use crate::dataplane::regions::Regions;

/// What the kernel says of a map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// `hash`, `array`, …
    pub kind: &'static str,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// Entries that there is room for.
    pub capacity: u32,
    /// Bytes of memory, where the kernel says so.
    pub memory: Option<u64>,
}

impl Pinned {
    /// Entries in use.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn entries(&self, name: MapName) -> Result<usize, PinnedError> {
        Ok(match name {
            MapName::Ports => self.port_blocks()?.len(),
            MapName::Frontends => self.frontends()?.len(),
            MapName::Services | MapName::ServiceInfo => self.services()?.len(),
            // The map is large and this is asked often: it is not read.
            MapName::Maglev => Regions::of(self.services()?.values(), u32::MAX).len(),
            MapName::Backends => self.backends()?.len(),
            MapName::Flows => self.table::<Tuple, Flow>(name)?.len(),
            MapName::FlowRing => self.flow_ring()?.len(),
            MapName::FlowCache => self.cached_flows()?.len(),
            MapName::Epochs => usize::try_from(redirector_common::cache::EPOCHS).unwrap_or(0),
            MapName::Interfaces => self.interfaces()?.len(),
            MapName::SnatAddresses => self.snat_addresses()?.len(),
            MapName::Node => usize::from(self.node()?.snat_count != 0),
            MapName::Counters => self.counters()?.len(),
            MapName::Slots => self.slots()?.len(),
            MapName::Status => usize::from(!self.status_text()?.is_empty()),
            MapName::Sysctls => self.sysctls()?.len(),
            MapName::SourceRanges => self.source_ranges()?.len(),
            MapName::Affinity => self.affinities()?.len(),
            MapName::Takers => self.takers()?.len(),
            MapName::Vips => self.vips()?.len(),
            MapName::Peers => self.peers()?.len(),
            MapName::Fragments => self.fragments()?.len(),
            MapName::Sockets => self.sockets()?.len(),
            MapName::Steered => self.steered()?.len(),
            MapName::Watch => usize::from(self.watch()?.until != 0),
            // Not known without reading them, and they are whoever watches's to read.
            MapName::Events => 0,
            MapName::EventsLost => usize::from(self.events_lost()? != 0),
        })
    }

    /// What the kernel says of a map.
    ///
    /// # Errors
    ///
    /// If the map cannot be opened.
    pub fn facts(&self, name: MapName) -> Result<Facts, PinnedError> {
        let data = self.data(name)?;
        let info = data.info().map_err(|error| refused(name, &error))?;
        let kind = info.map_type().map_err(|error| refused(name, &error))?;
        Ok(Facts {
            kind: kind_name(kind),
            key_size: info.key_size(),
            value_size: info.value_size(),
            capacity: info.max_entries(),
            memory: memory(&data),
        })
    }
}

/// Memory of a map as the kernel accounts for it.
fn memory(data: &MapData) -> Option<u64> {
    use std::os::fd::{AsFd, AsRawFd};
    let fd = data.fd().as_fd().as_raw_fd();
    let facts = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).ok()?;
    let memory = facts.lines().find_map(|line| line.strip_prefix("memlock:"))?;
    memory.trim().parse().ok()
}

fn kind_name(kind: MapType) -> &'static str {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "not our own enum, and an open one: the kinds that the data path uses, and the rest"
    )]
    match kind {
        MapType::Hash => "hash",
        MapType::Array => "array",
        MapType::PerCpuArray => "per-CPU array",
        MapType::PerCpuHash => "per-CPU hash",
        MapType::LruHash => "LRU hash",
        MapType::LpmTrie => "LPM trie",
        MapType::RingBuf => "ring buffer",
        _ => "other",
    }
}
