//! Services expanded over this node's addresses: what the maps should hold.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use redirector_common::{Address, Backend, Family, FrontendKey, Origin, Peer, Port};

use super::{
    Algorithm, BackendAddress, BackendSpec, BackendState, Forwarding, Service, ServiceKey, Source,
    TrafficPolicy,
    maglev::{self, Density},
};

pub(super) mod foreign;
mod node;

pub use node::{NodeAddresses, Side, is_link_local};

/// What the maps should hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// One entry for each service and address family in which it has a frontend.
    pub services: BTreeMap<(ServiceKey, Family), DesiredService>,
    /// Frontends that more than one service claims, in the order of the services. Those on other
    /// nodes' addresses are left to those nodes.
    pub conflicts: Vec<Conflict>,
    /// Addresses of frontends that are not this host's: packets to them have no business here but
    /// with services.
    pub vips: BTreeSet<Address>,
    /// What is known of the other nodes, by address.
    pub peers: BTreeMap<Address, Peer>,
}

/// A frontend that two services claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// What both claim.
    pub frontend: FrontendKey,
    /// The service that has it: the earlier one.
    pub winner: ServiceKey,
    /// The service that does not get it.
    pub loser: ServiceKey,
}

/// A service in one address family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredService {
    /// Exact frontends, each with the address that a local backend is delivered at.
    pub frontends: BTreeMap<FrontendKey, Address>,
    /// The same on other nodes' addresses: what these nodes hand over.
    pub foreign: BTreeMap<FrontendKey, Address>,
    /// Addresses of this host that other nodes do not know as its: what comes to them cannot be
    /// handed over. Only with direct server return.
    pub unlisted: BTreeSet<Address>,
    /// `localhost` frontends, for clients on the node itself: of frontends without an address.
    pub localhost: BTreeSet<FrontendKey>,
    /// Frontends that an earlier service has.
    pub conflicts: BTreeSet<FrontendKey>,
    /// Backends of this family, in the order of the service.
    pub backends: Vec<DesiredBackend>,
    /// Which backends this node may choose.
    pub policy: TrafficPolicy,
    /// How packets reach a backend elsewhere.
    pub forwarding: Forwarding,
    /// How a backend is chosen for a new flow.
    pub algorithm: Algorithm,
    /// Session affinity by client address, in seconds.
    pub affinity_seconds: Option<u32>,
    /// With whom the service shares what it remembers of clients, if not with nobody.
    pub affinity_group: Option<String>,
    /// Networks of this family that clients may come from; `None`: from everywhere. Without a
    /// network, where the service names only ones of the other family, nobody is admitted.
    pub source_ranges: Option<BTreeSet<IpNet>>,
    /// Whether connections may be handed to sockets of this host as they are.
    pub steers: bool,
    /// No backend of this node takes new flows while others elsewhere would: packets are dropped
    /// without an answer, so that a load balancer in front goes on to the next node.
    pub silent: bool,
}

impl DesiredService {
    /// The Maglev table over the backends that take new flows of clients from `origin`: indices
    /// into [`backends`](Self::backends). Empty without such a backend.
    #[must_use]
    pub fn table(&self, origin: Origin, density: Density) -> Vec<u16> {
        let shares: Vec<(u64, u16)> =
            self.backends.iter().map(|it| (it.identity, it.share(origin))).collect();
        maglev::build(&shares, self.table_size(origin, density))
    }

    /// Number of entries of [`table`](Self::table).
    #[must_use]
    pub fn table_size(&self, origin: Origin, density: Density) -> u32 {
        let shares: Vec<u16> = self.backends.iter().map(|it| it.share(origin)).collect();
        maglev::table_size(&shares, density)
    }

    /// Whether it has no frontend and would have none: other ways to the same port have them all.
    pub(super) fn is_idle(&self) -> bool {
        let Self { frontends, foreign, localhost, conflicts, .. } = self;
        frontends.is_empty() && foreign.is_empty() && localhost.is_empty() && conflicts.is_empty()
    }

    /// Finds the addresses that other nodes do not know.
    pub(super) fn note_unlisted(&mut self, node: &NodeAddresses) {
        if self.forwarding == Forwarding::Dsr {
            self.unlisted = foreign::unlisted(self.frontends.keys(), node);
        }
    }

    /// Whether clients on the node and those outside have the same backends to choose from.
    #[must_use]
    pub fn is_one_table(&self) -> bool {
        self.backends.iter().all(|it| it.takes_new_flows == it.takes_node_flows)
    }
}

