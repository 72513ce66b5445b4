//! The data path of this node, and how it is kept in line.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::Context;
use redirector_common::node::NodeConfig;
use redirector_common::{BackendId, Interface as Entry, ServiceId};

use super::Shared;
use super::account::Account;
use super::clients;
use super::interfaces::{self, Lending, Slots};
use super::kubernetes::Kubernetes;
use super::wishes::Wishes;
use crate::dataplane::attach::{self, AttachError, Attached, Attacher, find_interfaces};
use crate::dataplane::contents::{Contents, Ports};
use crate::dataplane::delta::delta;
use crate::dataplane::detach::detach_locked;
use crate::dataplane::encode::encode;
use crate::dataplane::epochs::Epochs;
use crate::dataplane::gc::{self, KernelFlows};
use crate::dataplane::ids::Cursors;
use crate::dataplane::kube_proxy;
use crate::dataplane::layout::Layout;
use crate::dataplane::loader::Programs;
use crate::dataplane::lock::Lock;
use crate::dataplane::maps::{Maps, cache_sets};
use crate::dataplane::netdev;
use crate::dataplane::netlink::{Host, Interface};
use crate::dataplane::pins::Pins;
use crate::dataplane::prerequisites::{self, KernelVersion};
use crate::dataplane::sizes::Sizes;
use crate::dataplane::status::{InterfaceStatus, Status, TcState, XdpState};
use crate::dataplane::sync::Writes;
use crate::dataplane::syscall::netns_cookie;
use crate::dataplane::sysctl::Sysctls;
use crate::dataplane::table::Table;
use crate::k8s::report::Mouth;
use crate::model::Service;
use crate::model::desired::NodeAddresses;
use crate::model::state::{Rank, State};

/// Index of the loopback device in every network namespace.
const LOOPBACK: u32 = 1;

/// How long after one pass over the flows the next may begin because of a change.
const BETWEEN_COLLECTIONS: Duration = Duration::from_millis(300);

/// A node whose data path is in the kernel.
pub(super) struct Node {
    wishes: Wishes,
    kubernetes: Option<Kubernetes>,
    /// Whether the programs stay off all interfaces.
    is_off: bool,
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
    slots: Slots,
    chosen: Vec<String>,
    has_kube_proxy: bool,
    netns_cookie: u64,
    account: Account,
}

