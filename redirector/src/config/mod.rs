//! The configuration file.
//!
//! [`load`] reads a file and [`parse`] its text; [`from_arguments`] makes the same of publish
//! entries on a command line. All of them report every problem that they find, each with its
//! place, what was found and what is allowed.

mod address;
mod conflicts;
mod document;
mod error;
mod fields;
mod keys;
mod node;
mod nodes;
pub mod publish;
mod service;
mod snat_addresses;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;

use ipnet::IpNet;
use redirector_common::map_name::MapName;

pub use error::{ConfigError, Place, Position, Problem};

use crate::model::{Service, Source};
use document::{Document, Placed, SnatPorts};
use error::Problems;
use fields::Reader;

/// Ports for translation where the file names none.
pub const DEFAULT_SNAT_PORTS: RangeInclusive<u16> = 49152..=57343;

/// Whether clients are told of segments that fit into tunnels, where the file does not say.
pub const DEFAULT_MSS_CLAMP: bool = true;

/// Longest file.
const MAX_BYTES: u64 = 16 << 20;

/// What a file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Names of the interfaces; `None`: every interface with a default route.
    pub interfaces: Option<Vec<String>>,
    /// How XDP programs are attached.
    pub xdp_mode: XdpMode,
    /// Whether TCP connections end with their backend, by a reset, rather than when they time out.
    pub resets_clients: bool,
    /// The block of ports for source translation: not empty, from 1024 up, and apart from every
    /// port of a frontend or local backend.
    pub snat_ports: RangeInclusive<u16>,
    /// Addresses of this node that sources may be translated to.
    pub snat_addresses: SnatAddresses,
    /// Whether clients whose packets come by a tunnel are told of segments that fit into it.
    pub mss_clamp: bool,
    /// Entries of the maps whose size was chosen.
    pub tables: BTreeMap<MapName, u32>,
    /// Addresses of all nodes that run redirector, this one's perhaps among them.
    pub nodes: BTreeSet<IpAddr>,
    /// Services, and then publish entries, one service for each port; each in the order of the
    /// file. A frontend goes to the first that claims it, so a service that names an address has
    /// it before a publish entry for every node address.
    pub services: Vec<Service>,
}

impl Default for Config {
    /// What an empty file says.
    fn default() -> Self {
        Self {
            interfaces: None,
            xdp_mode: XdpMode::default(),
            resets_clients: false,
            snat_ports: DEFAULT_SNAT_PORTS,
            snat_addresses: SnatAddresses::default(),
            mss_clamp: DEFAULT_MSS_CLAMP,
            tables: BTreeMap::new(),
            nodes: BTreeSet::new(),
            services: Vec::new(),
        }
    }
}

/// Addresses of this node that sources may be translated to: always the first of the interface that
/// packets leave by, and while the ports of that are taken, some of its others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SnatAddresses {
    /// No others: they may move to another node.
    #[default]
    Primary,
    /// All of them.
    All,
    /// Those in these networks, in their order.
    In(Vec<IpNet>),
}

/// How XDP programs are attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum XdpMode {
    /// In the driver where it can, else in the kernel's generic hook.
    #[default]
    Auto,
    /// In the driver, or not at all.
    Native,
    /// In the kernel's generic hook.
    Generic,
    /// Not at all: TC does everything.
    Off,
}

impl XdpMode {
    const WORDS: [(&str, Self); 4] = [
        ("auto", Self::Auto),
        ("native", Self::Native),
        ("generic", Self::Generic),
        ("off", Self::Off),
    ];
}

impl fmt::Display for XdpMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Off => "off",
        })
    }
}

/// Reads a file.
///
/// # Errors
///
/// The file cannot be read, or what it says is wrong: all problems of it.
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    parse_bytes(path, &read(path)?)
}

