//! The agent: keeps the data path in line with the file and the node.

mod account;
mod clients;
mod events;
mod interfaces;
mod kubernetes;
mod node;
mod shared;
mod signals;
mod turn;
mod watch;
mod watchdog;
mod wishes;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context;
use ipnet::IpNet;
use redirector_common::map_name::MapName;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::admin::Admin;
use crate::config::XdpMode;
use crate::dataplane::attach::Clients;
use crate::dataplane::detach::detach_locked;
use crate::dataplane::lock::Lock;
use crate::dataplane::neighbours::Ways;
use crate::dataplane::pins::Pins;
use crate::dataplane::resize::Turn;
use crate::dataplane::{netlink, prerequisites};
use crate::k8s;
use crate::k8s::client::Access;
use crate::k8s::convert::NodePortAddresses;
use crate::k8s::health::NodeServer;
use crate::model::Service;
use events::Event;
use node::Node;
use turn::Events;
use wishes::Wishes;

pub use shared::{Programming, Shared, Snapshot, Syncs};
pub use signals::Signals;

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
    /// Which programs on this machine reach frontends as clients.
    pub clients: Clients,
    /// Where maps and links are pinned.
    pub pins: Pins,
    /// Where the admin server listens; `None`: it does not.
    pub admin_address: Option<SocketAddr>,
    /// Name of the node; `None`: the host's name.
    pub node_name: Option<String>,
    /// Whether the data path goes with the agent.
    pub detach_on_exit: bool,
    /// What the Kubernetes API is asked for; `None`: nothing.
    pub kubernetes: Option<KubernetesOptions>,
}

impl Options {
    /// Ports that the agent itself listens on.
    fn own_ports(&self) -> BTreeSet<u16> {
        let health = self.kubernetes.as_ref().and_then(|kubernetes| kubernetes.healthz_address);
        self.admin_address.into_iter().chain(health).map(|address| address.port()).collect()
    }

    /// Whether there is nothing but ports of a command line, which go with it.
    const fn is_for_a_while(&self) -> bool {
        self.config.is_none() && self.kubernetes.is_none()
    }

    /// Name of the node: the host's where the options do not say. In small letters, as the kubelet
    /// registers it, since the API has no others.
    fn node_name(&self) -> String {
        let of_host = || std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        self.node_name.clone().unwrap_or_else(of_host).trim().to_lowercase()
    }
}

/// What the Kubernetes API is asked for, and how its answers are taken.
#[derive(Clone, Debug, Default)]
pub struct KubernetesOptions {
    /// Where its address and credentials come from.
    pub access: Access,
    /// The `service-proxy-name` of the objects that are ours.
    pub service_proxy_name: Option<String>,
    /// Node addresses that node ports are opened on.
    pub node_port_addresses: NodePortAddresses,
    /// Networks that external IPs must be in; none: they may be anything.
    pub external_ip_networks: Vec<IpNet>,
    /// Ports that annotations may take although they are protected or in use.
    pub allowed_ports: BTreeSet<u16>,
    /// Where the node's health is served; `None`: nowhere.
    pub healthz_address: Option<SocketAddr>,
}

/// What the process has before it is an agent.
#[derive(Debug)]
pub struct Inheritance {
    /// What it was sent and has not answered.
    pub signals: Signals,
    /// The directory, where it has begun anew.
    pub lock: Option<Lock>,
}

/// How the agent ended.
#[derive(Debug)]
pub enum Ended {
    /// By a signal.
    Stopped,
    /// To begin anew: tables that it had open have been made larger, or are to be. Nobody else may
    /// have the directory meanwhile.
    ToBeginAnew(Lock),
}

