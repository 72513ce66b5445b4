//! The `PORTS` map, in which one bit stands at every port or at none.
//!
//! Where the node has addresses that only frontends have, packets to any port must be looked at
//! more closely; where it has none, that must cost no packet anything. So the answer stands where
//! every packet looks anyway. [`Contents`](super::contents::Contents) do not know of the bit.

use std::collections::BTreeMap;

use redirector_common::PortFlags;
use redirector_common::node::{PORT_BLOCKS, PortBlock};

use super::table::{ArrayTable, Table, TableError};

/// The `PORTS` map.
pub trait PortTable: Table<u32, PortBlock> {
    /// Says of every port whether there are addresses that only frontends have.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    fn mark_vips(&mut self, vips: bool) -> Result<(), TableError>;
}

/// The kernel's.
pub struct MarkedPorts {
    map: ArrayTable<PortBlock>,
    /// `None`: an earlier agent may not have come to an end with it.
    vips: Option<bool>,
}

impl MarkedPorts {
    /// The map, opened.
    #[must_use]
    pub const fn new(map: ArrayTable<PortBlock>) -> Self {
        Self { map, vips: None }
    }
}

impl Table<u32, PortBlock> for MarkedPorts {
    fn entries(&self) -> Result<BTreeMap<u32, PortBlock>, TableError> {
        let mut blocks = self.map.entries()?;
        blocks.values_mut().for_each(unmark);
        blocks.retain(|_, block| *block != PortBlock::default());
        Ok(blocks)
    }

    fn set(&mut self, key: &u32, value: &PortBlock) -> Result<(), TableError> {
        self.map.put(*key, &marked(*value, self.vips == Some(true)))
    }

    fn set_all(&mut self, entries: &[(u32, PortBlock)]) -> Result<usize, TableError> {
        let mark =
            |(key, value): &(u32, PortBlock)| (*key, marked(*value, self.vips == Some(true)));
        let entries: Vec<(u32, PortBlock)> = entries.iter().map(mark).collect();
        self.map.set_all(&entries)
    }

    fn remove(&mut self, key: &u32) -> Result<(), TableError> {
        self.set(key, &PortBlock::default())
    }
}

impl PortTable for MarkedPorts {
    fn mark_vips(&mut self, vips: bool) -> Result<(), TableError> {
        if self.vips == Some(vips) {
            return Ok(());
        }
        self.vips = None;
        let blocks = self.map.entries()?;
        for index in 0..PORT_BLOCKS {
            let found = blocks.get(&index).copied().unwrap_or_default();
            let wanted = marked(found, vips);
            if found != wanted {
                self.map.put(index, &wanted)?;
            }
        }
        self.vips = Some(vips);
        Ok(())
    }
}

fn marked(mut block: PortBlock, vips: bool) -> PortBlock {
    unmark(&mut block);
    if vips {
        for flags in &mut block.flags {
            *flags = PortFlags(*flags).union(PortFlags::VIPS).0;
        }
    }
    block
}

/// Takes the bit away.
pub(crate) fn unmark(block: &mut PortBlock) {
    for flags in &mut block.flags {
        *flags &= !PortFlags::VIPS.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_bits_stay() {
        let mut block = PortBlock { flags: [0, 1, 2, 4, 8, 15, 0, 3] };
        let before = block;
        block = marked(block, true);
        assert_eq!(block.flags, [16, 17, 18, 20, 24, 31, 16, 19]);
        assert_eq!(marked(block, true), block);
        assert_eq!(marked(block, false), before);
        unmark(&mut block);
        assert_eq!(block, before);
    }
}
