//! Packets and connections by service, as totals that only grow.

use std::collections::{BTreeMap, HashMap};

use redirector_common::{Direction, Flow, Frontend, FrontendKey, ServiceId, SteeredKey, Tuple};

use crate::dataplane::connections::Connection;
use crate::dataplane::info::Info;

/// A service by the labels of its metric.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ServiceName {
    /// Empty outside Kubernetes.
    pub(super) namespace: String,
    pub(super) name: String,
}

/// What clients have sent to a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Total {
    pub(super) packets: u64,
    /// Connections that were steered.
    pub(super) steered: u64,
}

/// What there is to count at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen<'a> {
    pub(super) infos: &'a BTreeMap<ServiceId, Info>,
    pub(super) frontends: &'a BTreeMap<FrontendKey, Frontend>,
    pub(super) flows: &'a BTreeMap<Tuple, Flow>,
    pub(super) steered: &'a BTreeMap<SteeredKey, u64>,
    pub(super) connections: &'a [Connection],
}

/// What clients have sent to each service. Flows and connections end and take their counters with
/// them; so what was added since the last look is summed up, and a total never falls.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    totals: BTreeMap<ServiceName, Total>,
    /// Forward halves at the last look: when they began, and their packets.
    flows: HashMap<Tuple, (u64, u64)>,
    /// Connections that had been steered.
    steered: HashMap<SteeredKey, u64>,
    /// Packets of connections, by their sockets' cookies.
    connections: HashMap<u64, u64>,
}

impl Traffic {
    /// Adds what was counted since the last look. Totals of services that went are forgotten.
    pub(super) fn observe(&mut self, seen: &Seen<'_>) {
        let mut totals: BTreeMap<ServiceName, Total> = seen
            .infos
            .values()
            .map(|info| {
                let name = service_name(info);
                let before = self.totals.get(&name).copied().unwrap_or_default();
                (name, before)
            })
            .collect();
        let mut add = |service: ServiceId, packets: u64, steered: u64| {
            let name = seen.infos.get(&service).map(service_name);
            if let Some(total) = name.and_then(|name| totals.get_mut(&name)) {
                total.packets = total.packets.saturating_add(packets);
                total.steered = total.steered.saturating_add(steered);
            }
        };
        self.observe_flows(seen.flows, &mut add);
        self.observe_steered(seen.steered, &mut add);
        self.observe_connections(seen, &mut add);
        self.totals = totals;
    }

    fn observe_flows(
        &mut self,
        flows: &BTreeMap<Tuple, Flow>,
        add: &mut impl FnMut(ServiceId, u64, u64),
    ) {
        let mut counted = HashMap::new();
        for (key, flow) in flows {
            if flow.direction() != Direction::Forward {
                continue;
            }
            // The same tuple that began at another time is another flow.
            let before = match self.flows.get(key) {
                Some((created, packets)) if *created == flow.created => *packets,
                Some(_) | None => 0,
            };
            add(flow.service, flow.packets.saturating_sub(before), 0);
            counted.insert(*key, (flow.created, flow.packets));
        }
        self.flows = counted;
    }

    /// Each connection's SYN, also of those that nobody has looked at while they lived.
    fn observe_steered(
        &mut self,
        steered: &BTreeMap<SteeredKey, u64>,
        add: &mut impl FnMut(ServiceId, u64, u64),
    ) {
        let mut counted = HashMap::new();
        for (key, connections) in steered {
            // Fewer: it was forgotten for want of room, and began anew.
            let before = self.steered.get(key).copied().filter(|before| before <= connections);
            let new = connections - before.unwrap_or_default();
            add(key.service, new, new);
            counted.insert(*key, *connections);
        }
        self.steered = counted;
    }

    /// What came after the SYN.
    fn observe_connections(&mut self, seen: &Seen<'_>, add: &mut impl FnMut(ServiceId, u64, u64)) {
        let mut counted = HashMap::new();
        for connection in seen.connections {
            let packets = connection.packets.saturating_sub(1);
            let before = self.connections.get(&connection.cookie).copied().unwrap_or_default();
            if let Some(frontend) = seen.frontends.get(&connection.frontend) {
                add(frontend.service, packets.saturating_sub(before), 0);
            }
            counted.insert(connection.cookie, packets);
        }
        self.connections = counted;
    }

    /// By service.
    pub(super) const fn totals(&self) -> &BTreeMap<ServiceName, Total> {
        &self.totals
    }
}

fn service_name(info: &Info) -> ServiceName {
    ServiceName {
        namespace: info.key.namespace.clone().unwrap_or_default(),
        name: info.key.name.clone(),
    }
}
