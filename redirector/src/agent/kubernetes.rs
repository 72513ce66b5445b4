//! What the Kubernetes API asks for, as the node needs it, and what it is told in return.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use tokio::time::Instant;

use super::{KubernetesOptions, Snapshot};
use crate::dataplane::info::format_frontend;
use crate::k8s::audit::audit;
use crate::k8s::cluster::Cluster;
use crate::k8s::convert::{Converted, Rules};
use crate::k8s::health::{Answer, Check, CheckServers, Health};
use crate::k8s::index::Index;
use crate::k8s::object::ObjectName;
use crate::k8s::presence::{Keeper, Presence, Wish};
use crate::k8s::protected::{Guard, read_listening};
use crate::k8s::record::Kind;
use crate::k8s::report::{Cause, Mouth, Note, Reporter, Subject};
use crate::model::desired::Conflict;
use crate::model::state::{Rank, Ranked};
use crate::model::{Service, ServiceKey, Source};

mod checks;
mod peers;

/// How long the maps may be out of line before load balancers are told to go elsewhere, in
/// milliseconds.
const PATIENCE: u64 = 60_000;

type Object = (Kind, ObjectName);

/// The index, and what its objects have become.
pub(super) struct Kubernetes {
    cluster: Cluster,
    rules: Rules,
    guard: Guard,
    converted: BTreeMap<Object, Converted>,
    /// The object of every service of `converted`.
    owners: BTreeMap<ServiceKey, Object>,
    /// Objects that wait for a port that is in use.
    waiting: BTreeSet<Object>,
    missing: Vec<Kind>,
    /// Services that became others, or came, or went.
    changed: BTreeSet<ServiceKey>,
    /// When what changed came to be, in milliseconds since 1970, and is not in the maps yet.
    triggers: Vec<i64>,
    /// What load balancers ask of each Service, and at which port.
    checks: BTreeMap<ObjectName, (u16, Check)>,
    servers: CheckServers,
    answer: Answer,
    reporter: Reporter,
    presence: Presence,
    /// What becomes of the node's Lease until the node takes flows.
    at_first: Wish,
    conflicts: BTreeSet<Note>,
    discarded: BTreeSet<Note>,
    unserved: BTreeSet<Note>,
    detached: Option<Note>,
}

impl Kubernetes {
    /// With an empty index. What comes with it has to be run. `is_first`: no earlier agent has left
    /// a data path.
    pub(super) fn new(
        options: &KubernetesOptions,
        node_name: &str,
        own: BTreeSet<u16>,
        is_first: bool,
    ) -> (Self, (Mouth, Keeper)) {
        let (reporter, mouth) = Reporter::new(options.access.clone(), node_name);
        // A machine that was started anew takes nothing yet, whatever its Lease says.
        let at_first = if is_first { Wish::Leave } else { Wish::Wait };
        let (presence, keeper) = Presence::new(options.access.clone(), node_name, at_first.clone());
        let answer = Answer::default();
        let kubernetes = Self {
            cluster: Cluster::new(Index::new(node_name, options.service_proxy_name.clone())),
            rules: Rules {
                node_name: node_name.to_owned(),
                node_port_addresses: options.node_port_addresses.clone(),
                external_ip_networks: options.external_ip_networks.clone(),
            },
            guard: Guard { allowed: options.allowed_ports.clone(), own, ..Guard::default() },
            converted: BTreeMap::new(),
            owners: BTreeMap::new(),
            waiting: BTreeSet::new(),
            missing: Kind::ALL.to_vec(),
            changed: BTreeSet::new(),
            triggers: Vec::new(),
            checks: BTreeMap::new(),
            servers: CheckServers::new(answer.clone()),
            answer,
            reporter,
            presence,
            at_first,
            conflicts: BTreeSet::new(),
            discarded: BTreeSet::new(),
            unserved: BTreeSet::new(),
            detached: None,
        };
        (kubernetes, (mouth, keeper))
    }

    pub(super) fn node_name(&self) -> &str {
        &self.rules.node_name
    }

    pub(super) fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// What the servers of the node's health answer.
    pub(super) fn answer(&self) -> &Answer {
        &self.answer
    }

    /// Kinds of objects that were never listed: until there is none, nobody knows what is too much.
    pub(super) fn missing(&self) -> &[Kind] {
        &self.missing
    }

    /// Sets the ports for translation, which nobody else may have. Returns whether they are others
    /// than before: then all objects have to be looked at again.
    pub(super) fn keep_from(&mut self, snat: std::ops::RangeInclusive<u16>) -> bool {
        let before = self.guard.snat.replace(snat);
        let is_changed = before.is_some() && before != self.guard.snat;
        if is_changed {
            self.cluster.change(Index::touch_all);
        }
        is_changed
    }

