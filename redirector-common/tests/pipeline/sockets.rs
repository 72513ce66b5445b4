//! What clients on the node itself get instead of what they ask for.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use redirector_common::packet::select::Tables;
use redirector_common::socket::{Client, Directory, exchange};
use redirector_common::{
    Address, Affinity, AffinityKey, Backend, BackendId, Endpoint, Family, Frontend, FrontendKey,
    Origin, Port, PortFlags, Protocol, Reason, Service, ServiceId, Taker, TakerKey,
};

const NODE: u64 = 7;
const POD: u64 = 8;

/// A node with services, each with one frontend port and a table of its own.
#[derive(Default)]
struct Node {
    ports: BTreeSet<(u8, u16)>,
    frontends: BTreeMap<FrontendKey, Frontend>,
    services: BTreeMap<ServiceId, Service>,
    table: Vec<BackendId>,
    backends: BTreeMap<BackendId, Backend>,
    affinities: RefCell<BTreeMap<AffinityKey, Affinity>>,
}

impl Node {
    /// A service at `frontends` with `external` backends for packets and `internal` ones for
    /// clients on the node.
    fn serve(&mut self, frontends: &[FrontendKey], external: &[Backend], internal: &[Backend]) {
        let id = u32::try_from(self.services.len()).unwrap() + 1;
        let (table_offset, table_size) = self.add_table(external);
        let (internal_offset, internal_size) = self.add_table(internal);
        self.services.insert(
            id,
            Service {
                table_offset,
                table_size,
                internal_offset,
                internal_size,
                ..Service::default()
            },
        );
        for key in frontends {
            let local_address = match (key.is_localhost(), key.address.family()) {
                (true, family) => Address::loopback(family),
                (false, Family::V4) => address("192.0.2.1"),
                (false, Family::V6) => address("2001:db8::1"),
            };
            let value = Frontend::new(id, local_address);
            self.frontends.insert(*key, value);
            self.ports.insert((key.protocol().number(), key.port.number()));
        }
    }

    fn add_table(&mut self, backends: &[Backend]) -> (u32, u32) {
        let offset = self.table.len();
        for backend in backends {
            let id = u32::try_from(self.backends.len()).unwrap() + 1;
            self.backends.insert(id, *backend);
            self.table.push(id);
        }
        (offset as u32, backends.len() as u32)
    }

    fn ask(&self, netns_cookie: u64, protocol: Protocol, asked: &str) -> (Reason, SocketAddr) {
        self.ask_as(&Client { protocol, cookie: 1, netns_cookie }, asked)
    }

    fn ask_as(&self, client: &Client, asked: &str) -> (Reason, SocketAddr) {
        let asked = endpoint(asked);
        let mut to = asked;
        let reason = exchange(self, client, &asked, &mut to);
        (reason, SocketAddr::new(to.address.into(), to.port.number()))
    }
}

impl Tables for Node {
    fn now(&self) -> u64 {
        1_000_000_000
    }

    fn salt(&self) -> u32 {
        0
    }

    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        self.affinities.borrow().get(key).copied()
    }

    fn set_affinity(&self, key: &AffinityKey, affinity: &Affinity) {
        self.affinities.borrow_mut().insert(*key, *affinity);
    }

    fn taker(&self, _: &TakerKey) -> Taker {
        Taker::NONE.and(Origin::Node)
    }

    fn table_entry(&self, index: u32) -> Option<BackendId> {
        self.table.get(index as usize).copied()
    }
}

impl Directory for Node {
    fn port_flags(&self, protocol: Protocol, port: Port) -> PortFlags {
        match self.ports.contains(&(protocol.number(), port.number())) {
            true => PortFlags::FRONTEND,
            false => PortFlags::default(),
        }
    }

    fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        self.frontends.get(key).copied()
    }

    fn service(&self, id: ServiceId) -> Option<Service> {
        self.services.get(&id).copied()
    }

    fn backend(&self, id: BackendId) -> Option<Backend> {
        self.backends.get(&id).copied()
    }

    fn netns_cookie(&self) -> u64 {
        NODE
    }
}

