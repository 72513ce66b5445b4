//! All records, and which services have to be looked at again. Plain and synchronous.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::lease::Leases;
use super::node::NodeRecord;
use super::object::ObjectName;
use super::pod::PodRecord;
use super::record::{Kind, Record};
use super::service::ServiceRecord;
use super::slice::SliceRecord;

/// What has to be looked at again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dirty {
    /// Everything: the node itself has changed.
    pub all: bool,
    /// The addresses of some node, or whether it takes flows.
    pub nodes: bool,
    /// Services that changed, or whose slices did.
    pub services: BTreeSet<ObjectName>,
    /// Pods.
    pub pods: BTreeSet<ObjectName>,
    /// When what changed came to be, in milliseconds since 1970, for each slice that says so.
    pub triggers: Vec<i64>,
}

impl Dirty {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.all && !self.nodes && self.services.is_empty() && self.pods.is_empty()
    }
}

/// All records.
#[derive(Clone, Debug, Default)]
pub struct Index {
    /// The `--service-proxy-name`: objects with another one are not ours.
    proxy_name: Option<String>,
    /// In boxes: nodes of a map that is filled in order are half empty.
    services: BTreeMap<ObjectName, Box<ServiceRecord>>,
    /// By Service, then in the order of their own names. Most Services have one, and a map would
    /// make room for eleven at once.
    slices: BTreeMap<ObjectName, Vec<SliceRecord>>,
    /// The Service of every slice that stands in `slices`.
    owners: BTreeMap<ObjectName, ObjectName>,
    /// Names of nodes that endpoints run on, each once.
    node_names: BTreeSet<Arc<str>>,
    /// The name of this node.
    own_name: String,
    node: Option<NodeRecord>,
    /// Its primary addresses as they were last known: a Node that is registered anew is gone for a
    /// moment, and the machine is not.
    primary: Vec<IpAddr>,
    /// Addresses of the others.
    others: BTreeMap<String, BTreeSet<IpAddr>>,
    pods: BTreeMap<ObjectName, PodRecord>,
    leases: Leases,
    listed: BTreeSet<Kind>,
    /// Why the API server refuses kinds that are done without.
    refused: BTreeMap<Kind, String>,
    dirty: Dirty,
}

impl Index {
    /// An empty one of the node with this name, for objects with this `service-proxy-name`, or
    /// none.
    #[must_use]
    pub fn new(own_name: impl Into<String>, proxy_name: Option<String>) -> Self {
        Self { proxy_name, own_name: own_name.into(), ..Self::default() }
    }

    /// Takes a record in, in place of what had its name.
    pub fn apply(&mut self, record: Record) {
        match record {
            Record::Service(service) if service.proxy_name != self.proxy_name => {
                self.delete_service(&service.name);
            }
            Record::Service(service) => self.apply_service(service),
            Record::Slice(slice) if slice.proxy_name != self.proxy_name => {
                self.delete_slice(&slice.name);
            }
            Record::Slice(slice) => self.apply_slice(slice),
            Record::Node(node) => self.apply_node(node),
            Record::Pod(pod) => self.apply_pod(pod),
            Record::Lease(lease) => self.dirty.nodes |= self.leases.apply(lease),
        }
    }

    /// Forgets a record; none is no error.
    pub fn delete(&mut self, kind: Kind, name: &ObjectName) {
        match kind {
            Kind::Service => self.delete_service(name),
            Kind::Slice => self.delete_slice(name),
            Kind::Node => self.delete_node(name),
            Kind::Pod => {
                if self.pods.remove(name).is_some() {
                    self.dirty.pods.insert(name.clone());
                }
            }
            Kind::Lease => self.dirty.nodes |= self.leases.delete(name, &self.own_name),
        }
    }

