//! The agent: keeps the data path in line with the file and the node.

mod shared;

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::dataplane::attach::XdpMode;
use crate::dataplane::pins::Pins;
use crate::model::Service;

pub use shared::{Shared, Snapshot, Syncs};

/// What the command line says.
#[derive(Clone, Debug)]
pub struct Options {
    /// The file.
    pub config: Option<PathBuf>,
    /// Services of the command line, besides those of the file.
    pub publish: Vec<Service>,
    /// Interfaces; empty: those of the file, else every one with a default route.
    pub interfaces: Vec<String>,
    /// How XDP is attached; `None`: as the file says.
    pub xdp_mode: Option<XdpMode>,
    /// Where maps and links are pinned.
    pub pins: Pins,
    /// Where the admin server listens; `None`: it does not.
    pub admin_address: Option<SocketAddr>,
    /// Name of the node; `None`: the host's name.
    pub node_name: Option<String>,
    /// Where hooks for the node's own clients attach.
    pub cgroup: Option<PathBuf>,
    /// Whether the data path goes with the agent.
    pub detach_on_exit: bool,
}

/// Runs until a signal ends it, or something that it cannot go on without.
///
/// # Errors
///
/// Whatever ended it other than a signal.
pub async fn run(options: Options) -> anyhow::Result<()> {
    node::run(options).await
}
