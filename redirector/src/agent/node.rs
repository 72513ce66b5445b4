//! The data path of this node, and how it is kept in line.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context;
use redirector_common::node::NodeConfig;
use redirector_common::{BackendId, Interface as Entry, ServiceId};

use super::Shared;
use super::account::Account;
use super::interfaces::{self, Lending, Slots};
use super::wishes::Wishes;
use crate::dataplane::attach::{self, AttachError, Attached, Attacher, find_interfaces};
use crate::dataplane::contents::{Contents, Ports};
use crate::dataplane::delta::delta;
use crate::dataplane::detach::detach_locked;
use crate::dataplane::encode::encode;
use crate::dataplane::epochs::Epochs;
use crate::dataplane::gc::{self, KernelFlows};
use crate::dataplane::ids::Cursors;
use crate::dataplane::loader::Programs;
use crate::dataplane::lock::Lock;
use crate::dataplane::maps::{Maps, cache_sets};
use crate::dataplane::netdev;
use crate::dataplane::netlink::{Host, Interface};
use crate::dataplane::pins::Pins;
use crate::dataplane::prerequisites::{self, KernelVersion};
use crate::dataplane::sizes::Sizes;
use crate::dataplane::status::{InterfaceStatus, Status, TcState, XdpState};
use crate::dataplane::sysctl::Sysctls;
use crate::dataplane::table::Table;
use crate::model::desired::{self, NodeAddresses};

/// Index of the loopback device in every network namespace.
const LOOPBACK: u32 = 1;

/// A node whose data path is in the kernel.
pub(super) struct Node {
    wishes: Wishes,
    lock: Lock,
    attacher: Attacher,
    maps: Maps,
    flows: KernelFlows,
    cache_sets: u32,
    epochs: Epochs,
    /// What the maps hold; `None`: to be read again.
    actual: Option<Contents>,
    cursors: Cursors,
    /// What the maps were last made from; `None`: they have to be made again.
    made_from: Option<NodeAddresses>,
    wanted_ports: Ports,
    listed: BTreeSet<(ServiceId, BackendId)>,
    entries: BTreeMap<u32, Entry>,
    slots: Slots,
    chosen: Vec<String>,
    account: Account,
}

impl Node {
    /// Brings the data path up, or takes over what an earlier agent left. Maps are filled before
    /// any program is attached.
    pub(super) fn start(
        wishes: Wishes,
        kernel: KernelVersion,
        host: &Host,
    ) -> anyhow::Result<Self> {
        let chosen = wishes.choose(host)?;
        let pins = wishes.options().pins.clone();
        prerequisites::make_dirs(&pins)?;
        let lock = Lock::take(&pins)?;
        let is_first = is_empty(&pins);
        let started = Parts::open(&pins, kernel).and_then(|parts| {
            parts.check_owner(&wishes)?;
            let mut node = parts.into_node(wishes, lock);
            node.bring_up(host, chosen)?;
            Ok(node)
        });
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
        self.sync(host)?;
        self.write_entries(host, &[], true)?;
        let mut attached = Vec::new();
        for interface in find_interfaces(host, &self.chosen)? {
            let mode = self.wishes.xdp_mode();
            let mut got = self.attacher.attach(interface, mode)?;
            if let Some(error) = got.xdp_error.take() {
                return Err(error.into());
            }
            attached.push(describe(interface, self.slots.of(&interface.name), Ok(got)));
        }
        self.write_entries(host, &attached, true)?;
        self.detach_others(&self.chosen)?;
        self.account.interfaces(attached);
        self.account.in_sync();
        self.account.shared.update(|snapshot| snapshot.ready = true);
        self.account.publish(&mut self.maps.status);
        tracing::info!("the data path is up on {}", self.chosen.join(", "));
        Ok(())
    }

    pub(super) fn pins(&self) -> &Pins {
        &self.wishes.options().pins
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.account.shared
    }

