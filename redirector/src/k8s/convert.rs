//! Records of the index become services of the model.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::PUBLISH;
use super::endpoints::{Place, backends};
use super::index::Index;
use super::object::ObjectName;
use super::pod::PodRecord;
use super::publish;
use super::service::{RangeScope, ServiceKind, ServicePort, ServiceRecord};
use crate::model::{
    BackendAddress, BackendSpec, FrontendSpec, Service, ServiceKey, Source, TrafficPolicy,
};

/// Node addresses that node ports are opened on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// Those of the chosen interfaces.
    #[default]
    Chosen,
    /// Those that the Node names first, one of each family.
    Primary,
    /// Those of this host in these networks.
    In(Arc<[IpNet]>),
}

/// What the operator says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Name of this node.
    pub node_name: String,
    /// Node addresses that node ports are opened on.
    pub node_port_addresses: NodePortAddresses,
    /// Networks that external IPs must be in; none: they may be anything.
    pub external_ip_networks: Vec<IpNet>,
}

/// What an object becomes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Converted {
    /// Which of all objects that ever had the name.
    pub uid: String,
    /// When the object was made, in seconds since 1970: of two that want a frontend, the older
    /// gets it.
    pub created: i64,
    /// Services, each with a key of its own.
    pub services: Vec<Arc<Service>>,
    /// What is wrong with the object, one sentence for each.
    pub problems: Vec<String>,
}

impl Rules {
    /// What a Service becomes: for each port one service for each kind of frontend.
    #[must_use]
    pub fn convert_service(&self, index: &Index, name: &ObjectName) -> Converted {
        let Some(record) = index.service(name) else {
            return Converted::default();
        };
        let mut converted =
            Converted { uid: record.uid.clone(), created: record.created, ..Converted::default() };
        if record.kind == ServiceKind::Unreachable {
            return converted;
        }
        let wishes = publish::of_service(record);
        converted.problems.clone_from(&record.problems);
        converted.problems.extend(wishes.problems);
        let external_ips = self.external_ips(record, &mut converted.problems);
        for port in &record.ports {
            let published = wishes.wishes.iter().filter(|wish| wish.target == port);
            let published: Vec<FrontendSpec> = published.map(|wish| wish.frontend).collect();
            let node_port = node_port(record, port);
            let at = |addresses: &[IpAddr]| at(addresses, port);
            let load_balancer = at(load_balancer_ips(record));
            let mut kinds = vec![
                (Source::NodePort, node_port),
                (Source::ExternalIp, at(&external_ips)),
                (Source::LoadBalancer, load_balancer),
                (Source::Annotation, published),
            ];
            kinds.retain(|(_, frontends)| !frontends.is_empty());
            if kinds.is_empty() {
                continue;
            }
            let backends = backends(port, index.slices(name), self.place(index));
            for (source, frontends) in kinds {
                let key = service_key(source, record, port);
                let service = Service {
                    frontends,
                    backends: backends.clone(),
                    policy: record.policy,
                    forwarding: record.forwarding,
                    algorithm: record.algorithm,
                    affinity_group: Some(group(&key)),
                    affinity_seconds: record.affinity_seconds,
                    only: record.only,
                    source_ranges: source_ranges(record, source),
                    ..Service::new(key)
                };
                let service = match source {
                    Source::NodePort => {
                        Service { node_networks: self.node_networks(index), ..service }
                    }
                    Source::Publish
                    | Source::Static
                    | Source::ExternalIp
                    | Source::LoadBalancer
                    | Source::Annotation => service,
                };
                converted.services.push(Arc::new(service));
            }
        }
        converted
    }

    /// What a pod becomes: one service for each port that it publishes.
    #[must_use]
    pub fn convert_pod(&self, index: &Index, name: &ObjectName) -> Converted {
        let Some(pod) = index.pod(name) else {
            return Converted::default();
        };
        if !pod.alive || pod.node != self.node_name {
            return Converted::default();
        }
        let mut converted =
            Converted { uid: pod.uid.clone(), created: pod.created, ..Converted::default() };
        let wishes = publish::of_pod(pod);
        converted.problems = wishes.problems;
        for wish in wishes.wishes {
            let key = pod_key(pod, &wish);
            if converted.services.iter().any(|service| service.key == key) {
                continue;
            }
            if wish.frontend.port == wish.target {
                converted.problems.push(format!(
                    "{PUBLISH}: port {} is the program's own: clients reach it as it is",
                    wish.target
                ));
                continue;
            }
            converted.services.push(Arc::new(Service {
                frontends: vec![wish.frontend],
                backends: vec![BackendSpec::new(BackendAddress::Local, wish.target)],
                policy: TrafficPolicy::Cluster,
                ..Service::new(key)
            }));
        }
        converted
    }

