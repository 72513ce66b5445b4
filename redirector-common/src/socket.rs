//! Programs on this machine that connect or send to frontends. What they ask for is exchanged for
//! a backend before the kernel makes a packet of it, so none of their packets is rewritten; what
//! they are told of their peer is exchanged back.

use crate::packet::select::{Tables, choose, remember};
use crate::{
    Address, Backend, BackendId, Frontend, FrontendKey, Origin, Port, PortFlags, Protocol, Reason,
    Service, ServiceId, Tuple,
};

/// An address and a port, as a program gives them to a socket or gets them from it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// Address; IPv4 as the IPv4-mapped address, of whichever family the socket is.
    pub address: Address,
    /// Port.
    pub port: Port,
    reserved: u16,
}

const _: () = assert!(size_of::<Endpoint>() == 20);

impl Endpoint {
    /// From its parts.
    #[inline(always)]
    #[must_use]
    pub const fn new(address: Address, port: Port) -> Self {
        Self { address, port, reserved: 0 }
    }
}

/// Key of the `SOCKETS` map, whose values are the [`Endpoint`]s that programs asked for.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SocketKey {
    /// The kernel's number of the socket, never used again while the machine runs.
    pub cookie: u64,
    /// What the socket really talks to.
    pub peer: Endpoint,
    reserved: u32,
}

const _: () = assert!(size_of::<SocketKey>() == 32);

impl SocketKey {
    /// From its parts.
    #[inline(always)]
    #[must_use]
    pub const fn new(cookie: u64, peer: Endpoint) -> Self {
        Self { cookie, peer, reserved: 0 }
    }
}

/// A socket, as far as choosing its backend goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// Protocol.
    pub protocol: Protocol,
    /// The kernel's number of the socket.
    pub cookie: u64,
    /// Cookie of its network namespace.
    pub netns_cookie: u64,
}

/// The node as its own programs' sockets see it. In the kernel: maps; in tests: copies.
pub trait Directory: Tables {
    /// What a port is used for.
    fn port_flags(&self, protocol: Protocol, port: Port) -> PortFlags;

    /// The frontend with this key.
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend>;

    /// A service.
    fn service(&self, id: ServiceId) -> Option<Service>;

    /// A backend.
    fn backend(&self, id: BackendId) -> Option<Backend>;

    /// Cookie of the node's own network namespace.
    fn netns_cookie(&self) -> u64;
}

/// What to do with a socket that asks for `asked`; where the Reason delivers or forwards, `to` is
/// what it is to get instead.
///
/// One socket gets the same backend for each of its datagrams to a frontend, for as long as the
/// service's table stays, at random too. The service's source ranges and its traffic policy are about
/// clients outside and don't count here.
#[inline(always)]
pub fn exchange<D: Directory>(
    directory: &D,
    client: &Client,
    asked: &Endpoint,
    to: &mut Endpoint,
) -> Reason {
    let flags = directory.port_flags(client.protocol, asked.port);
    if !flags.intersects(PortFlags::FRONTEND) {
        return Reason::NotOurs;
    }
    // A pod's loopback device is its own.
    let is_own = client.netns_cookie == directory.netns_cookie();
    if asked.address.is_loopback() && !is_own {
        return Reason::NotOurs;
    }
    let Some(frontend) = find(directory, client.protocol, asked) else {
        return Reason::NotOurs;
    };
    if frontend.is_foreign() {
        // The other node is asked, not what it would hand over.
        return Reason::NotOurs;
    }
    let Some(service) = directory.service(frontend.service) else {
        return Reason::Inconsistent;
    };
    let (_, size) = service.table(Origin::Node);
    if size == 0 {
        return Reason::ClientRefused;
    }
    let tuple = tuple(client, asked);
    let Some(id) = choose(directory, frontend.service, &service, Origin::Node, &tuple) else {
        return Reason::Inconsistent;
    };
    let Some(backend) = directory.backend(id) else {
        return Reason::Inconsistent;
    };
    if !backend.is_some() {
        return Reason::Inconsistent;
    }
    let address = if backend.is_local() && backend.address.is_unspecified() {
        frontend.local_address
    } else {
        backend.address
    };
    if address.is_loopback() && !is_own {
        // A program that only the node itself reaches.
        return Reason::NotOurs;
    }
    remember(directory, service.affinity_group, &tuple.source, id);
    *to = Endpoint::new(address, backend.port);
    if backend.is_local() { Reason::ClientLocal } else { Reason::ClientRemote }
}

/// The frontend that a socket asks for: the exact one, else any that stands for `localhost`.
#[inline(always)]
fn find<D: Directory>(directory: &D, protocol: Protocol, asked: &Endpoint) -> Option<Frontend> {
    let exact = FrontendKey::new(asked.address, asked.port, protocol);
    let found = directory.frontend(&exact);
    if found.is_some() || !asked.address.is_loopback() {
        return found;
    }
    directory.frontend(&FrontendKey::localhost(asked.address.family(), asked.port, protocol))
}

/// The client's address and port are not chosen yet: its network namespace, which is what session
/// affinity goes by, and its socket take their places.
#[inline(always)]
fn tuple(client: &Client, asked: &Endpoint) -> Tuple {
    let Client { protocol, cookie, netns_cookie } = *client;
    let source = Address::from_words([0, 0, (netns_cookie >> 32) as u32, netns_cookie as u32]);
    let folded = (cookie ^ (cookie >> 16) ^ (cookie >> 32) ^ (cookie >> 48)) as u16;
    Tuple::new(protocol, (source, Port::new(folded)), (asked.address, asked.port))
}
