//! The data path of this node, and how it is kept in line.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::Context;
use redirector_common::map_name::MapName;
use redirector_common::{Address, BackendId, Interface as Entry, ServiceId, SnatAddressKey};

use self::parts::Parts;
use super::account::Account;
use super::clients;
use super::interfaces::Slots;
use super::kubernetes::Kubernetes;
use super::wishes::Wishes;
use super::{Ended, Shared};
use crate::dataplane::attach::{self, AttachError, Attached, Attacher, find_interface};
use crate::dataplane::contents::{Contents, Ports};
use crate::dataplane::detach::detach_locked;
use crate::dataplane::direct::{Direct, describe_mtu};
use crate::dataplane::epochs::Epochs;
use crate::dataplane::ethtool;
use crate::dataplane::gc::KernelFlows;
use crate::dataplane::ids::Cursors;
use crate::dataplane::kube_proxy;
use crate::dataplane::layout::Layout;
use crate::dataplane::lock::Lock;
use crate::dataplane::maps::{Maps, ids};
use crate::dataplane::netlink::{Host, Interface};
use crate::dataplane::pins::Pins;
use crate::dataplane::prerequisites::KernelVersion;
use crate::dataplane::resize::{self, Turn};
use crate::dataplane::sizes::Sizes;
use crate::dataplane::status::{InterfaceStatus, TcState, XdpState};
use crate::dataplane::sysctl::Sysctls;
use crate::k8s::presence::{self, Keeper};
use crate::k8s::report::Mouth;
use crate::model::desired::NodeAddresses;
use crate::model::state::State;

mod cluster;
mod entries;
mod parts;
mod services;

/// How long after larger tables could not be given to all programs it is tried again.
const BETWEEN_ATTEMPTS: Duration = Duration::from_secs(60);

/// A node whose data path is in the kernel.
pub(super) struct Node {
    wishes: Wishes,
    kubernetes: Option<Kubernetes>,
    /// Whether the programs stay off all interfaces.
    is_off: bool,
    /// Whether they do so only until every source was read.
    reads_first: bool,
    lock: Lock,
    attacher: Attacher,
    maps: Maps,
    flows: KernelFlows,
    cache_sets: u32,
    ring_slots: u32,
    /// The kernel's numbers of the maps that are open.
    ids: Vec<u32>,
    /// Sizes that could not be had: not tried again.
    refused_tables: BTreeMap<MapName, u32>,
    /// When larger tables were last not given to all programs.
    unsettled_at: Option<Instant>,
    epochs: Epochs,
    /// What the maps hold; `None`: to be read again.
    actual: Option<Contents>,
    cursors: Cursors,
    /// What the maps were last made from; `None`: they have to be made again.
    made_from: Option<NodeAddresses>,
    /// What all sources ask for.
    state: State,
    /// What the maps hold, by service; `None`: to be found out when everything is laid out.
    layout: Option<Layout>,
    wanted_ports: Ports,
    listed: BTreeSet<(ServiceId, BackendId)>,
    /// When flows were collected last, and when they have to be again.
    collected_at: Option<Instant>,
    collect_at: Option<Instant>,
    entries: BTreeMap<u32, Entry>,
    snat_addresses: BTreeMap<SnatAddressKey, Address>,
    slots: Slots,
    chosen: Vec<String>,
    has_kube_proxy: bool,
    /// What was last said of direct server return.
    told: Option<Direct>,
    netns_cookie: u64,
    account: Account,
}

impl Node {
    /// Brings the data path up, or takes over what an earlier agent left. Maps are filled before
    /// any program is attached.
    pub(super) fn start(
        wishes: Wishes,
        kernel: KernelVersion,
        (host, chosen): (&Host, Vec<String>),
        lock: Lock,
        turn: Turn,
    ) -> anyhow::Result<(Self, Option<(Mouth, Keeper)>)> {
        let pins = wishes.options().pins.clone();
        let is_first = is_empty(&pins);
        if !is_first {
            // The data path goes on with what it has.
            if let Err(error) = resize::keep_up(&pins, &turn, wishes.tables()) {
                tracing::error!("tables are not made larger: {error}");
            }
        }
        let started =
            Parts::open(&pins, kernel, &Sizes::chosen(wishes.tables())).and_then(|parts| {
                parts.check_owner(&wishes)?;
                let (mut node, voices) = parts.into_node(wishes, lock, is_first);
                node.bring_up(host, chosen)?;
                Ok((node, voices))
            });
        drop(turn);
        started.inspect_err(|_| {
            // What an earlier agent left goes on as it was; what we began ourselves goes.
            if is_first && let Err(error) = crate::dataplane::detach(&pins) {
                tracing::warn!(%error, "not everything could be removed again");
            }
        })
    }

