//! The kinds of objects that are served.

use k8s_openapi::{
    api::{
        coordination::v1::Lease,
        core::v1::{Event as CoreEvent, Namespace, Node, Pod, Service},
        discovery::v1::EndpointSlice,
        events::v1::Event,
    },
    serde::de::DeserializeOwned,
};
use serde_json::{Value, json};

/// A kind of objects, as one group and version shows it.
#[derive(Debug)]
pub struct Resource {
    /// API group; empty for the core group.
    pub group: &'static str,
    /// Version.
    pub version: &'static str,
    /// As in a path: `endpointslices`.
    pub plural: &'static str,
    /// As in an object: `EndpointSlice`.
    pub kind: &'static str,
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
    /// Whether there is a `status` that is written apart from the rest.
    pub status: bool,
    /// Fields that field selectors may name, besides the metadata's, each with the value that it
    /// has where it is missing.
    pub fields: &'static [(&'static str, &'static str)],
    parse: fn(&Value) -> Result<(), serde_json::Error>,
}

/// What may be selected of an event, by the names of the core group.
const EVENT_FIELDS: &[(&str, &str)] = &[
    ("involvedObject.kind", ""),
    ("involvedObject.namespace", ""),
    ("involvedObject.name", ""),
    ("involvedObject.uid", ""),
    ("reason", ""),
    ("reportingComponent", ""),
    ("type", ""),
];

/// All that are served.
pub(super) static RESOURCES: [Resource; 8] = [
    core("services", "Service", &[("spec.clusterIP", ""), ("spec.type", "")], parse::<Service>),
    core("nodes", "Node", &[("spec.unschedulable", "false")], parse::<Node>),
    core(
        "pods",
        "Pod",
        &[
            ("spec.nodeName", ""),
            ("spec.hostNetwork", "false"),
            ("spec.restartPolicy", ""),
            ("spec.schedulerName", ""),
            ("spec.serviceAccountName", ""),
            ("status.phase", ""),
            ("status.podIP", ""),
            ("status.nominatedNodeName", ""),
        ],
        parse::<Pod>,
    ),
    core("namespaces", "Namespace", &[("status.phase", "")], parse::<Namespace>),
    core("events", "Event", EVENT_FIELDS, parse::<CoreEvent>),
    grouped("events.k8s.io", "events", "Event", EVENT_FIELDS, parse::<Event>),
    grouped("discovery.k8s.io", "endpointslices", "EndpointSlice", &[], parse::<EndpointSlice>),
    grouped("coordination.k8s.io", "leases", "Lease", &[], parse::<Lease>),
];

type Fields = &'static [(&'static str, &'static str)];
type Parse = fn(&Value) -> Result<(), serde_json::Error>;

const fn core(plural: &'static str, kind: &'static str, fields: Fields, parse: Parse) -> Resource {
    // A constant function cannot compare strings, but it can match bytes.
    let namespaced = !matches!(kind.as_bytes(), b"Node" | b"Namespace");
    let status = !matches!(kind.as_bytes(), b"Event");
    Resource { group: "", version: "v1", plural, kind, namespaced, status, fields, parse }
}

const fn grouped(
    group: &'static str,
    plural: &'static str,
    kind: &'static str,
    fields: Fields,
    parse: Parse,
) -> Resource {
    let (namespaced, status) = (true, false);
    Resource { group, version: "v1", plural, kind, namespaced, status, fields, parse }
}

fn parse<T: DeserializeOwned>(value: &Value) -> Result<(), serde_json::Error> {
    T::deserialize(value).map(drop)
}

impl Resource {
    /// The resource of a path, if it is served.
    #[must_use]
    pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Self> {
        RESOURCES
            .iter()
            .find(|all| all.group == group && all.version == version && all.plural == plural)
    }

    /// The resource of a type, if it is served.
    #[must_use]
    pub fn of<T: k8s_openapi::Resource>() -> Option<&'static Self> {
        Self::find(T::GROUP, T::VERSION, T::URL_PATH_SEGMENT)
    }

    /// `v1`, `discovery.k8s.io/v1`.
    #[must_use]
    pub fn api_version(&self) -> String {
        match self.group {
            "" => self.version.to_owned(),
            group => format!("{group}/{}", self.version),
        }
    }

    /// As messages name it: `endpointslices.discovery.k8s.io`.
    #[must_use]
    pub fn qualified(&self) -> String {
        match self.group {
            "" => self.plural.to_owned(),
            group => format!("{}.{group}", self.plural),
        }
    }

    /// Where its objects are kept: those of both groups of events are the same.
    pub(super) fn storage(&self) -> &'static str {
        self.plural
    }

    /// Whether an object is one of this type.
    pub(super) fn check(&self, object: &Value) -> Result<(), serde_json::Error> {
        (self.parse)(object)
    }

    /// An entry of a discovery document.
    pub(super) fn describe(&self) -> Value {
        json!({
            "name": self.plural,
            "singularName": self.kind.to_lowercase(),
            "namespaced": self.namespaced,
            "kind": self.kind,
            "verbs": [
                "create", "delete", "get", "list", "patch", "update", "watch"
            ],
        })
    }
}
