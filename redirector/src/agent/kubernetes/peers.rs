//! The other nodes: which of them take flows, and that they know the same of this one.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::jiff::Timestamp;
use redirector_common::Peer;

use super::Kubernetes;
use crate::dataplane::status::PeersStatus;
use crate::k8s::index::Index;
use crate::k8s::presence::Wish;
use crate::k8s::record::Kind;
use crate::k8s::report::{Cause, Note};
use crate::model::Forwarding;

/// What helps.
const CURE: &str = "bind the Role of deploy/kubernetes/rbac.yaml to the agent's service account";

impl Kubernetes {
    /// Addresses of all nodes, and what is known of them; of this one those that `is_own` finds
    /// here, because others may translate to it.
    pub(in crate::agent) fn nodes(
        &self,
        is_own: impl Fn(IpAddr) -> bool,
    ) -> BTreeMap<IpAddr, Peer> {
        self.cluster.with(|index| {
            let mut nodes = BTreeMap::new();
            let own = index.node().into_iter().flat_map(|node| &node.addresses);
            nodes.extend(own.filter(|address| is_own(**address)).map(|it| (*it, Peer::known())));
            for (addresses, takes_flows) in index.others() {
                let peer = if takes_flows { Peer::taking() } else { Peer::known() };
                for address in addresses {
                    let known: &mut Peer = nodes.entry(*address).or_default();
                    *known = known.union(peer);
                }
            }
            nodes
        })
    }

    /// Tells the index what time it is, and whoever waits for changes, if that is one.
    pub(in crate::agent) fn pass_time(&self) {
        let now = Timestamp::now().as_second();
        if self.cluster.with(|index| index.set_time(now)) {
            self.cluster.change(|_| ());
        }
    }

    /// What is known of the other nodes.
    pub(in crate::agent) fn peers(&self) -> PeersStatus {
        let mut peers = PeersStatus::default();
        self.cluster.with(|index| {
            for (_, takes_flows) in index.others() {
                peers.known += 1;
                peers.taking += usize::from(takes_flows);
            }
        });
        let error = self.refusals().into_iter().reduce(|one, other| format!("{one}; {other}"));
        PeersStatus { error, ..peers }
    }

    /// Tells other nodes that this one takes flows, once it does.
    pub(super) fn announce(&self, is_ready: bool) {
        let node = |index: &mut Index| index.node().map(|node| (node.uid.clone(), index.losses()));
        self.presence.wish(match self.cluster.with(node) {
            _ if self.detached.is_some() => Wish::Leave,
            Some((owner, losses)) if is_ready => Wish::Keep { owner, losses },
            Some(_) | None => self.at_first.clone(),
        });
    }

    /// Notes that nodes cannot know of each other, where a Service needs it.
    pub(super) fn unknown(&self) -> impl Iterator<Item = Note> {
        let mut texts = self.refusals();
        let mut services = self.converted.values().flat_map(|converted| &converted.services);
        if !texts.is_empty() && !services.any(|service| service.forwarding == Forwarding::Dsr) {
            texts.clear();
        }
        let subject = self.own_subject();
        texts.into_iter().map(move |text| Note {
            subject: subject.clone(),
            cause: Cause::Unknown,
            text,
        })
    }

    fn refusals(&self) -> Vec<String> {
        let reading = self.cluster.with(|index| index.refused(Kind::Lease).map(str::to_owned));
        let reading = reading.map(|why| {
            format!(
                "the Leases by which other nodes say that they run redirector cannot be read: \
                 endpoints on nodes that are not known to run it get translated packets (snat): \
                 {why}: {CURE}"
            )
        });
        let writing = self.presence.refused().map(|why| {
            format!(
                "the Lease by which this node says that it runs redirector cannot be written: \
                 other nodes translate what they send here (snat): {why}: {CURE}"
            )
        });
        reading.into_iter().chain(writing).collect()
    }
}
