//! What nodes know of each other, for services whose backends answer clients themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use redirector_common::{Address, Family, FrontendKey, Port};

use super::super::{Forwarding, Service};
use super::{NodeAddresses, resolve_backend};

/// Frontends of a service on other nodes' addresses, each with the address that a local backend is
/// delivered at: where those nodes may hand packets over, because a backend is here.
pub(in crate::model) fn expand(
    service: &Service,
    family: Family,
    node: &NodeAddresses,
) -> BTreeMap<FrontendKey, Address> {
    let mut frontends = BTreeMap::new();
    if !service.is_for(family) || !has_backend_here(service, family, node) {
        return frontends;
    }
    let peers: Vec<IpAddr> =
        node.others().filter(|address| Family::of(*address) == family).collect();
    for spec in &service.frontends {
        let addresses = peers.iter().filter(|peer| spec.address.is_none_or(|it| it == **peer));
        for address in addresses {
            let key = FrontendKey::new((*address).into(), Port::new(spec.port), spec.protocol);
            frontends.insert(key, node.local_address(*address).into());
        }
    }
    frontends
}

/// Whether a frontend that a service names is left to the other node whose address it has.
pub(super) fn is_others(service: &Service, address: IpAddr, node: &NodeAddresses) -> bool {
    service.forwarding == Forwarding::Dsr && node.is_peer(address)
}

/// Addresses of a service's frontends that are this host's, and that other nodes do not know as
/// such: they would not take what comes to them.
pub(super) fn unlisted<'a>(
    frontends: impl Iterator<Item = &'a FrontendKey>,
    node: &NodeAddresses,
) -> BTreeSet<Address> {
    frontends
        .map(|key| key.address)
        .filter(|address| {
            let address = IpAddr::from(*address);
            node.is_own(address) && !node.nodes.contains_key(&address)
        })
        .collect()
}

fn has_backend_here(service: &Service, family: Family, node: &NodeAddresses) -> bool {
    service.forwarding == Forwarding::Dsr
        && service
            .backends
            .iter()
            .filter_map(|spec| resolve_backend(spec, family, node))
            .any(|backend| backend.backend.is_local())
}
