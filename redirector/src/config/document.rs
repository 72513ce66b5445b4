//! The file as a whole: its top-level keys.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;

use redirector_common::map_name::MapName;

use super::error::Place;
use super::fields::{Fields, Reader};
use super::node::{Node, Value};
use super::{
    DEFAULT_MSS_CLAMP, DEFAULT_SNAT_PORTS, SnatAddresses, XdpMode, keys, nodes, publish, service,
    snat_addresses,
};
use crate::dataplane::sizes;
use crate::model::Service;

/// What a file says, with the places that checks across entries name.
#[derive(Debug)]
pub(super) struct Document {
    pub(super) interfaces: Option<Vec<String>>,
    pub(super) xdp_mode: XdpMode,
    pub(super) resets_clients: bool,
    pub(super) snat_ports: SnatPorts,
    pub(super) snat_addresses: SnatAddresses,
    pub(super) mss_clamp: bool,
    pub(super) tables: BTreeMap<MapName, u32>,
    pub(super) nodes: BTreeSet<IpAddr>,
    pub(super) services: Vec<Placed>,
}

/// The translation block; `place` is missing where it is the default.
#[derive(Debug)]
pub(super) struct SnatPorts {
    pub(super) range: RangeInclusive<u16>,
    pub(super) place: Option<Place>,
}

/// A service and where its parts stand.
#[derive(Debug)]
pub(super) struct Placed {
    pub(super) service: Service,
    /// What messages about it start with, if anything.
    pub(super) path: &'static str,
    /// Places of the frontends, in their order.
    pub(super) frontends: Vec<Place>,
    /// Places of the backends, in their order.
    pub(super) backends: Vec<Place>,
    /// Where it says that backends answer clients themselves, if it does.
    pub(super) direct: Option<Place>,
}

impl Default for SnatPorts {
    fn default() -> Self {
        Self { range: DEFAULT_SNAT_PORTS, place: None }
    }
}

/// Reads what can be read; problems are left with the reader.
pub(super) fn read(root: &Node, reader: &mut Reader<'_>) -> Document {
    let mut document = Document {
        interfaces: None,
        xdp_mode: XdpMode::default(),
        resets_clients: false,
        snat_ports: SnatPorts::default(),
        snat_addresses: SnatAddresses::default(),
        mss_clamp: DEFAULT_MSS_CLAMP,
        tables: BTreeMap::new(),
        nodes: BTreeSet::new(),
        services: Vec::new(),
    };
    if matches!(root.value, Value::Empty) {
        return document;
    }
    let Some(fields) = reader.fields(root, "", keys::FILE) else {
        return document;
    };
    document.interfaces = read_interfaces(&fields, reader);
    if let Some(node) = fields.get("xdpMode")
        && let Some(mode) = reader.word(node, "xdpMode", &XdpMode::WORDS)
    {
        document.xdp_mode = mode;
    }
    if let Some(node) = fields.get("removedBackends")
        && let Some(resets) =
            reader.word(node, "removedBackends", &[("keep", false), ("reset", true)])
    {
        document.resets_clients = resets;
    }
    if let Some(node) = fields.get("snatPorts")
        && let Some(range) = read_snat_ports(node, reader)
    {
        document.snat_ports = SnatPorts { range, place: Some(reader.place(node.position)) };
    }
    if let Some(addresses) = snat_addresses::read(&fields, reader) {
        document.snat_addresses = addresses;
    }
    if let Some(node) = fields.get("mssClamp")
        && let Some(clamps) = reader.boolean(node, "mssClamp")
    {
        document.mss_clamp = clamps;
    }
    document.tables = read_tables(&fields, reader);
    document.nodes = nodes::read(&fields, reader);
    read_publish(&fields, reader, &mut document.services);
    service::read(&fields, reader, &mut document.services);
    document
}

fn read_tables(fields: &Fields<'_>, reader: &mut Reader<'_>) -> BTreeMap<MapName, u32> {
    let tables = fields.get_filled("tables");
    let Some(tables) = tables.and_then(|node| reader.fields(node, "tables", keys::TABLES)) else {
        return BTreeMap::new();
    };
    let mut sizes = BTreeMap::new();
    for (name, key, range) in sizes::CHOSEN {
        let entries =
            tables.get(key).and_then(|node| reader.integer(node, &format!("tables.{key}"), range));
        if let Some(entries) = entries {
            sizes.insert(name, entries);
        }
    }
    sizes
}

