//! What is kept of an object, and the kinds of objects that there are.

use super::lease::LeaseRecord;
use super::node::NodeRecord;
use super::object::ObjectName;
use super::pod::PodRecord;
use super::service::ServiceRecord;
use super::slice::SliceRecord;

/// What is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Services.
    Service,
    /// `EndpointSlice`s.
    Slice,
    /// All nodes; of the others, addresses alone are used.
    Node,
    /// Pods of this node.
    Pod,
    /// Leases of agents.
    Lease,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Service, Self::Slice, Self::Node, Self::Pod, Self::Lease];

    /// What the API calls them.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Service => "services",
            Self::Slice => "endpointslices",
            Self::Node => "nodes",
            Self::Pod => "pods",
            Self::Lease => "leases",
        }
    }

    /// Whether the agent goes on where the API server refuses them.
    #[must_use]
    pub const fn is_optional(self) -> bool {
        match self {
            Self::Service | Self::Slice | Self::Node | Self::Pod => false,
            Self::Lease => true,
        }
    }
}

/// A record of any kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A Service.
    Service(ServiceRecord),
    /// An `EndpointSlice`.
    Slice(SliceRecord),
    /// A Node.
    Node(NodeRecord),
    /// A Pod.
    Pod(PodRecord),
    /// A Lease.
    Lease(LeaseRecord),
}

impl Record {
    /// Its kind.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Service(_) => Kind::Service,
            Self::Slice(_) => Kind::Slice,
            Self::Node(_) => Kind::Node,
            Self::Pod(_) => Kind::Pod,
            Self::Lease(_) => Kind::Lease,
        }
    }

    /// Which of its kind.
    #[must_use]
    pub const fn name(&self) -> &ObjectName {
        match self {
            Self::Service(service) => &service.name,
            Self::Slice(slice) => &slice.name,
            Self::Node(node) => &node.name,
            Self::Pod(pod) => &pod.name,
            Self::Lease(lease) => &lease.name,
        }
    }
}
