//! Maps as tables that can be listed and written entry by entry: the kernel's, and an ordinary
//! one in memory for tests.

use std::collections::BTreeMap;
use std::io;

use aya::Pod;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, IterableMap, MapData, MapError};
use redirector_common::map_name::MapName;
use redirector_common::service::MaglevLine;
use redirector_common::{SourceBits, SourceRange};

use super::batch::{self, BatchError};
use super::lines::LineTable;

/// A map could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{}", self.describe())]
pub struct TableError {
    map: &'static str,
    action: &'static str,
    cause: io::Error,
}

impl TableError {
    /// An error of `map` while `action` was tried.
    #[must_use]
    pub fn new(map: MapName, action: &'static str, cause: io::Error) -> Self {
        Self { map: map.name(), action, cause }
    }

    fn describe(&self) -> String {
        let Self { map, action, cause } = self;
        match cause.raw_os_error() {
            // Of a hash map, and of a trie.
            Some(libc::E2BIG | libc::ENOSPC) => format!(
                "map {map} is full: make it larger with 'redirector map resize {map} NUMBER', or \
                 with 'tables' in the file"
            ),
            _ => format!("map {map}: {action}: {cause}"),
        }
    }

    fn of_map(map: MapName, action: &'static str, error: MapError) -> Self {
        Self::new(map, action, io_error(error))
    }

    fn of_batch(map: MapName, action: &'static str, error: BatchError) -> Self {
        let cause = match error {
            BatchError::Call { source, .. } => source,
            BatchError::Info(_) | BatchError::Layout { .. } => io::Error::other(error),
        };
        Self::new(map, action, cause)
    }
}

/// The operating system's error inside one of aya's.
pub(crate) fn io_error(error: MapError) -> io::Error {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "aya's enum: whatever else it is, its text says it"
    )]
    match error {
        MapError::SyscallError(error) => error.io_error,
        MapError::IoError(error) => error,
        MapError::KeyNotFound | MapError::ElementNotFound => {
            io::Error::from(io::ErrorKind::NotFound)
        }
        other => io::Error::other(other.to_string()),
    }
}

/// Keys and values that can be listed and written.
pub trait Table<K, V> {
    /// All entries in use, ordered by key.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    fn entries(&self) -> Result<BTreeMap<K, V>, TableError>;

    /// Writes an entry: one store, which a packet sees whole or not at all.
    ///
    /// # Errors
    ///
    /// If the kernel refuses, above all where the map is full.
    fn set(&mut self, key: &K, value: &V) -> Result<(), TableError>;

    /// Writes entries, each as [`set`](Self::set) does; returns how many calls that took.
    ///
    /// # Errors
    ///
    /// If the kernel refuses one; those before it may be written or not.
    fn set_all(&mut self, entries: &[(K, V)]) -> Result<usize, TableError> {
        entries.iter().try_for_each(|(key, value)| self.set(key, value))?;
        Ok(entries.len())
    }

    /// Removes an entry; none is no error.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    fn remove(&mut self, key: &K) -> Result<(), TableError>;
}

/// A hash map of the kernel.
pub struct HashTable<K: Pod, V: Pod> {
    name: MapName,
    map: HashMap<MapData, K, V>,
}

impl<K: Pod, V: Pod> HashTable<K, V> {
    /// The map `name`, opened.
    #[must_use]
    pub const fn new(name: MapName, map: HashMap<MapData, K, V>) -> Self {
        Self { name, map }
    }

    /// One entry.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn get(&self, key: &K) -> Result<Option<V>, TableError> {
        match self.map.get(key, 0) {
            Ok(value) => Ok(Some(value)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(TableError::of_map(self.name, "reading an entry", error)),
        }
    }

    /// All entries, some at a time, in no order; those that come or go meanwhile may be missed.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn read(
        &self,
        each: impl FnMut(&mut dyn Iterator<Item = (K, V)>),
    ) -> Result<(), TableError> {
        batch::read_chunks(self.map.map(), each)
            .map_err(|error| TableError::of_batch(self.name, "reading", error))
    }
}

impl<K: Pod + Ord, V: Pod> Table<K, V> for HashTable<K, V> {
    fn entries(&self) -> Result<BTreeMap<K, V>, TableError> {
        let mut all = BTreeMap::new();
        self.read(|entries| all.extend(entries))?;
        Ok(all)
    }

    fn set(&mut self, key: &K, value: &V) -> Result<(), TableError> {
        self.map
            .insert(key, value, 0)
            .map_err(|error| TableError::of_map(self.name, "writing an entry", error))
    }

    fn set_all(&mut self, entries: &[(K, V)]) -> Result<usize, TableError> {
        batch::write_all(self.map.map(), entries)
            .map(|()| 1)
            .map_err(|error| TableError::of_batch(self.name, "writing", error))
    }

    fn remove(&mut self, key: &K) -> Result<(), TableError> {
        match self.map.remove(key) {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(error) => forgive_absence(TableError::of_map(self.name, REMOVING, error)),
        }
    }
}

const REMOVING: &str = "removing an entry";

/// What was to be removed was not there: no error.
fn forgive_absence(error: TableError) -> Result<(), TableError> {
    match error.cause.raw_os_error() {
        Some(libc::ENOENT) => Ok(()),
        _ => Err(error),
    }
}

/// The kernel's trie of source ranges.
///
/// Read entry by entry, unlike the others: its batches came later than theirs, and their
/// positions are whole keys. There are few entries, and the agent alone writes them.
pub struct RangeTable {
    name: MapName,
    map: LpmTrie<MapData, SourceBits, u32>,
}