fn address(text: &str) -> Address {
    text.parse::<std::net::IpAddr>().unwrap().into()
}

fn endpoint(text: &str) -> Endpoint {
    let asked: SocketAddr = text.parse().unwrap();
    Endpoint::new(asked.ip().into(), Port::new(asked.port()))
}

fn frontend(text: &str) -> FrontendKey {
    let Endpoint { address, port, .. } = endpoint(text);
    FrontendKey::new(address, port, Protocol::Tcp)
}

fn local(port: u16) -> Backend {
    Backend::local(Port::new(port))
}

fn remote(text: &str) -> Backend {
    let Endpoint { address, port, .. } = endpoint(text);
    Backend::remote(address, port)
}

/// Published ports with a local program behind 80, one elsewhere behind 81, nobody behind 82.
fn node() -> Node {
    let mut node = Node::default();
    let elsewhere = [remote("10.0.0.5:8080")];
    for (family, own, remote) in [
        (Family::V4, "192.0.2.1", remote("10.0.0.5:8080")),
        (Family::V6, "[2001:db8::1]", remote("[2001:db8:5::5]:8080")),
    ] {
        for (port, backends) in [(80, &[local(8080)] as &[_]), (81, &[remote]), (82, &[])] {
            let keys = [
                frontend(&format!("{own}:{port}")),
                FrontendKey::localhost(family, Port::new(port), Protocol::Tcp),
            ];
            node.serve(&keys, backends, backends);
        }
    }
    // Traffic policy Local: packets find nobody here.
    node.serve(&[frontend("192.0.2.1:83")], &[], &elsewhere);
    // A program that listens on the node's loopback device alone.
    node.serve(
        &[frontend("192.0.2.1:84")],
        &[],
        &[Backend::local_at(address("127.0.0.1"), Port::new(9000))],
    );
    // Another node's address, which that node hands packets over from.
    node.serve(&[frontend("192.0.2.2:80")], &[local(8080)], &[local(8080)]);
    node.frontends.entry(frontend("192.0.2.2:80")).and_modify(|frontend| {
        *frontend = Frontend::foreign(frontend.service, frontend.local_address);
    });
    // An address that is not every node address.
    node.serve(&[frontend("127.0.0.53:53")], &[], &[local(5353)]);
    node
}

