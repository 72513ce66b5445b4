//! Room for Maglev tables: regions of whole lines of the `MAGLEV` array.

use std::collections::BTreeMap;

use redirector_common::Service;

use super::lines::lines_of;

/// Which lines are taken.
#[derive(Clone, Debug)]
pub(crate) struct Regions {
    capacity: u32,
    /// First line to number of lines.
    taken: BTreeMap<u32, u32>,
    /// Where the last search ended, so that filling an empty array does not look at every
    /// region for each new one.
    next: u32,
}

impl Regions {
    /// An array of `capacity` lines, all free.
    pub(crate) fn new(capacity: u32) -> Self {
        Self { capacity, taken: BTreeMap::new(), next: 0 }
    }

    /// An array of `capacity` lines, of which those are taken that services have.
    pub(crate) fn of<'a>(services: impl IntoIterator<Item = &'a Service>, capacity: u32) -> Self {
        let mut regions = Self::new(capacity);
        for (first, lines) in services.into_iter().flat_map(lines_of) {
            regions.take(first, lines);
        }
        regions
    }

    /// How many lines are taken.
    pub(crate) fn len(&self) -> usize {
        self.taken.values().map(|lines| *lines as usize).sum()
    }

    /// Whether a line is taken.
    pub(crate) fn contains(&self, line: u32) -> bool {
        let before = self.taken.range(..=line).next_back();
        before.is_some_and(|(first, lines)| line - first < *lines)
    }

    /// Marks lines as free.
    pub(crate) fn release(&mut self, first: u32) {
        self.taken.remove(&first);
    }

    /// Marks lines as taken.
    pub(crate) fn take(&mut self, first: u32, lines: u32) {
        if lines > 0 {
            let len = self.taken.entry(first).or_default();
            *len = lines.max(*len);
        }
    }

    /// Finds free lines and takes them; `None` if no free region is long enough.
    pub(crate) fn allocate(&mut self, lines: u32) -> Option<u32> {
        let first = self.find(self.next, lines).or_else(|| self.find(0, lines))?;
        self.take(first, lines);
        self.next = first.saturating_add(lines);
        Some(first)
    }

    fn find(&self, from: u32, lines: u32) -> Option<u32> {
        let end = |(first, len): (&u32, &u32)| first.saturating_add(*len);
        let mut at =
            self.taken.range(..=from).map(end).next_back().map_or(from, |end| end.max(from));
        for (first, len) in self.taken.range(from..) {
            if first.saturating_sub(at) >= lines {
                break;
            }
            at = at.max(end((first, len)));
        }
        (at.checked_add(lines)? <= self.capacity).then_some(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_do_not_overlap() {
        let mut regions = Regions::new(10);
        regions.take(2, 3);
        assert_eq!(regions.allocate(4), Some(5));
        assert_eq!(regions.allocate(2), Some(0));
        assert_eq!(regions.allocate(2), None);
        assert_eq!(regions.allocate(1), Some(9));
        assert_eq!(regions.allocate(1), None);
    }

    #[test]
    fn a_table_uses_whole_lines() {
        let service = Service {
            table_offset: 32,
            table_size: 17,
            internal_offset: 80,
            internal_size: 1,
            ..Service::default()
        };
        let used = Regions::of([&service], 8);
        assert_eq!((0..8).filter(|line| used.contains(*line)).collect::<Vec<_>>(), [2, 3, 5]);
        assert_eq!(used.len(), 3);
        let shared = Service { internal_offset: 32, internal_size: 17, ..service };
        assert_eq!(Regions::of([&shared], 8).len(), 2);
    }
}
