//! What is listed of services, made from the contents of the maps.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use redirector_common::{
    Backend, BackendId, Direction, Flow, Frontend, FrontendKey, Service, ServiceId, SlotKey,
    SlotValue, SourceRange, SteeredKey, Tuple,
};
use serde::Serialize;

use crate::dataplane::connections::Connection;
use crate::dataplane::info::{Info, format_range};
use crate::model::{Algorithm, BackendState, Forwarding, ServiceKey, Source, TrafficPolicy};

/// The maps that services stand in.
#[derive(Clone, Debug, Default)]
pub(super) struct Loaded {
    pub(super) infos: BTreeMap<ServiceId, Info>,
    pub(super) services: BTreeMap<ServiceId, Service>,
    pub(super) ranges: BTreeSet<SourceRange>,
    pub(super) frontends: BTreeMap<FrontendKey, Frontend>,
    pub(super) slots: BTreeMap<SlotKey, SlotValue>,
    pub(super) backends: BTreeMap<BackendId, Backend>,
    pub(super) flows: BTreeMap<Tuple, Flow>,
    pub(super) steered: BTreeMap<SteeredKey, u64>,
    pub(super) connections: Vec<Connection>,
}

/// A service, both of its address families together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ServiceRow {
    pub(super) name: String,
    pub(super) namespace: Option<String>,
    pub(super) source: Source,
    pub(super) frontends: Vec<FrontendRow>,
    pub(super) backends: Vec<BackendRow>,
    pub(super) policy: TrafficPolicy,
    pub(super) affinity_seconds: Option<u32>,
    pub(super) forwarding: Forwarding,
    pub(super) algorithm: Algorithm,
    /// Networks that clients may come from; `None`: from everywhere.
    pub(super) source_ranges: Option<Vec<String>>,
    /// Conflicts that the map has no room to name.
    #[serde(skip)]
    pub(super) conflicts_not_shown: usize,
}

/// What clients hit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct FrontendRow {
    pub(super) address: IpAddr,
    pub(super) port: u16,
    pub(super) protocol: &'static str,
    pub(super) state: FrontendState,
    /// Packets of clients, of the flows and steered connections that live.
    pub(super) packets: u64,
    /// Their IP bytes.
    pub(super) bytes: u64,
    /// Connections that were steered, those that are over among them.
    pub(super) steered: u64,
}

/// Whether a frontend answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum FrontendState {
    /// It does.
    Active,
    /// Another service has it.
    Conflict,
    /// No backend takes new flows.
    NoEndpoints,
}

/// What answers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(super) struct BackendRow {
    /// `local`: whichever of this host's addresses the client asked for.
    pub(super) address: String,
    pub(super) port: u16,
    pub(super) local: bool,
    pub(super) state: BackendState,
    pub(super) weight: u16,
}

/// Services in the order of their source, namespace and name.
pub(super) fn service_rows(maps: &Loaded) -> Vec<ServiceRow> {
    let mut families: BTreeMap<&ServiceKey, Vec<(ServiceId, &Info)>> = BTreeMap::new();
    for (id, info) in &maps.infos {
        families.entry(&info.key).or_default().push((*id, info));
    }
    let traffic = traffic(&maps.flows, &maps.connections);
    let mut frontends: BTreeMap<ServiceId, Vec<&FrontendKey>> = BTreeMap::new();
    for (key, frontend) in &maps.frontends {
        frontends.entry(frontend.service).or_default().push(key);
    }
    families
        .into_values()
        .filter_map(|families| service_row(maps, &frontends, &traffic, &families))
        .collect()
}

fn service_row(
    maps: &Loaded,
    all_frontends: &BTreeMap<ServiceId, Vec<&FrontendKey>>,
    traffic: &BTreeMap<FrontendKey, (u64, u64)>,
    families: &[(ServiceId, &Info)],
) -> Option<ServiceRow> {
    let (_, first) = families.first()?;
    let mut frontends = Vec::new();
    // A local backend stands in both families' tables: it is one backend all the same.
    let mut backends = BTreeSet::new();
    let mut source_ranges = None;
    for (id, info) in families {
        let service = maps.services.get(id).copied().unwrap_or_default();
        let state =
            if service.table_size > 0 { FrontendState::Active } else { FrontendState::NoEndpoints };
        for key in all_frontends.get(id).into_iter().flatten() {
            let seen = traffic.get(key).copied().unwrap_or_default();
            let steered = maps.steered.get(&SteeredKey { service: *id, frontend: **key });
            let steered = steered.copied().unwrap_or_default();
            frontends.push(FrontendRow { steered, ..frontend_row(key, state, seen) });
        }
        // What another service has counts for that one.
        for key in &info.conflicts {
            frontends.push(frontend_row(key, FrontendState::Conflict, (0, 0)));
        }
        if service.limits_sources() {
            let ranges = maps.ranges.iter().filter(|range| range.bits.service == *id);
            source_ranges.get_or_insert_with(Vec::new).extend(ranges.map(format_range));
        }
        for (_, slot) in maps.slots.range(slots_of(*id)) {
            if let Some(backend) = maps.backends.get(&slot.backend) {
                backends.insert(backend_row(backend, *slot));
            }
        }
    }
    frontends.sort_by_key(|it| (it.address, it.port, it.protocol, it.state));

    Some(ServiceRow {
        name: first.key.name.clone(),
        namespace: first.key.namespace.clone(),
        source: first.key.source,
        frontends,
        backends: backends.into_iter().collect(),
        policy: first.policy,
        affinity_seconds: first.affinity,
        forwarding: first.forwarding,
        algorithm: first.algorithm,
        source_ranges,
        conflicts_not_shown: families.iter().map(|(_, info)| info.omitted).sum(),
    })
}