    /// Looks at everything, and brings in line what is not. `lends`: interfaces that still have
    /// no address of their own get the node's.
    pub(super) fn reconcile(&mut self, host: &Host, lends: bool) {
        self.chosen = self.wishes.keep(host, &self.chosen);
        match self.reconcile_all(host, lends) {
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
        let mode = self.wishes.xdp_mode();
        let mut all = Vec::new();
        for name in &self.chosen {
            let slot = self.slots.of(name);
            all.push(match find_interfaces(host, std::slice::from_ref(name)) {
                Ok(found) => match found.first() {
                    Some(interface) => {
                        let got = self.attacher.attach(interface, mode);
                        describe(interface, slot, got)
                    }
                    None => continue,
                },
                Err(error) => absent(name, slot, error.to_string()),
            });
        }
        self.detach_others(&self.chosen)?;
        self.write_entries(host, &all, lends)?;
        self.account.interfaces(all);
        Ok(())
    }

    /// Brings the maps of services in line, if what they are made from has changed.
    fn sync(&mut self, host: &Host) -> anyhow::Result<()> {
        let addresses = interfaces::addresses(host, &self.chosen);
        if self.made_from.as_ref() == Some(&addresses) {
            return Ok(());
        }
        let began = Instant::now();
        let desired = desired::build(&self.wishes.services(), &addresses);
        let actual = match &mut self.actual {
            Some(actual) => actual,
            none => none.insert(self.maps.services.read()?),
        };
        let snat = self.wishes.snat_ports();
        let encoded =
            encode(&desired, actual, snat.clone(), self.maps.capacity, &mut self.cursors)?;
        let writes = self.maps.services.sync(actual, &encoded)?;
        self.maps.node.put(
            0,
            &NodeConfig {
                snat_first: *snat.start(),
                snat_count: u16::try_from(snat.len()).unwrap_or(u16::MAX),
                lookup_ifindex: LOOPBACK,
                cache_sets: self.cache_sets,
                reserved: 0,
            },
        )?;
        self.listed = encoded.listed();
        self.wanted_ports = encoded.ports;
        self.made_from = (!self.cursors.is_crowded()).then_some(addresses);
        self.account.change(|status| status.snat_ports = (*snat.start(), *snat.end()));
        self.account.synced(began.elapsed(), desired.conflicts.len());
        if !writes.is_none() {
            tracing::info!(
                services = desired.services.len(),
                written = writes.set,
                removed = writes.removed,
                "maps brought in line"
            );
            // UDP clients of backends that went must not wait for the next pass.
            self.collect();
        }
        Ok(())
    }

    /// Collects flows, and takes ports back that none of them needs.
    pub(super) fn collect(&mut self) {
        let outcome = gc::collect(&mut self.flows, &self.listed, gc::now()).and_then(|collected| {
            self.account.shared.update(|snapshot| snapshot.flows = collected.halves / 2);
            match &mut self.actual {
                Some(actual) => {
                    let (wanted, in_use) = (&self.wanted_ports, &collected.in_use);
                    self.maps.services.release_ports(actual, wanted, in_use).map(drop)
                }
                None => Ok(()),
            }
        });
        if let Err(error) = outcome {
            self.actual = None;
            self.made_from = None;
            self.account.failed(&error.to_string());
        }
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
        match self.wishes.reload(host) {
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

    fn detach_others(&self, chosen: &[String]) -> anyhow::Result<()> {
        let attached = self.pins().attached().context("cannot list the pins")?;
        for name in attached.iter().filter(|name| !chosen.contains(name)) {
            attach::detach(self.pins(), name)?;
            tracing::info!("{name}: taken off");
        }
        Ok(())
    }

    fn write_entries(
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
        let lending = if lends { Lending::Now } else { Lending::Kept(&self.entries) };
        let entries = interfaces::entries(host, &chosen, lending, |interface| match &known {
            Some(known) => known.get(&interface.index).copied().unwrap_or(false),
            None => is_native(interface),
        });
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
        Ok(())
    }

    /// Ends; the data path stays unless the options say otherwise.
    pub(super) fn stop(mut self) -> anyhow::Result<()> {
        self.account.change(|status| status.stopped = true);
        self.account.publish(&mut self.maps.status);
        if !self.wishes.options().detach_on_exit {
            tracing::info!("stopped; the data path goes on");
            return Ok(());
        }
        detach_locked(self.pins(), &self.lock)?;
        tracing::info!("stopped; everything is removed");
        Ok(())
    }
}

/// What is opened before there is a node.
struct Parts {
    attacher: Attacher,
    maps: Maps,
    flows: KernelFlows,
    entries: BTreeMap<u32, Entry>,
    slots: Slots,
    cache_sets: u32,
    epochs: Epochs,
    /// The file of the agent before us.
    installed_for: Option<PathBuf>,
}

impl Parts {
    fn open(pins: &Pins, kernel: KernelVersion) -> anyhow::Result<Self> {
        let sizes = Sizes::of_machine();
        let programs = Programs::load(pins, &sizes)?;
        let maps = Maps::open(pins)?;
        let earlier = maps.status.get(0).ok();
        let earlier = earlier.and_then(|text| Status::decode(text.as_str()?).ok());
        let slots = earlier.iter().flat_map(|status| &status.interfaces);
        Ok(Self {
            attacher: Attacher::new(programs, pins.clone(), kernel),
            entries: maps.interfaces.entries()?,
            flows: KernelFlows::open(pins)?,
            cache_sets: cache_sets(pins, sizes.cpus)?,
            epochs: Epochs::open(pins)?,
            slots: Slots::new(slots.map(|interface| (interface.name.clone(), interface.slot))),
            installed_for: earlier.and_then(|status| status.config),
            maps,
        })
    }

    /// What is installed for a file is not replaced, and in the end removed, for the sake of a
    /// few ports of a command line.
    fn check_owner(&self, wishes: &Wishes) -> anyhow::Result<()> {
        match &self.installed_for {
            Some(config) if wishes.options().config.is_none() => anyhow::bail!(
                "the data path of {} is installed on {}: add the ports to that file, remove it \
                 with `redirector detach`, or choose another directory with --bpffs",
                config.display(),
                wishes.options().pins.dir().display()
            ),
            _ => Ok(()),
        }
    }

    fn into_node(self, wishes: Wishes, lock: Lock) -> Node {
        Node {
            account: Account::new(wishes.options()),
            wishes,
            lock,
            attacher: self.attacher,
            maps: self.maps,
            flows: self.flows,
            cache_sets: self.cache_sets,
            epochs: self.epochs,
            actual: None,
            cursors: Cursors::default(),
            made_from: None,
            wanted_ports: Ports::default(),
            listed: BTreeSet::new(),
            entries: self.entries,
            slots: self.slots,
            chosen: Vec::new(),
        }
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
