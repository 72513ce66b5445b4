//! What the integration tests are made of: hosts in network namespaces, real servers and
//! clients, the agent and its commands, packets built by a library that is not ours.
//!
//! Everything cleans up after itself when dropped, also when a test panics. Nothing sleeps for
//! a condition: [`wait::until`] awaits it.
//!
//! * [`namespace`], [`topology`]: hosts and the links between them;
//! * [`server`], [`client`], [`transfer`], [`frame`], [`connection`]: real traffic;
//! * [`agent`], [`bpffs`], [`cgroup`], [`cli`]: the program under test;
//! * [`apiserver`], [`cluster`]: Kubernetes, as far as the program under test meets it;
//! * [`packet`], [`icmp`], [`program`], [`test_run`]: single packets through single programs.
//! * [`deployed`]: what deploy/ says of the agent's container.

pub mod agent;
pub mod apiserver;
pub mod bpffs;
pub mod cgroup;
pub mod cli;
pub mod client;
pub mod cluster;
pub mod connection;
pub mod crowd;
pub mod deployed;
mod extension;
pub mod flood;
pub mod frame;
pub mod icmp;
pub mod namespace;
pub mod packet;
pub mod program;
pub mod server;
pub mod site;
pub mod test_run;
pub mod topology;
pub mod transfer;
pub mod tunnel;
pub mod wait;
