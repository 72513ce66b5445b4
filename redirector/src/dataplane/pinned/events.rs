//! What is told to whoever watches.

use aya::maps::{Array, MapData, PerCpuArray, RingBuf};
use redirector_common::Watch;
use redirector_common::map_name::MapName;

use super::error::refused;
use super::{Pinned, PinnedError};

impl Pinned {
    /// What somebody wants to be told.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn watch(&self) -> Result<Watch, PinnedError> {
        let watch = self.table::<u32, Watch>(MapName::Watch)?;
        Ok(watch.get(&0).copied().unwrap_or(Watch::NONE))
    }

    /// Where to ask for events.
    ///
    /// # Errors
    ///
    /// If the map cannot be opened.
    pub fn control(&self) -> Result<Array<MapData, Watch>, PinnedError> {
        self.open_as(MapName::Watch)
    }

    /// Where events come. Who reads them takes them away.
    ///
    /// # Errors
    ///
    /// If the map cannot be opened.
    pub fn event_ring(&self) -> Result<RingBuf<MapData>, PinnedError> {
        self.open_as(MapName::Events)
    }

    /// Events for which there was no room, since the map was made.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn events_lost(&self) -> Result<u64, PinnedError> {
        let name = MapName::EventsLost;
        let map: PerCpuArray<_, u64> = self.open_as(name)?;
        let lost = map.get(&0, 0).map_err(|error| refused(name, &error))?;
        Ok(lost.iter().sum())
    }
}
