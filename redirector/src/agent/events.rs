//! What the agent reacts to, each from a task of its own.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::mpsc::Sender;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::watch::FileWatch;
use crate::dataplane::neighbours::Ways;
use crate::dataplane::netdev::FeatureChanges;
use crate::dataplane::netlink::Changes;
use crate::k8s::cluster::Cluster;

/// How often flows are collected and everything is looked at again.
const TICK: Duration = Duration::from_secs(5);

/// Something to react to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// SIGTERM or SIGINT.
    Stop,
    /// SIGHUP.
    Reload,
    /// Something happened to the file.
    FileChanged,
    /// Something happened to the pins of maps.
    MapsChanged,
    /// Interfaces, their addresses or features, or default routes.
    HostChanged,
    /// Objects of the Kubernetes API.
    ClusterChanged,
    /// Routes or neighbours.
    WaysChanged,
    /// The API server, which could be reached before programs were attached, can't be any more.
    LockedOut,
    /// Time has passed.
    Tick,
}

type Tasks = JoinSet<anyhow::Result<()>>;

pub(super) fn watch_host(tasks: &mut Tasks, sender: &Sender<Event>, mut changes: Changes) {
    let sender = sender.clone();
    tasks.spawn(async move {
        loop {
            changes.changed().await?;
            sender.send(Event::HostChanged).await?;
        }
    });
}

pub(super) fn watch_ways(tasks: &mut Tasks, sender: &Sender<Event>, mut ways: Ways) {
    let sender = sender.clone();
    tasks.spawn(async move {
        loop {
            ways.changed().await?;
            sender.send(Event::WaysChanged).await?;
        }
    });
}

/// Where the kernel does not tell, the clock is left.
pub(super) fn watch_features(tasks: &mut Tasks, sender: &Sender<Event>) -> anyhow::Result<()> {
    let changes = FeatureChanges::new().context("cannot listen for changes of XDP features")?;
    let Some(mut changes) = changes else {
        return Ok(());
    };
    let sender = sender.clone();
    tasks.spawn(async move {
        loop {
            changes.changed().await?;
            sender.send(Event::HostChanged).await?;
        }
    });
    Ok(())
}

pub(super) fn watch_clock(tasks: &mut Tasks, sender: &Sender<Event>) {
    let sender = sender.clone();
    tasks.spawn(async move {
        let mut ticks = interval_at(Instant::now() + TICK, TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            sender.send(Event::Tick).await?;
        }
    });
}

/// Changes that come while the last are being carried out are one.
pub(super) fn watch_cluster(tasks: &mut Tasks, sender: &Sender<Event>, cluster: Cluster) {
    let sender = sender.clone();
    tasks.spawn(async move {
        loop {
            cluster.changed().await;
            sender.send(Event::ClusterChanged).await?;
        }
    });
}

/// Where the file cannot be watched, SIGHUP and the clock are left.
pub(super) fn watch_file(tasks: &mut Tasks, sender: &Sender<Event>, path: PathBuf, event: Event) {
    let sender = sender.clone();
    tasks.spawn(async move {
        match FileWatch::new(&path) {
            Ok(mut watch) => loop {
                watch.changed().await?;
                sender.send(event).await?;
            },
            Err(error) => {
                tracing::warn!(%error, "{} is not watched: changes are seen late", path.display());
                std::future::pending().await
            }
        }
    });
}
