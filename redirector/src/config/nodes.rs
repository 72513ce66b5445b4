//! The other nodes: the key `nodes`, and what needs it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use redirector_common::node::MAX_PEERS;

use super::address::{self, Role};
use super::document::Placed;
use super::error::{Place, Problems};
use super::fields::{Fields, Reader};

/// Most addresses: as many as the data path has room for.
const MAX_NODES: usize = MAX_PEERS as usize;

pub(super) fn read(fields: &Fields<'_>, reader: &mut Reader<'_>) -> BTreeSet<IpAddr> {
    const PATH: &str = "nodes";
    let mut nodes: BTreeMap<IpAddr, Place> = BTreeMap::new();
    let Some(node) = fields.get_filled(PATH) else {
        return BTreeSet::new();
    };
    let list = reader.list(node, PATH, "addresses of the nodes that run redirector").unwrap_or(&[]);
    for item in list {
        let Some(text) = reader.text(item, PATH, "an IPv4 or IPv6 address, in quotes") else {
            continue;
        };
        match address::parse(text, Role::Node) {
            Err(message) => reader.report(item.position, &format!("{PATH}: {message}")),
            Ok(address) => {
                let place = reader.place(item.position);
                if let Some(first) = nodes.insert(address, place) {
                    let message =
                        format!("{PATH}: {address} stands at {first} already; remove one of them");
                    reader.report(item.position, &message);
                }
            }
        }
    }
    if nodes.len() > MAX_NODES {
        let message =
            format!("{PATH}: {} addresses are too many; at most {MAX_NODES}", nodes.len());
        reader.report(node.position, &message);
    }
    nodes.into_keys().collect()
}

/// Reports services whose backends are to answer clients themselves, where nobody says which other
/// nodes can have them do it.
pub(super) fn check_direct(services: &[Placed], nodes: &BTreeSet<IpAddr>, problems: &mut Problems) {
    if !nodes.is_empty() {
        return;
    }
    for place in services.iter().filter_map(|placed| placed.direct.as_ref()) {
        problems.report(
            place.clone(),
            "services.forwarding: \"dsr\" needs to know the nodes that run redirector: add the \
             addresses of all of them as `nodes: [ADDRESS, …]` to the file, the same on every node",
        );
    }
}
