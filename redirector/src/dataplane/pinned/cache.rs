//! Flows as the flow table and the flow cache together know them.

use std::collections::BTreeMap;

use redirector_common::map_name::MapName;
use redirector_common::{CacheSet, CachedFlow, Flow, RingSlot, Tuple};

use super::{Pinned, PinnedError, unreadable};
use crate::dataplane::batch::{self, BatchError};

impl Pinned {
    /// Both halves of every flow, with what the flow cache has counted for them.
    ///
    /// # Errors
    ///
    /// As for every reading function here: if the map is missing, refused, or another one.
    pub fn flows(&self) -> Result<BTreeMap<Tuple, Flow>, PinnedError> {
        // The cache first: what is added to a flow between the two looks is seen a little later,
        // and never twice.
        let cached = self.cached_flows()?;
        let mut flows: BTreeMap<Tuple, Flow> = self.table(MapName::Flows)?;
        for entry in cached {
            if let Some(flow) = flows.get_mut(&entry.key) {
                let (packets, bytes) = entry.pending(flow);
                flow.packets = flow.packets.saturating_add(packets);
                flow.bytes = flow.bytes.saturating_add(bytes);
            }
        }
        Ok(flows)
    }

    /// Slots of the ring of flows that were ever taken, in their order.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn flow_ring(&self) -> Result<Vec<(u32, RingSlot)>, PinnedError> {
        let name = MapName::FlowRing;
        let mut taken = Vec::new();
        batch::read_chunks(&self.data(name)?, |chunk| {
            taken.extend(chunk.filter(|(_, slot): &(u32, RingSlot)| slot.born != 0));
        })
        .map_err(|error: BatchError| unreadable(name, error.to_string()))?;
        Ok(taken)
    }

    /// Epochs by the first byte of flows' hashes.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn epochs(&self) -> Result<BTreeMap<u32, u32>, PinnedError> {
        self.table(MapName::Epochs)
    }

    /// What stands in the flow cache, by CPU; also what is no longer believed.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn cached_flows(&self) -> Result<Vec<CachedFlow>, PinnedError> {
        let name = MapName::FlowCache;
        let mut used = Vec::new();
        batch::read_chunks(&self.data(name)?, |chunk| {
            let ways = chunk.flat_map(|(_, set): (u32, CacheSet)| set.ways);
            used.extend(ways.filter(|entry| entry.epoch != 0));
        })
        .map_err(|error: BatchError| unreadable(name, error.to_string()))?;
        Ok(used)
    }
}