/// A backend in one address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DesiredBackend {
    /// What stands in the `BACKENDS` map.
    pub backend: Backend,
    /// Where, as the service says it.
    pub address: BackendAddress,
    /// Relative share of new flows; 0 takes none.
    pub weight: u16,
    /// Whether it is there to stay.
    pub state: BackendState,
    /// Whether topology leads new flows of policy Cluster to others.
    pub avoided: bool,
    /// Whether new flows of clients outside may go to it here and now.
    pub takes_new_flows: bool,
    /// The same of clients on this node, to whom the policy Local does not apply.
    pub takes_node_flows: bool,
    /// The same of what peers hand over: to backends on this host, with direct server return alone.
    pub takes_peer_flows: bool,
    /// Identity in Maglev tables, the same on every node.
    pub identity: u64,
}

impl DesiredBackend {
    const fn share(&self, origin: Origin) -> u16 {
        if self.takes_from(origin) { self.weight } else { 0 }
    }

    /// Whether new flows of clients from `origin` may go to it here and now.
    #[must_use]
    pub const fn takes_from(&self, origin: Origin) -> bool {
        match origin {
            Origin::Outside => self.takes_new_flows,
            Origin::Node => self.takes_node_flows,
            Origin::Peer => self.takes_peer_flows,
        }
    }
}

/// Expands `services` over the addresses of `node`.
///
/// A frontend that several services claim goes to the one that stands first in `services`. Keys
/// must be unique; of services with the same key only the first counts.
#[must_use]
pub fn build(services: &[Service], node: &NodeAddresses) -> Desired {
    let mut desired = Desired { peers: node.peers(), ..Desired::default() };
    let mut claimed = BTreeMap::new();
    let mut claimed_localhost = BTreeSet::new();
    for service in services {
        for family in [Family::V4, Family::V6] {
            let frontends = expand_frontends(service, family, node);
            let foreign = foreign::expand(service, family, node);
            let key = (service.key.clone(), family);
            if frontends.is_empty() && foreign.is_empty() || desired.services.contains_key(&key) {
                continue;
            }
            let mut entry = build_backends(service, family, node);
            for (frontend, local_address) in frontends {
                if node.is_vip(frontend.address.into()) {
                    desired.vips.insert(frontend.address);
                }
                match claimed.entry(frontend) {
                    Entry::Vacant(vacant) => {
                        vacant.insert(&service.key);
                        entry.frontends.insert(frontend, local_address);
                    }
                    Entry::Occupied(winner) if winner.get().is_same_port(&service.key) => {}
                    Entry::Occupied(winner) => {
                        entry.conflicts.insert(frontend);
                        if !node.is_peer(frontend.address.into()) {
                            desired.conflicts.push(Conflict {
                                frontend,
                                winner: (*winner.get()).clone(),
                                loser: service.key.clone(),
                            });
                        }
                    }
                }
            }
            for (frontend, local_address) in foreign {
                if let Entry::Vacant(vacant) = claimed.entry(frontend) {
                    vacant.insert(&service.key);
                    entry.foreign.insert(frontend, local_address);
                }
            }
            entry.note_unlisted(node);
            // Whose it is was told for the node's addresses, where it matters more.
            let localhost = expand_localhost(service, family);
            entry.localhost = localhost.filter(|key| claimed_localhost.insert(*key)).collect();
            if !entry.is_idle() {
                desired.services.insert(key, entry);
            }
        }
    }
    desired
}

/// `localhost` for frontends without an address, where the networks that limit them have it.
pub(super) fn expand_localhost(
    service: &Service,
    family: Family,
) -> impl Iterator<Item = FrontendKey> + '_ {
    let loopback = IpAddr::from(Address::loopback(family));
    let networks = service.node_networks.as_deref();
    let is_meant =
        networks.is_none_or(|networks| networks.iter().any(|network| network.contains(&loopback)));
    service
        .frontends
        .iter()
        .filter(move |spec| is_meant && service.is_for(family) && spec.address.is_none())
        .map(move |spec| FrontendKey::localhost(family, Port::new(spec.port), spec.protocol))
}

pub(super) fn expand_frontends(
    service: &Service,
    family: Family,
    node: &NodeAddresses,
) -> BTreeMap<FrontendKey, Address> {
    let mut frontends = BTreeMap::new();
    for spec in service.frontends.iter().filter(|_| service.is_for(family)) {
        let addresses: Vec<IpAddr> = match (spec.address, &service.node_networks) {
            (Some(address), _)
                if Family::of(address) == family && !foreign::is_others(service, address, node) =>
            {
                vec![address]
            }
            (Some(_), _) => Vec::new(),
            (None, None) => node.published(family).collect(),
            (None, Some(networks)) => node.published_in(family, networks).collect(),
        };
        for address in addresses {
            let key = FrontendKey::new(address.into(), Port::new(spec.port), spec.protocol);
            frontends.insert(key, node.local_address(address).into());
        }
    }
    frontends
}

