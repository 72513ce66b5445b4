//! How large the maps are made.

use std::collections::BTreeMap;
use std::fs;
use std::ops::RangeInclusive;

use redirector_common::map_name::MapName;
use redirector_common::node::MAX_PEERS;
use redirector_common::service::MaglevLine;
use redirector_common::{CacheSet, Flow, RingSlot, Tuple};

/// Entries of the maps whose size is a matter of choice. Maps that are already pinned keep theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// `FRONTENDS`.
    pub frontends: u32,
    /// `SERVICES` and `SERVICE_INFO`.
    pub services: u32,
    /// `BACKENDS`.
    pub backends: u32,
    /// `MAGLEV`, in lines of 16 entries.
    pub maglev_lines: u32,
    /// `FLOWS`; a flow takes two. `FLOW_RING` has a slot for each flow.
    pub flows: u32,
    /// `FLOW_CACHE`: elements that each CPU gets, a power of two.
    pub cache_sets: u32,
    /// CPUs that get a part of it.
    pub cpus: u32,
    /// `SLOTS`.
    pub slots: u32,
    /// `SOURCE_RANGES`.
    pub source_ranges: u32,
    /// `AFFINITY`; when it is full, the client that was not seen for longest is forgotten.
    pub affinity: u32,
    /// `TAKERS`.
    pub takers: u32,
    /// `VIPS`.
    pub vips: u32,
    /// `PEERS`.
    pub peers: u32,
    /// `FRAGMENTS`: packets in pieces that are remembered at once.
    pub fragments: u32,
    /// `SOCKETS`.
    pub sockets: u32,
    /// `STEERED`; when it is full, what was not hit for longest is forgotten.
    pub steered: u32,
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            frontends: 65536,
            services: 65536,
            backends: 262_144,
            maglev_lines: 262_144,
            flows: 262_144,
            cache_sets: 2048,
            cpus: 1,
            slots: 262_144,
            source_ranges: 65536,
            affinity: 65536,
            takers: 262_144,
            vips: 65536,
            peers: MAX_PEERS,
            fragments: 8192,
            sockets: 65536,
            steered: 16384,
        }
    }
}

/// Of the machine's memory, the flow cache gets one part in so many.
const CACHE_SHARE: u64 = 256;

/// Elements of the flow cache that a CPU gets at most: 16 MiB, where 65 536 flows fit well.
const MAX_CACHE_SETS: u64 = 32768;

/// And at least: 64 KiB.
const MIN_CACHE_SETS: u64 = 128;

/// Of the machine's memory, the flow table gets one part in so many.
const FLOW_SHARE: u64 = 256;

/// Bytes that an entry of the flow table takes: what it holds, what the kernel adds, and half of
/// the flow's slot in the ring.
const FLOW_BYTES: u64 =
    (size_of::<Tuple>() + size_of::<Flow>() + 64 + size_of::<RingSlot>() / 2) as u64;

/// Entries of the flow table at most, unless the file says otherwise: two million flows.
const MAX_FLOWS: u64 = 1 << 22;

/// And at least: 16 MiB.
const MIN_FLOWS: u64 = 1 << 16;

/// Of the machine's memory, Maglev tables get one part in so many.
const TABLE_SHARE: u64 = 1024;

/// Lines of Maglev tables at most: 32 MiB.
const MAX_LINES: u64 = 524_288;

/// And at least: 4 MiB.
const MIN_LINES: u64 = 65536;

/// The maps whose size can be chosen: their keys in the file, and the entries that they may have.
pub const CHOSEN: [(MapName, &str, RangeInclusive<u32>); 12] = [
    (MapName::Affinity, "affinity", 128..=1 << 24),
    (MapName::Backends, "backends", 16..=1 << 20),
    (MapName::Flows, "flows", 1024..=1 << 24),
    (MapName::Fragments, "fragments", 128..=1 << 20),
    (MapName::Frontends, "frontends", 16..=1 << 20),
    (MapName::Maglev, "maglev", 1024..=1 << 22),
    (MapName::Services, "services", 16..=1 << 20),
    (MapName::Slots, "slots", 16..=1 << 22),
    (MapName::Sockets, "sockets", 128..=1 << 22),
    (MapName::SourceRanges, "sourceRanges", 16..=1 << 22),
    (MapName::Takers, "takers", 16..=1 << 22),
    (MapName::Vips, "vips", 16..=1 << 20),
];

impl Sizes {
    /// What suits this machine, but for what was chosen.
    #[must_use]
    pub fn chosen(tables: &BTreeMap<MapName, u32>) -> Self {
        let mut sizes = Self::of_machine();
        for (name, entries) in tables {
            if let Some(size) = sizes.of_mut(*name) {
                *size = *entries;
            }
        }
        sizes
    }

