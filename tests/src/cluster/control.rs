//! What the control plane does, as far as scenarios need it: addresses of services, and their
//! slices from pods. Everything at once when asked to, so that tests need not wait for it.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use k8s_openapi::{
    api::{
        coordination::v1::Lease,
        core::v1::{Node, Pod, Service, ServicePort},
        discovery::v1::{Endpoint, EndpointHints, EndpointSlice, ForNode, ForZone},
    },
    apimachinery::pkg::util::intstr::IntOrString,
};
use redirector_common::{Family, Protocol};

use super::build::{NAMESPACE, mk_endpoint, mk_slice, protocol_name};
use crate::{apiserver::Store, topology::FAMILIES};

/// Names, protocols and numbers of ports: pods for which these differ are in different slices.
type Ports = Vec<(String, Protocol, u16)>;

/// Writes the slices of all services that select pods, and removes those that are no more, and what
/// was Nodes' that are no more.
///
/// # Errors
///
/// If an object in the store is broken.
pub fn reconcile(store: &Store) -> Result<()> {
    let (pods, nodes) = (store.all::<Pod>()?, store.all::<Node>()?);
    let mut wanted: BTreeMap<String, EndpointSlice> = BTreeMap::new();
    for service in store.all::<Service>()? {
        for slice in slices(&service, &pods, &nodes) {
            wanted.insert(slice.metadata.name.clone().unwrap_or_default(), slice);
        }
    }
    let present: BTreeSet<String> = store
        .all::<EndpointSlice>()?
        .into_iter()
        .filter(is_managed)
        .filter_map(|slice| slice.metadata.name)
        .collect();
    for slice in wanted.values() {
        store.put(slice)?;
    }
    for name in present.iter().filter(|name| !wanted.contains_key(*name)) {
        store.remove::<EndpointSlice>(NAMESPACE, name)?;
    }
    let is_there = |uid: &str| nodes.iter().any(|node| node.metadata.uid.as_deref() == Some(uid));
    for Lease { metadata, .. } in store.all()? {
        let owners = metadata.owner_references.unwrap_or_default();
        if !owners.is_empty() && !owners.iter().any(|owner| is_there(&owner.uid)) {
            let (namespace, name) = (metadata.namespace.as_deref(), metadata.name.as_deref());
            store.remove::<Lease>(namespace.unwrap_or_default(), name.unwrap_or_default())?;
        }
    }
    Ok(())
}

/// All others are a test's own.
fn is_managed(slice: &EndpointSlice) -> bool {
    slice.metadata.name.as_ref().is_some_and(|name| name.starts_with("managed-"))
}

fn slices(service: &Service, pods: &[Pod], nodes: &[Node]) -> Vec<EndpointSlice> {
    let Some(spec) = &service.spec else {
        return Vec::new();
    };
    let selector = spec.selector.clone().unwrap_or_default();
    if selector.is_empty() || spec.type_.as_deref() == Some("ExternalName") {
        return Vec::new();
    }
    let name = service.metadata.name.clone().unwrap_or_default();
    let families = spec.ip_families.clone().unwrap_or_default();
    let has =
        |family: Family| families.iter().any(|name| (name == "IPv4") == (family == Family::V4));
    let mut slices = Vec::new();
    for family in FAMILIES.into_iter().filter(|family| has(*family)) {
        let mut groups: BTreeMap<Ports, Vec<Endpoint>> = BTreeMap::new();
        for pod in pods.iter().filter(|pod| is_selected(pod, &selector)) {
            if let Some(endpoint) = endpoint(service, pod, nodes, family) {
                groups.entry(ports(service, pod)).or_default().push(endpoint);
            }
        }
        for (index, (ports, endpoints)) in groups.into_iter().enumerate() {
            let slice = format!("managed-{name}-{family:?}-{index}").to_lowercase();
            let mut slice = mk_slice(&slice, &name, family, &ports, endpoints);
            copy_labels(service, &mut slice);
            slices.push(slice);
        }
    }
    slices
}

