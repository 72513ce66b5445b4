//! Telling the programs that what the flow cache repeats has changed.

use redirector_common::map_name::MapName;
use redirector_common::packet::select::hash;
use redirector_common::{Tuple, cache};

use super::maps;
use super::pins::Pins;
use super::table::{ArrayTable, Table, TableError};

/// The epochs of flows: each stands for those whose hash begins with its number.
pub struct Epochs {
    table: ArrayTable<u32>,
}

impl Epochs {
    /// Opens them.
    ///
    /// # Errors
    ///
    /// If the map is missing or not what its name says.
    pub fn open(pins: &Pins) -> Result<Self, TableError> {
        Ok(Self { table: maps::array(pins, MapName::Epochs, 0)? })
    }

    /// Routes, neighbours or interfaces have changed: every flow's next hop is looked up again.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn raise_all(&mut self) -> Result<(), TableError> {
        (0..cache::EPOCHS).try_for_each(|index| self.raise_one(index))
    }

    /// The half of a flow with this key was removed before its time.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn raise(&mut self, key: &Tuple) -> Result<(), TableError> {
        self.raise_one(hash(key) >> 24)
    }

    fn raise_one(&mut self, index: u32) -> Result<(), TableError> {
        // Programs may raise it in between, by two each time because they set the lowest bit so that
        // no epoch is 0. What was filled in under any of their numbers is void all the same: this
        // one is far from those.
        const FAR: u32 = 1 << 16;
        let epoch = self.table.get(index)?;
        self.table.set(&index, &epoch.wrapping_add(FAR))
    }
}
