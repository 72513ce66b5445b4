//! `redirector status`: whether all is well, at a glance.

mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use clap::Args;
use redirector_common::Direction;
use redirector_common::map_name::MapName;

use super::ReadArgs;
use super::render::{self, age, columns, fields};
use crate::dataplane::attached::{Attached, attached, attached_clients};
use crate::dataplane::direct::Direct;
use crate::dataplane::ethtool;
use crate::dataplane::lock::find_holder;
use crate::dataplane::pinned::{Pinned, PinnedError};
use crate::dataplane::sizes;
use crate::dataplane::status::{PeersStatus, Status};
use crate::dataplane::translation::{PortUse, Sources};
use report::{AgentState, Fill, Loaded, Report, report};

/// Options of `redirector status`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  redirector status
  redirector status -o json | jq .sync.inSync")]
pub struct StatusArgs {
    #[command(flatten)]
    read: ReadArgs,
}

/// Maps whose fill is worth watching.
const WATCHED: [MapName; sizes::CHOSEN.len()] = [
    MapName::Flows,
    MapName::Frontends,
    MapName::Services,
    MapName::Backends,
    MapName::Maglev,
    MapName::Slots,
    MapName::SourceRanges,
    MapName::Affinity,
    MapName::Takers,
    MapName::Vips,
    MapName::Fragments,
    MapName::Sockets,
];

/// Runs the command.
///
/// # Errors
///
/// If nothing is installed, or it may not be read.
pub fn run(args: &StatusArgs) -> Result<()> {
    let report = report(load(&args.read.open()?)?);
    render::print_document(args.read.output, &report, || describe(&report))
}

fn load(maps: &Pinned) -> Result<Loaded> {
    let text = maps.status_text()?;
    let account = if text.is_empty() {
        None
    } else {
        let hint = "the agent's account in STATUS is another version's: use that version";
        Some(Status::decode(&text).context(hint)?)
    };
    let mut flows: BTreeMap<&'static str, usize> = BTreeMap::new();
    let halves = maps.flows()?;
    for flow in halves.values() {
        if flow.direction() == Direction::Forward {
            *flows.entry(flow.state().name()).or_default() += 1;
        }
    }
    let links = attached(maps.pins())
        .with_context(|| format!("cannot read {}", maps.pins().links().display()))?;
    let clients = attached_clients(maps.pins())
        .with_context(|| format!("cannot read {}", maps.pins().links().display()))?;
    Ok(Loaded {
        holder: find_holder(maps.pins().dir()),
        direct: direct(maps, &links, account.as_ref().and_then(|it| it.peers.clone()))?,
        account,
        attached: links,
        attached_clients: clients,
        infos: maps.infos()?,
        fill: fill(maps, halves.len())?,
        flows,
        translation: PortUse::of(&halves, &maps.node()?, &Sources::read(maps)?),
        node: maps.node()?,
        now: SystemTime::now(),
    })
}

fn direct(
    maps: &Pinned,
    links: &[Attached],
    nodes: Option<PeersStatus>,
) -> Result<Direct, PinnedError> {
    let names: BTreeSet<&str> = links.iter().map(|link| link.interface.as_str()).collect();
    let mtus = names.into_iter().filter_map(|name| {
        // One that is gone has none.
        Some((name.to_owned(), ethtool::read(name).ok()?.mtu))
    });
    let services = maps.services()?;
    let frontends = maps.frontends()?;
    let (peers, clamps) = (maps.peers()?.len(), maps.node()?.clamps_mss());
    Ok(Direct::of(services.values(), frontends.iter(), peers, nodes, mtus.collect(), clamps))
}

fn fill(maps: &Pinned, halves: usize) -> Result<Vec<Fill>, PinnedError> {
    let fill = |name: MapName| {
        let entries = if name == MapName::Flows { halves } else { maps.entries(name)? };
        let facts = maps.facts(name)?;
        Ok(Fill { name: name.name(), entries, capacity: facts.capacity, bytes: facts.memory })
    };
    WATCHED.into_iter().map(fill).collect()
}

/// The report for people.
fn describe(report: &Report) -> String {
    let mut text = fields(&[
        ("Agent", agent(report)),
        ("Node", report.agent.node.clone().unwrap_or_default()),
        ("Source", source(report)),
        ("Sync", sync(report)),
        ("Clients", clients(report)),
        ("SNAT ports", snat_ports(report)),
        ("Flows", flows(report)),
        ("Half-open", half_open(report)),
        ("Conflicts", conflicts(report)),
        ("DSR", report.direct.describe()),
    ]);
    text.push('\n');
    text.push_str(&interfaces(report));
    text.push('\n');
    text.push_str(&columns(
        &["MAP", ">ENTRIES", ">CAPACITY", ">FULL", ">MEMORY"],
        report.maps.iter().map(|map| {
            vec![
                map.name.to_owned(),
                map.entries.to_string(),
                map.capacity.to_string(),
                format!("{}%", map.percent()),
                map.bytes.map(render::bytes).unwrap_or_default(),
            ]
        }),
    ));
    text
}