    /// The size of a map that can be chosen.
    const fn of_mut(&mut self, name: MapName) -> Option<&mut u32> {
        Some(match name {
            MapName::Affinity => &mut self.affinity,
            MapName::Backends => &mut self.backends,
            MapName::Flows => &mut self.flows,
            MapName::Fragments => &mut self.fragments,
            MapName::Frontends => &mut self.frontends,
            MapName::Maglev => &mut self.maglev_lines,
            MapName::Services => &mut self.services,
            MapName::Slots => &mut self.slots,
            MapName::Sockets => &mut self.sockets,
            MapName::SourceRanges => &mut self.source_ranges,
            MapName::Takers => &mut self.takers,
            MapName::Vips => &mut self.vips,
            MapName::Ports
            | MapName::FlowRing
            | MapName::FlowCache
            | MapName::Epochs
            | MapName::Peers
            | MapName::Interfaces
            | MapName::SnatAddresses
            | MapName::Node
            | MapName::Counters
            | MapName::ServiceInfo
            | MapName::Status
            | MapName::Steered
            | MapName::Sysctls
            | MapName::Watch
            | MapName::Events
            | MapName::EventsLost => return None,
        })
    }

    /// What suits this machine.
    #[must_use]
    pub fn of_machine() -> Self {
        let cpus = count_cpus();
        let memory = read_memory();
        let sets = cache_sets(memory, u64::from(cpus));
        Self {
            cache_sets: sets,
            cpus,
            maglev_lines: maglev_lines(memory),
            flows: flows(memory),
            ..Self::default()
        }
    }
}

/// A power of two, so that the ring has exactly a slot for each flow.
fn flows(memory: u64) -> u32 {
    1 << (memory / FLOW_SHARE / FLOW_BYTES).clamp(MIN_FLOWS, MAX_FLOWS).ilog2()
}

fn maglev_lines(memory: u64) -> u32 {
    let share = memory / TABLE_SHARE / size_of::<MaglevLine>() as u64;
    u32::try_from(share.clamp(MIN_LINES, MAX_LINES)).unwrap_or(u32::MAX)
}

/// A power of two.
fn cache_sets(memory: u64, cpus: u64) -> u32 {
    let share = memory / CACHE_SHARE / cpus.max(1) / size_of::<CacheSet>() as u64;
    1 << share.clamp(MIN_CACHE_SETS, MAX_CACHE_SETS).ilog2()
}

/// One more than the largest number of a CPU that is online: others, should they come, do without
/// a cache.
fn count_cpus() -> u32 {
    let online = aya::util::online_cpus().unwrap_or_default();
    online.into_iter().max().map_or(1, |last| last.saturating_add(1))
}

/// Bytes of memory of this machine; 0 where it is not known.
fn read_memory() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kibibytes = total.and_then(|total| total.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kibibytes.unwrap_or(0).saturating_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_fit_the_machine() {
        const GIB: u64 = 1 << 30;
        let rows = [(0, 65536), (2 * GIB, 65536), (16 * GIB, 262_144), (999 * GIB, 524_288)];
        for (memory, lines) in rows {
            assert_eq!(maglev_lines(memory), lines, "{memory}");
        }
    }

    #[test]
    fn flows_fit_the_machine() {
        const GIB: u64 = 1 << 30;
        let rows = [(0, 65536), (16 * GIB, 262_144), (64 * GIB, 1 << 20), (999 * GIB, 1 << 22)];
        for (memory, entries) in rows {
            assert_eq!(flows(memory), entries, "{memory}");
        }
    }

    #[test]
    fn what_is_chosen_goes_before_what_suits() {
        for (name, _, range) in CHOSEN {
            let mut sizes = Sizes::chosen(&BTreeMap::from([(name, *range.end())]));
            assert_eq!(sizes.of_mut(name).copied(), Some(*range.end()), "{name:?}");
            let usual = Sizes::of_machine().of_mut(name).copied();
            assert!(usual.is_some_and(|usual| range.contains(&usual)), "{name:?}");
        }
    }

    #[test]
    fn the_cache_fits_the_machine() {
        const GIB: u64 = 1 << 30;
        assert_eq!(cache_sets(24 * GIB, 2), 32768);
        assert_eq!(cache_sets(GIB, 4), 2048);
        assert_eq!(cache_sets(256 * GIB, 128), 16384);
        assert_eq!(cache_sets(0, 0), 128);
        assert!(read_memory() > 0 && count_cpus() > 0);
    }
}
