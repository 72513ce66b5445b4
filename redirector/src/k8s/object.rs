//! What all objects have in common.

use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use redirector_common::Protocol;

use super::PROXY_NAME;

/// Which object of its kind. Nodes have an empty namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectName {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl ObjectName {
    /// The object `namespace/name`.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.to_owned(), name: name.to_owned() }
    }

    /// The name that the metadata holds; `None` without one.
    #[must_use]
    pub fn of(meta: &ObjectMeta) -> Option<Self> {
        let name = meta.name.as_deref().filter(|name| !name.is_empty())?;
        Some(Self::new(meta.namespace.as_deref().unwrap_or_default(), name))
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            return f.write_str(&self.name);
        }
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// When an object was made, in seconds since 1970. One without a time counts as the oldest.
pub(super) fn created(meta: &ObjectMeta) -> i64 {
    meta.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second())
}

/// The other proxy that an object is for.
pub(super) fn proxy_name(meta: &ObjectMeta) -> Option<String> {
    meta.labels.as_ref()?.get(PROXY_NAME).cloned()
}

pub(super) fn annotation(meta: &ObjectMeta, name: &str) -> Option<String> {
    meta.annotations.as_ref()?.get(name).cloned()
}

/// A protocol as the API writes it: none is TCP; `None` for one that is not translated.
pub(super) fn protocol(name: Option<&str>) -> Option<Protocol> {
    let name = name.filter(|name| !name.is_empty()).unwrap_or("TCP");
    Protocol::ALL.into_iter().find(|protocol| protocol.name().eq_ignore_ascii_case(name))
}

/// A port as the API writes it; `None` for none, 0, and what is no port.
pub(super) fn port(number: Option<i32>) -> Option<u16> {
    u16::try_from(number?).ok().filter(|port| *port != 0)
}
