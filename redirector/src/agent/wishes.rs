//! What the operator asks for: the command line and the file.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;

use redirector_common::map_name::MapName;

use super::{Options, interfaces};
use crate::config::{self, Config, ConfigError, SnatAddresses, XdpMode};
use crate::dataplane::attach::{self, find_interfaces};
use crate::dataplane::netlink::Host;
use crate::model::Service;

/// The command line, and the file as it was when it was last right.
pub(super) struct Wishes {
    options: Options,
    config: Config,
    /// Contents of the file when it was last read, right or wrong.
    file: Option<Vec<u8>>,
}

impl Wishes {
    /// Reads the file, where there is one.
    pub(super) fn load(options: Options) -> anyhow::Result<Self> {
        let file = read_file(&options)?;
        let config = parse_file(&options, file.as_deref())?;
        Ok(Self { options, config, file })
    }

    pub(super) fn options(&self) -> &Options {
        &self.options
    }

    /// Whether the file is not what it was when it was last read.
    pub(super) fn has_changed(&self) -> bool {
        self.options.config.is_some() && read_file(&self.options).ok().flatten() != self.file
    }

    /// Reads the file again. One that is wrong, or does not suit this host, changes nothing.
    /// Returns the interfaces to work on from now.
    pub(super) fn reload(&mut self, host: &Host, before: &[String]) -> anyhow::Result<Vec<String>> {
        // Read once: what is written in place may be another the next time.
        let read = read_file(&self.options);
        self.file = read.as_ref().ok().cloned().flatten();
        read?;
        // Whoever writes a file in place empties it first.
        if let (Some(path), Some([])) = (&self.options.config, self.file.as_deref()) {
            anyhow::bail!("{}: is empty; to publish nothing, write publish: []", path.display());
        }
        let config = parse_file(&self.options, self.file.as_deref())?;
        // Interfaces that were named and are not any more go.
        let before = if self.asked().is_none() { before } else { &[] };
        let earlier = std::mem::replace(&mut self.config, config);
        let chosen = self.choose(host, before);
        if chosen.is_err() {
            self.config = earlier;
        }
        chosen
    }

    /// Interfaces to work on, given those of before; one of them is there at least. Those that are
    /// there are suitable; others may come later.
    pub(super) fn choose(&self, host: &Host, before: &[String]) -> anyhow::Result<Vec<String>> {
        let chosen = self.keep(host, before);
        anyhow::ensure!(
            !chosen.is_empty(),
            "no interface has a default route: name the interfaces to work on, with --interface \
             or `interfaces:` in the file"
        );
        let here: Vec<_> = chosen.iter().filter_map(|name| host.find(name)).collect();
        if here.is_empty() {
            find_interfaces(host, &chosen)?;
        }
        for interface in here {
            attach::check(interface)?;
        }
        Ok(chosen)
    }

    /// Interfaces to work on, given those of before, whether or not they are still there.
    pub(super) fn keep(&self, host: &Host, before: &[String]) -> Vec<String> {
        interfaces::choose(host, self.asked(), before)
    }

    /// Names of interfaces, if there are any.
    fn asked(&self) -> Option<&[String]> {
        if self.options.interfaces.is_empty() {
            self.config.interfaces.as_deref()
        } else {
            Some(self.options.interfaces.as_slice())
        }
    }

    pub(super) fn xdp_mode(&self) -> XdpMode {
        self.options.xdp_mode.unwrap_or(self.config.xdp_mode)
    }

    /// Whether clients are reset when their backend is removed.
    pub(super) const fn resets_clients(&self) -> bool {
        self.config.resets_clients
    }

    pub(super) fn snat_ports(&self) -> RangeInclusive<u16> {
        self.config.snat_ports.clone()
    }

    pub(super) const fn snat_addresses(&self) -> &SnatAddresses {
        &self.config.snat_addresses
    }

    pub(super) const fn mss_clamp(&self) -> bool {
        self.config.mss_clamp
    }

    /// Entries of the maps whose size was chosen.
    pub(super) const fn tables(&self) -> &BTreeMap<MapName, u32> {
        &self.config.tables
    }

    /// Addresses of all nodes that run redirector, as the file has them.
    pub(super) const fn nodes(&self) -> &BTreeSet<IpAddr> {
        &self.config.nodes
    }

    /// Those of the file and then those of the command line.
    pub(super) fn services(&self) -> Vec<Service> {
        self.config.services.iter().chain(&self.options.publish).cloned().collect()
    }
}

fn read_file(options: &Options) -> Result<Option<Vec<u8>>, ConfigError> {
    options.config.as_deref().map(config::read).transpose()
}

fn parse_file(options: &Options, file: Option<&[u8]>) -> Result<Config, ConfigError> {
    match (&options.config, file) {
        (Some(path), Some(bytes)) => config::parse_bytes(path, bytes),
        _ => Ok(Config::default()),
    }
}
