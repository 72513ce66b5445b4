//! The keys of the file.

use crate::dataplane::sizes;

/// Keys of the file itself.
pub(super) const FILE: &[&str] = &[
    "interfaces",
    "mssClamp",
    "nodes",
    "publish",
    "removedBackends",
    "services",
    "snatAddresses",
    "snatPorts",
    "tables",
    "xdpMode",
];

/// Keys of `tables`.
pub(super) const TABLES: &[&str] = &{
    let mut keys = [""; sizes::CHOSEN.len()];
    let mut at = 0;
    while at < keys.len() {
        keys[at] = sizes::CHOSEN[at].1;
        at += 1;
    }
    keys
};

/// Keys of a service.
pub(super) const SERVICE: &[&str] = &[
    "algorithm",
    "backends",
    "forwarding",
    "frontends",
    "name",
    "sessionAffinitySeconds",
    "sourceRanges",
    "trafficPolicy",
];

/// Keys of a frontend.
pub(super) const FRONTEND: &[&str] = &["address", "port", "protocol"];

/// Keys of a backend.
pub(super) const BACKEND: &[&str] = &["address", "port", "state", "weight"];

/// The word of `known` that `found` was most likely meant to be.
pub(super) fn nearest<'k>(found: &str, known: &[&'k str]) -> Option<&'k str> {
    let found = found.to_lowercase();
    let distance = |word: &str| {
        let word = word.to_lowercase();
        if found.len() >= 3 && word.starts_with(&found) {
            return 0;
        }
        strsim::damerau_levenshtein(&found, &word)
    };
    known
        .iter()
        .map(|word| (distance(word), *word))
        .filter(|(distance, word)| *distance <= (word.len() / 3).max(1))
        .min()
        .map(|(_, word)| word)
}

/// `did you mean …? ` where there is a near word, and what is allowed.
pub(super) fn advise(found: &str, known: &[&str]) -> String {
    let hint = match nearest(found, known) {
        Some(word) => format!("did you mean {word:?}? "),
        None => String::new(),
    };
    format!("{hint}allowed: {}", known.join(", "))
}