impl RangeTable {
    /// The map `name`, opened.
    #[must_use]
    pub const fn new(name: MapName, map: LpmTrie<MapData, SourceBits, u32>) -> Self {
        Self { name, map }
    }
}

/// In the form that aya takes.
const fn trie_key(range: &SourceRange) -> Key<SourceBits> {
    Key::new(range.prefix_len, range.bits)
}

impl Table<SourceRange, u32> for RangeTable {
    fn entries(&self) -> Result<BTreeMap<SourceRange, u32>, TableError> {
        read_ranges(&self.map).map_err(|error| TableError::of_map(self.name, "reading", error))
    }

    fn set(&mut self, key: &SourceRange, value: &u32) -> Result<(), TableError> {
        self.map
            .insert(&trie_key(key), value, 0)
            .map_err(|error| TableError::of_map(self.name, "writing an entry", error))
    }

    fn remove(&mut self, key: &SourceRange) -> Result<(), TableError> {
        match self.map.remove(&trie_key(key)) {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(error) => forgive_absence(TableError::of_map(self.name, REMOVING, error)),
        }
    }
}

/// Every source range in the kernel's trie.
pub(crate) fn read_ranges(
    map: &LpmTrie<MapData, SourceBits, u32>,
) -> Result<BTreeMap<SourceRange, u32>, MapError> {
    map.iter()
        .map(|entry| {
            let (key, value) = entry?;
            Ok((SourceRange { prefix_len: key.prefix_len(), bits: key.data() }, value))
        })
        .collect()
}

/// An array of the kernel. Elements equal to `unused` count as absent.
pub struct ArrayTable<V: Pod> {
    name: MapName,
    map: Array<MapData, V>,
    unused: V,
}

impl<V: Pod> ArrayTable<V> {
    /// The map `name`, opened.
    #[must_use]
    pub const fn new(name: MapName, map: Array<MapData, V>, unused: V) -> Self {
        Self { name, map, unused }
    }

    /// One element.
    ///
    /// # Errors
    ///
    /// If the kernel refuses, or the array is shorter.
    pub fn get(&self, index: u32) -> Result<V, TableError> {
        self.map
            .get(&index, 0)
            .map_err(|error| TableError::of_map(self.name, "reading an element", error))
    }

    /// Writes one element.
    ///
    /// # Errors
    ///
    /// If the kernel refuses, or the array is shorter.
    pub fn put(&mut self, index: u32, value: &V) -> Result<(), TableError> {
        self.map
            .set(index, value, 0)
            .map_err(|error| TableError::of_map(self.name, "writing an element", error))
    }

    /// How many elements there are.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.map.len()
    }

    /// Whether it has no elements, which no array of the kernel does.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<V: Pod + PartialEq> Table<u32, V> for ArrayTable<V> {
    fn entries(&self) -> Result<BTreeMap<u32, V>, TableError> {
        let mut all = BTreeMap::new();
        batch::read_chunks::<u32, V>(self.map.map(), |elements| {
            all.extend(elements.filter(|(_, value)| *value != self.unused));
        })
        .map_err(|error| TableError::of_batch(self.name, "reading", error))?;
        Ok(all)
    }

    fn set(&mut self, key: &u32, value: &V) -> Result<(), TableError> {
        self.put(*key, value)
    }

    fn set_all(&mut self, entries: &[(u32, V)]) -> Result<usize, TableError> {
        batch::write_all(self.map.map(), entries)
            .map(|()| 1)
            .map_err(|error| TableError::of_batch(self.name, "writing", error))
    }

    fn remove(&mut self, key: &u32) -> Result<(), TableError> {
        self.map
            .set(*key, self.unused, 0)
            .map_err(|error| TableError::of_map(self.name, "clearing an element", error))
    }
}

impl LineTable for ArrayTable<MaglevLine> {
    fn lines(&self, first: u32, count: u32) -> Result<Vec<MaglevLine>, TableError> {
        batch::read_range(self.map.map(), first, count)
            .map_err(|error| TableError::of_batch(self.name, "reading", error))
    }

    fn set_lines(&mut self, lines: &[(u32, MaglevLine)]) -> Result<usize, TableError> {
        self.set_all(lines)
    }
}

/// The fake is a table too.
impl<K: Ord + Copy, V: Clone> Table<K, V> for BTreeMap<K, V> {
    fn entries(&self) -> Result<BTreeMap<K, V>, TableError> {
        Ok(self.clone())
    }

    fn set(&mut self, key: &K, value: &V) -> Result<(), TableError> {
        self.insert(*key, value.clone());
        Ok(())
    }

    fn remove(&mut self, key: &K) -> Result<(), TableError> {
        self.remove(key);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_to_do_about_a_full_map_is_said() {
        let told = |code| {
            let error = io::Error::from_raw_os_error(code);
            let error = TableError::new(MapName::Frontends, "writing", error);
            // As the agent tells it.
            format!("{:#}", anyhow::Error::new(error))
        };
        for full in [libc::E2BIG, libc::ENOSPC] {
            assert_eq!(
                told(full),
                "map FRONTENDS is full: make it larger with 'redirector map resize FRONTENDS \
                 NUMBER', or with 'tables' in the file"
            );
        }
        assert_eq!(
            told(libc::EPERM),
            "map FRONTENDS: writing: Operation not permitted (os error 1)"
        );
    }
}
