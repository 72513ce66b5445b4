//! What has to be written so that one map becomes another.

use std::collections::BTreeMap;

/// Entries to write and keys to remove.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delta<K, V> {
    /// Entries that are missing or differ.
    pub set: Vec<(K, V)>,
    /// Keys that should not be there.
    pub remove: Vec<K>,
}

/// `desired` − `actual`.
#[must_use]
pub fn delta<K: Ord + Copy, V: PartialEq + Clone>(
    actual: &BTreeMap<K, V>,
    desired: &BTreeMap<K, V>,
) -> Delta<K, V> {
    let set = desired
        .iter()
        .filter(|(key, value)| actual.get(key) != Some(value))
        .map(|(key, value)| (*key, value.clone()))
        .collect();
    Delta { set, remove: surplus(actual, desired) }
}

/// Keys that should not be there.
#[must_use]
pub fn surplus<K: Ord + Copy, V>(actual: &BTreeMap<K, V>, desired: &BTreeMap<K, V>) -> Vec<K> {
    actual.keys().filter(|key| !desired.contains_key(key)).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_differences_are_written() {
        let actual = BTreeMap::from([(1, 'a'), (2, 'b'), (3, 'c')]);
        let desired = BTreeMap::from([(2, 'b'), (3, 'x'), (4, 'd')]);
        let delta = delta(&actual, &desired);
        assert_eq!(delta.set, [(3, 'x'), (4, 'd')]);
        assert_eq!(delta.remove, [1]);
    }
}