/// The service with its backends, and no frontend yet.
pub(super) fn build_backends(
    service: &Service,
    family: Family,
    node: &NodeAddresses,
) -> DesiredService {
    let mut seen = BTreeSet::new();
    let mut backends: Vec<DesiredBackend> = service
        .backends
        .iter()
        .filter(|spec| seen.insert((spec.address, spec.port)))
        .filter_map(|spec| resolve_backend(spec, family, node))
        .collect();
    choose_takers(&mut backends, TrafficPolicy::Cluster, |backend| &mut backend.takes_node_flows);
    choose_takers(&mut backends, service.policy, |backend| &mut backend.takes_new_flows);
    if service.forwarding == Forwarding::Dsr {
        choose_takers(&mut backends, TrafficPolicy::Local, |backend| &mut backend.takes_peer_flows);
    }
    let silent = service.policy == TrafficPolicy::Local
        && !backends.iter().any(|backend| backend.takes_new_flows)
        && backends.iter().any(|backend| !backend.backend.is_local() && backend.weight > 0);
    DesiredService {
        frontends: BTreeMap::new(),
        foreign: BTreeMap::new(),
        unlisted: BTreeSet::new(),
        localhost: BTreeSet::new(),
        conflicts: BTreeSet::new(),
        backends,
        policy: service.policy,
        forwarding: service.forwarding,
        algorithm: service.algorithm,
        affinity_seconds: service.affinity_seconds,
        affinity_group: service.affinity_group.clone(),
        source_ranges: choose_ranges(&service.source_ranges, family),
        // Its rules would send packets that carry a socket elsewhere.
        steers: !(node.has_kube_proxy && is_kube_proxys(service.key.source)),
        silent,
    }
}

/// Whether kube-proxy, where it runs, has rules for such services.
const fn is_kube_proxys(source: Source) -> bool {
    match source {
        Source::NodePort | Source::ExternalIp | Source::LoadBalancer => true,
        Source::Publish | Source::Static | Source::Annotation => false,
    }
}

fn choose_ranges(ranges: &[IpNet], family: Family) -> Option<BTreeSet<IpNet>> {
    if ranges.is_empty() {
        return None;
    }
    let of_family = |range: &&IpNet| Family::of(range.addr()) == family;
    Some(ranges.iter().filter(of_family).map(IpNet::trunc).collect())
}

fn resolve_backend(
    spec: &BackendSpec,
    family: Family,
    node: &NodeAddresses,
) -> Option<DesiredBackend> {
    let port = Port::new(spec.port);
    let backend = match spec.address {
        BackendAddress::Local => Backend::local(port),
        BackendAddress::At(address) if Family::of(address) != family => return None,
        BackendAddress::At(address) if node.is_own(address) => {
            Backend::local_at(address.into(), port)
        }
        // Answers of what is behind our own interfaces do not pass TC egress after routing.
        BackendAddress::At(address) => match node.side(address) {
            Some(Side::Inside) => Backend::routed(address.into(), port),
            None if spec.here => Backend::routed(address.into(), port),
            None | Some(Side::Outside) => Backend::remote(address.into(), port),
        },
    };
    Some(DesiredBackend {
        backend,
        address: spec.address,
        weight: spec.weight,
        state: spec.state,
        avoided: spec.avoided,
        takes_new_flows: false,
        takes_node_flows: false,
        takes_peer_flows: false,
        identity: maglev::identity(spec.address, spec.port),
    })
}

/// Marks the backends that new flows may go to: active ones that the policy allows; where there
/// is none, terminating ones, which are better than no answer (Kubernetes KEP-1669).
fn choose_takers(
    backends: &mut [DesiredBackend],
    policy: TrafficPolicy,
    takes: impl Fn(&mut DesiredBackend) -> &mut bool,
) {
    for state in [BackendState::Active, BackendState::Terminating] {
        let mut found = false;
        for backend in &mut *backends {
            let allowed = match policy {
                TrafficPolicy::Cluster => !backend.avoided,
                TrafficPolicy::Local => backend.backend.is_local(),
            };
            let taken = allowed && backend.state == state && backend.weight > 0;
            *takes(backend) = taken;
            found |= taken;
        }
        if found {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