/// Runs until a signal ends it, or something that it cannot go on without.
///
/// # Errors
///
/// Whatever ended it other than a signal.
pub async fn run(options: Options, inheritance: Inheritance) -> anyhow::Result<Ended> {
    // What can be wrong without touching anything comes first.
    let wishes = Wishes::load(options)?;
    let options = wishes.options().clone();
    let kernel = prerequisites::check(&options.pins)?;
    let admin = match options.admin_address {
        Some(address) => Some(Admin::bind(address).await?),
        None => None,
    };
    let (sender, receiver) = mpsc::channel(16);
    // Those that come during the start are answered after it.
    let signals = inheritance.signals.listen().context("cannot listen for signals")?;
    let mut events = Events::new(signals, receiver);
    let mut tasks = JoinSet::new();
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

    let was_reachable = match &options.kubernetes {
        // What is wrong with the credentials now is said now.
        Some(asked) => {
            asked.access.connect().await?;
            let reached = asked.access.reach().await;
            if let Err(error) = &reached {
                tracing::warn!("the API server cannot be reached yet: {error}");
            }
            reached.is_ok()
        }
        None => false,
    };
    let health = match options.kubernetes.as_ref().and_then(|asked| asked.healthz_address) {
        Some(address) => Some(NodeServer::bind(address).await.with_context(|| {
            format!("cannot listen on {address}: choose another with --healthz-address")
        })?),
        None => None,
    };
    let mut host = netlink.read().await?;
    let is_installed = inheritance.lock.is_some();
    let before = if is_installed {
        // A default route that is gone for this moment takes nothing off.
        options.pins.attached().context("cannot list the pins")?
    } else {
        BTreeSet::new()
    };
    let chosen = wishes.choose(&host, &Vec::from_iter(before))?;
    let lock = settle_in(&options.pins, inheritance.lock)?;
    // Until the programs that are attached use the maps that are opened here.
    let turn = events.turn(&options.pins).await;
    let turn = turn.with_context(|| options.pins.maps().display().to_string())?;
    let Some(turn) = turn else {
        if is_installed && options.detach_on_exit {
            detach_locked(&options.pins, &lock)?;
        }
        return Ok(Ended::Stopped);
    };
    let (mut node, voices) = Node::start(wishes, kernel, (&host, chosen), lock, turn)?;

    events::watch_host(&mut tasks, &sender, changes);
    events::watch_ways(&mut tasks, &sender, ways);
    events::watch_clock(&mut tasks, &sender);
    events::watch_features(&mut tasks, &sender)?;
    if let Some(config) = options.config {
        events::watch_file(&mut tasks, &sender, config, Event::FileChanged);
    }
    let maps = node.pins().map(MapName::Flows);
    events::watch_file(&mut tasks, &sender, maps, Event::MapsChanged);
    if let Some(admin) = admin {
        let (pins, shared) = (node.pins().clone(), node.shared().clone());
        tasks.spawn(async move {
            admin.serve(pins, shared).await.context("the admin server ended")?;
            anyhow::bail!("the admin server ended")
        });
    }

    if let Some(asked) = &options.kubernetes
        && let Some(kubernetes) = node.kubernetes()
    {
        let cluster = kubernetes.cluster();
        k8s::watch::start(&mut tasks, &asked.access, cluster, kubernetes.node_name());
        events::watch_cluster(&mut tasks, &sender, cluster.clone());
        if let Some(server) = health {
            let answer = kubernetes.answer().clone();
            tasks.spawn(async move {
                server.serve(answer).await.context("the server of the node's health ended")?;
                anyhow::bail!("the server of the node's health ended")
            });
        }
        if was_reachable {
            watchdog::watch(&mut tasks, &sender, asked.access.clone(), node.shared().clone());
        }
    }
    if let Some((mouth, keeper)) = voices {
        tasks.spawn(async move {
            mouth.run().await;
            anyhow::bail!("Events are no longer made")
        });
        tasks.spawn(async move {
            keeper.run().await;
            anyhow::bail!("the node's Lease is no longer kept")
        });
    }

    loop {
        let event = tokio::select! {
            () = node.collection_due() => {
                node.collect();
                continue;
            }
            event = events.next() => event.context("cannot listen for signals")?,
            Some(ended) = tasks.join_next() => {
                let reason = match ended {
                    Ok(Ok(())) => anyhow::anyhow!("a task of the agent ended"),
                    Ok(Err(error)) => error,
                    Err(error) => anyhow::Error::new(error).context("a task of the agent failed"),
                };
                tasks.shutdown().await;
                node.stop().await?;
                return Err(reason);
            }
        };
        if event == Event::WaysChanged {
            node.forget_next_hops();
            continue;
        }
        let turn = if event == Event::Stop {
            None
        } else {
            match events.turn(node.pins()).await {
                Ok(turn) => turn,
                Err(error) => {
                    node.is_kept_from(&error);
                    continue;
                }
            }
        };
        let Some(turn) = turn else {
            // Or the Lease that goes might be made again.
            tasks.shutdown().await;
            return node.stop().await.map(|()| Ended::Stopped);
        };
        // Before anything is written into maps that nobody uses any more.
        if node.has_moved(&turn) {
            return begin_anew(node, &mut events, turn, tasks).await;
        }
        if event == Event::ClusterChanged {
            node.follow_cluster(&host);
            if node.resume(&host)
                && let Some(asked) = &options.kubernetes
            {
                let shared = node.shared().clone();
                watchdog::watch(&mut tasks, &sender, asked.access.clone(), shared);
            }
            node.speak().await;
            continue;
        }
        if event == Event::LockedOut
            && let Some(asked) = &options.kubernetes
        {
            node.let_go();
            let helps = watchdog::answers_within(&asked.access, watchdog::PROOF).await;
            match (helps, node.is_complete()) {
                (true, true) => node.stand_down(),
                (true, false) => node.read_first(),
                (false, _) => node.take_up(),
            }
        }
        host = match netlink.read().await {
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
                node.retry();
                node.speak().await;
            }
            // An interface may have become narrower, without a word of routes.
            Event::HostChanged => node.forget_next_hops(),
            Event::ClusterChanged
            | Event::LockedOut
            | Event::MapsChanged
            | Event::WaysChanged
            | Event::Stop => {}
        }
        // The file may ask for it.
        if node.has_moved(&turn) {
            return begin_anew(node, &mut events, turn, tasks).await;
        }
        node.reconcile(&host, event == Event::Tick);
    }
}

/// Ends for another to begin in this process, unless it was told to end meanwhile.
async fn begin_anew(
    node: Node,
    events: &mut Events,
    turn: Turn,
    mut tasks: JoinSet<anyhow::Result<()>>,
) -> anyhow::Result<Ended> {
    if !events.are_over().context("cannot listen for signals")? {
        return Ok(node.begin_anew());
    }
    drop(turn);
    tasks.shutdown().await;
    node.stop().await.map(|()| Ended::Stopped)
}

/// Makes the directories of the pins, and takes them, unless they were taken already.
fn settle_in(pins: &Pins, inherited: Option<Lock>) -> anyhow::Result<Lock> {
    prerequisites::make_dirs(pins)?;
    let lock = match inherited.filter(|lock| lock.is_of(pins)) {
        Some(lock) => lock,
        None => Lock::take(pins)?,
    };
    // Whoever had the directory may have removed what is in it.
    prerequisites::make_dirs(pins)?;
    Ok(lock)
}
