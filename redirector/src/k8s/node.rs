//! Nodes, as far as they are used.

use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Node;

use super::object::ObjectName;

/// Taint of a node that the cluster's autoscaler is about to remove.
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

/// Kinds of addresses that clients and other nodes send to.
const KINDS: [&str; 2] = ["InternalIP", "ExternalIP"];

/// A Node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeRecord {
    /// Which.
    pub name: ObjectName,
    /// Which of all that ever had the name.
    pub uid: String,
    /// Its zone.
    pub zone: Option<String>,
    /// Its primary address of each family: the first internal one, else the first external one.
    pub primary: Vec<IpAddr>,
    /// Every address that it has, inside the cluster and outside.
    pub addresses: BTreeSet<IpAddr>,
    /// Why no more traffic should be sent to it.
    pub leaving: Option<&'static str>,
}

impl NodeRecord {
    /// Reads a Node.
    ///
    /// # Errors
    ///
    /// It has no name.
    pub fn read(node: Node) -> Result<Self, String> {
        let meta = &node.metadata;
        let name = ObjectName::of(meta).ok_or("it has no name")?;
        let zone =
            meta.labels.as_ref().and_then(|labels| labels.get("topology.kubernetes.io/zone"));
        let taints = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
        let leaving = if meta.deletion_timestamp.is_some() {
            Some("the node is being deleted")
        } else if taints.iter().any(|taint| taint.key == TO_BE_DELETED) {
            Some("the cluster's autoscaler is about to remove the node")
        } else {
            None
        };
        let status = node.status.and_then(|status| status.addresses).unwrap_or_default();
        let addresses: Vec<(&str, IpAddr)> = status
            .iter()
            .filter_map(|address| Some((address.type_.as_str(), address.address.parse().ok()?)))
            .filter(|(kind, _)| KINDS.contains(kind))
            .collect();
        let mut primary = Vec::new();
        for is_v4 in [true, false] {
            let first = KINDS.into_iter().find_map(|kind| {
                let mut all = addresses.iter().filter(|(found, _)| *found == kind);
                all.find(|(_, address)| address.is_ipv4() == is_v4)
            });
            primary.extend(first.map(|(_, address)| *address));
        }
        Ok(Self {
            uid: meta.uid.clone().unwrap_or_default(),
            zone: zone.filter(|zone| !zone.is_empty()).cloned(),
            primary,
            addresses: addresses.into_iter().map(|(_, address)| address).collect(),
            leaving,
            name,
        })
    }
}