    /// Looks again at objects that wait for a port that another program had.
    pub(super) fn retry(&self) {
        if !self.waiting.is_empty() {
            self.cluster.change(|index| {
                for (kind, name) in &self.waiting {
                    index.touch(*kind, name);
                }
            });
        }
    }

    /// Looks at objects that changed. Returns whether they ask for anything else than before.
    pub(super) fn update(&mut self) -> bool {
        let cluster = self.cluster.clone();
        cluster.with(|index| {
            index.set_time(Timestamp::now().as_second());
            let dirty = index.take_dirty();
            let missing: Vec<Kind> = index.missing().collect();
            let mut is_changed = missing != self.missing || dirty.nodes;
            self.missing = missing;
            self.triggers.extend(dirty.triggers);
            let mut services = dirty.services;
            let mut pods = dirty.pods;
            if dirty.all {
                services.extend(index.services().map(|service| service.name.clone()));
                pods.extend(index.pods().map(|pod| pod.name.clone()));
            }
            if !pods.is_empty() {
                self.discarded = discarded(index);
            }
            if !services.is_empty() {
                self.note_checks(index, &services);
            }
            // Looked at once, and only where it matters.
            self.guard.listening.clear();
            for name in services {
                let new = self.rules.convert_service(index, &name);
                is_changed |= self.put((Kind::Service, name), new);
            }
            for name in pods {
                let new = self.rules.convert_pod(index, &name);
                is_changed |= self.put((Kind::Pod, name), new);
            }
            is_changed
        })
    }

    /// What all objects ask for.
    pub(super) fn services(&self) -> impl Iterator<Item = Ranked> {
        self.converted.values().flat_map(|converted| {
            let rank = rank(converted);
            converted.services.iter().map(move |service| (rank, Arc::clone(service)))
        })
    }

    /// Services that changed since the last call: what they are now, if they still are.
    pub(super) fn take_changed(&mut self) -> Vec<(ServiceKey, Option<Ranked>)> {
        let find = |key: &ServiceKey| {
            let converted = self.converted.get(self.owners.get(key)?)?;
            let service = converted.services.iter().find(|service| service.key == *key)?;
            Some((rank(converted), Arc::clone(service)))
        };
        let changed = std::mem::take(&mut self.changed);
        changed.into_iter().map(|key| (key.clone(), find(&key))).collect()
    }

    /// Times since what changed came to be, in milliseconds, now that it is in the maps.
    pub(super) fn take_latencies(&mut self) -> Vec<u64> {
        let now = Timestamp::now().as_millisecond();
        let triggers = std::mem::take(&mut self.triggers);
        triggers.into_iter().map(|at| u64::try_from(now - at).unwrap_or(0)).collect()
    }

    /// Notes which objects do not get what they ask for, because others have it.
    pub(super) fn note_conflicts(&mut self, conflicts: &[Conflict]) {
        let mut notes: BTreeMap<(&ServiceKey, &ServiceKey), Vec<String>> = BTreeMap::new();
        for Conflict { frontend, winner, loser } in conflicts {
            notes.entry((loser, winner)).or_default().push(format_frontend(frontend));
        }
        self.conflicts = notes
            .into_iter()
            .filter_map(|((loser, winner), frontends)| {
                let subject = self.subject(self.owners.get(loser)?);
                let frontends = frontends.join(", ");
                let text = if self.owners.get(loser) == self.owners.get(winner) {
                    format!(
                        "{frontends} is taken by another port of its own, {:?}: choose another \
                         number for one of them",
                        winner.name
                    )
                } else {
                    format!(
                        "{frontends} is taken by {}: the older object has it; choose another port \
                         or remove one",
                        self.describe(winner)
                    )
                };
                Some(Note { subject, cause: Cause::Conflict, text })
            })
            .collect();
    }

    /// Notes that the node is left alone, and why.
    pub(super) fn note_detached(&mut self, text: &str) {
        let subject = self.own_subject();
        self.detached = Some(Note { subject, cause: Cause::Detached, text: text.to_owned() });
    }