/// What a configuration file has in it, unchecked but for its length.
///
/// # Errors
///
/// A file that cannot be read, or is too long.
pub fn read(path: &Path) -> Result<Vec<u8>, ConfigError> {
    let bytes = read_limited(path).map_err(|error| {
        about(path, None, format!("cannot be read: {error}; name a file that can be read"))
    })?;
    if bytes.len() as u64 > MAX_BYTES {
        let message = format!("is longer than {MAX_BYTES} bytes; name a configuration file");
        return Err(about(path, None, message));
    }
    Ok(bytes)
}

/// Parses and checks what was [`read`] from a file.
///
/// # Errors
///
/// As [`load`].
pub fn parse_bytes(path: &Path, bytes: &[u8]) -> Result<Config, ConfigError> {
    match std::str::from_utf8(bytes) {
        Ok(text) => parse(&path.display().to_string(), text),
        Err(error) => {
            let good = String::from_utf8_lossy(bytes.get(..error.valid_up_to()).unwrap_or(&[]));
            let message = "a byte here is not UTF-8; the file must be UTF-8 text".to_owned();
            Err(about(path, Some(end_of(&good)), message))
        }
    }
}

fn about(path: &Path, position: Option<Position>, message: String) -> ConfigError {
    let name = Arc::from(path.display().to_string());
    ConfigError::single(Place { name, position }, message)
}

/// At most one byte more than [`MAX_BYTES`]: not every file has an end.
fn read_limited(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The position after `text`.
fn end_of(text: &str) -> Position {
    let last_line = text.rsplit('\n').next().unwrap_or("");
    Position {
        line: text.matches('\n').count() as u64 + 1,
        column: last_line.chars().count() as u64 + 1,
    }
}

/// Reads the text of a file; `name` stands in messages.
///
/// # Errors
///
/// What the text says is wrong: all problems of it.
pub fn parse(name: &str, text: &str) -> Result<Config, ConfigError> {
    let name: Arc<str> = Arc::from(name);
    let root = node::read(text).map_err(|(position, message)| {
        let name = name.clone();
        ConfigError::single(Place { name, position }, message)
    })?;
    let mut reader = Reader { name, text, problems: Problems::default() };
    let document = document::read(&root, &mut reader);
    check(document, reader.problems)
}

/// What a file with these publish entries would say. In messages, an entry is its own place.
///
/// # Errors
///
/// Entries that are wrong, or that claim the same ports: all problems.
pub fn from_arguments<S: AsRef<str>>(
    specs: impl IntoIterator<Item = S>,
) -> Result<Config, ConfigError> {
    let mut problems = Problems::default();
    let mut services = Vec::new();
    for spec in specs {
        let spec = spec.as_ref();
        let place = Place { name: Arc::from(spec), position: None };
        match publish::parse_spec(spec) {
            Ok(parsed) => services.extend(parsed.into_iter().map(|s| Placed::at(s, "", &place))),
            Err(error) => problems.report(place, error.message),
        }
    }
    let document = Document {
        interfaces: None,
        xdp_mode: XdpMode::default(),
        resets_clients: false,
        snat_ports: SnatPorts::default(),
        snat_addresses: SnatAddresses::default(),
        mss_clamp: DEFAULT_MSS_CLAMP,
        tables: BTreeMap::new(),
        nodes: BTreeSet::new(),
        services,
    };
    check(document, problems)
}

/// Checks across entries, and hands over what was read if all is well.
fn check(document: Document, mut problems: Problems) -> Result<Config, ConfigError> {
    conflicts::check_frontends(&document.services, &mut problems);
    conflicts::check_snat_ports(&document.services, &document.snat_ports, &mut problems);
    nodes::check_direct(&document.services, &document.nodes, &mut problems);
    let mut services: Vec<Service> =
        document.services.into_iter().map(|placed| placed.service).collect();
    services.sort_by_key(|service| service.key.source == Source::Publish);
    problems.finish(Config {
        interfaces: document.interfaces,
        xdp_mode: document.xdp_mode,
        resets_clients: document.resets_clients,
        snat_ports: document.snat_ports.range,
        snat_addresses: document.snat_addresses,
        mss_clamp: document.mss_clamp,
        tables: document.tables,
        nodes: document.nodes,
        services,
    })
}

#[cfg(test)]
mod tests;