    /// Where this node is.
    #[must_use]
    pub fn place<'a>(&'a self, index: &'a Index) -> Place<'a> {
        Place { node: &self.node_name, zone: index.node().and_then(|node| node.zone.as_deref()) }
    }

    fn node_networks(&self, index: &Index) -> Option<Arc<[IpNet]>> {
        match &self.node_port_addresses {
            NodePortAddresses::Chosen => None,
            NodePortAddresses::In(networks) => Some(networks.clone()),
            NodePortAddresses::Primary => {
                Some(index.primary().iter().copied().map(IpNet::from).collect())
            }
        }
    }

    /// The external addresses that the operator allows, and the load balancer does not have.
    fn external_ips(&self, record: &ServiceRecord, problems: &mut Vec<String>) -> Vec<IpAddr> {
        let networks = &self.external_ip_networks;
        let is_allowed = |address: &IpAddr| {
            networks.is_empty() || networks.iter().any(|network| network.contains(address))
        };
        let (allowed, refused): (Vec<IpAddr>, Vec<IpAddr>) =
            record.external_ips.iter().partition(|address| is_allowed(address));
        for address in refused {
            problems.push(format!(
                "external IP {address} is in none of the networks that the operator allows \
                 (--external-ip-cidrs): it is not served"
            ));
        }
        let taken = load_balancer_ips(record);
        allowed.into_iter().filter(|address| !taken.contains(address)).collect()
    }
}

fn at(addresses: &[IpAddr], port: &ServicePort) -> Vec<FrontendSpec> {
    let frontend = |address: &IpAddr| FrontendSpec {
        address: Some(*address),
        port: port.port,
        protocol: port.protocol,
    };
    addresses.iter().map(frontend).collect()
}

fn load_balancer_ips(record: &ServiceRecord) -> &[IpAddr] {
    match record.kind {
        ServiceKind::LoadBalancer => &record.load_balancer_ips,
        ServiceKind::Unreachable | ServiceKind::ClusterIp | ServiceKind::NodePort => &[],
    }
}

fn node_port(record: &ServiceRecord, port: &ServicePort) -> Vec<FrontendSpec> {
    let has_node_ports = matches!(record.kind, ServiceKind::NodePort | ServiceKind::LoadBalancer);
    let number = port.node_port.filter(|_| has_node_ports);
    let frontend =
        |port_number| FrontendSpec { address: None, port: port_number, protocol: port.protocol };
    number.map(frontend).into_iter().collect()
}

/// The networks that clients of these frontends may come from.
fn source_ranges(record: &ServiceRecord, source: Source) -> Vec<IpNet> {
    match (record.range_scope, source) {
        (RangeScope::All, _) | (RangeScope::LoadBalancer, Source::LoadBalancer) => {
            record.source_ranges.clone()
        }
        (RangeScope::LoadBalancer, _) => Vec::new(),
    }
}

/// Services of one port of a Service share namespace and name; `web`, or `web:http` where the
/// port has a name.
fn service_key(source: Source, record: &ServiceRecord, port: &ServicePort) -> ServiceKey {
    let ObjectName { namespace, name } = &record.name;
    let name = match port.name.as_str() {
        "" => name.clone(),
        port => format!("{name}:{port}"),
    };
    ServiceKey { source, namespace: Some(namespace.clone()), name }
}

/// Frontends of one port of a Service share their clients' affinity.
fn group(key: &ServiceKey) -> String {
    format!("{}/{}", key.namespace.as_deref().unwrap_or_default(), key.name)
}

/// `pod:80:8080/tcp`.
fn pod_key(pod: &PodRecord, wish: &publish::Wish<u16>) -> ServiceKey {
    let FrontendSpec { address, port, protocol } = wish.frontend;
    let address = match address {
        None => String::new(),
        Some(IpAddr::V4(v4)) => format!("{v4}:"),
        Some(IpAddr::V6(v6)) => format!("[{v6}]:"),
    };
    ServiceKey {
        source: Source::Annotation,
        namespace: Some(pod.name.namespace.clone()),
        name: format!(
            "{}:{address}{port}:{}/{}",
            pod.name.name,
            wish.target,
            protocol.name().to_ascii_lowercase()
        ),
    }
}
