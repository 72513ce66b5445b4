//! The desired state, kept: a change of one service costs work for that service and for those
//! that claim the same frontends, however many others there are.
//!
//! What [`desired::build`](super::desired::build) makes of all services at once, this makes of
//! each when it changes.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use redirector_common::{Address, Family, FrontendKey, Peer};

use super::desired::{
    Conflict, Desired, DesiredService, NodeAddresses, Side, build_backends, expand_frontends,
    expand_localhost, foreign,
};
use super::{BackendAddress, Forwarding, Service, ServiceKey, Source};

/// Who gets a frontend that several services claim: the least. Of equals, a load balancer's address
/// and external IPs go before node ports, and then the key decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    /// Sources go before others.
    pub source: u8,
    /// Position, or age in seconds since 1970.
    pub order: i64,
}

/// Services of a node, and who claims what.
#[derive(Clone, Debug, Default)]
pub struct State {
    node: NodeAddresses,
    /// What is known of the other nodes, by address.
    peers: BTreeMap<Address, Peer>,
    services: BTreeMap<ServiceKey, Ranked>,
    claims: BTreeMap<FrontendKey, Claims>,
    /// Addresses that services of the cluster name for themselves, and how many do.
    named: BTreeMap<IpAddr, usize>,
    /// Frontends with several claims.
    contested: BTreeSet<FrontendKey>,
    dirty: BTreeSet<ServiceKey>,
}

/// A service and its rank.
pub type Ranked = (Rank, Arc<Service>);

/// Who claims a frontend, the first in rank first. Nearly always one.
type Claims = Vec<Ranked>;

impl State {
    /// All services of a node. Of services with the same key only the first in rank counts.
    #[must_use]
    pub fn new<S: Into<Arc<Service>>>(
        node: NodeAddresses,
        services: impl IntoIterator<Item = (Rank, S)>,
    ) -> Self {
        let peers = node.peers();
        let mut state = Self { node, peers, ..Self::default() };
        for (rank, service) in services {
            let service = service.into();
            let is_better =
                state.services.get(&service.key).is_none_or(|(earlier, _)| rank < *earlier);
            if is_better {
                state.put(rank, service);
            }
        }
        state.dirty.clear();
        state
    }

    /// Addresses of the node.
    #[must_use]
    pub const fn node(&self) -> &NodeAddresses {
        &self.node
    }

    /// Number of services.
    #[must_use]
    pub fn len(&self) -> usize {
        self.services.len()
    }

