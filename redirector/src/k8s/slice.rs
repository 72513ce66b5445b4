//! `EndpointSlice`s, as far as they are used.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::discovery::v1::{self, EndpointSlice};
use redirector_common::Protocol;

use super::HEADLESS;
use super::object::{self, ObjectName, annotation};

/// Label that names the Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Annotation: when what the slice says came to be.
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// An `EndpointSlice`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceRecord {
    /// Which.
    pub name: ObjectName,
    /// Name of the Service in the same namespace; `None`: of none.
    pub service: Option<String>,
    /// The proxy that it is for, if not for every node's own.
    pub proxy_name: Option<String>,
    /// Ports that all endpoints have.
    pub ports: Vec<SlicePort>,
    /// Endpoints.
    pub endpoints: Vec<Endpoint>,
    /// When what it says came to be, in milliseconds since 1970.
    pub triggered_at: Option<i64>,
}

/// A port of all endpoints of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// The Service's name for it.
    pub name: String,
    /// Protocol.
    pub protocol: Protocol,
    /// Number.
    pub port: u16,
}

/// An endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Address.
    pub address: IpAddr,
    /// Whether it is ready for new flows.
    pub ready: bool,
    /// Whether it answers, be it that it is about to end.
    pub serving: bool,
    /// Whether it is about to end.
    pub terminating: bool,
    /// The node that it runs on.
    pub node: Option<Arc<str>>,
    /// Whose clients it is meant for; `None`: everyone's.
    pub hints: Option<Box<Hints>>,
}

/// Whose clients an endpoint is meant for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    /// Nodes.
    pub nodes: Box<[Box<str>]>,
    /// Zones.
    pub zones: Box<[Box<str>]>,
}

impl Endpoint {
    /// Nodes whose clients it is meant for.
    #[must_use]
    pub fn for_nodes(&self) -> &[Box<str>] {
        self.hints.as_ref().map_or(&[], |hints| &hints.nodes)
    }

    /// Zones whose clients it is meant for.
    #[must_use]
    pub fn for_zones(&self) -> &[Box<str>] {
        self.hints.as_ref().map_or(&[], |hints| &hints.zones)
    }
}

impl SliceRecord {
    /// Reads an `EndpointSlice`.
    ///
    /// # Errors
    ///
    /// It has no name.
    pub fn read(slice: EndpointSlice) -> Result<Self, String> {
        let meta = &slice.metadata;
        let name = ObjectName::of(meta).ok_or("it has no name")?;
        let labels = meta.labels.as_ref();
        let is_headless = labels.is_some_and(|labels| labels.contains_key(HEADLESS));
        let service = labels.and_then(|labels| labels.get(SERVICE_NAME));
        let is_v4 = match slice.address_type.as_str() {
            "IPv4" => Some(true),
            "IPv6" => Some(false),
            _ => None,
        };
        let endpoints = slice.endpoints.into_iter();
        let mut endpoints: Vec<Endpoint> =
            endpoints.filter_map(|endpoint| read_endpoint(&name, is_v4?, endpoint)).collect();
        // They stand where the API's far larger objects stood.
        endpoints.shrink_to_fit();
        Ok(Self {
            service: service.filter(|_| !is_headless).cloned(),
            proxy_name: object::proxy_name(meta),
            ports: slice.ports.iter().flatten().filter_map(read_port).collect(),
            endpoints,
            triggered_at: annotation(meta, TRIGGER_TIME)
                .and_then(|time| time.parse::<k8s_openapi::jiff::Timestamp>().ok())
                .map(k8s_openapi::jiff::Timestamp::as_millisecond),
            name,
        })
    }
}

fn read_port(port: &v1::EndpointPort) -> Option<SlicePort> {
    Some(SlicePort {
        name: port.name.clone().unwrap_or_default(),
        protocol: object::protocol(port.protocol.as_deref())?,
        port: object::port(port.port)?,
    })
}

/// Only the first address counts, as with kube-proxy.
fn read_endpoint(slice: &ObjectName, is_v4: bool, endpoint: v1::Endpoint) -> Option<Endpoint> {
    let text = endpoint.addresses.first()?;
    let address = match text.parse::<IpAddr>() {
        Ok(address) if address.is_ipv4() == is_v4 && !address.is_unspecified() => address,
        Ok(_) | Err(_) => {
            tracing::warn!("slice {slice}: endpoint {text:?} has no address of the slice's type");
            return None;
        }
    };
    let conditions = endpoint.conditions.unwrap_or_default();
    let hints = endpoint.hints.unwrap_or_default();
    let hints = Hints {
        nodes: hints.for_nodes.into_iter().flatten().map(|node| node.name.into()).collect(),
        zones: hints.for_zones.into_iter().flatten().map(|zone| zone.name.into()).collect(),
    };
    Some(Endpoint {
        address,
        ready: conditions.ready.unwrap_or(true),
        serving: conditions.serving.unwrap_or(true),
        terminating: conditions.terminating.unwrap_or(false),
        node: endpoint.node_name.map(Arc::from),
        hints: (hints != Hints::default()).then(|| Box::new(hints)),
    })
}