/// The controller copies a service's labels, so that a proxy that is to ignore the service can
/// ignore its slices too; but for this one, which it gives by itself to those without an address.
fn copy_labels(service: &Service, slice: &mut EndpointSlice) {
    let to = slice.metadata.labels.get_or_insert_default();
    for (key, value) in service.metadata.labels.iter().flatten() {
        to.entry(key.clone()).or_insert_with(|| value.clone());
    }
    const HEADLESS: &str = "service.kubernetes.io/headless";
    let is_headless =
        service.spec.as_ref().is_some_and(|spec| spec.cluster_ip.as_deref() == Some("None"));
    if is_headless {
        to.insert(HEADLESS.into(), String::new());
    } else {
        to.remove(HEADLESS);
    }
}

fn is_selected(pod: &Pod, selector: &BTreeMap<String, String>) -> bool {
    let labels = pod.metadata.labels.as_ref();
    selector.iter().all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
}

fn endpoint(service: &Service, pod: &Pod, nodes: &[Node], family: Family) -> Option<Endpoint> {
    let status = pod.status.as_ref()?;
    let ips = status.pod_ips.iter().flatten();
    let mut ips = ips.filter_map(|ip| ip.ip.parse::<std::net::IpAddr>().ok());
    let address = ips.find(|ip| ip.is_ipv4() == (family == Family::V4))?;
    let conditions = status.conditions.iter().flatten();
    let is_ready = conditions.clone().any(|one| one.type_ == "Ready" && one.status == "True");
    let spec = service.spec.as_ref()?;
    let published = spec.publish_not_ready_addresses.unwrap_or(false);
    let is_terminating = pod.metadata.deletion_timestamp.is_some();
    let node = pod.spec.as_ref()?.node_name.as_deref()?;
    let mut endpoint = mk_endpoint(address, node, is_ready || published, is_terminating);
    if let Some(conditions) = endpoint.conditions.as_mut().filter(|_| published) {
        conditions.ready = Some(true);
    }
    endpoint.zone = nodes
        .iter()
        .find(|one| one.metadata.name.as_deref() == Some(node))
        .and_then(|one| one.metadata.labels.as_ref()?.get("topology.kubernetes.io/zone").cloned());
    endpoint.hints = hints(spec.traffic_distribution.as_deref(), node, endpoint.zone.as_ref());
    Some(endpoint)
}

fn hints(distribution: Option<&str>, node: &str, zone: Option<&String>) -> Option<EndpointHints> {
    let for_zones = zone.map(|zone| vec![ForZone { name: zone.clone() }]);
    let for_nodes = Some(vec![ForNode { name: node.to_owned() }]);
    match distribution? {
        "PreferSameNode" => Some(EndpointHints { for_nodes, for_zones }),
        "PreferSameZone" | "PreferClose" => Some(EndpointHints { for_nodes: None, for_zones }),
        _ => None,
    }
}

fn ports(service: &Service, pod: &Pod) -> Ports {
    let ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    ports.filter_map(|port| resolve(port, pod)).collect()
}

/// The number that a service's port has on a pod; none if it names one that the pod has not.
fn resolve(port: &ServicePort, pod: &Pod) -> Option<(String, Protocol, u16)> {
    let protocol = match port.protocol.as_deref() {
        Some("UDP") => Protocol::Udp,
        _ => Protocol::Tcp,
    };
    let number = match &port.target_port {
        None => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) => {
            let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
            let mut all = containers.flat_map(|container| container.ports.iter().flatten());
            let fits = |one: &&k8s_openapi::api::core::v1::ContainerPort| {
                one.name.as_ref() == Some(name)
                    && one.protocol.as_deref() == Some(protocol_name(protocol))
            };
            all.find(fits).map(|one| one.container_port)
        }
    };
    Some((port.name.clone().unwrap_or_default(), protocol, u16::try_from(number?).ok()?))
}
