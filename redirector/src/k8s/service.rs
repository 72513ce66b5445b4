//! Services, as far as they are used.

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{LoadBalancerIngress, Service, ServiceSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use redirector_common::{Family, Protocol};

use super::object::{self, ObjectName, annotation};
use super::{ALGORITHM, FORWARDING, HEADLESS, PUBLISH, SOURCE_RANGES};
use crate::model::{Algorithm, Forwarding, TrafficPolicy};

/// Seconds of session affinity where the Service does not say.
const DEFAULT_AFFINITY: u32 = 10_800;
/// Most seconds of session affinity.
const MAX_AFFINITY: u32 = 86_400;

/// Words of the annotations; the first is what holds without.
const FORWARDINGS: [(&str, Forwarding); 2] = [("snat", Forwarding::Snat), ("dsr", Forwarding::Dsr)];
const ALGORITHMS: [(&str, Algorithm); 2] =
    [("maglev", Algorithm::Maglev), ("random", Algorithm::Random)];
const SCOPES: [(&str, RangeScope); 2] =
    [("load-balancer", RangeScope::LoadBalancer), ("all", RangeScope::All)];

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceRecord {
    /// Which.
    pub name: ObjectName,
    /// Which of all that ever had the name.
    pub uid: String,
    /// When it was made, in seconds since 1970.
    pub created: i64,
    /// The proxy that it is for, if not for every node's own.
    pub proxy_name: Option<String>,
    /// How it is to be reached.
    pub kind: ServiceKind,
    /// The family that it is for, if not for both.
    pub only: Option<Family>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// Addresses that others lead to the nodes.
    pub external_ips: Vec<IpAddr>,
    /// Addresses of a load balancer that leaves them as they are.
    pub load_balancer_ips: Vec<IpAddr>,
    /// Networks that clients may come from; none: everyone.
    pub source_ranges: Vec<IpNet>,
    /// What they hold for.
    pub range_scope: RangeScope,
    /// Which endpoints clients from outside may get.
    pub policy: TrafficPolicy,
    /// How packets reach endpoints elsewhere.
    pub forwarding: Forwarding,
    /// How a new flow's endpoint is chosen.
    pub algorithm: Algorithm,
    /// Session affinity, in seconds.
    pub affinity_seconds: Option<u32>,
    /// Port of the health check of a load balancer.
    pub health_check_port: Option<u16>,
    /// The annotation that publishes ports.
    pub publish: Option<String>,
    /// What of it cannot be used, one sentence for each.
    pub problems: Vec<String>,
}

/// Which clients source ranges hold for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RangeScope {
    /// Those of the load balancer.
    #[default]
    LoadBalancer,
    /// All that come from outside.
    All,
}

/// How a Service is to be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceKind {
    /// Not at all: it has no address of its own, or is an alias.
    Unreachable,
    /// At its cluster address, and external addresses.
    ClusterIp,
    /// Also at node ports.
    NodePort,
    /// Also at a load balancer's addresses.
    LoadBalancer,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name; empty for an only port.
    pub name: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// The port at the Service's own addresses.
    pub port: u16,
    /// The port at nodes' addresses.
    pub node_port: Option<u16>,
}

impl ServiceRecord {
    /// Reads a Service.
    ///
    /// # Errors
    ///
    /// It has no name.
    pub fn read(service: Service) -> Result<Self, String> {
        let meta = &service.metadata;
        let name = ObjectName::of(meta).ok_or("it has no name")?;
        let spec = service.spec.unwrap_or_default();
        let is_headless = meta.labels.as_ref().is_some_and(|labels| labels.contains_key(HEADLESS));
        let kind = if is_headless { ServiceKind::Unreachable } else { read_kind(&spec) };
        let mut problems = Vec::new();
        let ingress = service.status.and_then(|status| status.load_balancer?.ingress);
        Ok(Self {
            uid: meta.uid.clone().unwrap_or_default(),
            created: object::created(meta),
            proxy_name: object::proxy_name(meta),
            kind,
            only: match spec.ip_families.as_deref() {
                Some([only]) if only == "IPv4" => Some(Family::V4),
                Some([only]) if only == "IPv6" => Some(Family::V6),
                Some(_) | None => None,
            },
            ports: read_ports(&spec),
            external_ips: addresses(
                spec.external_ips.iter().flatten().map(String::as_str),
                &mut problems,
            ),
            load_balancer_ips: addresses(ingress.iter().flatten().filter_map(vip), &mut problems),
            source_ranges: read_ranges(&spec, &mut problems),
            range_scope: read_word(meta, SOURCE_RANGES, &SCOPES, &mut problems),
            policy: match spec.external_traffic_policy.as_deref() {
                Some("Local") => TrafficPolicy::Local,
                Some(_) | None => TrafficPolicy::Cluster,
            },
            forwarding: read_word(meta, FORWARDING, &FORWARDINGS, &mut problems),
            algorithm: read_word(meta, ALGORITHM, &ALGORITHMS, &mut problems),
            affinity_seconds: read_affinity(&spec),
            health_check_port: object::port(spec.health_check_node_port),
            publish: annotation(meta, PUBLISH),
            problems,
            name,
        })
    }

