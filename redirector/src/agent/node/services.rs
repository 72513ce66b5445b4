//! Keeping the maps of services in line with what all sources ask for.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use redirector_common::node::{MAX_PEERS, NodeConfig};
use redirector_common::{Address, Family, Peer};

use super::super::interfaces;
use super::super::kubernetes::Kubernetes;
use super::super::wishes::Wishes;
use super::Node;
use crate::dataplane::dead_end::DeadEnd;
use crate::dataplane::direct::Direct;
use crate::dataplane::encode::encode;
use crate::dataplane::ethtool;
use crate::dataplane::gc::{self, Keep};
use crate::dataplane::layout::Layout;
use crate::dataplane::memory;
use crate::dataplane::netlink::Host;
use crate::dataplane::sync::Writes;
use crate::model::desired::NodeAddresses;
use crate::model::state::{Rank, Ranked, State};

/// Index of the loopback device in every network namespace.
const LOOPBACK: u32 = 1;

/// How long after one pass over the flows the next may begin because of a change.
const BETWEEN_COLLECTIONS: Duration = Duration::from_millis(300);

/// To how many frontends one port of a client may be connected whose backends all go at once, if
/// it is to hear of all of them at once.
const DEAD_ENDS: u16 = 16;

impl Node {
    /// Brings the maps in line with objects of the Kubernetes API that changed.
    pub(in crate::agent) fn follow_cluster(&mut self, host: &Host) {
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
        match done.and_then(|()| self.write_snat_addresses(host)) {
            Ok(()) if self.is_off => {}
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
        let addresses = self.addresses(host);
        let Some(kubernetes) = &mut self.kubernetes else {
            return Ok(false);
        };
        if !kubernetes.missing().is_empty() {
            return Ok(false);
        }
        self.state.set_nodes(nodes(&self.wishes, Some(kubernetes), &addresses));
        for (key, service) in kubernetes.take_changed() {
            match service {
                Some((rank, service)) => self.state.put(rank, service),
                None => self.state.remove(&key),
            }
        }
        self.sync_dirty(began, addresses)
    }

    /// Brings only those services in line that `state` has as changed, or that pods of this node
    /// change by coming and going. Returns whether that could be done.
    fn sync_dirty(&mut self, began: Instant, addresses: NodeAddresses) -> anyhow::Result<bool> {
        let made_from = self.made_from.as_ref();
        if !made_from.is_some_and(|made_from| made_from.has_other_sides_alone(&addresses)) {
            return Ok(false);
        }
        let (Some(actual), Some(mut layout)) = (&mut self.actual, self.layout.take()) else {
            return Ok(false);
        };
        self.state.set_sides(addresses.sides.clone());
        let dirty = self.state.take_dirty();
        let tables = &mut self.maps.services;
        let step = match layout.change(&self.state, &dirty, actual, &*tables.maglev) {
            Ok(step) => step,
            Err(reason) => {
                tracing::debug!(%reason, "everything is laid out anew");
                return Ok(false);
            }
        };
        let writes = tables.sync_step(&step, layout.has_vips())?;
        layout.commit(step, actual);
        self.cursors = layout.cursors();
        self.layout = Some(layout);
        self.made_from = Some(addresses);
        self.synced(began, dirty.len(), writes);
        Ok(true)
    }

    /// Brings the maps of services in line, if what they are made from has changed.
    pub(super) fn sync(&mut self, host: &Host) -> anyhow::Result<()> {
        let addresses = self.addresses(host);
        if self.made_from.as_ref() == Some(&addresses) {
            return Ok(());
        }
        let began = Instant::now();
        if self.sync_dirty(began, addresses.clone())? {
            return Ok(());
        }
        let snat = self.wishes.snat_ports();
        if let Some(kubernetes) = &mut self.kubernetes
            && kubernetes.keep_from(snat.clone())
        {
            // What was granted or refused for the sake of other ports.
            kubernetes.update();
        }
        self.layout = None;
        let nodes = nodes(&self.wishes, self.kubernetes.as_ref(), &addresses);
        let node = NodeAddresses { nodes, ..addresses.clone() };
        self.state = State::new(node, self.services());
        let desired = self.state.all();
        let actual = match &mut self.actual {
            Some(actual) => actual,
            none => none.insert(self.maps.services.read()?),
        };
        let (tables, capacity) = (&mut self.maps.services, self.maps.capacity);
        let mut encoded =
            encode(&desired, actual, &*tables.maglev, snat.clone(), capacity, &mut self.cursors)?;
        let is_complete =
            self.kubernetes.as_ref().is_none_or(|kubernetes| kubernetes.missing().is_empty());
        if !is_complete {
            // What seems to be too much may be asked for by what was not read yet.
            encoded.contents.keep(actual);
        }
        self.wanted_ports = encoded.contents.ports.clone();
        let writes = tables.sync(actual, encoded)?;
        self.maps.node.put(
            0,
            &NodeConfig {
                snat_first: *snat.start(),
                snat_count: u16::try_from(snat.len()).unwrap_or(u16::MAX),
                lookup_ifindex: LOOPBACK,
                cache_sets: self.cache_sets,
                ring_slots: self.ring_slots,
                netns_cookie: self.netns_cookie,
                moving_until: 0,
                flags: if self.wishes.mss_clamp() { NodeConfig::FLAG_CLAMP_MSS } else { 0 },
                reserved: 0,
            },
        )?;
        if is_complete && !self.cursors.is_crowded() {
            let (state, snat, cursors) = (&self.state, snat.clone(), self.cursors);
            self.layout = Some(Layout::new(state, &desired, actual, snat, capacity, cursors));
        }
        // The layout has them too.
        self.listed = match self.layout {
            Some(_) => BTreeSet::new(),
            None => actual.listed(),
        };
        self.tell_direct();
        self.made_from = (!self.cursors.is_crowded()).then_some(addresses);
        self.account.change(|status| status.snat_ports = (*snat.start(), *snat.end()));
        self.synced(began, desired.services.len(), writes);
        drop(desired);
        memory::release();
        Ok(())
    }

    /// Says what direct server return costs, where that has changed.
    fn tell_direct(&mut self) {
        let Some(contents) = &self.actual else {
            return;
        };
        let mtu = |name: &String| Some((name.clone(), ethtool::read(name).ok()?.mtu));
        let mtus = self.chosen.iter().filter_map(mtu).collect();
        let (services, frontends) = (contents.services.values(), contents.frontends.iter());
        let peers = contents.peers.len();
        let direct = Direct::of(services, frontends, peers, None, mtus, self.wishes.mss_clamp());
        if direct.services > 0 && self.told.as_ref() != Some(&direct) {
            tracing::info!("direct server return: {}", direct.describe());
            self.told = Some(direct);
        }
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
        if self.is_off {
            self.account.shared.update(|snapshot| snapshot.ready = false);
        }
        if !writes.is_none() {
            let Writes { set, removed, calls } = writes;
            tracing::info!(services, written = set, removed, calls, "maps brought in line");
            self.collect_soon();
        }
    }

    fn addresses(&self, host: &Host) -> NodeAddresses {
        NodeAddresses {
            has_kube_proxy: self.has_kube_proxy,
            ..interfaces::addresses(host, &self.chosen)
        }
    }

    /// What all sources ask for, the first to be served first.
    fn services(&mut self) -> Vec<Ranked> {
        let file = self.wishes.services().into_iter();
        let mut services: Vec<Ranked> =
            (0..).zip(file).map(|(order, it)| (Rank { source: 0, order }, it.into())).collect();
        // Services are made of several kinds of objects: of those that have come before the others,
        // Services without endpoints would come.
        if let Some(kubernetes) = &mut self.kubernetes
            && kubernetes.missing().is_empty()
        {
            kubernetes.take_changed();
            services.extend(kubernetes.services());
        }
        services
    }

    /// Collects flows, and takes ports back that none of them needs.
    pub(in crate::agent) fn collect(&mut self) {
        self.collect_at = None;
        self.collected_at = Some(Instant::now());
        let (listed, wanted) = match &self.layout {
            Some(layout) => (layout.listed(), layout.wanted_ports()),
            None => (&self.listed, &self.wanted_ports),
        };
        let dead_end = self.dead_end();
        let wanted = match dead_end {
            Some(dead_end) => Cow::Owned(wanted.union(&dead_end.ports())),
            None => Cow::Borrowed(wanted),
        };
        // After a write that failed nobody is sure.
        let listed = self.actual.as_ref().map(|_| listed);
        let frontends = self.actual.as_ref().map(|actual| &actual.frontends);
        let keep = Keep { listed, frontends, dead_end };
        let outcome = gc::collect(&mut self.flows, keep, gc::now()).and_then(|collected| {
            self.account.shared.update(|snapshot| snapshot.flows = collected.halves / 2);
            match &mut self.actual {
                Some(actual) => {
                    let in_use = &collected.in_use;
                    self.maps.services.release_ports(actual, &wanted, in_use).map(drop)
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

    /// Where clients are led whose backend was removed, if they are to hear of it.
    fn dead_end(&self) -> Option<DeadEnd> {
        let addresses = self.made_from.as_ref().filter(|_| self.wishes.resets_clients())?;
        let address = |family| addresses.published(family).next().map(Address::from);
        let (first, last) = self.wishes.snat_ports().into_inner();
        Some(DeadEnd {
            v4: address(Family::V4),
            v6: address(Family::V6),
            first,
            last: last.min(first.saturating_add(DEAD_ENDS - 1)),
        })
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
    pub(in crate::agent) async fn collection_due(&self) {
        match self.collect_at {
            Some(at) => tokio::time::sleep_until(at.into()).await,
            None => std::future::pending().await,
        }
    }
}

/// Addresses of all nodes, and what is known of them. Those of the file run redirector.
fn nodes(
    wishes: &Wishes,
    kubernetes: Option<&Kubernetes>,
    addresses: &NodeAddresses,
) -> BTreeMap<IpAddr, Peer> {
    let mut nodes =
        kubernetes.map(|it| it.nodes(|address| addresses.is_own(address))).unwrap_or_default();
    nodes.extend(wishes.nodes().iter().map(|address| (*address, Peer::taking())));
    let room = MAX_PEERS as usize;
    if nodes.len() > room {
        // The same are left out everywhere, and what comes to those is translated.
        tracing::warn!(
            "{} addresses of nodes, and room for {room}: some are left out",
            nodes.len()
        );
        nodes = nodes.into_iter().take(room).collect();
    }
    nodes
}