fn read_interfaces(fields: &Fields<'_>, reader: &mut Reader<'_>) -> Option<Vec<String>> {
    let node = fields.get_filled("interfaces")?;
    let list = reader.list(node, "interfaces", "interface names")?;
    if list.is_empty() {
        reader.report(
            node.position,
            "interfaces: the list is empty; name an interface, or leave the key out for every \
             interface with a default route",
        );
    }
    let mut names: BTreeMap<&str, Place> = BTreeMap::new();
    let mut interfaces = Vec::new();
    for item in list {
        let Some(name) = reader.text(item, "interfaces", "the name of an interface") else {
            continue;
        };
        if let Err(message) = check_interface(name) {
            reader.report(item.position, &format!("interfaces: {message}"));
        } else if let Some(first) = names.get(name) {
            let message =
                format!("interfaces: {name:?} stands at {first} already; remove one of them");
            reader.report(item.position, &message);
        } else {
            names.insert(name, reader.place(item.position));
            interfaces.push(name.to_owned());
        }
    }
    Some(interfaces)
}

/// The kernel's rules (`dev_valid_name`).
fn check_interface(name: &str) -> Result<(), String> {
    const MAX: usize = 15;
    if name.is_empty() {
        return Err("the name is empty; name an interface".to_owned());
    }
    if name.len() > MAX {
        return Err(format!(
            "{name:?} is {} bytes long; names of interfaces have at most {MAX}",
            name.len()
        ));
    }
    let forbidden = |c: char| c == '/' || c == ':' || c.is_ascii_whitespace() || c.is_control();
    if name == "." || name == ".." || name.contains(forbidden) {
        return Err(format!(
            "{name:?} is not the name of an interface; they are without spaces, \"/\" and \":\""
        ));
    }
    Ok(())
}

fn read_snat_ports(node: &Node, reader: &mut Reader<'_>) -> Option<RangeInclusive<u16>> {
    let allowed = "two ports from 1024 to 65535, as in \"49152-57343\"";
    let text = reader.text(node, "snatPorts", allowed)?;
    match parse_snat_ports(text) {
        Some(Ok(range)) => Some(range),
        Some(Err(problem)) => {
            let message = format!("snatPorts: {text:?} {problem}");
            reader.report(node.position, &message);
            None
        }
        None => {
            reader.mismatch(node, "snatPorts", allowed);
            None
        }
    }
}

/// `None`: this is no range of ports at all.
fn parse_snat_ports(text: &str) -> Option<Result<RangeInclusive<u16>, &'static str>> {
    let port = |text: &str| {
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<u16>().ok().filter(|_| digits)
    };
    let (first, last) = text.split_once('-')?;
    let (first, last) = (port(first)?, port(last)?);
    if first > last {
        return Some(Err("is reversed; write the lower port first"));
    }
    if first < 1024 {
        return Some(Err(
            "includes ports below 1024, which belong to well-known services; allowed: 1024 to \
             65535",
        ));
    }
    Some(Ok(first..=last))
}

fn read_publish(fields: &Fields<'_>, reader: &mut Reader<'_>, services: &mut Vec<Placed>) {
    let Some(node) = fields.get_filled("publish") else {
        return;
    };
    let Some(list) = reader.list(node, "publish", "entries of the form PORT:LOCALPORT") else {
        return;
    };
    for item in list {
        let allowed = format!("text of the form {}, in quotes", publish::GRAMMAR);
        let Some(text) = reader.text(item, "publish", &allowed) else {
            continue;
        };
        match publish::parse_spec(text) {
            Ok(parsed) => {
                let place = reader.place(item.position);
                services.extend(parsed.into_iter().map(|s| Placed::at(s, "publish", &place)));
            }
            Err(error) => {
                let position = item.position_of(reader.text, error.offset);
                reader.report(position, &format!("publish: {error}"));
            }
        }
    }
}

impl Placed {
    /// A service that stands at one place as a whole.
    pub(super) fn at(service: Service, path: &'static str, place: &Place) -> Self {
        Self {
            path,
            frontends: vec![place.clone(); service.frontends.len()],
            backends: vec![place.clone(); service.backends.len()],
            direct: None,
            service,
        }
    }
}
