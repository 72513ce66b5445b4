//! Packets by service, as totals that only grow.

use std::collections::{BTreeMap, HashMap};

use redirector_common::{Direction, Flow, ServiceId, Tuple};

use crate::dataplane::info::Info;

/// A service by the labels of its metric.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ServiceName {
    /// Empty outside Kubernetes.
    pub(super) namespace: String,
    pub(super) name: String,
}

/// What clients have sent to each service. Flows end and take their counters with them; so what
/// was added since the last look is summed up, and a total never falls.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    totals: BTreeMap<ServiceName, u64>,
    /// Forward halves at the last look: when they began, and their packets.
    seen: HashMap<Tuple, (u64, u64)>,
}

impl Traffic {
    /// Adds what the flows have counted since the last look. Totals of services that went are
    /// forgotten.
    pub(super) fn observe(
        &mut self,
        flows: &BTreeMap<Tuple, Flow>,
        infos: &BTreeMap<ServiceId, Info>,
    ) {
        let mut totals: BTreeMap<ServiceName, u64> = infos
            .values()
            .map(|info| {
                let name = service_name(info);
                let before = self.totals.get(&name).copied().unwrap_or_default();
                (name, before)
            })
            .collect();
        let mut seen = HashMap::new();
        for (key, flow) in flows {
            if flow.direction() != Direction::Forward {
                continue;
            }
            // The same tuple that began at another time is another flow.
            let before = match self.seen.get(key) {
                Some((created, packets)) if *created == flow.created => *packets,
                Some(_) | None => 0,
            };
            let total =
                infos.get(&flow.service).and_then(|info| totals.get_mut(&service_name(info)));
            if let Some(total) = total {
                *total = total.saturating_add(flow.packets.saturating_sub(before));
            }
            seen.insert(*key, (flow.created, flow.packets));
        }
        self.totals = totals;
        self.seen = seen;
    }

    /// Packets by service.
    pub(super) const fn totals(&self) -> &BTreeMap<ServiceName, u64> {
        &self.totals
    }
}

fn service_name(info: &Info) -> ServiceName {
    ServiceName {
        namespace: info.key.namespace.clone().unwrap_or_default(),
        name: info.key.name.clone(),
    }
}