/// The keys of a service's slots.
fn slots_of(service: ServiceId) -> std::ops::RangeInclusive<SlotKey> {
    let key = |slot| SlotKey { service, slot };
    key(0)..=key(u32::MAX)
}

fn frontend_row(
    key: &FrontendKey,
    state: FrontendState,
    (packets, bytes): (u64, u64),
) -> FrontendRow {
    FrontendRow {
        address: IpAddr::from(key.address),
        port: key.port.number(),
        protocol: key.protocol().name(),
        state,
        packets,
        bytes,
        steered: 0,
    }
}

fn backend_row(backend: &Backend, slot: SlotValue) -> BackendRow {
    BackendRow {
        address: backend_address(backend),
        port: backend.port.number(),
        local: backend.is_local(),
        state: if slot.state == SlotValue::TERMINATING {
            BackendState::Terminating
        } else {
            BackendState::Active
        },
        weight: slot.weight,
    }
}

/// A backend's address as the file has it: `local` where it is the frontend's own.
pub(in crate::cli) fn backend_address(backend: &Backend) -> String {
    if backend.is_local() && backend.address.is_unspecified() {
        "local".to_owned()
    } else {
        backend.address.to_string()
    }
}

/// What clients have sent to each frontend, by the flows and connections that live.
fn traffic(
    flows: &BTreeMap<Tuple, Flow>,
    connections: &[Connection],
) -> BTreeMap<FrontendKey, (u64, u64)> {
    let mut traffic: BTreeMap<FrontendKey, (u64, u64)> = BTreeMap::new();
    let mut add = |frontend, more: (u64, u64)| {
        let (packets, bytes) = traffic.entry(frontend).or_default();
        *packets = packets.saturating_add(more.0);
        *bytes = bytes.saturating_add(more.1);
    };
    for (key, flow) in flows {
        if flow.direction() == Direction::Forward {
            let frontend = FrontendKey::new(key.destination, key.destination_port, key.protocol());
            add(frontend, (flow.packets, flow.bytes));
        }
    }
    for connection in connections {
        add(connection.frontend, (connection.packets, connection.bytes));
    }
    traffic
}

impl ServiceRow {
    /// `namespace/name`, or the name alone.
    pub(super) fn full_name(&self) -> String {
        match &self.namespace {
            Some(namespace) => format!("{namespace}/{}", self.name),
            None => self.name.clone(),
        }
    }

    /// The state of the frontends: how many of them answer, where some do and some do not.
    pub(super) fn state(&self) -> String {
        let states = self.frontends.iter().map(|frontend| frontend.state);
        let active = states.clone().filter(|state| *state == FrontendState::Active).count();
        match states.max() {
            None => "no-frontends".to_owned(),
            Some(worst) if active == 0 || worst == FrontendState::Active => worst.name().to_owned(),
            Some(_) => format!("{active} of {} active", self.frontends.len()),
        }
    }
}

impl FrontendRow {
    /// `192.0.2.1:80/tcp`.
    pub(super) fn text(&self) -> String {
        let address = SocketAddr::new(self.address, self.port);
        format!("{address}/{}", self.protocol.to_lowercase())
    }
}

impl FrontendState {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Conflict => "conflict",
            Self::NoEndpoints => "no-endpoints",
        }
    }
}

impl BackendRow {
    /// `local:8080`, `10.0.0.5:8080`, `[2001:db8::5]:8080`.
    pub(super) fn text(&self) -> String {
        if self.address.contains(':') {
            format!("[{}]:{}", self.address, self.port)
        } else {
            format!("{}:{}", self.address, self.port)
        }
    }

    /// The same, with its state where that is not the usual one.
    pub(super) fn label(&self) -> String {
        match self.state_word() {
            "active" => self.text(),
            state => format!("{} ({state})", self.text()),
        }
    }

    /// What people are told of whether it takes new flows.
    pub(super) const fn state_word(&self) -> &'static str {
        match (self.state, self.weight) {
            (BackendState::Terminating, _) => "terminating",
            (BackendState::Active, 0) => "draining",
            (BackendState::Active, _) => "active",
        }
    }
}

#[cfg(test)]
mod tests;
