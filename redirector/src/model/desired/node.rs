//! This node, as services are expanded over it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;
use redirector_common::{Address, Family, Peer};

/// The addresses of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeAddresses {
    /// Addresses of the chosen interfaces, in the order of the interfaces. Frontends without an
    /// address stand for all of them; the first of each family is that family's primary.
    pub chosen: Vec<IpAddr>,
    /// Every address of this host.
    pub host: BTreeSet<IpAddr>,
    /// Whether kube-proxy's rules are on this host, too.
    pub has_kube_proxy: bool,
    /// Networks that this host reaches without another router.
    pub sides: BTreeMap<IpNet, Side>,
    /// Addresses of all nodes, this one's among them, and what is known of each.
    pub nodes: BTreeMap<IpAddr, Peer>,
}

/// Where a network is, seen from this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Behind an interface that clients come by.
    Outside,
    /// On this host: behind a link to another network namespace.
    Inside,
}

impl NodeAddresses {
    /// The addresses that a frontend without an address stands for. Link-local IPv6 ones are left
    /// out: they mean nothing without an interface, and clients beyond the link cannot reach them.
    pub fn published(&self, family: Family) -> impl Iterator<Item = IpAddr> {
        self.chosen
            .iter()
            .copied()
            .filter(move |address| Family::of(*address) == family && !is_link_local(*address))
    }

    /// The addresses of this host in `networks` that a frontend without an address stands for.
    /// Loopback addresses are left out: packets from outside never carry them.
    pub fn published_in(&self, family: Family, networks: &[IpNet]) -> impl Iterator<Item = IpAddr> {
        let chosen = self.chosen.iter().filter(|address| !self.host.contains(address));
        self.host.iter().chain(chosen).copied().filter(move |address| {
            Family::of(*address) == family
                && !is_link_local(*address)
                && !address.is_loopback()
                && networks.iter().any(|network| network.contains(address))
        })
    }

    /// Whether packets to `address` end in this host's own stack.
    #[must_use]
    pub fn is_own(&self, address: IpAddr) -> bool {
        self.host.contains(&address) || self.chosen.contains(&address)
    }

    /// Where `address` is, as far as routes tell: the most specific one does.
    #[must_use]
    pub fn side(&self, address: IpAddr) -> Option<Side> {
        let around = self.sides.iter().filter(|(network, _)| network.contains(&address));
        around.max_by_key(|(network, _)| network.prefix_len()).map(|(_, side)| *side)
    }

    /// Whether nothing but the sides of networks tells this from `other`.
    #[must_use]
    pub fn has_other_sides_alone(&self, other: &Self) -> bool {
        let Self { chosen, host, has_kube_proxy, sides: _, nodes } = self;
        (chosen, host, has_kube_proxy, nodes)
            == (&other.chosen, &other.host, &other.has_kube_proxy, &other.nodes)
    }

    /// Addresses of the other nodes.
    pub fn others(&self) -> impl Iterator<Item = IpAddr> {
        self.nodes.keys().copied().filter(|address| !self.is_own(*address))
    }

    /// What is known of the other nodes, by address.
    #[must_use]
    pub fn peers(&self) -> BTreeMap<Address, Peer> {
        let others = self.nodes.iter().filter(|(address, _)| !self.is_own(**address));
        others.map(|(address, peer)| (Address::from(*address), *peer)).collect()
    }

    /// Whether `address` is another node's.
    #[must_use]
    pub fn is_peer(&self, address: IpAddr) -> bool {
        self.nodes.contains_key(&address) && !self.is_own(address)
    }

    /// Whether only frontends have `address`: no node does.
    #[must_use]
    pub fn is_vip(&self, address: IpAddr) -> bool {
        !self.is_own(address) && !self.nodes.contains_key(&address)
    }

    /// Where a local backend is delivered for clients that hit `frontend`.
    pub(super) fn local_address(&self, frontend: IpAddr) -> IpAddr {
        if self.is_own(frontend) {
            return frontend;
        }
        self.published(Family::of(frontend)).next().unwrap_or(frontend)
    }
}

/// Whether `address` means nothing without an interface.
#[must_use]
pub fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(v6) => Ipv6Addr::is_unicast_link_local(&v6),
    }
}
