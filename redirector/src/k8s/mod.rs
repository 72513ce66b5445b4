//! Kubernetes: objects of its API, and what they mean to this node.
//!
//! * [`lenient`], [`service`], [`mod@slice`], [`node`], [`pod`]: objects become records that keep only
//!   what is used;
//! * [`index`]: all records, plain and synchronous;
//! * [`endpoints`], [`convert`]: services of the index become [`model::Service`]s;
//! * [`watch`], [`cluster`]: what keeps the index in step with the API server;
//! * [`lease`], [`presence`]: how agents know of each other.
//!
//! [`model::Service`]: crate::model::Service

pub mod audit;
pub mod client;
pub mod cluster;
pub mod convert;
pub mod endpoints;
pub mod health;
pub mod index;
pub mod lease;
pub mod lenient;
pub mod node;
pub mod object;
mod pause;
pub mod pod;
pub mod presence;
pub mod protected;
pub mod publish;
pub mod record;
pub mod report;
pub mod service;
pub mod slice;
pub mod watch;

#[cfg(test)]
pub(crate) mod mk;
#[cfg(test)]
mod tests;

/// Annotation that publishes ports: of a hostNetwork pod, or of a Service.
pub const PUBLISH: &str = "redirector.io/publish";
/// Annotation of a Service: `snat` or `dsr`.
pub const FORWARDING: &str = "redirector.io/forwarding";
/// Annotation of a Service: `maglev` or `random`.
pub const ALGORITHM: &str = "redirector.io/algorithm";
/// Annotation of a Service: for which of its frontends source ranges hold, `load-balancer` or `all`.
pub const SOURCE_RANGES: &str = "redirector.io/source-ranges";
/// Label of what no proxy serves, of Services as well as of slices.
const HEADLESS: &str = "service.kubernetes.io/headless";
/// Label that hands an object to another proxy.
pub const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