    /// Takes in a full list of a kind: what it lacks is forgotten, but for the `unreadable`,
    /// which stay what they were.
    pub fn reset(&mut self, kind: Kind, records: Vec<Record>, unreadable: &BTreeSet<ObjectName>) {
        let listed: BTreeSet<&ObjectName> =
            records.iter().map(Record::name).chain(unreadable).collect();
        let gone: Vec<ObjectName> =
            self.names(kind).into_iter().filter(|name| !listed.contains(name)).collect();
        for name in gone {
            self.delete(kind, &name);
        }
        for record in records {
            self.apply(record);
        }
        self.listed.insert(kind);
        self.refused.remove(&kind);
        // Those of nodes that went.
        self.node_names.retain(|name| Arc::strong_count(name) > 1);
    }

    /// Notes that there is nothing more to be known of a kind, and why. What is known stays.
    pub fn refuse(&mut self, kind: Kind, why: String) {
        self.listed.insert(kind);
        self.refused.insert(kind, why);
    }

    /// Why the API server refuses a kind, if it does.
    #[must_use]
    pub fn refused(&self, kind: Kind) -> Option<&str> {
        self.refused.get(&kind).map(String::as_str)
    }

    /// Sets the time, in seconds since 1970: Leases run out by themselves. Returns whether that
    /// changes anything.
    pub fn set_time(&mut self, now: i64) -> bool {
        let is_changed = self.leases.set_time(now);
        self.dirty.nodes |= is_changed;
        is_changed
    }

    fn names(&self, kind: Kind) -> Vec<ObjectName> {
        match kind {
            Kind::Service => self.services.keys().cloned().collect(),
            Kind::Slice => self.owners.keys().cloned().collect(),
            Kind::Node => {
                let own = self.node.iter().map(|node| node.name.name.as_str());
                let others = self.others.keys().map(String::as_str);
                own.chain(others).map(|name| ObjectName::new("", name)).collect()
            }
            Kind::Pod => self.pods.keys().cloned().collect(),
            Kind::Lease => self.leases.names().cloned().collect(),
        }
    }

