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

    /// The worst state among the frontends.
    pub(super) fn state(&self) -> &'static str {
        let worst = self.frontends.iter().map(|frontend| frontend.state).max();
        worst.map_or("no-frontends", FrontendState::name)
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
mod tests {
    use super::*;
    use crate::dataplane::info::parse_frontend;
    use redirector_common::{Address, Family, Port, Protocol};

    fn info(name: &str, family: Family, conflicts: &[&str]) -> Info {
        Info {
            key: ServiceKey { source: Source::Static, namespace: None, name: name.to_owned() },
            family,
            policy: TrafficPolicy::Cluster,
            forwarding: Forwarding::Snat,
            affinity: Some(10_800),
            group: None,
            algorithm: Algorithm::Maglev,
            conflicts: conflicts
                .iter()
                .map(|text| parse_frontend(text).expect("a frontend"))
                .collect(),
            omitted: 0,
        }
    }

    fn frontend(text: &str, service: ServiceId) -> (FrontendKey, Frontend) {
        let frontend = Frontend::new(service, Address::UNSPECIFIED);
        (parse_frontend(text).expect("a frontend"), frontend)
    }

    fn slot(
        service: ServiceId,
        slot: u32,
        backend: BackendId,
        weight: u16,
    ) -> (SlotKey, SlotValue) {
        let value = SlotValue { backend, weight, state: SlotValue::ACTIVE };
        (SlotKey { service, slot }, value)
    }

    fn service(table_size: u32) -> Service {
        let flags = Service::FLAG_SOURCE_RANGES;
        Service { table_size, flags, ..Service::default() }
    }

    fn ip(text: &str) -> Address {
        Address::from(text.parse::<IpAddr>().expect("an address"))
    }

    /// Service `web` in both families, with a local backend and one elsewhere.
    fn two_families() -> Loaded {
        let client = (ip("198.51.100.7"), Port::new(50_000));
        let key = Tuple::new(Protocol::Tcp, client, (ip("192.0.2.1"), Port::new(80)));
        let mut flow = Flow::new(Direction::Forward, key, 1, 1, true, 0);
        flow.packets = 3;
        flow.bytes = 180;
        let reply = Flow::new(Direction::Reply, key, 1, 1, true, 0);
        let (steered, _) = frontend("[2001:db8::1]:80/tcp", 2);
        Loaded {
            infos: BTreeMap::from([
                (1, info("web", Family::V4, &["192.0.2.1:443/tcp"])),
                (2, info("web", Family::V6, &[])),
            ]),
            services: BTreeMap::from([(1, service(251)), (2, service(0))]),
            ranges: BTreeSet::from([
                SourceRange::new(1, ip("198.51.100.0"), 24),
                SourceRange::new(1, ip("203.0.113.7"), 32),
                SourceRange::new(9, ip("192.0.2.0"), 24),
            ]),
            frontends: BTreeMap::from([
                frontend("192.0.2.1:80/tcp", 1),
                frontend("[2001:db8::1]:80/tcp", 2),
                frontend("192.0.2.1:443/tcp", 9),
            ]),
            slots: BTreeMap::from([slot(1, 0, 1, 1), slot(1, 1, 2, 2), slot(2, 0, 1, 1)]),
            backends: BTreeMap::from([
                (1, Backend::local(Port::new(8080))),
                (2, Backend::remote(ip("10.0.0.5"), Port::new(8080))),
            ]),
            flows: BTreeMap::from([(key, flow), (key.reversed(), reply)]),
            steered: BTreeMap::from([
                (SteeredKey { service: 2, frontend: steered }, 7),
                (SteeredKey { service: 9, frontend: steered }, 99),
            ]),
            connections: vec![Connection { frontend: steered, cookie: 1, packets: 4, bytes: 250 }],
        }
    }

    #[test]
    fn json_is_as_the_contract_says() {
        let json = serde_json::to_value(service_rows(&two_families())).expect("JSON");
        let expected = serde_json::json!([{
            "name": "web",
            "namespace": null,
            "source": "static",
            "frontends": [
                {"address": "192.0.2.1", "port": 80, "protocol": "TCP", "state": "active",
                 "packets": 3, "bytes": 180, "steered": 0},
                {"address": "192.0.2.1", "port": 443, "protocol": "TCP", "state": "conflict",
                 "packets": 0, "bytes": 0, "steered": 0},
                {"address": "2001:db8::1", "port": 80, "protocol": "TCP",
                 "state": "no-endpoints", "packets": 4, "bytes": 250, "steered": 7},
            ],
            "backends": [
                {"address": "10.0.0.5", "port": 8080, "local": false, "state": "active",
                 "weight": 2},
                {"address": "local", "port": 8080, "local": true, "state": "active", "weight": 1},
            ],
            "policy": "cluster",
            "affinitySeconds": 10800,
            "forwarding": "snat",
            "algorithm": "maglev",
            "sourceRanges": ["198.51.100.0/24", "203.0.113.7/32"],
        }]);
        assert_eq!(json, expected);
    }

    #[test]
    fn services_come_by_source_namespace_and_name() {
        let mut publish = info("80:8080/tcp", Family::V4, &[]);
        publish.key.source = Source::Publish;
        let loaded = Loaded {
            infos: BTreeMap::from([
                (1, info("b", Family::V4, &[])),
                (2, info("a", Family::V4, &[])),
                (3, publish),
            ]),
            ..Loaded::default()
        };
        let names: Vec<_> = service_rows(&loaded).into_iter().map(|row| row.name).collect();
        assert_eq!(names, ["80:8080/tcp", "a", "b"]);
    }

    #[test]
    fn addresses_with_colons_stand_in_brackets() {
        let backend = Backend::remote(ip("2001:db8::5"), Port::new(80));
        let (_, slot) = slot(1, 0, 1, 1);
        assert_eq!(backend_row(&backend, slot).text(), "[2001:db8::5]:80");
    }

    #[test]
    fn backends_that_keep_their_flows_alone_say_so() {
        let backend = Backend::remote(ip("10.0.0.5"), Port::new(80));
        let rows = [
            (1, SlotValue::ACTIVE, "10.0.0.5:80"),
            (0, SlotValue::ACTIVE, "10.0.0.5:80 (draining)"),
            (1, SlotValue::TERMINATING, "10.0.0.5:80 (terminating)"),
            (0, SlotValue::TERMINATING, "10.0.0.5:80 (terminating)"),
        ];
        for (weight, state, wanted) in rows {
            let slot = SlotValue { backend: 1, weight, state };
            assert_eq!(backend_row(&backend, slot).label(), wanted);
        }
    }
}
