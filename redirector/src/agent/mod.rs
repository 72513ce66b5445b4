//! The agent: keeps the data path in line with the file and the node.

mod account;
mod events;
mod interfaces;
mod node;
mod shared;
mod watch;
mod wishes;

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::admin::Admin;
use crate::config::XdpMode;
use crate::dataplane::neighbours::Ways;
use crate::dataplane::pins::Pins;
use crate::dataplane::{netlink, prerequisites};
use crate::model::Service;
use events::Event;
use node::Node;
use wishes::Wishes;

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
    /// Whether the data path goes with the agent.
    pub detach_on_exit: bool,
}

/// Runs until a signal ends it, or something that it cannot go on without.
///
/// # Errors
///
/// Whatever ended it other than a signal.
pub async fn run(options: Options) -> anyhow::Result<()> {
    // What can be wrong without touching anything comes first.
    let wishes = Wishes::load(options)?;
    let options = wishes.options().clone();
    let kernel = prerequisites::check(&options.pins)?;
    let admin = match options.admin_address {
        Some(address) => Some(Admin::bind(address).await?),
        None => None,
    };
    let (sender, mut events) = mpsc::channel(16);
    let mut tasks = JoinSet::new();
    // Signals that come during the start are answered after it.
    events::watch_signals(&mut tasks, &sender)?;
    let (connection, netlink, changes) = netlink::connect()?;
    tasks.spawn(async move {
        connection.await;
        anyhow::bail!("the netlink connection ended")
    });

    let (connection, ways) = Ways::open()?;
    tasks.spawn(async move {
        connection.await;
        anyhow::bail!("the netlink connection for routes ended")
    });

    let host = netlink.read().await?;
    let mut node = Node::start(wishes, kernel, &host)?;

    events::watch_host(&mut tasks, &sender, changes);
    events::watch_ways(&mut tasks, &sender, ways);
    events::watch_clock(&mut tasks, &sender);
    events::watch_features(&mut tasks, &sender)?;
    if let Some(config) = options.config {
        events::watch_file(&mut tasks, &sender, config);
    }
    if let Some(admin) = admin {
        let (pins, shared) = (node.pins().clone(), node.shared().clone());
        tasks.spawn(async move {
            admin.serve(pins, shared).await.context("the admin server ended")?;
            anyhow::bail!("the admin server ended")
        });
    }

    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            Some(ended) = tasks.join_next() => {
                let reason = match ended {
                    Ok(Ok(())) => anyhow::anyhow!("a task of the agent ended"),
                    Ok(Err(error)) => error,
                    Err(error) => anyhow::Error::new(error).context("a task of the agent failed"),
                };
                node.stop()?;
                return Err(reason);
            }
        };
        let Some(event) = event.filter(|event| *event != Event::Stop) else {
            return node.stop();
        };
        if event == Event::WaysChanged {
            node.forget_next_hops();
            continue;
        }
        let host = match netlink.read().await {
            Ok(host) => host,
            Err(error) => {
                // The next tick asks again.
                tracing::warn!(%error, "the host's state is not known");
                continue;
            }
        };
        match event {
            Event::Reload => node.reload(&host),
            Event::FileChanged => node.reload_if_changed(&host),
            Event::Tick => {
                node.keep_settings();
                node.reload_if_changed(&host);
                node.collect();
            }
            Event::HostChanged | Event::WaysChanged | Event::Stop => {}
        }
        node.reconcile(&host, event == Event::Tick);
    }
}