    /// Whether every kind was listed once.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        Kind::ALL.iter().all(|kind| self.listed.contains(kind))
    }

    /// Kinds that were not listed yet.
    pub fn missing(&self) -> impl Iterator<Item = Kind> {
        Kind::ALL.into_iter().filter(|kind| !self.listed.contains(kind))
    }

    /// What has to be looked at again since the last call.
    pub fn take_dirty(&mut self) -> Dirty {
        std::mem::take(&mut self.dirty)
    }

    /// Looks at everything again.
    pub const fn touch_all(&mut self) {
        self.dirty.all = true;
    }

    /// Looks at a pod again, or a Service.
    pub fn touch(&mut self, kind: Kind, name: &ObjectName) {
        match kind {
            Kind::Service => self.dirty.services.insert(name.clone()),
            Kind::Pod => self.dirty.pods.insert(name.clone()),
            Kind::Slice | Kind::Node | Kind::Lease => false,
        };
    }

    /// This node, if the API knows it.
    #[must_use]
    pub const fn node(&self) -> Option<&NodeRecord> {
        self.node.as_ref()
    }

    /// The primary addresses of this node.
    #[must_use]
    pub fn primary(&self) -> &[IpAddr] {
        &self.primary
    }

    /// Addresses of the other nodes, and whether each takes flows.
    pub fn others(&self) -> impl Iterator<Item = (&BTreeSet<IpAddr>, bool)> {
        let taking = self.leases.nodes();
        self.others.iter().map(move |(name, all)| (all, taking.contains(name.as_str())))
    }

    /// How often the Lease of this node was removed.
    #[must_use]
    pub const fn losses(&self) -> u64 {
        self.leases.losses()
    }

    /// A Service of ours.
    #[must_use]
    pub fn service(&self, name: &ObjectName) -> Option<&ServiceRecord> {
        self.services.get(name).map(Box::as_ref)
    }

    /// All Services of ours.
    pub fn services(&self) -> impl Iterator<Item = &ServiceRecord> {
        self.services.values().map(Box::as_ref)
    }

    /// The slices of a Service.
    pub fn slices(&self, service: &ObjectName) -> impl Iterator<Item = &SliceRecord> {
        self.slices.get(service).into_iter().flatten()
    }

    /// A pod of this node.
    #[must_use]
    pub fn pod(&self, name: &ObjectName) -> Option<&PodRecord> {
        self.pods.get(name)
    }

    /// All pods of this node.
    pub fn pods(&self) -> impl Iterator<Item = &PodRecord> {
        self.pods.values()
    }

    fn apply_service(&mut self, service: ServiceRecord) {
        if self.service(&service.name) != Some(&service) {
            self.dirty.services.insert(service.name.clone());
            self.services.insert(service.name.clone(), Box::new(service));
        }
    }

    fn delete_service(&mut self, name: &ObjectName) {
        if self.services.remove(name).is_some() {
            self.dirty.services.insert(name.clone());
        }
    }

    fn apply_slice(&mut self, mut slice: SliceRecord) {
        let owner = slice.service.as_deref();
        let owner = owner.map(|service| ObjectName::new(&slice.name.namespace, service));
        if self.owners.get(&slice.name) != owner.as_ref() {
            self.delete_slice(&slice.name);
        }
        let Some(owner) = owner else {
            return;
        };
        let slices = self.slices.entry(owner.clone()).or_default();
        let place = slices.binary_search_by(|known| known.name.cmp(&slice.name));
        if place.is_ok_and(|place| slices.get(place) == Some(&slice)) {
            return;
        }
        for node in slice.endpoints.iter_mut().filter_map(|endpoint| endpoint.node.as_mut()) {
            match self.node_names.get(node) {
                Some(known) => *node = Arc::clone(known),
                None => drop(self.node_names.insert(Arc::clone(node))),
            }
        }
        // What was listed at the start came to be at some time before.
        if self.listed.contains(&Kind::Slice) {
            self.dirty.triggers.extend(slice.triggered_at);
        }
        self.owners.insert(slice.name.clone(), owner.clone());
        match place {
            Ok(place) => slices[place] = slice,
            Err(place) => {
                slices.reserve_exact(1);
                slices.insert(place, slice);
            }
        }
        self.dirty.services.insert(owner);
    }

    fn delete_slice(&mut self, name: &ObjectName) {
        let Some(owner) = self.owners.remove(name) else {
            return;
        };
        if let Some(slices) = self.slices.get_mut(&owner) {
            slices.retain(|slice| slice.name != *name);
            if slices.is_empty() {
                self.slices.remove(&owner);
            }
        }
        self.dirty.services.insert(owner);
    }

    fn apply_node(&mut self, node: NodeRecord) {
        if node.name.name == self.own_name {
            if self.node.as_ref() != Some(&node) {
                // Before anybody has said where it is, a new one is nowhere.
                if !node.primary.is_empty() {
                    self.primary.clone_from(&node.primary);
                }
                self.node = Some(node);
                self.dirty.all = true;
                self.dirty.nodes = true;
            }
        } else if self.others.get(&node.name.name) != Some(&node.addresses) {
            self.others.insert(node.name.name, node.addresses);
            self.dirty.nodes = true;
        }
    }

    fn delete_node(&mut self, name: &ObjectName) {
        if self.node.as_ref().is_some_and(|node| node.name == *name) {
            self.node = None;
            self.dirty.all = true;
            self.dirty.nodes = true;
        } else if self.others.remove(&name.name).is_some() {
            self.dirty.nodes = true;
        }
    }

    fn apply_pod(&mut self, pod: PodRecord) {
        if self.pods.get(&pod.name) != Some(&pod) {
            self.dirty.pods.insert(pod.name.clone());
            self.pods.insert(pod.name.clone(), pod);
        }
    }
}
