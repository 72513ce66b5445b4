//! Leases: how agents know which other nodes run redirector.
//!
//! An agent keeps one for its node from the moment at which the node can take flows; see
//! [`presence`](super::presence). What is read of it is who it is for, and for how long.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use k8s_openapi::jiff::Timestamp;

use super::object::ObjectName;

/// Label of all of them, to select them by.
pub const LABEL: &str = "redirector.io/agent";

/// How long one holds after it was renewed, in seconds: two renewals may fail.
pub(super) const DURATION: i32 = 3 * 3600;

/// A Lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseRecord {
    /// Which.
    pub name: ObjectName,
    /// Name of the node that takes flows.
    pub node: String,
    /// Until when, in seconds since 1970, by the clock of that node.
    pub until: i64,
}

impl LeaseRecord {
    /// Reads a Lease.
    ///
    /// # Errors
    ///
    /// It does not say for whom, or for how long.
    pub fn read(lease: Lease) -> Result<Self, String> {
        let name = ObjectName::of(&lease.metadata).ok_or("it has no name")?;
        let spec = lease.spec.unwrap_or_default();
        let node = spec.holder_identity.filter(|node| !node.is_empty());
        let renewed = spec.renew_time.ok_or("it has no renewTime")?;
        let seconds = spec.lease_duration_seconds.ok_or("it has no leaseDurationSeconds")?;
        Ok(Self {
            name,
            node: node.ok_or("it has no holderIdentity")?,
            until: renewed.0.as_second().saturating_add(seconds.into()),
        })
    }

    /// Whether it holds at a time, in seconds since 1970.
    #[must_use]
    pub const fn holds(&self, now: i64) -> bool {
        now < self.until
    }
}

/// All Leases, at some time.
#[derive(Clone, Debug, Default)]
pub(super) struct Leases {
    all: BTreeMap<ObjectName, LeaseRecord>,
    /// In seconds since 1970.
    now: i64,
    losses: u64,
}

impl Leases {
    /// Takes one in. Returns whether nodes may have begun or ceased to take flows: not where it was
    /// only renewed.
    pub(super) fn apply(&mut self, lease: LeaseRecord) -> bool {
        let now = self.now;
        let of = |lease: &LeaseRecord| lease.holds(now).then(|| lease.node.clone());
        let after = of(&lease);
        let before = self.all.insert(lease.name.clone(), lease);
        before.and_then(|before| of(&before)) != after
    }

    /// Forgets one, and counts those of `own` node. Returns as [`apply`](Self::apply).
    pub(super) fn delete(&mut self, name: &ObjectName, own: &str) -> bool {
        let Some(lease) = self.all.remove(name) else {
            return false;
        };
        if lease.node == own {
            self.losses += 1;
        }
        lease.holds(self.now)
    }

    /// Sets the time. Returns as [`apply`](Self::apply).
    pub(super) fn set_time(&mut self, now: i64) -> bool {
        let before = std::mem::replace(&mut self.now, now);
        self.all.values().any(|lease| lease.holds(before) != lease.holds(now))
    }

    /// Nodes that take flows now.
    pub(super) fn nodes(&self) -> BTreeSet<&str> {
        let holding = self.all.values().filter(|lease| lease.holds(self.now));
        holding.map(|lease| lease.node.as_str()).collect()
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &ObjectName> {
        self.all.keys()
    }

    /// How often one of the own node's was deleted.
    pub(super) const fn losses(&self) -> u64 {
        self.losses
    }
}

/// Name of the Lease of a node.
#[must_use]
pub fn lease_name(node: &str) -> String {
    format!("redirector-{node}")
}

/// The Lease of a node, renewed now. It goes with its Node, whose uid is `owner`.
pub(super) fn lease(node: &str, owner: &str, now: Timestamp) -> Lease {
    Lease {
        metadata: ObjectMeta {
            name: Some(lease_name(node)),
            labels: Some([(LABEL.to_owned(), "true".to_owned())].into()),
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".to_owned(),
                kind: "Node".to_owned(),
                name: node.to_owned(),
                uid: owner.to_owned(),
                ..OwnerReference::default()
            }]),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(node.to_owned()),
            lease_duration_seconds: Some(DURATION),
            renew_time: Some(MicroTime(now)),
            ..LeaseSpec::default()
        }),
    }
}
