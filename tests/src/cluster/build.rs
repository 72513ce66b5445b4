//! Builders of objects, with what scenarios do not care about filled in.

use std::{collections::BTreeMap, net::IpAddr};

use k8s_openapi::{
    api::{
        core::v1::{
            Container, ContainerPort, LoadBalancerIngress, LoadBalancerStatus, Namespace, Node,
            NodeAddress, NodeSpec, NodeStatus, Pod, PodCondition, PodIP, PodSpec, PodStatus,
            Service, ServicePort, ServiceSpec, ServiceStatus,
        },
        discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice},
    },
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};
use redirector_common::{Family, Protocol};

use crate::topology::Addresses;

/// Where scenarios' objects live.
pub const NAMESPACE: &str = "default";

/// The label by which services of scenarios select pods.
pub const APP: &str = "app";

/// Metadata of an object in [`NAMESPACE`].
#[must_use]
pub fn mk_metadata(name: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some(NAMESPACE.to_owned()),
        ..ObjectMeta::default()
    }
}

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// As objects spell it.
#[must_use]
pub const fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
    }
}

/// A service of type `NodePort`, of both families, that selects pods whose label `app` is its
/// name.
#[must_use]
pub fn mk_service(name: &str, ports: Vec<ServicePort>) -> Service {
    Service {
        metadata: mk_metadata(name),
        spec: Some(ServiceSpec {
            type_: Some("NodePort".into()),
            ports: Some(ports),
            selector: Some(labels(&[(APP, name)])),
            ip_families: Some(vec!["IPv4".into(), "IPv6".into()]),
            ip_family_policy: Some("RequireDualStack".into()),
            external_traffic_policy: Some("Cluster".into()),
            session_affinity: Some("None".into()),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// A port of a service: `port` of its own, `target` of its pods, `node_port` of nodes (0: none).
#[must_use]
pub fn mk_port(protocol: Protocol, port: u16, target: u16, node_port: u16) -> ServicePort {
    ServicePort {
        name: Some(format!("{}{port}", protocol_name(protocol).to_lowercase())),
        protocol: Some(protocol_name(protocol).into()),
        port: port.into(),
        target_port: Some(IntOrString::Int(target.into())),
        node_port: (node_port != 0).then(|| node_port.into()),
        ..ServicePort::default()
    }
}

/// The spec of a service, to change it.
pub fn spec(service: &mut Service) -> &mut ServiceSpec {
    service.spec.get_or_insert_default()
}

/// Turns a service into one of type `LoadBalancer` that has this address.
pub fn balance(service: &mut Service, addresses: &[IpAddr]) {
    spec(service).type_ = Some("LoadBalancer".into());
    let ingress = addresses.iter().map(|address| LoadBalancerIngress {
        ip: Some(address.to_string()),
        ip_mode: Some("VIP".into()),
        ..LoadBalancerIngress::default()
    });
    service.status = Some(ServiceStatus {
        load_balancer: Some(LoadBalancerStatus { ingress: Some(ingress.collect()) }),
        ..ServiceStatus::default()
    });
}

/// A namespace.
#[must_use]
pub fn mk_namespace(name: &str) -> Namespace {
    Namespace {
        metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
        ..Namespace::default()
    }
}

/// A node, in a zone.
#[must_use]
pub fn mk_node(name: &str, addresses: Addresses, zone: &str) -> Node {
    let address = |text: String| NodeAddress { type_: "InternalIP".into(), address: text };
    Node {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some(labels(&[
                ("kubernetes.io/hostname", name),
                ("topology.kubernetes.io/zone", zone),
            ])),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec::default()),
        status: Some(NodeStatus {
            addresses: Some(vec![
                address(addresses.v4.to_string()),
                address(addresses.v6.to_string()),
            ]),
            ..NodeStatus::default()
        }),
    }
}

/// A running pod of an app, ready.
#[must_use]
pub fn mk_pod(
    name: &str,
    app: &str,
    node: &str,
    addresses: Addresses,
    host_network: bool,
    ports: &[(&str, Protocol, u16)],
) -> Pod {
    let ports = ports.iter().map(|(name, protocol, port)| ContainerPort {
        name: Some((*name).to_owned()),
        container_port: (*port).into(),
        protocol: Some(protocol_name(*protocol).into()),
        ..ContainerPort::default()
    });
    let container = Container {
        name: "main".into(),
        image: Some("example.org/server:1".into()),
        ports: Some(ports.collect()),
        ..Container::default()
    };
    let ips = [Family::V4, Family::V6].map(|family| PodIP { ip: addresses.of(family).to_string() });
    Pod {
        metadata: ObjectMeta { labels: Some(labels(&[(APP, app)])), ..mk_metadata(name) },
        spec: Some(PodSpec {
            node_name: Some(node.to_owned()),
            host_network: Some(host_network),
            containers: vec![container],
            ..PodSpec::default()
        }),
        status: Some(PodStatus {
            phase: Some("Running".into()),
            pod_ip: Some(addresses.v4.to_string()),
            pod_ips: Some(ips.to_vec()),
            conditions: Some(vec![ready_condition(true)]),
            ..PodStatus::default()
        }),
    }
}

/// Whether a pod says that it is ready.
#[must_use]
pub fn ready_condition(ready: bool) -> PodCondition {
    PodCondition {
        type_: "Ready".into(),
        status: if ready { "True".into() } else { "False".into() },
        ..PodCondition::default()
    }
}

/// A slice of a service: ports by name, and endpoints as they are.
#[must_use]
pub fn mk_slice(
    name: &str,
    service: &str,
    family: Family,
    ports: &[(String, Protocol, u16)],
    endpoints: Vec<Endpoint>,
) -> EndpointSlice {
    let ports = ports.iter().map(|(name, protocol, port)| EndpointPort {
        name: Some(name.clone()),
        port: Some((*port).into()),
        protocol: Some(protocol_name(*protocol).into()),
        ..EndpointPort::default()
    });
    EndpointSlice {
        metadata: ObjectMeta {
            labels: Some(labels(&[
                ("kubernetes.io/service-name", service),
                ("endpointslice.kubernetes.io/managed-by", "endpointslice-controller.k8s.io"),
            ])),
            ..mk_metadata(name)
        },
        address_type: match family {
            Family::V4 => "IPv4".into(),
            Family::V6 => "IPv6".into(),
        },
        ports: Some(ports.collect()),
        endpoints,
    }
}

/// An endpoint on a node.
#[must_use]
pub fn mk_endpoint(address: IpAddr, node: &str, ready: bool, terminating: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.to_string()],
        node_name: Some(node.to_owned()),
        conditions: Some(EndpointConditions {
            ready: Some(ready && !terminating),
            serving: Some(ready),
            terminating: Some(terminating),
        }),
        ..Endpoint::default()
    }
}