    /// Answers load balancers' checks, says what is wrong, and tells other nodes that this one takes
    /// flows. Ports that could not be had are tried again.
    pub(super) async fn speak(&mut self, snapshot: &Snapshot) {
        let leaving = self.cluster.with(|index| index.node().and_then(|node| node.leaving));
        let now = Timestamp::now();
        let status = &snapshot.status;
        let is_late = status.out_of_sync_since.is_some_and(|since| {
            u64::try_from(now.as_millisecond()).unwrap_or(0).saturating_sub(since) > PATIENCE
        });
        let is_healthy = snapshot.ready && (status.in_sync || !is_late);
        self.answer.set_health(Health { is_healthy, leaving, at: now });
        self.unserved = self.serve_checks().await;
        let refused = self.converted.iter().flat_map(|(object, converted)| {
            converted.problems.iter().map(|problem| Note {
                subject: subject(object, converted),
                cause: Cause::Refused,
                text: problem.clone(),
            })
        });
        let notes = refused
            .chain(self.conflicts.iter().cloned())
            .chain(self.discarded.iter().cloned())
            .chain(self.unserved.iter().cloned())
            .chain(self.detached.clone())
            .chain(self.unknown())
            .collect();
        self.reporter.report(notes, Instant::now());
        self.announce(snapshot.ready);
    }

    /// Takes what an object has become, without what is not allowed. Returns whether it asks for
    /// anything else than before.
    fn put(&mut self, object: Object, mut new: Converted) -> bool {
        let old = self.converted.remove(&object).unwrap_or_default();
        self.waiting.remove(&object);
        if self.refuse(&old, &mut new) {
            self.waiting.insert(object.clone());
        }
        for service in &old.services {
            self.owners.remove(&service.key);
        }
        for service in &new.services {
            self.owners.insert(service.key.clone(), object.clone());
        }
        let is_changed = old.services != new.services || old.created != new.created;
        if is_changed {
            let services = old.services.iter().chain(&new.services);
            self.changed.extend(services.map(|service| service.key.clone()));
        }
        if new != Converted::default() {
            self.converted.insert(object, new);
        }
        is_changed
    }

    /// Removes ports that must not be taken. Returns whether one might be free later.
    fn refuse(&mut self, old: &Converted, new: &mut Converted) -> bool {
        let is_asking = |service: &Arc<Service>| service.key.source == Source::Annotation;
        if new.services.iter().any(is_asking) && self.guard.listening.is_empty() {
            self.guard.listening = read_listening();
        }
        let mut waits = false;
        for service in &mut new.services {
            // Nobody else has it yet.
            let Service { key, frontends, .. } = Arc::make_mut(service);
            let is_refused = |frontend: &crate::model::FrontendSpec| match key.source {
                Source::Annotation => {
                    // A new object of the same name has nothing yet, however fast it came.
                    let mut held = old.services.iter().filter(|_| old.uid == new.uid);
                    let is_held = held
                        .any(|service| service.key == *key && service.frontends.contains(frontend));
                    self.guard.refusal(frontend.protocol, frontend.port, is_held)
                }
                Source::NodePort => self.guard.translates(frontend.port),
                Source::Publish | Source::Static | Source::ExternalIp | Source::LoadBalancer => {
                    None
                }
            };
            frontends.retain(|frontend| match is_refused(frontend) {
                Some(problem) => {
                    waits = true;
                    new.problems.push(format!("{problem}: it is not published"));
                    false
                }
                None => true,
            });
        }
        new.services.retain(|service| !service.frontends.is_empty());
        waits
    }

    fn subject(&self, object: &Object) -> Subject {
        match self.converted.get(object) {
            Some(converted) => subject(object, converted),
            None => subject(object, &Converted::default()),
        }
    }

    fn own_subject(&self) -> Subject {
        let uid = self.rules.node_name.clone();
        Subject { kind: Kind::Node, name: ObjectName::new("", &uid), uid }
    }

    fn describe(&self, key: &ServiceKey) -> String {
        match self.owners.get(key) {
            Some((Kind::Pod, name)) => format!("pod {name}"),
            Some((_, name)) => format!("Service {name}"),
            None => format!("{:?} of the node's file", key.name),
        }
    }
}

/// Of two objects that want a frontend, the older gets it.
const fn rank(converted: &Converted) -> Rank {
    Rank { source: 1, order: converted.created }
}

fn subject((kind, name): &Object, converted: &Converted) -> Subject {
    Subject { kind: *kind, name: name.clone(), uid: converted.uid.clone() }
}

/// What pods of this node seem to ask for and do not get.
fn discarded(index: &Index) -> BTreeSet<Note> {
    audit(index.pods())
        .into_iter()
        .map(|finding| {
            let name = ObjectName::new(&finding.namespace, &finding.name);
            let uid = index.pod(&name).map(|pod| pod.uid.clone()).unwrap_or_default();
            let subject = Subject { kind: Kind::Pod, name, uid };
            Note { subject, cause: Cause::Discarded, text: finding.text() }
        })
        .collect()
}
