//! The endpoints of a port of a Service, and which of them this node may choose.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::service::ServicePort;
use super::slice::{Endpoint, SliceRecord};
use crate::model::{BackendAddress, BackendSpec, BackendState};

/// Where this node is.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// Its name.
    pub node: &'a str,
    /// Its zone.
    pub zone: Option<&'a str>,
}

/// Why topology leads clients of this node to some endpoints and not to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Topology {
    SameNode,
    SameZone,
    None,
}

/// What answers for `port`, in the order of addresses.
#[must_use]
pub fn backends<'a>(
    port: &ServicePort,
    slices: impl Iterator<Item = &'a SliceRecord>,
    place: Place<'_>,
) -> Vec<BackendSpec> {
    let endpoints = collect(port, slices);
    let topology = [true, false].map(|is_v4| {
        let of_family = endpoints.iter().filter(|((address, _), _)| address.is_ipv4() == is_v4);
        topology(of_family.map(|(_, endpoint)| *endpoint), place)
    });
    endpoints
        .iter()
        .filter_map(|((address, port), endpoint)| {
            let [v4, v6] = topology;
            let topology = if address.is_ipv4() { v4 } else { v6 };
            backend(*address, *port, endpoint, topology, place)
        })
        .collect()
}

/// Each address and port once: of one that several slices have, the one that does not end counts;
/// of equals the one that is better off, since an endpoint may be on its way from one slice to
/// another, and the order of slices says nothing.
fn collect<'a>(
    port: &ServicePort,
    slices: impl Iterator<Item = &'a SliceRecord>,
) -> BTreeMap<(IpAddr, u16), &'a Endpoint> {
    let mut endpoints: BTreeMap<(IpAddr, u16), &Endpoint> = BTreeMap::new();
    for slice in slices {
        let ports = slice.ports.iter();
        let ports =
            ports.filter(|found| found.name == port.name && found.protocol == port.protocol);
        for found in ports {
            for endpoint in &slice.endpoints {
                match endpoints.entry((endpoint.address, found.port)) {
                    Entry::Vacant(vacant) => {
                        vacant.insert(endpoint);
                    }
                    Entry::Occupied(mut other) => {
                        let worth = |it: &Endpoint| (!it.terminating, it.ready, it.serving);
                        if worth(endpoint) > worth(other.get()) {
                            other.insert(endpoint);
                        }
                    }
                }
            }
        }
    }
    endpoints
}

/// Hints count only where every ready endpoint has them and one means this node.
fn topology<'a>(endpoints: impl Iterator<Item = &'a Endpoint>, place: Place<'_>) -> Topology {
    let ready: Vec<&Endpoint> = endpoints.filter(|endpoint| endpoint.ready).collect();
    let all_hint = |hints: fn(&Endpoint) -> &[Box<str>]| {
        ready.iter().all(|endpoint| !hints(endpoint).is_empty())
    };
    if all_hint(Endpoint::for_nodes)
        && ready.iter().any(|endpoint| names(endpoint.for_nodes(), Some(place.node)))
    {
        return Topology::SameNode;
    }
    if all_hint(Endpoint::for_zones)
        && ready.iter().any(|endpoint| names(endpoint.for_zones(), place.zone))
    {
        return Topology::SameZone;
    }
    Topology::None
}

fn names(hints: &[Box<str>], place: Option<&str>) -> bool {
    place.is_some_and(|place| hints.iter().any(|hint| **hint == *place))
}

fn backend(
    address: IpAddr,
    port: u16,
    endpoint: &Endpoint,
    topology: Topology,
    place: Place<'_>,
) -> Option<BackendSpec> {
    let Endpoint { ready, serving, terminating, .. } = *endpoint;
    // It answers nobody: also those that it has are better off elsewhere.
    if !ready && !serving {
        return None;
    }
    let avoided = match topology {
        Topology::SameNode => !names(endpoint.for_nodes(), Some(place.node)),
        Topology::SameZone => !names(endpoint.for_zones(), place.zone),
        Topology::None => false,
    };
    Some(BackendSpec {
        // Ready or not, one that is about to end and one that is not differ in nothing but this.
        state: if ready || !terminating { BackendState::Active } else { BackendState::Terminating },
        weight: u16::from(ready || terminating),
        here: is_here(endpoint, place),
        avoided: ready && avoided,
        ..BackendSpec::new(BackendAddress::At(address), port)
    })
}

/// Whether an endpoint runs on this node.
#[must_use]
pub fn is_here(endpoint: &Endpoint, place: Place<'_>) -> bool {
    endpoint.node.as_deref() == Some(place.node)
}

/// How many ready endpoints of a Service run on this node: what a load balancer asks for. A pod
/// counts once, whatever ports and families it has.
#[must_use]
pub fn count_local_ready<'a>(
    slices: impl Iterator<Item = &'a SliceRecord>,
    place: Place<'_>,
) -> usize {
    let mut addresses: [BTreeSet<IpAddr>; 2] = Default::default();
    let [v4, v6] = &mut addresses;
    for slice in slices.filter(|slice| !slice.ports.is_empty()) {
        for endpoint in &slice.endpoints {
            if endpoint.ready && is_here(endpoint, place) {
                if endpoint.address.is_ipv4() { &mut *v4 } else { &mut *v6 }
                    .insert(endpoint.address);
            }
        }
    }
    v4.len().max(v6.len())
}
