//! What the Kubernetes API asks for, as the node needs it.

use std::collections::BTreeMap;

use super::KubernetesOptions;
use crate::k8s::cluster::Cluster;
use crate::k8s::convert::{Converted, Rules};
use crate::k8s::index::{Index, Kind};
use crate::k8s::object::ObjectName;
use crate::model::Service;

/// The index, and what its objects have become.
pub(super) struct Kubernetes {
    cluster: Cluster,
    rules: Rules,
    converted: BTreeMap<(Kind, ObjectName), Converted>,
    missing: Vec<Kind>,
}

impl Kubernetes {
    /// With an empty index.
    pub(super) fn new(options: &KubernetesOptions, node_name: &str) -> Self {
        Self {
            cluster: Cluster::new(Index::new(options.service_proxy_name.clone())),
            rules: Rules {
                node_name: node_name.to_owned(),
                node_port_addresses: options.node_port_addresses.clone(),
                external_ip_networks: options.external_ip_networks.clone(),
            },
            converted: BTreeMap::new(),
            missing: Kind::ALL.to_vec(),
        }
    }

    pub(super) fn node_name(&self) -> &str {
        &self.rules.node_name
    }

    pub(super) fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Kinds of objects that were never listed: until there is none, nobody knows what is too much.
    pub(super) fn missing(&self) -> &[Kind] {
        &self.missing
    }

    /// Looks at objects that changed. Returns whether any did.
    pub(super) fn update(&mut self) -> bool {
        let Self { cluster, rules, converted, missing: known } = self;
        cluster.with(|index| {
            let dirty = index.take_dirty();
            let missing: Vec<Kind> = index.missing().collect();
            if dirty.is_empty() && missing == *known {
                return false;
            }
            *known = missing;
            let mut services = dirty.services;
            let mut pods = dirty.pods;
            if dirty.all {
                services.extend(index.services().map(|service| service.name.clone()));
                pods.extend(index.pods().map(|pod| pod.name.clone()));
            }
            for name in services {
                let new = rules.convert_service(index, &name);
                put(converted, (Kind::Service, name), new);
            }
            for name in pods {
                let new = rules.convert_pod(index, &name);
                put(converted, (Kind::Pod, name), new);
            }
            true
        })
    }

    /// What all objects ask for, the older first.
    pub(super) fn services(&self) -> Vec<Service> {
        let mut all: Vec<(i64, &Service)> = self
            .converted
            .values()
            .flat_map(|converted| {
                converted.services.iter().map(|service| (converted.created, service))
            })
            .collect();
        all.sort_by(|(one, a), (other, b)| (one, &a.key).cmp(&(other, &b.key)));
        all.into_iter().map(|(_, service)| service.clone()).collect()
    }
}

fn put(
    all: &mut BTreeMap<(Kind, ObjectName), Converted>,
    name: (Kind, ObjectName),
    new: Converted,
) {
    for problem in &new.problems {
        let is_known = all.get(&name).is_some_and(|old| old.problems.contains(problem));
        if !is_known {
            tracing::warn!("{} {}: {problem}", name.0.name(), name.1);
        }
    }
    if new == Converted::default() {
        all.remove(&name);
    } else {
        all.insert(name, new);
    }
}
