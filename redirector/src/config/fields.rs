//! Reading values out of the YAML tree, reporting those that are of the wrong kind.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use super::error::{Place, Position, Problems};
use super::keys;
use super::node::{Node, Value};

/// The file being read, and what is wrong with it so far.
///
/// A `path` names the key that a message is about, as in `services.frontends.port`; the position
/// says which of them.
pub(super) struct Reader<'t> {
    pub(super) name: Arc<str>,
    pub(super) text: &'t str,
    pub(super) problems: Problems,
}

/// The entries of a mapping whose keys are all known.
pub(super) struct Fields<'n> {
    position: Position,
    entries: BTreeMap<&'n str, &'n Node>,
}

impl<'n> Fields<'n> {
    pub(super) fn get(&self, key: &str) -> Option<&'n Node> {
        self.entries.get(key).copied()
    }

    /// Like [`get`](Self::get), where a key without a value counts as left out. For lists, whose
    /// items may all be commented out.
    pub(super) fn get_filled(&self, key: &str) -> Option<&'n Node> {
        self.get(key).filter(|node| !matches!(node.value, Value::Empty))
    }

    pub(super) fn required(
        &self,
        key: &str,
        path: &str,
        reader: &mut Reader<'_>,
    ) -> Option<&'n Node> {
        let node = self.get(key);
        if node.is_none() {
            reader.report(self.position, &format!("{path}: key {key:?} is missing; add it"));
        }
        node
    }
}

impl Reader<'_> {
    pub(super) fn place(&self, position: Position) -> Place {
        Place { name: self.name.clone(), position: Some(position) }
    }

    pub(super) fn report(&mut self, position: Position, message: &str) {
        let place = self.place(position);
        self.problems.report(place, message);
    }

    /// Reports a value of the wrong kind.
    pub(super) fn mismatch(&mut self, node: &Node, path: &str, allowed: &str) {
        let prefix = if path.is_empty() { String::new() } else { format!("{path}: ") };
        let found = &node.value;
        self.report(node.position, &format!("{prefix}found {found}; allowed: {allowed}"));
    }

    /// The entries of a mapping. Unknown and repeated keys are reported and left out.
    pub(super) fn fields<'n>(
        &mut self,
        node: &'n Node,
        path: &str,
        known: &[&str],
    ) -> Option<Fields<'n>> {
        let Value::Map(map) = &node.value else {
            let allowed = format!("a mapping with the keys {}", known.join(", "));
            self.mismatch(node, path, &allowed);
            return None;
        };
        let prefix = if path.is_empty() { String::new() } else { format!("{path}: ") };
        let mut entries = BTreeMap::new();
        let mut first_places: BTreeMap<&str, Position> = BTreeMap::new();
        for (key, value) in map {
            let Value::Text(name) = &key.value else {
                let message =
                    format!("{prefix}key {} is not text; allowed: {}", key.value, known.join(", "));
                self.report(key.position, &message);
                continue;
            };
            if !known.contains(&name.as_str()) {
                let message =
                    format!("{prefix}unknown key {name:?}; {}", keys::advise(name, known));
                self.report(key.position, &message);
                continue;
            }
            if let Some(first) = first_places.get(name.as_str()) {
                let first = self.place(*first);
                let message =
                    format!("{prefix}key {name:?} stands at {first} already; remove one of them");
                self.report(key.position, &message);
                continue;
            }
            first_places.insert(name, key.position);
            entries.insert(name.as_str(), value);
        }
        Some(Fields { position: node.position, entries })
    }

    pub(super) fn list<'n>(
        &mut self,
        node: &'n Node,
        path: &str,
        items: &str,
    ) -> Option<&'n [Node]> {
        if let Value::List(list) = &node.value {
            return Some(list);
        }
        self.mismatch(node, path, &format!("a list of {items}"));
        None
    }

    pub(super) fn text<'n>(
        &mut self,
        node: &'n Node,
        path: &str,
        allowed: &str,
    ) -> Option<&'n str> {
        if let Value::Text(text) = &node.value {
            return Some(text);
        }
        self.mismatch(node, path, allowed);
        None
    }

    /// One of the words of `allowed`, in their spelling.
    pub(super) fn word<T: Copy>(
        &mut self,
        node: &Node,
        path: &str,
        allowed: &[(&str, T)],
    ) -> Option<T> {
        let words: Vec<&str> = allowed.iter().map(|(word, _)| *word).collect();
        let text = self.text(node, path, &words.join(", "))?;
        let meant = allowed.iter().find(|(word, _)| *word == text);
        if meant.is_none() {
            let message = format!("{path}: {text:?} is not known; {}", keys::advise(text, &words));
            self.report(node.position, &message);
        }
        meant.map(|(_, value)| *value)
    }

    pub(super) fn boolean(&mut self, node: &Node, path: &str) -> Option<bool> {
        if let Value::Bool(value) = node.value {
            return Some(value);
        }
        self.mismatch(node, path, "true, false");
        None
    }

    pub(super) fn integer(
        &mut self,
        node: &Node,
        path: &str,
        range: RangeInclusive<u32>,
    ) -> Option<u32> {
        let allowed = format!("a number from {} to {}", range.start(), range.end());
        let Value::Integer(number) = node.value else {
            self.mismatch(node, path, &allowed);
            return None;
        };
        let number_in_range = u32::try_from(number).ok().filter(|n| range.contains(n));
        if number_in_range.is_none() {
            let message = format!("{path}: {number} is out of range; allowed: {allowed}");
            self.report(node.position, &message);
        }
        number_in_range
    }

    pub(super) fn port(&mut self, node: &Node, path: &str) -> Option<u16> {
        let Value::Integer(number) = node.value else {
            self.mismatch(node, path, "a number from 1 to 65535");
            return None;
        };
        let port = u16::try_from(number).ok().filter(|port| *port != 0);
        if port.is_none() {
            let message = format!("{path}: {number} is not a port; ports are 1 to 65535");
            self.report(node.position, &message);
        }
        port
    }
}
