//! Pods of this node, as far as they are used.

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use redirector_common::Protocol;

use super::PUBLISH;
use super::object::{self, ObjectName, annotation};
use crate::config::publish as spec;

/// A Pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodRecord {
    /// Which.
    pub name: ObjectName,
    /// Which of all that ever had the name.
    pub uid: String,
    /// When it was made, in seconds since 1970.
    pub created: i64,
    /// Name of its node; empty before it has one.
    pub node: String,
    /// Whether it is in its node's network.
    pub host_network: bool,
    /// Whether it may have programs: it has not ended for good.
    pub alive: bool,
    /// Ports that its containers declare.
    pub ports: Vec<ContainerPort>,
    /// The annotation that publishes ports.
    pub publish: Option<String>,
    /// Annotations of others that ask for ports in the same words.
    pub foreign: Vec<ForeignAsk>,
}

/// A port that an annotation asks for which nobody here acts upon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignAsk {
    /// Name of the annotation.
    pub annotation: String,
    /// What clients are meant to hit.
    pub port: u16,
    /// What the program is meant to listen on.
    pub local: u16,
    /// Protocol.
    pub protocol: Protocol,
}

/// A port that a container declares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerPort {
    /// Name of the container.
    pub container: String,
    /// Name of the port; empty without one.
    pub name: String,
    /// Protocol.
    pub protocol: Protocol,
    /// Port that the container says it listens on.
    pub container_port: u16,
    /// Port of the node that it asks for.
    pub host_port: Option<u16>,
}

impl PodRecord {
    /// Reads a Pod.
    ///
    /// # Errors
    ///
    /// It has no name.
    pub fn read(pod: Pod) -> Result<Self, String> {
        let meta = &pod.metadata;
        let name = ObjectName::of(meta).ok_or("it has no name")?;
        let spec = pod.spec.unwrap_or_default();
        let phase = pod.status.and_then(|status| status.phase);
        Ok(Self {
            uid: meta.uid.clone().unwrap_or_default(),
            created: object::created(meta),
            node: spec.node_name.clone().unwrap_or_default(),
            host_network: spec.host_network.unwrap_or(false),
            alive: !matches!(phase.as_deref(), Some("Succeeded" | "Failed")),
            ports: read_ports(&spec),
            publish: annotation(meta, PUBLISH),
            foreign: read_foreign(meta.annotations.iter().flatten()),
            name,
        })
    }
}

/// Only annotations all of whose entries are publish entries count: of other texts, some have
/// colons too.
fn read_foreign<'a>(
    annotations: impl Iterator<Item = (&'a String, &'a String)>,
) -> Vec<ForeignAsk> {
    let mut asks = Vec::new();
    for (name, text) in annotations.filter(|(name, _)| *name != PUBLISH) {
        let entries: Result<Vec<_>, _> =
            text.split(',').map(str::trim).map(spec::parse_spec).collect();
        for service in entries.into_iter().flatten().flatten() {
            if let (Some(frontend), Some(backend)) =
                (service.frontends.first(), service.backends.first())
            {
                asks.push(ForeignAsk {
                    annotation: name.clone(),
                    port: frontend.port,
                    local: backend.port,
                    protocol: frontend.protocol,
                });
            }
        }
    }
    asks
}

fn read_ports(spec: &PodSpec) -> Vec<ContainerPort> {
    // Init containers with a restart policy go on beside the others.
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|container| container.restart_policy.is_some());
    sidecars.chain(&spec.containers).flat_map(container_ports).collect()
}

fn container_ports(container: &Container) -> impl Iterator<Item = ContainerPort> {
    container.ports.iter().flatten().filter_map(|port| {
        Some(ContainerPort {
            container: container.name.clone(),
            name: port.name.clone().unwrap_or_default(),
            protocol: object::protocol(port.protocol.as_deref())?,
            container_port: object::port(Some(port.container_port))?,
            host_port: object::port(port.host_port),
        })
    })
}
