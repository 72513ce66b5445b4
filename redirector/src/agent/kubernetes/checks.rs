//! What load balancers ask the node about Services.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use super::Kubernetes;
use crate::k8s::endpoints::count_local_ready;
use crate::k8s::health::Check;
use crate::k8s::index::Index;
use crate::k8s::object::ObjectName;
use crate::k8s::record::Kind;
use crate::k8s::report::{Cause, Note};

impl Kubernetes {
    /// Looks again at what load balancers ask of these Services.
    pub(super) fn note_checks(&mut self, index: &Index, services: &BTreeSet<ObjectName>) {
        for name in services {
            let Some(port) = index.service(name).and_then(|service| service.health_check()) else {
                self.checks.remove(name);
                continue;
            };
            let local = count_local_ready(index.slices(name), self.rules.place(index));
            let check = Check { service: name.clone(), local };
            self.checks.insert(name.clone(), (port, check));
        }
    }

    /// Serves what load balancers ask for; returns for which Services that cannot be done.
    pub(super) async fn serve_checks(&mut self) -> BTreeSet<Note> {
        let mut served: BTreeMap<u16, Check> = BTreeMap::new();
        let mut refused = Vec::new();
        for (name, (port, check)) in &self.checks {
            match served.entry(*port) {
                Entry::Vacant(vacant) => drop(vacant.insert(check.clone())),
                Entry::Occupied(other) => {
                    let error = format!("Service {} has it", other.get().service);
                    refused.push((name.clone(), *port, error));
                }
            }
        }
        for (port, error) in self.servers.serve(served.clone()).await {
            refused.extend(served.get(&port).map(|check| (check.service.clone(), port, error)));
        }
        let note = |(name, port, error)| {
            let subject = self.subject(&(Kind::Service, name));
            let text = format!("healthCheckNodePort {port} cannot be served: {error}");
            Note { subject, cause: Cause::HealthCheck, text }
        };
        refused.into_iter().map(note).collect()
    }
}