    /// Whether there is no service.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.services.is_empty()
    }

    /// Takes a service in, in place of the one with its key.
    pub fn put(&mut self, rank: Rank, service: impl Into<Arc<Service>>) {
        let service = service.into();
        let old = self.services.get(&service.key);
        if old.is_some_and(|(old_rank, old)| (*old_rank, old) == (rank, &service)) {
            return;
        }
        self.remove(&service.key);
        for frontend in self.frontends(&service) {
            let claims = self.claims.entry(frontend).or_default();
            // Whoever had it may have it no longer.
            self.dirty.extend(concerned(claims, &service.key).cloned());
            let at = claims.binary_search_by(|(other, it)| {
                turn(*other, &it.key).cmp(&turn(rank, &service.key))
            });
            if let Err(position) = at {
                claims.reserve_exact(1);
                claims.insert(position, (rank, Arc::clone(&service)));
            }
            if claims.len() > 1 {
                self.contest(frontend);
            }
        }
        for address in named(&service) {
            *self.named.entry(address).or_default() += 1;
        }
        self.dirty.insert(service.key.clone());
        self.services.insert(service.key.clone(), (rank, service));
    }

    /// Takes a service out; none is no error.
    pub fn remove(&mut self, key: &ServiceKey) {
        let Some((rank, service)) = self.services.remove(key) else {
            return;
        };
        for frontend in self.frontends(&service) {
            let Some(claims) = self.claims.get_mut(&frontend) else {
                continue;
            };
            claims.retain(|(other, claimant)| (*other, &claimant.key) != (rank, key));
            // Whoever comes next may have it now.
            self.dirty.extend(concerned(claims, key).cloned());
            if claims.len() < 2 {
                self.contested.remove(&frontend);
            }
            if claims.is_empty() {
                self.claims.remove(&frontend);
            }
        }
        for address in named(&service) {
            if let Entry::Occupied(mut count) = self.named.entry(address) {
                *count.get_mut() -= 1;
                if *count.get() == 0 {
                    count.remove();
                }
            }
        }
        self.dirty.insert(key.clone());
    }

    /// Takes in the addresses of all nodes, and what is known of them. Services follow addresses
    /// alone: who takes flows is asked for each packet that opens one.
    pub fn set_nodes(&mut self, nodes: BTreeMap<IpAddr, Peer>) {
        if self.node.nodes == nodes {
            return;
        }
        let is_in = |all: &BTreeMap<IpAddr, Peer>, address| all.contains_key(address);
        let changed: BTreeSet<IpAddr> = self
            .node
            .nodes
            .keys()
            .chain(nodes.keys())
            .filter(|address| is_in(&self.node.nodes, address) != is_in(&nodes, address))
            .copied()
            .collect();
        let concerns = |service: &Service| {
            let mut named = service.frontends.iter().filter_map(|frontend| frontend.address);
            !changed.is_empty()
                && (service.forwarding == Forwarding::Dsr
                    || named.any(|address| changed.contains(&address)))
        };
        self.renew(concerns, |state| {
            state.node.nodes = nodes;
            state.peers = state.node.peers();
        });
    }

    /// Takes in which networks are where. On many nodes every pod that comes or goes is one.
    pub fn set_sides(&mut self, sides: BTreeMap<IpNet, Side>) {
        let (old, new) = (&self.node.sides, &sides);
        let changed: Vec<IpNet> = old
            .keys()
            .chain(new.keys())
            .filter(|network| old.get(network) != new.get(network))
            .copied()
            .collect();
        if changed.is_empty() {
            return;
        }
        let is_in = |address: BackendAddress| match address {
            BackendAddress::Local => false,
            BackendAddress::At(address) => changed.iter().any(|network| network.contains(&address)),
        };
        self.renew(
            |service| service.backends.iter().any(|backend| is_in(backend.address)),
            |state| state.node.sides = sides,
        );
    }

    /// Changes something of the node, and has services that this concerns claim their frontends
    /// anew.
    fn renew(&mut self, concerns: impl Fn(&Service) -> bool, change: impl FnOnce(&mut Self)) {
        let concerned: Vec<Ranked> =
            self.services.values().filter(|(_, service)| concerns(service)).cloned().collect();
        for (_, service) in &concerned {
            self.remove(&service.key);
        }
        change(self);
        for (rank, service) in concerned {
            self.put(rank, service);
        }
    }

    /// Whether a service of the cluster names an address as an external IP or a load balancer's:
    /// a node that has it may lose it to another.
    #[must_use]
    pub fn is_named(&self, address: IpAddr) -> bool {
        self.named.contains_key(&address)
    }

    /// Number of services that may have become others.
    #[must_use]
    pub fn dirty_len(&self) -> usize {
        self.dirty.len()
    }

    /// Services that may have become others since the last call.
    pub fn take_dirty(&mut self) -> BTreeSet<ServiceKey> {
        std::mem::take(&mut self.dirty)
    }

    /// A service in one family; `None` where it has no frontend.
    #[must_use]
    pub fn desired(&self, key: &ServiceKey, family: Family) -> Option<DesiredService> {
        let (_, service) = self.services.get(key)?;
        let frontends = expand_frontends(service, family, &self.node);
        let foreign = foreign::expand(service, family, &self.node);
        if frontends.is_empty() && foreign.is_empty() {
            return None;
        }
        let mut entry = build_backends(service, family, &self.node);
        let is_winner =
            |frontend: &FrontendKey| self.winner(frontend).is_none_or(|winner| winner == key);
        for (frontend, local_address) in frontends {
            if is_winner(&frontend) {
                entry.frontends.insert(frontend, local_address);
            } else if !self.winner(&frontend).is_some_and(|winner| winner.is_same_port(key)) {
                entry.conflicts.insert(frontend);
            }
        }
        entry.foreign = foreign.into_iter().filter(|(frontend, _)| is_winner(frontend)).collect();
        entry.note_unlisted(&self.node);
        entry.localhost = expand_localhost(service, family).filter(is_winner).collect();
        (!entry.is_idle()).then_some(entry)
    }

    /// Who gets a frontend.
    fn winner(&self, frontend: &FrontendKey) -> Option<&ServiceKey> {
        self.claims.get(frontend)?.first().map(|(_, winner)| &winner.key)
    }

    /// The addresses of frontends of a service that no node has.
    pub fn vips<'a>(&'a self, service: &'a DesiredService) -> impl Iterator<Item = Address> + 'a {
        let all = service.frontends.keys().chain(&service.conflicts);
        all.map(|frontend| frontend.address).filter(|address| self.node.is_vip((*address).into()))
    }

    /// What is known of the other nodes, by address.
    #[must_use]
    pub const fn peers(&self) -> &BTreeMap<Address, Peer> {
        &self.peers
    }

    /// Frontends that several services claim.
    #[must_use]
    pub fn conflicts(&self) -> Vec<Conflict> {
        let mut conflicts = Vec::new();
        for frontend in &self.contested {
            let mut claims = self.claims.get(frontend).into_iter().flatten();
            let Some((_, winner)) = claims.next() else {
                continue;
            };
            let losers = claims.filter(|(_, loser)| !loser.key.is_same_port(&winner.key));
            conflicts.extend(losers.map(|(_, loser)| Conflict {
                frontend: *frontend,
                winner: winner.key.clone(),
                loser: loser.key.clone(),
            }));
        }
        conflicts
    }

    /// Everything at once.
    #[must_use]
    pub fn all(&self) -> Desired {
        let mut desired = Desired {
            conflicts: self.conflicts(),
            peers: self.peers.clone(),
            ..Desired::default()
        };
        for (key, service) in self.iter() {
            desired.vips.extend(self.vips(&service));
            desired.services.insert(key, service);
        }
        desired
    }

    /// Every service in each family where it has a frontend.
    pub fn iter(&self) -> impl Iterator<Item = ((ServiceKey, Family), DesiredService)> {
        let keys = self.services.keys();
        keys.flat_map(|key| [Family::V4, Family::V6].map(|family| (key, family)))
            .filter_map(|(key, family)| Some(((key.clone(), family), self.desired(key, family)?)))
    }

    fn frontends(&self, service: &Service) -> Vec<FrontendKey> {
        [Family::V4, Family::V6]
            .into_iter()
            .flat_map(|family| {
                let mut exact: Vec<FrontendKey> =
                    expand_frontends(service, family, &self.node).into_keys().collect();
                exact.extend(foreign::expand(service, family, &self.node).into_keys());
                // Without one of the node's addresses there is none of the node itself.
                let localhost = expand_localhost(service, family).filter(|_| !exact.is_empty());
                let localhost: BTreeSet<FrontendKey> = localhost.collect();
                exact.into_iter().chain(localhost)
            })
            .collect()
    }

    /// Whose `localhost` it is was told for the node's addresses, where it matters more; and
    /// another node tells it of its own.
    fn contest(&mut self, frontend: FrontendKey) {
        if !frontend.is_localhost() && !self.node.is_peer(frontend.address.into()) {
            self.contested.insert(frontend);
        }
    }
}

/// Who gets a frontend that several services claim: the least.
const fn turn(rank: Rank, key: &ServiceKey) -> (Rank, u8, &ServiceKey) {
    (rank, key.source.precedence(), key)
}

/// Who is concerned where `key` begins or ceases to claim: who has the frontend, and the other ways to
/// the ports of both, which are in conflict with others alone.
fn concerned<'a>(
    claims: &'a Claims,
    key: &'a ServiceKey,
) -> impl Iterator<Item = &'a ServiceKey> + 'a {
    let keys = claims.iter().map(|(_, claimant)| &claimant.key);
    let first = keys.clone().next();
    keys.filter(move |it| {
        it.is_same_port(key) || first.is_some_and(|first| *it == first || it.is_same_port(first))
    })
}

/// Addresses that a service of the cluster names for itself, once for each frontend.
fn named(service: &Service) -> impl Iterator<Item = IpAddr> {
    let is_named = matches!(service.key.source, Source::ExternalIp | Source::LoadBalancer);
    service.frontends.iter().filter(move |_| is_named).filter_map(|frontend| frontend.address)
}

#[cfg(test)]
mod tests;