    /// The first time, where whatever goes wrong is the end.
    fn bring_up(&mut self, host: &Host, chosen: Vec<String>) -> anyhow::Result<()> {
        self.chosen = chosen;
        self.apply_settings()?;
        self.look_for_kube_proxy();
        self.sync(host)?;
        self.write_entries(host, &[], true)?;
        self.attacher.follow(host, &self.chosen)?;
        let mut attached = Vec::new();
        for name in &self.chosen {
            let slot = self.slots.of(name);
            let interface = match find_interface(host, name) {
                Ok(interface) => interface,
                Err(error) => {
                    attached.push(absent(name, slot, error.to_string()));
                    continue;
                }
            };
            let got = match self.attacher.attach(interface, self.wishes.xdp_mode()) {
                // One that has gone meanwhile is missing, as if it had never been there.
                Ok(Attached { xdp_error: Some(error), .. }) | Err(error) if interface.is_here() => {
                    return Err(error.into());
                }
                got => got,
            };
            attached.push(describe(interface, slot, got));
        }
        self.write_entries(host, &attached, true)?;
        self.keep_clients()?;
        self.detach_others(&self.chosen)?;
        self.account.interfaces(attached);
        self.account.in_sync();
        self.account.shared.update(|snapshot| snapshot.ready = snapshot.waiting_for.is_empty());
        self.account.publish(&mut self.maps.status);
        let budgets = self.chosen.iter().map(|name| match ethtool::read(name) {
            Ok(driver) => describe_mtu(name, driver.mtu),
            Err(_) => name.clone(),
        });
        tracing::info!("the data path is up on {}", budgets.collect::<Vec<_>>().join(", "));
        Ok(())
    }

    pub(super) fn pins(&self) -> &Pins {
        &self.wishes.options().pins
    }

    /// What the Kubernetes API asks for, where it is asked.
    pub(super) fn kubernetes(&self) -> Option<&Kubernetes> {
        self.kubernetes.as_ref()
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.account.shared
    }

    /// Looks at everything, and brings in line what is not. `lends`: interfaces that still have
    /// no address of their own get the node's.
    pub(super) fn reconcile(&mut self, host: &Host, lends: bool) {
        self.chosen = self.wishes.keep(host, &self.chosen);
        match self.reconcile_all(host, lends) {
            Ok(()) if self.reads_first => self.account.failed(cluster::READS_FIRST),
            Ok(()) if self.is_off => self.account.failed(cluster::STOOD_DOWN),
            Ok(()) => self.account.in_sync(),
            Err(error) => {
                // A write that failed leaves us unsure of what is there.
                self.actual = None;
                self.made_from = None;
                self.account.failed(&format!("{error:#}"));
            }
        }
        self.account.publish(&mut self.maps.status);
    }

    fn reconcile_all(&mut self, host: &Host, lends: bool) -> anyhow::Result<()> {
        self.sync(host)?;
        if self.is_off {
            return Ok(());
        }
        self.attacher.follow(host, &self.chosen)?;
        let mode = self.wishes.xdp_mode();
        let mut all = Vec::new();
        for name in &self.chosen {
            let slot = self.slots.of(name);
            all.push(match find_interface(host, name) {
                Ok(interface) => describe(interface, slot, self.attacher.attach(interface, mode)),
                Err(error) => absent(name, slot, error.to_string()),
            });
        }
        self.keep_clients()?;
        self.detach_others(&self.chosen)?;
        if self.unsettled_at.is_some() {
            // All programs use the old tables again.
            resize::release(self.pins())?;
        }
        self.write_entries(host, &all, lends)?;
        self.account.interfaces(all);
        Ok(())
    }

    /// Nothing can be changed: the next event tries again.
    pub(super) fn is_kept_from(&mut self, error: &std::io::Error) {
        self.account.failed(&format!("{}: {error}", self.pins().maps().display()));
        self.account.publish(&mut self.maps.status);
    }

    /// Makes tables larger where the file asks for it. Whether that was done, here or by a command:
    /// then those that are open are not those that programs use.
    pub(super) fn has_moved(&mut self, turn: &Turn) -> bool {
        let tables = self.wishes.tables();
        let outgrown = resize::outgrown(self.pins(), tables).unwrap_or_default();
        // Each attempt keeps flows from being opened for a moment.
        let is_unfinished = self.unsettled_at.is_none_or(|at| at.elapsed() > BETWEEN_ATTEMPTS)
            && !resize::unfinished(self.pins()).is_empty();
        if (is_unfinished || !outgrown.is_empty() && self.refused_tables != outgrown)
            && let Err(error) = resize::keep_up(self.pins(), turn, tables)
        {
            self.account.config_failed(&format!("tables are not made larger: {error}"));
            self.refused_tables = outgrown;
            self.unsettled_at = (!resize::unfinished(self.pins()).is_empty()).then(Instant::now);
        }
        ids(self.pins()).is_ok_and(|ids| ids != self.ids)
    }

