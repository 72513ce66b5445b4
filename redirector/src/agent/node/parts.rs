//! What is there before there is a node: programs and maps, opened.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use redirector_common::{Address, Interface as Entry, SnatAddressKey};

use super::Node;
use crate::agent::account::Account;
use crate::agent::interfaces::Slots;
use crate::agent::kubernetes::Kubernetes;
use crate::agent::wishes::Wishes;
use crate::dataplane::attach::Attacher;
use crate::dataplane::contents::Ports;
use crate::dataplane::epochs::Epochs;
use crate::dataplane::gc::KernelFlows;
use crate::dataplane::ids::Cursors;
use crate::dataplane::loader::Programs;
use crate::dataplane::lock::Lock;
use crate::dataplane::maps::{Maps, cache_sets, ids, ring_slots};
use crate::dataplane::pins::Pins;
use crate::dataplane::prerequisites::KernelVersion;
use crate::dataplane::sizes::Sizes;
use crate::dataplane::status::Status;
use crate::dataplane::syscall::netns_cookie;
use crate::dataplane::table::Table;
use crate::k8s::presence::Keeper;
use crate::k8s::report::Mouth;
use crate::model::state::State;

/// What is opened before there is a node.
pub(super) struct Parts {
    attacher: Attacher,
    maps: Maps,
    flows: KernelFlows,
    entries: BTreeMap<u32, Entry>,
    snat_addresses: BTreeMap<SnatAddressKey, Address>,
    slots: Slots,
    /// What the agent before us worked for, unless it was for a while.
    installed_for: Option<String>,
    cache_sets: u32,
    ring_slots: u32,
    ids: Vec<u32>,
    epochs: Epochs,
    netns_cookie: u64,
}

impl Parts {
    pub(super) fn open(pins: &Pins, kernel: KernelVersion, sizes: &Sizes) -> anyhow::Result<Self> {
        let programs = Programs::load(pins, sizes)?;
        let maps = Maps::open(pins)?;
        let earlier = maps.status.get(0).ok();
        let earlier = earlier.and_then(|text| Status::decode(text.as_str()?).ok());
        let attached = earlier.as_ref().map_or(&[][..], |status| &status.interfaces);
        let slots = attached.iter();
        Ok(Self {
            attacher: Attacher::new(programs, pins.clone(), kernel, attached),
            entries: maps.interfaces.entries()?,
            snat_addresses: maps.snat_addresses.entries()?,
            flows: KernelFlows::open(pins)?,
            cache_sets: cache_sets(pins, sizes.cpus)?,
            ring_slots: ring_slots(pins)?,
            ids: ids(pins)?,
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
    pub(super) fn check_owner(&self, wishes: &Wishes) -> anyhow::Result<()> {
        match &self.installed_for {
            Some(owner) if wishes.options().is_for_a_while() => anyhow::bail!(
                "the data path of {owner} is installed on {}: add the ports there, remove it with \
                 `redirector detach`, or choose another directory with --bpffs",
                wishes.options().pins.dir().display()
            ),
            _ => Ok(()),
        }
    }

    pub(super) fn into_node(
        self,
        wishes: Wishes,
        lock: Lock,
        is_first: bool,
    ) -> (Node, Option<(Mouth, Keeper)>) {
        let options = wishes.options();
        let (kubernetes, voices) = options
            .kubernetes
            .as_ref()
            .map(|asked| {
                Kubernetes::new(asked, &options.node_name(), options.own_ports(), is_first)
            })
            .unzip();
        let node = Node {
            account: Account::new(options),
            kubernetes,
            is_off: false,
            reads_first: false,
            wishes,
            lock,
            attacher: self.attacher,
            maps: self.maps,
            flows: self.flows,
            cache_sets: self.cache_sets,
            ring_slots: self.ring_slots,
            ids: self.ids,
            refused_tables: BTreeMap::new(),
            unsettled_at: None,
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
            snat_addresses: self.snat_addresses,
            slots: self.slots,
            chosen: Vec::new(),
            has_kube_proxy: false,
            told: None,
            netns_cookie: self.netns_cookie,
        };
        (node, voices)
    }
}