fn agent(report: &Report) -> String {
    let agent = &report.agent;
    match (agent.state, agent.pid) {
        (AgentState::Running, Some(pid)) => {
            let up = agent.uptime_seconds.map_or(String::new(), |up| format!(", up {}", age(up)));
            let version = agent.version.as_deref().unwrap_or("?");
            format!("running (pid {pid}, version {version}{up})")
        }
        (AgentState::Running, None) => "running".to_owned(),
        (AgentState::Stopped, _) => "stopped; the data path goes on".to_owned(),
        (AgentState::Dead, Some(pid)) => {
            format!("ended without a word (pid {pid}); the data path goes on")
        }
        (AgentState::Dead, None) => "not running; the data path goes on".to_owned(),
    }
}

fn source(report: &Report) -> String {
    let source = &report.source;
    let file = source.file.as_ref().map(|file| file.display().to_string());
    let file = match (file, source.kubernetes) {
        (Some(file), true) => format!("{file}, Kubernetes"),
        (Some(file), false) => file,
        (None, true) => "Kubernetes".to_owned(),
        (None, false) => "command line".to_owned(),
    };
    match &source.error {
        Some(error) => {
            let since = source
                .error_since_seconds
                .map_or(String::new(), |seconds| format!(" since {}", age(seconds)));
            format!("{file}, WRONG{since}, the state before it is kept: {error}")
        }
        None => file,
    }
}

fn sync(report: &Report) -> String {
    let sync = &report.sync;
    if sync.in_sync {
        let last = sync
            .last_seconds
            .map_or(String::new(), |seconds| format!(" (last written {} ago)", age(seconds)));
        return match report.agent.state {
            AgentState::Running => format!("in sync{last}"),
            // Nobody keeps it so.
            AgentState::Stopped | AgentState::Dead => {
                format!("in sync when the agent ended{last}")
            }
        };
    }
    let since =
        sync.out_of_sync_seconds.map_or(String::new(), |seconds| format!(" for {}", age(seconds)));
    let why = sync.error.as_ref().map_or(String::new(), |why| format!(": {why}"));
    format!("NOT in sync{since}{why}")
}

/// Clients on this machine itself.
fn clients(report: &Report) -> String {
    let clients = &report.clients;
    let dir = clients.cgroup.as_deref().unwrap_or(Path::new("?")).display();
    match (&clients.error, clients.programs.as_slice()) {
        (Some(error), _) => format!("on this machine NOT served: {error}"),
        (None, []) => "on this machine not served (--no-local-clients)".to_owned(),
        (None, programs) => {
            let ids: Vec<_> = programs.iter().map(|it| format!("{}:{}", it.hook, it.id)).collect();
            format!("on this machine served in {dir} ({})", ids.join(", "))
        }
    }
}

fn snat_ports(report: &Report) -> String {
    match report.snat_ports {
        Some([first, last]) => {
            let PortUse { ports, used, backend } = &report.translation;
            let busiest = backend.as_ref().map(|it| format!(", {used} of {ports} in use for {it}"));
            format!("{first}-{last}{}", busiest.unwrap_or_default())
        }
        None => String::new(),
    }
}

fn flows(report: &Report) -> String {
    let total: usize = report.flows.values().sum();
    let states: Vec<_> =
        report.flows.iter().map(|(state, number)| format!("{number} {state}")).collect();
    if states.is_empty() { total.to_string() } else { format!("{total} ({})", states.join(", ")) }
}

fn half_open(report: &Report) -> String {
    let half_open = report.half_open;
    format!("{} of at most {}", half_open.flows, half_open.budget)
}

fn conflicts(report: &Report) -> String {
    if report.conflicts.is_empty() {
        return "none".to_owned();
    }
    let texts: Vec<_> = report
        .conflicts
        .iter()
        .map(|conflict| format!("{} of {}", conflict.frontend, conflict.service))
        .collect();
    render::some_of(&texts, 3)
}

fn interfaces(report: &Report) -> String {
    let rows = report.interfaces.iter().map(|interface| {
        let programs: Vec<_> = interface
            .programs
            .iter()
            .map(|program| format!("{}:{}", program.hook, program.id))
            .collect();
        let oldest = interface.programs.iter().filter_map(|it| it.age_seconds).max();
        let note = interface.error.as_ref().or(interface.xdp_reason.as_ref());
        vec![
            interface.name.clone(),
            interface.xdp.to_owned(),
            interface.tc.to_owned(),
            programs.join(","),
            oldest.map(age).unwrap_or_default(),
            note.cloned().unwrap_or_default(),
        ]
    });
    columns(&["INTERFACE", "XDP", "TC", "PROGRAMS", ">AGE", "NOTE"], rows)
}

/// Seconds from a moment to `now`; 0 for one that lies ahead, as after a change of the clock.
fn seconds_since(now: SystemTime, then: SystemTime) -> u64 {
    now.duration_since(then).map_or(0, |passed| passed.as_secs())
}

/// Milliseconds since 1970 as a moment.
fn moment(millis: u64) -> SystemTime {
    UNIX_EPOCH + std::time::Duration::from_millis(millis)
}