#[test]
fn what_is_asked_for_is_exchanged() {
    use Reason::{ClientLocal, ClientRefused, ClientRemote, NotOurs};
    let node = node();
    for (description, netns, asked, reason, to) in [
        ("a local program", NODE, "192.0.2.1:80", ClientLocal, "192.0.2.1:8080"),
        ("by localhost", NODE, "127.0.0.1:80", ClientLocal, "127.0.0.1:8080"),
        ("by another loopback address", NODE, "127.9.9.9:80", ClientLocal, "127.0.0.1:8080"),
        ("by no address", NODE, "0.0.0.0:80", ClientLocal, "127.0.0.1:8080"),
        ("IPv6", NODE, "[2001:db8::1]:80", ClientLocal, "[2001:db8::1]:8080"),
        ("IPv6 by localhost", NODE, "[::1]:80", ClientLocal, "[::1]:8080"),
        ("IPv6 by no address", NODE, "[::]:80", ClientLocal, "[::1]:8080"),
        ("elsewhere", NODE, "192.0.2.1:81", ClientRemote, "10.0.0.5:8080"),
        ("elsewhere by localhost", NODE, "127.0.0.1:81", ClientRemote, "10.0.0.5:8080"),
        ("elsewhere, IPv6", NODE, "[::1]:81", ClientRemote, "[2001:db8:5::5]:8080"),
        ("another node's address", NODE, "192.0.2.2:80", NotOurs, "192.0.2.2:80"),
        ("nobody", NODE, "192.0.2.1:82", ClientRefused, "192.0.2.1:82"),
        ("nobody, by localhost", NODE, "127.0.0.1:82", ClientRefused, "127.0.0.1:82"),
        ("policy Local does not count", NODE, "192.0.2.1:83", ClientRemote, "10.0.0.5:8080"),
        ("no localhost of its own", NODE, "127.0.0.1:83", NotOurs, "127.0.0.1:83"),
        ("an exact loopback address", NODE, "127.0.0.53:53", ClientLocal, "192.0.2.1:5353"),
        ("another port", NODE, "192.0.2.1:85", NotOurs, "192.0.2.1:85"),
        ("another address", NODE, "192.0.2.2:80", NotOurs, "192.0.2.2:80"),
        ("a backend itself", NODE, "10.0.0.5:8080", NotOurs, "10.0.0.5:8080"),
        ("a pod", POD, "192.0.2.1:80", ClientLocal, "192.0.2.1:8080"),
        ("a pod, elsewhere", POD, "192.0.2.1:81", ClientRemote, "10.0.0.5:8080"),
        ("a pod, nobody", POD, "192.0.2.1:82", ClientRefused, "192.0.2.1:82"),
        ("a pod's own loopback", POD, "127.0.0.1:80", NotOurs, "127.0.0.1:80"),
        ("a pod's own loopback, IPv6", POD, "[::1]:80", NotOurs, "[::1]:80"),
        ("a pod's own, by no address", POD, "0.0.0.0:80", NotOurs, "0.0.0.0:80"),
        ("the node's loopback", NODE, "192.0.2.1:84", ClientLocal, "127.0.0.1:9000"),
        ("not for a pod", POD, "192.0.2.1:84", NotOurs, "192.0.2.1:84"),
    ] {
        let got = node.ask(netns, Protocol::Tcp, asked);
        assert_eq!(got, (reason, to.parse().unwrap()), "{description}");
    }
    // No UDP port is published.
    let (reason, _) = node.ask(NODE, Protocol::Udp, "192.0.2.1:80");
    assert_eq!(reason, NotOurs);
}

#[test]
fn a_table_without_its_backend_is_refused() {
    let mut broken = node();
    broken.backends.clear();
    assert_eq!(broken.ask(NODE, Protocol::Tcp, "192.0.2.1:80").0, Reason::Inconsistent);
}

/// Sockets spread over backends, and one socket stays with one.
#[test]
fn sockets_spread_and_stay() {
    let mut node = Node::default();
    let backends = ["10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1", "10.0.0.4:1"].map(remote);
    node.serve(&[frontend("192.0.2.1:80")], &[], &backends);
    let mut seen: BTreeMap<SocketAddr, u32> = BTreeMap::new();
    for cookie in 0..4000 {
        let client = Client { protocol: Protocol::Tcp, cookie, netns_cookie: NODE };
        let (reason, to) = node.ask_as(&client, "192.0.2.1:80");
        assert_eq!(reason, Reason::ClientRemote);
        assert_eq!(node.ask_as(&client, "192.0.2.1:80").1, to);
        *seen.entry(to).or_default() += 1;
    }
    // 1000 expected; six standard deviations are about 164.
    assert!(seen.len() == 4 && seen.values().all(|count| (836..1164).contains(count)), "{seen:?}");
}

/// All of a network namespace's programs are one client, as they share an address.
#[test]
fn a_namespace_stays_with_its_backend() {
    let mut node = Node::default();
    let backends = ["10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1", "10.0.0.4:1"].map(remote);
    node.serve(&[frontend("192.0.2.1:80")], &[], &backends);
    for service in node.services.values_mut() {
        service.affinity_group = 1;
        service.affinity_seconds = 60;
    }
    let seen: BTreeSet<(u64, SocketAddr)> = (0..400)
        .map(|cookie| {
            let netns_cookie = cookie % 20;
            let client = Client { protocol: Protocol::Tcp, cookie, netns_cookie };
            (netns_cookie, node.ask_as(&client, "192.0.2.1:80").1)
        })
        .collect();
    assert_eq!(seen.len(), 20, "{seen:?}");
    let backends: BTreeSet<SocketAddr> = seen.iter().map(|(_, backend)| *backend).collect();
    assert!(backends.len() > 1, "all twenty got {backends:?}");
}
