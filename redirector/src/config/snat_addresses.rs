//! The key `snatAddresses`: which of this node's addresses sources may be translated to.

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::SnatAddresses;
use super::address;
use super::error::Place;
use super::fields::{Fields, Reader};
use super::node::{Node, Value};

const PATH: &str = "snatAddresses";
const ALLOWED: &str = "primary, all, or a list of addresses and networks";
const WORDS: [(&str, SnatAddresses); 2] =
    [("primary", SnatAddresses::Primary), ("all", SnatAddresses::All)];

pub(super) fn read(fields: &Fields<'_>, reader: &mut Reader<'_>) -> Option<SnatAddresses> {
    let node = fields.get_filled(PATH)?;
    if let Value::List(list) = &node.value {
        return read_list(node, list, reader);
    }
    let wish = if let Value::Text(word) = &node.value {
        WORDS.into_iter().find(|(known, _)| known == word)
    } else {
        None
    };
    if wish.is_none() {
        reader.mismatch(node, PATH, ALLOWED);
    }
    wish.map(|(_, wish)| wish)
}

fn read_list(node: &Node, list: &[Node], reader: &mut Reader<'_>) -> Option<SnatAddresses> {
    if list.is_empty() {
        let message = format!("{PATH}: the list is empty; write primary for no further address");
        reader.report(node.position, &message);
        return None;
    }
    let mut places: BTreeMap<IpNet, Place> = BTreeMap::new();
    let mut networks = Vec::new();
    for item in list {
        let Some(text) = reader.text(item, PATH, "an address or a network, in quotes") else {
            continue;
        };
        match address::parse_own(text) {
            Err(message) => reader.report(item.position, &format!("{PATH}: {message}")),
            Ok(network) => {
                if let Some(first) = places.get(&network) {
                    let message =
                        format!("{PATH}: {text} stands at {first} already; remove one of them");
                    reader.report(item.position, &message);
                } else {
                    places.insert(network, reader.place(item.position));
                    networks.push(network);
                }
            }
        }
    }
    Some(SnatAddresses::In(networks))
}
