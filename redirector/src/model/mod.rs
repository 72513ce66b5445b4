//! The desired state: pure, deterministic, no I/O.
//!
//! Every way in (the file and Kubernetes) produces [`Service`]s. [`build`](desired::build)
//! expands them over the node's addresses into [`Desired`](desired::Desired): exact frontends and
//! their backends, one entry per service and address family, which the data plane writes to maps.

pub mod desired;
pub mod maglev;
pub mod state;

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use redirector_common::{Family, Protocol};

/// Where a service came from. The order is the order of listings.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// A `publish` entry of the file or of `redirector publish`.
    Publish,
    /// A `services` entry of the file.
    Static,
    /// A Kubernetes node port.
    NodePort,
    /// A Kubernetes external IP.
    ExternalIp,
    /// A Kubernetes load balancer address.
    LoadBalancer,
    /// A `redirector.io/publish` annotation.
    Annotation,
}

impl Source {
    /// Who goes first of those that nothing else tells apart: kube-proxy looks at a load balancer's
    /// addresses and external IPs before it looks at node ports, and source ranges hold wherever a
    /// load balancer's address is hit.
    const fn precedence(self) -> u8 {
        match self {
            Self::Publish | Self::Static | Self::LoadBalancer => 0,
            Self::ExternalIp => 1,
            Self::NodePort => 2,
            Self::Annotation => 3,
        }
    }
}

/// Identity of a service; what its numeric ids are kept stable for.
#[derive(
    Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub struct ServiceKey {
    /// Where it came from.
    pub source: Source,
    /// Kubernetes namespace.
    pub namespace: Option<String>,
    /// Name, unique within source and namespace. A publish entry is named by its own text,
    /// `80:8080/tcp`, one service for each port of a range.
    pub name: String,
}

impl ServiceKey {
    /// Whether both are ways to the same port of a Service of the cluster: whichever of them has a
    /// frontend, it leads to the same backends.
    #[must_use]
    pub fn is_same_port(&self, other: &Self) -> bool {
        self.namespace.is_some() && (&self.namespace, &self.name) == (&other.namespace, &other.name)
    }
}

/// What clients hit, before node addresses are filled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FrontendSpec {
    /// `None`: every node address.
    pub address: Option<IpAddr>,
    /// Port, not 0.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
}

/// Where a backend is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BackendAddress {
    /// A program in this host's network, on the frontend's own address.
    Local,
    /// At this address, here or elsewhere.
    At(IpAddr),
}

/// Whether a backend takes new flows.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum BackendState {
    /// It does.
    Active,
    /// It only keeps the flows it has.
    Terminating,
}

/// What answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BackendSpec {
    /// Where.
    pub address: BackendAddress,
    /// Port, not 0.
    pub port: u16,
    /// Relative share of new flows; 0 takes none.
    pub weight: u16,
    /// Whether it takes new flows.
    pub state: BackendState,
    /// Whether it runs on this node, at an address that is none of this host's own: in a network
    /// of its own, to which this host's stack routes.
    pub here: bool,
    /// Whether topology leads new flows of policy Cluster to others.
    pub avoided: bool,
}

impl BackendSpec {
    /// One like all others, at this address and port.
    #[must_use]
    pub const fn new(address: BackendAddress, port: u16) -> Self {
        Self { address, port, weight: 1, state: BackendState::Active, here: false, avoided: false }
    }
}

/// Which backends a node may choose.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum TrafficPolicy {
    /// Any.
    #[default]
    Cluster,
    /// Only those on this node.
    Local,
}

/// How packets reach a backend elsewhere, and its answers the client.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Forwarding {
    /// Source translated; answers come back through this node.
    #[default]
    Snat,
    /// The backend's node answers the client directly.
    Dsr,
}

/// How a backend is chosen for a new flow.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Algorithm {
    /// By a hash of addresses and ports: the same on every node, and nearly the same when backends
    /// come and go.
    #[default]
    Maglev,
    /// At random, by weight.
    Random,
}

/// A set of frontends that share backends and policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Identity.
    pub key: ServiceKey,
    /// What clients hit.
    pub frontends: Vec<FrontendSpec>,
    /// What answers.
    pub backends: Vec<BackendSpec>,
    /// Which backends this node may choose.
    pub policy: TrafficPolicy,
    /// How packets reach a backend elsewhere.
    pub forwarding: Forwarding,
    /// How a backend is chosen for a new flow.
    pub algorithm: Algorithm,
    /// Session affinity by client address, in seconds.
    pub affinity_seconds: Option<u32>,
    /// Services that name the same group share what they remember of clients; `None`: the service
    /// remembers for itself. Without effect where there is no affinity.
    pub affinity_group: Option<String>,
    /// Networks that clients may come from; none: clients may come from everywhere.
    pub source_ranges: Vec<IpNet>,
    /// Networks whose node addresses frontends without an address stand for; `None`: the addresses
    /// of the chosen interfaces.
    pub node_networks: Option<Arc<[IpNet]>>,
    /// The family that it is for; `None`: both. In the other one its ports are none of ours.
    pub only: Option<Family>,
}

impl Service {
    /// One without frontends and backends, that treats all alike.
    #[must_use]
    pub const fn new(key: ServiceKey) -> Self {
        Self {
            key,
            frontends: Vec::new(),
            backends: Vec::new(),
            policy: TrafficPolicy::Cluster,
            forwarding: Forwarding::Snat,
            algorithm: Algorithm::Maglev,
            affinity_seconds: None,
            affinity_group: None,
            source_ranges: Vec::new(),
            node_networks: None,
            only: None,
        }
    }

    /// Whether it is there for clients of a family.
    #[must_use]
    pub fn is_for(&self, family: Family) -> bool {
        self.only.is_none_or(|only| only == family)
    }
}