    /// Whether a load balancer asks this node for its health.
    #[must_use]
    pub fn health_check(&self) -> Option<u16> {
        let asked = self.kind == ServiceKind::LoadBalancer && self.policy == TrafficPolicy::Local;
        self.health_check_port.filter(|_| asked)
    }
}

fn read_kind(spec: &ServiceSpec) -> ServiceKind {
    let has_address =
        spec.cluster_ip.as_deref().is_some_and(|address| !matches!(address, "" | "None"));
    match spec.type_.as_deref() {
        Some("ExternalName") => ServiceKind::Unreachable,
        _ if !has_address => ServiceKind::Unreachable,
        Some("NodePort") => ServiceKind::NodePort,
        Some("LoadBalancer") => ServiceKind::LoadBalancer,
        Some(_) | None => ServiceKind::ClusterIp,
    }
}

fn read_ports(spec: &ServiceSpec) -> Vec<ServicePort> {
    let ports = spec.ports.iter().flatten();
    ports
        .filter_map(|port| {
            Some(ServicePort {
                name: port.name.clone().unwrap_or_default(),
                protocol: object::protocol(port.protocol.as_deref())?,
                port: object::port(Some(port.port))?,
                node_port: object::port(port.node_port),
            })
        })
        .collect()
}

/// The address of a load balancer that sends packets on as they are. One that changes their
/// destination (`ipMode: Proxy`) is to be reached itself, also from the nodes.
fn vip(ingress: &LoadBalancerIngress) -> Option<&str> {
    match ingress.ip_mode.as_deref() {
        None | Some("VIP") => ingress.ip.as_deref(),
        Some(_) => None,
    }
}

/// Addresses that clients can send to.
fn addresses<'a>(texts: impl Iterator<Item = &'a str>, problems: &mut Vec<String>) -> Vec<IpAddr> {
    let mut all = Vec::new();
    for text in texts.map(str::trim).filter(|text| !text.is_empty()) {
        match text.parse::<IpAddr>().map(|address| address.to_canonical()) {
            Ok(address) if is_usable(address) => {
                if !all.contains(&address) {
                    all.push(address);
                }
            }
            Ok(_) | Err(_) => {
                problems.push(format!("clients cannot send to {text:?}: it is not served"));
            }
        }
    }
    all
}

fn is_usable(address: IpAddr) -> bool {
    let is_link_local = match address {
        IpAddr::V4(v4) => v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !(address.is_unspecified() || address.is_loopback() || address.is_multicast() || is_link_local)
}

/// The networks that clients may come from. Each family is a table of its own: one for which no
/// network is named admits everyone, as with kube-proxy.
fn read_ranges(spec: &ServiceSpec, problems: &mut Vec<String>) -> Vec<IpNet> {
    let mut ranges: Vec<IpNet> = Vec::new();
    for text in spec.load_balancer_source_ranges.iter().flatten() {
        match text.trim().parse::<IpNet>() {
            Ok(range) => ranges.push(range.trunc()),
            Err(_) => problems.push(format!(
                "loadBalancerSourceRanges: {text:?} is no network, such as 192.0.2.0/24: it \
                 admits nobody"
            )),
        }
    }
    if ranges.is_empty() {
        return ranges;
    }
    let everyone = [IpNet::from(ipnet::Ipv4Net::default()), IpNet::from(ipnet::Ipv6Net::default())];
    for all in everyone {
        let is_named = ranges.iter().any(|range| range.addr().is_ipv4() == all.addr().is_ipv4());
        if !is_named {
            ranges.push(all);
        }
    }
    if everyone.iter().all(|all| ranges.contains(all)) {
        return Vec::new();
    }
    ranges
}

fn read_affinity(spec: &ServiceSpec) -> Option<u32> {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return None;
    }
    let config = spec.session_affinity_config.as_ref();
    let seconds = config.and_then(|config| config.client_ip.as_ref()?.timeout_seconds);
    let seconds = seconds.and_then(|seconds| u32::try_from(seconds).ok());
    Some(seconds.unwrap_or(DEFAULT_AFFINITY).clamp(1, MAX_AFFINITY))
}

/// What a word of an annotation means; one that means nothing is as none.
fn read_word<T: Copy + Default>(
    meta: &ObjectMeta,
    name: &str,
    words: &[(&str, T)],
    problems: &mut Vec<String>,
) -> T {
    let Some(text) = annotation(meta, name) else {
        return T::default();
    };
    let meaning = words.iter().find(|(word, _)| *word == text.trim());
    if meaning.is_none() {
        let allowed: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let allowed = allowed.join(" or ");
        problems.push(format!("{name}: {text:?} is not known: write {allowed}"));
    }
    meaning.map(|(_, meaning)| *meaning).unwrap_or_default()
}
