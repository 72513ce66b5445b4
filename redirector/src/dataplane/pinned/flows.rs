//! Flows as the flow table and the flow cache together know them.

use std::collections::BTreeMap;

use aya::maps::HashMap;
use redirector_common::map_name::MapName;
use redirector_common::{CacheSet, CachedFlow, Flow, RingSlot, Tuple};

use super::error::{is_gone, refused, unreadable};
use super::{Pinned, PinnedError};
use crate::dataplane::batch::{self, BatchError};
use crate::dataplane::epochs::Epochs;
use crate::dataplane::table::TableError;

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

    /// The half of a flow that packets with this tuple belong to.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn flow(&self, key: &Tuple) -> Result<Option<Flow>, PinnedError> {
        let name = MapName::Flows;
        let map: HashMap<_, Tuple, Flow> = self.open_as(name)?;
        match map.get(key, 0) {
            Ok(found) => Ok(Some(found)),
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(refused(name, &error)),
        }
    }

    /// Removes halves of flows; one that is gone already is no error. Says how many were there.
    ///
    /// # Errors
    ///
    /// If the map cannot be written.
    pub fn remove_flows(
        &self,
        keys: impl IntoIterator<Item = Tuple>,
    ) -> Result<usize, PinnedError> {
        let name = MapName::Flows;
        let mut map: HashMap<_, Tuple, Flow> = self.open_as(name)?;
        let stale = |error: TableError| unreadable(MapName::Epochs, error.to_string());
        let mut epochs = Epochs::open(&self.pins).map_err(stale)?;
        let mut removed = 0;
        for key in keys {
            match map.remove(&key) {
                Ok(()) => {
                    removed += 1;
                    epochs.raise(&key).map_err(stale)?;
                }
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(refused(name, &error)),
            }
        }
        Ok(removed)
    }
}
