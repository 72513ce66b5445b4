//! redirector as a library: what the `redirector` program and its tests are made of.
//!
//! * [`config`]: the file;
//! * [`k8s`]: the Kubernetes API;
//! * [`model`]: desired state, pure;
//! * [`dataplane`]: programs, maps and their synchronisation with the desired state;
//! * [`agent`]: keeps them in line while it runs;
//! * [`admin`] and [`metrics`]: what it says over HTTP;
//! * [`cli`]: the commands.

pub mod admin;
pub mod agent;
mod causes;
pub mod cli;
pub mod config;
pub mod dataplane;
pub mod k8s;
pub mod metrics;
pub mod model;
