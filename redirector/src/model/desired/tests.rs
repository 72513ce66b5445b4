mod backends;
mod foreign;
mod frontends;
mod properties;

use redirector_common::Protocol;

use super::super::{FrontendSpec, Source};
use super::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A node with an address of each family on its one chosen interface, a second IPv4 address, and
/// loopback addresses.
fn node() -> NodeAddresses {
    NodeAddresses {
        chosen: ["192.0.2.10", "fe80::1", "2001:db8::10", "192.0.2.11"].map(ip).to_vec(),
        host: ["192.0.2.10", "fe80::1", "2001:db8::10", "192.0.2.11", "127.0.0.1", "10.0.0.1"]
            .map(ip)
            .into(),
        has_kube_proxy: false,
        sides: [("10.1.0.0/16", Side::Inside), ("10.1.9.0/24", Side::Outside)]
            .map(|(network, side)| (network.parse().expect("a network"), side))
            .into(),
        nodes: BTreeMap::new(),
    }
}

fn key(name: &str) -> ServiceKey {
    ServiceKey { source: Source::Static, namespace: None, name: name.into() }
}

fn mk_service(name: &str, frontends: &[(Option<&str>, u16)], backends: &[BackendSpec]) -> Service {
    Service {
        frontends: frontends
            .iter()
            .map(|(address, port)| FrontendSpec {
                address: address.map(ip),
                port: *port,
                protocol: Protocol::Tcp,
            })
            .collect(),
        backends: backends.to_vec(),
        ..Service::new(key(name))
    }
}

fn backend(address: &str, port: u16) -> BackendSpec {
    let address = match address {
        "local" => BackendAddress::Local,
        address => BackendAddress::At(ip(address)),
    };
    BackendSpec::new(address, port)
}

fn terminating(address: &str, port: u16) -> BackendSpec {
    BackendSpec { state: BackendState::Terminating, ..backend(address, port) }
}

fn weighted(address: &str, port: u16, weight: u16) -> BackendSpec {
    BackendSpec { weight, ..backend(address, port) }
}

/// `address:port -> local address` of every frontend.
fn frontends(service: &DesiredService) -> Vec<String> {
    let mut rows: Vec<String> = service
        .frontends
        .iter()
        .map(|(key, local)| format!("{}:{} at {local}", key.address, key.port))
        .collect();
    rows.sort();
    rows
}

/// Addresses of the backends that take new flows.
fn takers(service: &DesiredService) -> Vec<BackendAddress> {
    service
        .backends
        .iter()
        .filter(|backend| backend.takes_new_flows)
        .map(|backend| backend.address)
        .collect()
}

fn only(service: Service, family: Family) -> DesiredService {
    let key = (service.key.clone(), family);
    build(&[service], &node()).services.remove(&key).unwrap()
}