impl Node {
    /// Brings the data path up, or takes over what an earlier agent left. Maps are filled before
    /// any program is attached.
    pub(super) fn start(
        wishes: Wishes,
        kernel: KernelVersion,
        host: &Host,
    ) -> anyhow::Result<(Self, Option<Mouth>)> {
        let chosen = wishes.choose(host)?;
        let pins = wishes.options().pins.clone();
        prerequisites::make_dirs(&pins)?;
        let lock = Lock::take(&pins)?;
        let is_first = is_empty(&pins);
        let started = Parts::open(&pins, kernel).and_then(|parts| {
            parts.check_owner(&wishes)?;
            let (mut node, mouth) = parts.into_node(wishes, lock);
            node.bring_up(host, chosen)?;
            Ok((node, mouth))
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
        self.look_for_kube_proxy();
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
        self.keep_clients()?;
        self.detach_others(&self.chosen)?;
        self.account.interfaces(attached);
        self.account.in_sync();
        self.account.shared.update(|snapshot| snapshot.ready = snapshot.waiting_for.is_empty());
        self.account.publish(&mut self.maps.status);
        tracing::info!("the data path is up on {}", self.chosen.join(", "));
        Ok(())
    }

    pub(super) fn pins(&self) -> &Pins {
        &self.wishes.options().pins
    }

    /// What the Kubernetes API asks for, where it is asked.
    pub(super) fn kubernetes(&self) -> Option<&Kubernetes> {
        self.kubernetes.as_ref()
    }

    /// Looks again at what was refused for a reason that may be over.
    pub(super) fn retry(&self) {
        if let Some(kubernetes) = &self.kubernetes {
            kubernetes.retry();
        }
    }

    /// Tells the cluster how the node is, and what is wrong with objects.
    pub(super) async fn speak(&mut self) {
        let snapshot = self.account.shared.snapshot();
        if let Some(kubernetes) = &mut self.kubernetes {
            kubernetes.speak(&snapshot).await;
        }
    }

    /// Takes the programs off all interfaces; everything else stays.
    pub(super) fn let_go(&mut self) {
        tracing::error!(
            "the API server could be reached before the programs were attached and cannot be now: \
             they are taken off"
        );
        self.is_off = true;
        if let Err(error) = self.detach_others(&[]) {
            self.account.failed(&format!("{error:#}"));
        }
    }

    /// It was the programs: they stay off until the agent is started again.
    pub(super) fn stand_down(&mut self) {
        let text = "the API server can be reached only without the programs: they stay off the \
                    interfaces; find out what the node's file and the cluster's Services take from \
                    it, and start the agent again";
        self.account.failed(text);
        self.account.shared.update(|snapshot| snapshot.ready = false);
        self.account.publish(&mut self.maps.status);
        if let Some(kubernetes) = &mut self.kubernetes {
            kubernetes.note_detached(text);
        }
    }

    /// It was not the programs: they come back with the next look at everything.
    pub(super) fn take_up(&mut self) {
        tracing::warn!("the API server cannot be reached without the programs either");
        self.is_off = false;
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

    /// Brings the maps in line with objects of the Kubernetes API that changed.
    pub(super) fn follow_cluster(&mut self, host: &Host) {
        if !self.kubernetes.as_mut().is_some_and(Kubernetes::update) {
            return;
        }
        let done = self.sync_changes(host).and_then(|is_done| {
            if is_done {
                return Ok(());
            }
            self.made_from = None;
            self.sync(host)
        });
        match done {
            Ok(()) => self.account.in_sync(),
            Err(error) => {
                self.actual = None;
                self.made_from = None;
                self.account.failed(&format!("{error:#}"));
            }
        }
        self.account.publish(&mut self.maps.status);
    }

    /// Brings only those services in line that changed. Returns whether that could be done.
    fn sync_changes(&mut self, host: &Host) -> anyhow::Result<bool> {
        let began = Instant::now();
        let addresses = interfaces::addresses(host, &self.chosen);
        let (Some(kubernetes), Some(actual), Some(mut layout)) =
            (&mut self.kubernetes, &mut self.actual, self.layout.take())
        else {
            return Ok(false);
        };
        if self.made_from.as_ref() != Some(&addresses) || !kubernetes.missing().is_empty() {
            return Ok(false);
        }
        for (key, service) in kubernetes.take_changed() {
            match service {
                Some((rank, service)) => self.state.put(rank, service),
                None => self.state.remove(&key),
            }
        }
        let dirty = self.state.take_dirty();
        let step = match layout.change(&self.state, &dirty, actual) {
            Ok(step) => step,
            Err(reason) => {
                tracing::debug!(%reason, "everything is laid out anew");
                return Ok(false);
            }
        };
        let mut written = step.before.clone();
        let has_vips = layout.has_vips();
        let writes = self.maps.services.sync_part(&mut written, &step.after, has_vips)?;
        layout.commit(step, written, actual);
        self.cursors = layout.cursors();
        self.layout = Some(layout);
        self.synced(began, dirty.len(), writes);
        Ok(true)
    }

    /// What follows when the maps are in line.
    fn synced(&mut self, began: Instant, services: usize, writes: Writes) {
        let conflicts = self.state.conflicts();
        self.account.synced(began.elapsed(), conflicts.len());
        if let Some(kubernetes) = &mut self.kubernetes {
            kubernetes.note_conflicts(&conflicts);
            self.account.programmed(kubernetes.take_latencies());
            let missing = kubernetes.missing().iter().map(|kind| kind.name()).collect();
            self.account.waits_for(missing);
        }
        if !writes.is_none() {
            let Writes { set, removed } = writes;
            tracing::info!(services, written = set, removed, "maps brought in line");
            self.collect_soon();
        }
    }

    /// UDP clients of backends that went must not wait for the next pass; but a pass looks at
    /// every flow, so of many changes in a short time one has to do for all.
    fn collect_soon(&mut self) {
        let next = self.collected_at.map(|at| at + BETWEEN_COLLECTIONS);
        match next.filter(|next| *next > Instant::now()) {
            Some(next) => self.collect_at = Some(next),
            None => self.collect(),
        }
    }

    /// Waits until flows have to be collected, if they have to be.
    pub(super) async fn collection_due(&self) {
        match self.collect_at {
            Some(at) => tokio::time::sleep_until(at.into()).await,
            None => std::future::pending().await,
        }
    }

    /// What all sources ask for, the first to be served first.
    fn services(&mut self) -> Vec<(Rank, Service)> {
        let file = self.wishes.services().into_iter();
        let mut services: Vec<(Rank, Service)> =
            (0..).zip(file).map(|(order, it)| (Rank { source: 0, order }, it)).collect();
        if let Some(kubernetes) = &mut self.kubernetes {
            kubernetes.take_changed();
            services.extend(kubernetes.services());
        }
        services
    }

    fn reconcile_all(&mut self, host: &Host, lends: bool) -> anyhow::Result<()> {
        self.sync(host)?;
        anyhow::ensure!(!self.is_off, "the programs are off: they kept the API server away");
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
        self.keep_clients()?;
        self.detach_others(&self.chosen)?;
        self.write_entries(host, &all, lends)?;
        self.account.interfaces(all);
        Ok(())
    }

    /// Brings the maps of services in line, if what they are made from has changed.
    fn sync(&mut self, host: &Host) -> anyhow::Result<()> {
        let addresses = NodeAddresses {
            has_kube_proxy: self.has_kube_proxy,
            ..interfaces::addresses(host, &self.chosen)
        };
        if self.made_from.as_ref() == Some(&addresses) {
            return Ok(());
        }
        let began = Instant::now();
        let snat = self.wishes.snat_ports();
        if let Some(kubernetes) = &mut self.kubernetes {
            kubernetes.keep_from(snat.clone());
        }
        self.layout = None;
        self.state = State::new(addresses.clone(), self.services());
        let desired = self.state.all();
        let actual = match &mut self.actual {
            Some(actual) => actual,
            none => none.insert(self.maps.services.read()?),
        };
        let mut encoded =
            encode(&desired, actual, snat.clone(), self.maps.capacity, &mut self.cursors)?;
        let is_complete =
            self.kubernetes.as_ref().is_none_or(|kubernetes| kubernetes.missing().is_empty());
        if !is_complete {
            // What seems to be too much may be asked for by what was not read yet.
            encoded.keep(actual);
        }
        let writes = self.maps.services.sync(actual, &encoded)?;
        self.maps.node.put(
            0,
            &NodeConfig {
                snat_first: *snat.start(),
                snat_count: u16::try_from(snat.len()).unwrap_or(u16::MAX),
                lookup_ifindex: LOOPBACK,
                cache_sets: self.cache_sets,
                reserved: 0,
                netns_cookie: self.netns_cookie,
            },
        )?;
        if is_complete && !self.cursors.is_crowded() {
            let capacity = self.maps.capacity;
            self.layout =
                Some(Layout::new(&self.state, &encoded, snat.clone(), capacity, self.cursors));
        }
        // The layout has them too.
        self.listed = match self.layout {
            Some(_) => BTreeSet::new(),
            None => encoded.listed(),
        };
        self.wanted_ports = encoded.ports;
        self.made_from = (!self.cursors.is_crowded()).then_some(addresses);
        self.account.change(|status| status.snat_ports = (*snat.start(), *snat.end()));
        self.synced(began, desired.services.len(), writes);
        Ok(())
    }

    /// Collects flows, and takes ports back that none of them needs.
    pub(super) fn collect(&mut self) {
        self.collect_at = None;
        self.collected_at = Some(Instant::now());
        let (listed, wanted) = match &self.layout {
            Some(layout) => (layout.listed(), layout.wanted_ports()),
            None => (&self.listed, &self.wanted_ports),
        };
        let outcome = gc::collect(&mut self.flows, listed, gc::now()).and_then(|collected| {
            self.account.shared.update(|snapshot| snapshot.flows = collected.halves / 2);
            match &mut self.actual {
                Some(actual) => {
                    let in_use = &collected.in_use;
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
    /// What the agent before us worked for, unless it was for a while.
    installed_for: Option<String>,
    cache_sets: u32,
    epochs: Epochs,
    netns_cookie: u64,
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
            netns_cookie: netns_cookie()
                .context("cannot tell this network namespace from others")?,
            installed_for: earlier.and_then(|status| match status.config {
                Some(config) => Some(config.display().to_string()),
                None => status.kubernetes.then(|| "the Kubernetes agent".to_owned()),
            }),
            maps,
        })
    }

    /// What is installed for a file is not replaced, and in the end removed, for the sake of a
    /// few ports of a command line.
    fn check_owner(&self, wishes: &Wishes) -> anyhow::Result<()> {
        match &self.installed_for {
            Some(owner) if wishes.options().is_for_a_while() => anyhow::bail!(
                "the data path of {owner} is installed on {}: add the ports there, remove it with \
                 `redirector detach`, or choose another directory with --bpffs",
                wishes.options().pins.dir().display()
            ),
            _ => Ok(()),
        }
    }

    fn into_node(self, wishes: Wishes, lock: Lock) -> (Node, Option<Mouth>) {
        let options = wishes.options();
        let (kubernetes, mouth) = options
            .kubernetes
            .as_ref()
            .map(|asked| Kubernetes::new(asked, &options.node_name(), options.own_ports()))
            .unzip();
        let node = Node {
            account: Account::new(options),
            kubernetes,
            is_off: false,
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
            state: State::default(),
            layout: None,
            collected_at: None,
            collect_at: None,
            wanted_ports: Ports::default(),
            listed: BTreeSet::new(),
            entries: self.entries,
            slots: self.slots,
            chosen: Vec::new(),
            has_kube_proxy: false,
            netns_cookie: self.netns_cookie,
        };
        (node, mouth)
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
