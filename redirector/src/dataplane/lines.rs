//! Lines of Maglev tables.
//!
//! They are most of what the maps hold, and nobody needs them twice: what a service's table should
//! be follows from its backends, and what it is stands in the map. So the agent keeps none.

use redirector_common::service::{MAGLEV_LINE, MaglevLine};
use redirector_common::{BackendId, Origin, Service};

use super::table::TableError;

/// The `MAGLEV` array.
pub trait LineTable {
    /// So many lines from `first` on, fewer where the array ends.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    fn lines(&self, first: u32, count: u32) -> Result<Vec<MaglevLine>, TableError>;

    /// Writes lines, each in one store; returns how many calls that took.
    ///
    /// # Errors
    ///
    /// If the kernel refuses one; those before it may be written or not.
    fn set_lines(&mut self, lines: &[(u32, MaglevLine)]) -> Result<usize, TableError>;
}

/// Whether the table of `service` for clients from `origin` is this one.
///
/// # Errors
///
/// If the map cannot be read.
pub(super) fn holds(
    lines: &dyn LineTable,
    service: &Service,
    origin: Origin,
    entries: &[BackendId],
) -> Result<bool, TableError> {
    let (offset, size) = service.table(origin);
    if size as usize != entries.len() || !offset.is_multiple_of(MAGLEV_LINE) {
        return Ok(false);
    }
    let found = lines.lines(offset / MAGLEV_LINE, size.div_ceil(MAGLEV_LINE))?;
    let found = found.iter().flat_map(|line| &line.entries).take(entries.len());
    Ok(found.eq(entries))
}

/// The entries of a table, in lines from `first` on.
pub(super) fn split(
    first: u32,
    entries: &[BackendId],
) -> impl Iterator<Item = (u32, MaglevLine)> + '_ {
    (first..).zip(entries.chunks(MAGLEV_LINE as usize)).map(|(line, chunk)| {
        let mut value = MaglevLine { entries: [0; MAGLEV_LINE as usize] };
        // No chunk is longer than a line.
        value.entries.iter_mut().zip(chunk).for_each(|(to, from)| *to = *from);
        (line, value)
    })
}

/// Lines of `MAGLEV` that each of a service's tables takes: first, and how many.
#[must_use]
pub fn lines_of(service: &Service) -> [(u32, u32); 3] {
    Origin::ALL.map(|origin| {
        let (offset, size) = service.table(origin);
        (offset / MAGLEV_LINE, size.div_ceil(MAGLEV_LINE))
    })
}

#[cfg(test)]
impl LineTable for std::collections::BTreeMap<u32, MaglevLine> {
    fn lines(&self, first: u32, count: u32) -> Result<Vec<MaglevLine>, TableError> {
        Ok(self.range(first..first + count).map(|(_, line)| *line).collect())
    }

    fn set_lines(&mut self, lines: &[(u32, MaglevLine)]) -> Result<usize, TableError> {
        self.extend(lines.iter().copied());
        Ok(1)
    }
}
