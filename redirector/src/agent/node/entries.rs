//! What the data path knows of this host's interfaces, kept in line.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::Context as _;
use redirector_common::Address;

use super::super::interfaces;
use super::Node;
use crate::dataplane::delta::delta;
use crate::dataplane::netdev;
use crate::dataplane::netlink::{Host, Interface};
use crate::dataplane::status::{InterfaceStatus, XdpState};
use crate::dataplane::table::Table as _;

impl Node {
    pub(super) fn write_entries(
        &mut self,
        host: &Host,
        attached: &[InterfaceStatus],
        lends: bool,
    ) -> anyhow::Result<()> {
        let known = netdev::read_xdp_transmit().context("cannot ask for XDP features")?;
        let is_native = |interface: &Interface| {
            let mut all = attached.iter().filter(|status| status.ifindex == interface.index);
            !interface.is_veth && all.any(|status| status.xdp == XdpState::Native)
        };
        let chosen: BTreeMap<String, u16> =
            self.chosen.iter().map(|name| (name.clone(), self.slots.of(name))).collect();
        let transmits = |interface: &Interface| match &known {
            Some(known) => known.get(&interface.index).copied().unwrap_or(false),
            None => is_native(interface),
        };
        let entries = interfaces::entries(host, &chosen, &self.entries, lends, transmits);
        let changes = delta(&self.entries, &entries);
        for (index, entry) in &changes.set {
            self.maps.interfaces.set(index, entry)?;
        }
        for index in &changes.remove {
            self.maps.interfaces.remove(index)?;
        }
        if !changes.set.is_empty() || !changes.remove.is_empty() {
            // Whether XDP can send out of an interface is cached with each flow.
            self.epochs.raise_all()?;
        }
        self.entries = entries;
        self.write_snat_addresses(host)
    }

    /// Follows what the file allows, the interfaces' addresses, and what services name.
    pub(super) fn write_snat_addresses(&mut self, host: &Host) -> anyhow::Result<()> {
        let is_complete = self.kubernetes.as_ref().is_none_or(|it| it.missing().is_empty());
        let before: BTreeSet<Address> = self.snat_addresses.values().copied().collect();
        // A service that was not read yet may name any that is new.
        let is_named = |address: IpAddr| {
            self.state.is_named(address) || !(is_complete || before.contains(&address.into()))
        };
        let wish = self.wishes.snat_addresses();
        let wanted = interfaces::snat_addresses(host, &self.entries, wish, is_named);
        let changes = delta(&self.snat_addresses, &wanted);
        for (key, address) in &changes.set {
            self.maps.snat_addresses.set(key, address)?;
        }
        for key in &changes.remove {
            self.maps.snat_addresses.remove(key)?;
        }
        self.snat_addresses = wanted;
        Ok(())
    }
}