    /// Ends, for another to begin in this process; the data path goes on.
    pub(super) fn begin_anew(self) -> Ended {
        tracing::info!("tables are made larger: beginning anew, while the data path goes on");
        Ended::ToBeginAnew(self.lock)
    }

    /// Routes or neighbours have changed: next hops are looked up again.
    pub(super) fn forget_next_hops(&mut self) {
        if let Err(error) = self.epochs.raise_all() {
            self.account.failed(&error.to_string());
        }
    }

    /// Sees to kernel settings again: others set them anew from their own files.
    pub(super) fn keep_settings(&mut self) {
        if let Err(error) = self.apply_settings() {
            self.account.failed(&format!("{error:#}"));
        }
        self.look_for_kube_proxy();
    }

    /// Its rules may come and go while we run.
    fn look_for_kube_proxy(&mut self) {
        match kube_proxy::has_rules() {
            Ok(found) if found != self.has_kube_proxy => {
                let whether = if found { "are" } else { "are no longer" };
                tracing::info!("kube-proxy's rules {whether} on this host");
                self.has_kube_proxy = found;
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "cannot tell whether kube-proxy's rules are here"),
        }
    }

    fn apply_settings(&mut self) -> anyhow::Result<()> {
        Sysctls::default()
            .apply(&mut self.maps.sysctls, self.wishes.snat_ports())
            .context("cannot set what the data path needs in the kernel")
    }

    /// Reads the file if it is not what it was when it was last read.
    pub(super) fn reload_if_changed(&mut self, host: &Host) {
        if self.wishes.has_changed() {
            self.reload(host);
        }
    }

    /// Reads the file. One that is wrong changes nothing.
    pub(super) fn reload(&mut self, host: &Host) {
        match self.wishes.reload(host, &self.chosen) {
            Ok(chosen) => {
                tracing::info!("the file was read");
                self.account.config_accepted();
                self.chosen = chosen;
                self.made_from = None;
                self.keep_settings();
            }
            Err(error) => self.account.config_failed(&format!("{error:#}")),
        }
    }

    fn keep_clients(&mut self) -> anyhow::Result<()> {
        let options = self.wishes.options();
        let got = clients::keep(&mut self.attacher, &options.pins, &options.clients)?;
        self.account.clients(got);
        Ok(())
    }

    fn detach_others(&self, chosen: &[String]) -> anyhow::Result<()> {
        let attached = self.pins().attached().context("cannot list the pins")?;
        for name in attached.iter().filter(|name| !chosen.contains(name)) {
            attach::detach(self.pins(), name)?;
            tracing::info!("{name}: taken off");
        }
        Ok(())
    }

    /// Ends; the data path stays unless the options say otherwise.
    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        self.account.change(|status| status.stopped = true);
        self.account.publish(&mut self.maps.status);
        if !self.wishes.options().detach_on_exit {
            tracing::info!("stopped; the data path goes on");
            return Ok(());
        }
        if let Some(kubernetes) = &self.kubernetes
            && let Some(asked) = &self.wishes.options().kubernetes
        {
            presence::leave(&asked.access, kubernetes.node_name()).await;
        }
        detach_locked(self.pins(), &self.lock)?;
        tracing::info!("stopped; everything is removed");
        Ok(())
    }
}

fn describe(
    interface: &Interface,
    slot: u16,
    got: Result<Attached, AttachError>,
) -> InterfaceStatus {
    match got {
        Ok(got) => InterfaceStatus {
            name: interface.name.clone(),
            ifindex: interface.index,
            xdp: got.xdp,
            xdp_reason: got.xdp_reason,
            tc: got.tc,
            slot,
            error: got.xdp_error.map(|error| error.to_string()),
        },
        Err(error) => InterfaceStatus {
            ifindex: interface.index,
            ..absent(&interface.name, slot, error.to_string())
        },
    }
}

fn absent(name: &str, slot: u16, error: String) -> InterfaceStatus {
    InterfaceStatus {
        name: name.to_owned(),
        ifindex: 0,
        xdp: XdpState::Off,
        xdp_reason: None,
        tc: TcState::Off,
        slot,
        error: Some(error),
    }
}

fn is_empty(pins: &Pins) -> bool {
    std::fs::read_dir(pins.maps()).is_ok_and(|mut entries| entries.next().is_none())
}
