//! What `redirector status` says, made from the agent's account and the kernel's.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::SystemTime;

use redirector_common::{FlowState, NodeConfig, ServiceId, ring};
use serde::Serialize;

use super::{moment, seconds_since};
use crate::dataplane::attached::{Attached, AttachedClient};
use crate::dataplane::direct::Direct;
use crate::dataplane::info::{Info, format_frontend};
use crate::dataplane::status::Status;
use crate::dataplane::translation::PortUse;

/// What was loaded.
#[derive(Clone, Debug)]
pub(super) struct Loaded {
    /// What the agent last said of itself.
    pub(super) account: Option<Status>,
    /// Process that holds the directory.
    pub(super) holder: Option<u32>,
    pub(super) attached: Vec<Attached>,
    pub(super) attached_clients: Vec<AttachedClient>,
    pub(super) infos: BTreeMap<ServiceId, Info>,
    pub(super) fill: Vec<Fill>,
    pub(super) direct: Direct,
    pub(super) flows: BTreeMap<&'static str, usize>,
    pub(super) translation: PortUse,
    pub(super) node: NodeConfig,
    pub(super) now: SystemTime,
}

/// The report; the JSON of `redirector status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    pub(super) agent: AgentReport,
    pub(super) source: SourceReport,
    pub(super) sync: SyncReport,
    pub(super) interfaces: Vec<InterfaceReport>,
    pub(super) clients: ClientsReport,
    pub(super) conflicts: Vec<Conflict>,
    /// Direct server return.
    pub(super) direct: Direct,
    pub(super) maps: Vec<Fill>,
    /// First and last port of the translation block.
    pub(super) snat_ports: Option<[u16; 2]>,
    /// How much of it is in use.
    pub(super) translation: PortUse,
    /// Flows by state.
    pub(super) flows: BTreeMap<&'static str, usize>,
    pub(super) half_open: HalfOpen,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct AgentReport {
    pub(super) state: AgentState,
    pub(super) pid: Option<u32>,
    pub(super) version: Option<String>,
    pub(super) node: Option<String>,
    pub(super) uptime_seconds: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum AgentState {
    /// It holds the directory.
    Running,
    /// It ended in an orderly way.
    Stopped,
    /// It was killed, or has never said anything.
    Dead,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SourceReport {
    pub(super) file: Option<PathBuf>,
    /// Whether the Kubernetes API is asked.
    pub(super) kubernetes: bool,
    pub(super) error: Option<String>,
    pub(super) error_since_seconds: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SyncReport {
    pub(super) in_sync: bool,
    pub(super) out_of_sync_seconds: Option<u64>,
    pub(super) last_seconds: Option<u64>,
    pub(super) error: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct InterfaceReport {
    pub(super) name: String,
    pub(super) ifindex: Option<u32>,
    pub(super) xdp: &'static str,
    pub(super) xdp_reason: Option<String>,
    pub(super) tc: &'static str,
    pub(super) error: Option<String>,
    pub(super) programs: Vec<ProgramReport>,
}

/// What is attached for clients on this machine itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ClientsReport {
    pub(super) cgroup: Option<PathBuf>,
    pub(super) error: Option<String>,
    pub(super) programs: Vec<ProgramReport>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ProgramReport {
    pub(super) hook: &'static str,
    pub(super) id: u32,
    pub(super) name: String,
    pub(super) age_seconds: Option<u64>,
}

/// A frontend that a service wants and another one has.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Conflict {
    pub(super) frontend: String,
    pub(super) service: String,
}

/// How full a map is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Fill {
    pub(super) name: &'static str,
    pub(super) entries: usize,
    pub(super) capacity: u32,
    /// Memory, in bytes.
    pub(super) bytes: Option<u64>,
}

/// Flows that are not established yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct HalfOpen {
    pub(super) flows: usize,
    /// How many there may be.
    pub(super) budget: u32,
}

impl Fill {
    /// Entries in percent of the capacity.
    pub(super) fn percent(&self) -> usize {
        let capacity = usize::try_from(self.capacity).unwrap_or(usize::MAX);
        (self.entries * 100).checked_div(capacity).unwrap_or(0)
    }
}

/// The report of what was loaded.
pub(super) fn report(loaded: Loaded) -> Report {
    let now = loaded.now;
    let since = |millis: Option<u64>| millis.map(|it| seconds_since(now, moment(it)));
    let agent = agent(&loaded);
    let interfaces = interfaces(&loaded);
    let clients = clients(&loaded);
    let conflicts = conflicts(&loaded.infos);
    let NodeConfig { snat_first, snat_count, .. } = loaded.node;
    let snat_ports =
        (snat_count > 0).then(|| [snat_first, snat_first.saturating_add(snat_count - 1)]);
    let account = loaded.account;
    let account = account.as_ref();
    Report {
        agent,
        source: SourceReport {
            file: account.and_then(|it| it.config.clone()),
            kubernetes: account.is_some_and(|it| it.kubernetes),
            error: account.and_then(|it| it.config_error.clone()),
            error_since_seconds: since(account.and_then(|it| it.config_error_since)),
        },
        sync: SyncReport {
            in_sync: account.is_some_and(|it| it.in_sync),
            out_of_sync_seconds: since(account.and_then(|it| it.out_of_sync_since)),
            last_seconds: since(account.and_then(|it| it.last_sync)),
            error: account.and_then(|it| it.last_error.clone()),
        },
        interfaces,
        clients,
        conflicts,
        direct: loaded.direct,
        maps: loaded.fill,
        snat_ports,
        translation: loaded.translation,
        half_open: HalfOpen {
            flows: half_open(&loaded.flows),
            budget: ring::half_open_budget(loaded.node.ring_slots),
        },
        flows: loaded.flows,
    }
}

fn half_open(flows: &BTreeMap<&'static str, usize>) -> usize {
    let states = FlowState::ALL.into_iter().filter(|state| state.is_half_open());
    states.filter_map(|state| flows.get(state.name())).sum()
}

fn agent(loaded: &Loaded) -> AgentReport {
    let account = loaded.account.as_ref();
    let state = match loaded.holder {
        Some(_) => AgentState::Running,
        None if account.is_some_and(|it| it.stopped) => AgentState::Stopped,
        None => AgentState::Dead,
    };
    // What an earlier agent said says nothing of the one that holds the directory now.
    let own = account.filter(|it| loaded.holder.is_none_or(|holder| holder == it.pid));
    AgentReport {
        state,
        pid: loaded.holder.or(account.map(|it| it.pid)),
        version: own.map(|it| it.version.clone()),
        node: account.map(|it| it.node_name.clone()),
        uptime_seconds: own
            .filter(|_| state == AgentState::Running)
            .map(|it| seconds_since(loaded.now, moment(it.started_at))),
    }
}

/// Interfaces of the agent's account and of the pinned links, which outlive it.
fn interfaces(loaded: &Loaded) -> Vec<InterfaceReport> {
    let accounts: BTreeMap<_, _> = loaded
        .account
        .iter()
        .flat_map(|account| &account.interfaces)
        .map(|interface| (interface.name.as_str(), interface))
        .collect();
    let linked = loaded.attached.iter().map(|it| it.interface.as_str());
    let names: BTreeSet<_> = accounts.keys().copied().chain(linked).collect();
    names
        .into_iter()
        .map(|name| {
            let account = accounts.get(name);
            let links = loaded.attached.iter().filter(|it| it.interface == name);
            let said = account.map(|it| it.ifindex).filter(|index| *index != 0);
            InterfaceReport {
                name: name.to_owned(),
                ifindex: links.clone().find_map(|it| it.ifindex).or(said),
                xdp: account.map_or("unknown", |it| it.xdp.name()),
                xdp_reason: account.and_then(|it| it.xdp_reason.clone()),
                tc: account.map_or("unknown", |it| it.tc.name()),
                error: account.and_then(|it| it.error.clone()).or_else(|| gone(links.clone())),
                programs: links.map(|it| program(it, loaded.now)).collect(),
            }
        })
        .collect()
}

/// The account knows where and why not; what is attached is the kernel's word.
fn clients(loaded: &Loaded) -> ClientsReport {
    let account = loaded.account.as_ref().and_then(|it| it.clients.clone());
    let error = account.as_ref().and_then(|it| it.error.clone());
    let is_gone = loaded.attached_clients.iter().any(|it| !it.is_alive);
    let programs = loaded.attached_clients.iter().map(|it| ProgramReport {
        hook: it.hook.name(),
        id: it.program_id,
        name: it.program.clone(),
        age_seconds: it.loaded_at.map(|then| seconds_since(loaded.now, then)),
    });
    ClientsReport {
        cgroup: account.and_then(|it| it.cgroup),
        error: error.or_else(|| is_gone.then(|| "the control group is gone".to_owned())),
        programs: programs.collect(),
    }
}

fn gone<'a>(mut links: impl Iterator<Item = &'a Attached>) -> Option<String> {
    links.any(|link| link.ifindex.is_none()).then(|| "the interface is gone".to_owned())
}

fn program(attached: &Attached, now: SystemTime) -> ProgramReport {
    ProgramReport {
        hook: attached.hook.name(),
        id: attached.program_id,
        name: attached.program.clone(),
        age_seconds: attached.loaded_at.map(|then| seconds_since(now, then)),
    }
}

fn conflicts(infos: &BTreeMap<ServiceId, Info>) -> Vec<Conflict> {
    let mut conflicts: Vec<_> = infos
        .values()
        .flat_map(|info| {
            info.conflicts.iter().map(|frontend| Conflict {
                frontend: format_frontend(frontend),
                service: match &info.key.namespace {
                    Some(namespace) => format!("{namespace}/{}", info.key.name),
                    None => info.key.name.clone(),
                },
            })
        })
        .collect();
    conflicts.sort();
    conflicts
}

#[cfg(test)]
mod tests;
