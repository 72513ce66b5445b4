//! The node on which every case plays: its interfaces, neighbours, routes and services.
//!
//! ```text
//! eth0  CLIENT, NEAR (a backend on the clients' side)
//! eth1  BACKEND, and SILENT_HOST, whose hardware address is not known
//! eth2  NARROW, behind an MTU of 1300
//! eth3  NO_XDP: the driver can't transmit from XDP
//! eth4  UNNAMED: no address to translate sources to
//! ```

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use redirector_common::{
    Address, Affinity, AffinityKey, Backend, Family, Frontend, FrontendKey, Interface, NodeConfig,
    Origin, Port, PortFlags, Protocol, Service, SourceRange, Taker, TakerKey,
    map_name::MapName,
    node::{PortBlock, port_index},
    service::MaglevLine,
};
use redirector_tests::{
    namespace::Namespace,
    program::Programs,
    topology::{Addresses, FAMILIES},
};

/// A client; it has no other name on the node than its packets'.
pub(crate) const CLIENT: Addresses = Addresses::new(1, 2);
/// Another client.
pub(crate) const OTHER_CLIENT: Addresses = Addresses::new(1, 4);
/// The node, where clients see it.
pub(crate) const NODE: Addresses = Addresses::new(1, 1);
/// The node, where backends see it.
pub(crate) const NODE_INSIDE: Addresses = Addresses::new(2, 1);
/// A backend elsewhere.
pub(crate) const BACKEND: Addresses = Addresses::new(2, 2);
/// A backend on the clients' side.
pub(crate) const NEAR: Addresses = Addresses::new(1, 3);

/// An interface with the hosts behind it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Nic {
    name: &'static str,
    net: u8,
    mtu: u16,
    neighbours: &'static [u8],
    xdp_transmit: bool,
    named: bool,
}

const fn interface(name: &'static str, net: u8) -> Nic {
    Nic { name, net, mtu: 1500, neighbours: &[2], xdp_transmit: true, named: true }
}

const INTERFACES: [Nic; 5] = [
    Nic { neighbours: &[2, 3, 4], ..interface("eth0", 1) },
    interface("eth1", 2),
    Nic { mtu: 1300, ..interface("eth2", 3) },
    Nic { xdp_transmit: false, ..interface("eth3", 4) },
    Nic { named: false, ..interface("eth4", 5) },
];

/// The hardware address of host `host` of test network `net`.
pub(crate) const fn mac(net: u8, host: u8) -> [u8; 6] {
    [2, 0, 0, 0, net, host]
}

/// What a frontend's packets meet.
#[derive(Clone, Copy, Debug)]
enum Target {
    /// A program on this host, on the frontend's address.
    Local(u16),
    /// A program on this host, on another of its addresses.
    LocalAt(Addresses, u16),
    /// A host elsewhere.
    Remote(Addresses, u16),
    /// Nothing.
    Empty,
    /// Nothing here, and nothing is to be said about it.
    Silent,
    /// A table that names a backend which is not there.
    Missing,
}

/// Port of a frontend with a local backend on [`LOCAL_PORT`].
pub(crate) const LOCAL: u16 = 80;
/// Another with the same backend.
pub(crate) const LOCAL_ALIAS: u16 = 81;
/// One whose backend listens on another address of the node.
pub(crate) const LOCAL_INSIDE: u16 = 82;
/// Port of a frontend with backend [`BACKEND`] on [`REMOTE_PORT`].
pub(crate) const REMOTE: u16 = 90;
/// Another with the same backend.
pub(crate) const REMOTE_ALIAS: u16 = 91;
/// One whose backend [`NEAR`] is where the clients are.
pub(crate) const HAIRPIN: u16 = 92;
/// One whose backend's hardware address is not known.
pub(crate) const UNRESOLVED: u16 = 93;
/// One whose backend has no route.
pub(crate) const UNROUTED: u16 = 94;
/// One whose backend is behind an MTU of 1300.
pub(crate) const NARROW: u16 = 95;
/// One behind a driver that can't transmit from XDP.
pub(crate) const NO_XDP: u16 = 96;
/// One behind an interface that has no address of our own.
pub(crate) const UNNAMED: u16 = 97;
/// One without a backend.
pub(crate) const EMPTY: u16 = 98;
/// One without a backend on this node.
pub(crate) const SILENT: u16 = 99;
/// One whose table names a backend that is not there.
pub(crate) const MISSING: u16 = 100;

/// As [`LOCAL`], for [`CLIENT`] alone; its neighbours in number are outside.
pub(crate) const LOCAL_LIMITED: u16 = 101;
/// As [`REMOTE`], for [`CLIENT`] alone.
pub(crate) const REMOTE_LIMITED: u16 = 102;
/// As [`REMOTE`], for nobody.
pub(crate) const REMOTE_CLOSED: u16 = 103;
/// Without a backend, for [`CLIENT`] alone.
pub(crate) const EMPTY_LIMITED: u16 = 104;

/// As [`LOCAL`], whose backend may be handed connections, on [`STEERED_PORT`].
pub(crate) const STEERED: u16 = 110;
/// The same, where other flows of the port may go elsewhere.
pub(crate) const STEERED_MIXED: u16 = 111;

/// Where the backend of [`STEERED`] listens, if it does.
pub(crate) const STEERED_PORT: u16 = 8082;
/// As [`MISSING`], but [`CLIENT`] stays with the backend of [`REMOTE`].
pub(crate) const PINNED: u16 = 105;
/// The same, but for its time, which is over.
pub(crate) const PINNED_ONCE: u16 = 106;
/// The same, but the backend takes only clients on the node.
pub(crate) const PINNED_INSIDE: u16 = 107;
/// As [`REMOTE`], by random selection.
pub(crate) const RANDOM: u16 = 108;

/// An address that only frontends have.
pub(crate) const VIP: Addresses = Addresses::new(9, 9);
/// A port that no frontend has, where packets are looked at for such addresses.
pub(crate) const UNDEFINED: u16 = 2222;

/// Where local backends listen.
pub(crate) const LOCAL_PORT: u16 = 8080;
/// Where backends elsewhere listen.
pub(crate) const REMOTE_PORT: u16 = 9090;
/// First port of the translation block.
pub(crate) const SNAT: u16 = 50000;
/// Ports that are marked as the translation block's.
const SNAT_MARKED: u16 = 8;

const SERVICES: [(u16, Target); 24] = [
    (LOCAL, Target::Local(LOCAL_PORT)),
    (LOCAL_ALIAS, Target::Local(LOCAL_PORT)),
    (LOCAL_INSIDE, Target::LocalAt(NODE_INSIDE, LOCAL_PORT + 1)),
    (REMOTE, Target::Remote(BACKEND, REMOTE_PORT)),
    (REMOTE_ALIAS, Target::Remote(BACKEND, REMOTE_PORT)),
    (HAIRPIN, Target::Remote(NEAR, REMOTE_PORT)),
    (UNRESOLVED, Target::Remote(Addresses::new(2, 9), REMOTE_PORT)),
    (UNROUTED, Target::Remote(Addresses::new(77, 2), REMOTE_PORT)),
    (NARROW, Target::Remote(Addresses::new(3, 2), REMOTE_PORT)),
    (NO_XDP, Target::Remote(Addresses::new(4, 2), REMOTE_PORT)),
    (UNNAMED, Target::Remote(Addresses::new(5, 2), REMOTE_PORT)),
    (EMPTY, Target::Empty),
    (SILENT, Target::Silent),
    (MISSING, Target::Missing),
    (LOCAL_LIMITED, Target::Local(LOCAL_PORT)),
    (REMOTE_LIMITED, Target::Remote(BACKEND, REMOTE_PORT)),
    (REMOTE_CLOSED, Target::Remote(BACKEND, REMOTE_PORT)),
    (EMPTY_LIMITED, Target::Empty),
    (STEERED, Target::Local(STEERED_PORT)),
    (STEERED_MIXED, Target::Local(STEERED_PORT)),
    (PINNED, Target::Missing),
    (PINNED_ONCE, Target::Missing),
    (PINNED_INSIDE, Target::Missing),
    (RANDOM, Target::Remote(BACKEND, REMOTE_PORT)),
];

/// Number of the service, and of its backend, of a port.
fn number(family: Family, port: u16) -> u32 {
    let before = if family == Family::V4 { 0 } else { SERVICES.len() };
    let found = (1..).zip(SERVICES).find(|(_, (it, _))| *it == port);
    found.map_or(0, |(number, _)| number) + u32::try_from(before).unwrap_or_default()
}

/// A port of a host.
pub(crate) fn at(addresses: Addresses, family: Family, port: u16) -> SocketAddr {
    SocketAddr::new(addresses.of(family), port)
}

/// Makes the interfaces, neighbours and routes.
pub(crate) fn build_node() -> Result<Namespace> {
    let node = Namespace::new("node")?;
    for Nic { name, net, mtu, neighbours, .. } in INTERFACES {
        let [a, b, c, d, e, f] = mac(net, 1);
        let own = Addresses::new(net, 1);
        node.ip(&format!(
            "link add {name} type veth peer name {name}-peer
             link set {name}-peer up
             link set {name} address {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x} mtu {mtu} up
             address add {}/24 dev {name}
             address add {}/64 dev {name} nodad",
            own.v4, own.v6
        ))?;
        for &host in neighbours {
            let [a, b, c, d, e, f] = mac(net, host);
            let address = Addresses::new(net, host);
            for address in [IpAddr::from(address.v4), IpAddr::from(address.v6)] {
                node.ip(&format!(
                    "neighbour add {address} lladdr {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x} dev {name} nud permanent"
                ))?;
            }
        }
    }
    // Route look-ups begin at the loopback device, as the agent sets it up.
    node.set_sysctl("net/ipv4/conf/lo/forwarding", "1")?;
    node.set_sysctl("net/ipv6/conf/lo/forwarding", "1")?;
    Ok(node)
}

/// Fills the maps. The thread must be on the node.
pub(crate) fn fill_maps(programs: &mut Programs) -> Result<()> {
    set_block(programs, 1)?;
    for (slot, Nic { name, net, xdp_transmit, named, .. }) in (1..).zip(INTERFACES) {
        let own = Addresses::new(net, 1);
        let [ipv4, ipv6] =
            FAMILIES.map(|family| if named { own.of(family).into() } else { Address::UNSPECIFIED });
        let value = Interface::new(slot, ipv4, ipv6, xdp_transmit);
        programs.set(MapName::Interfaces, ifindex(name)?, value)?;
    }
    let mut id = 1;
    for family in FAMILIES {
        for (port, target) in SERVICES {
            add_service(programs, id, family, port, target)?;
            id += 1;
        }
    }
    for protocol in Protocol::ALL {
        for port in SNAT..SNAT + SNAT_MARKED {
            mark(programs, protocol, port, PortFlags::SNAT)?;
        }
        for port in [LOCAL_PORT, LOCAL_PORT + 1, STEERED_PORT] {
            mark(programs, protocol, port, PortFlags::LOCAL_BACKEND)?;
        }
        for port in [UNDEFINED, REMOTE, SNAT] {
            mark(programs, protocol, port, PortFlags::VIPS)?;
        }
    }
    for family in FAMILIES {
        programs.insert(MapName::Vips, Address::from(VIP.of(family)), 1_u32)?;
    }
    mark(programs, Protocol::Tcp, STEERED, PortFlags::STEER)?;
    mark(programs, Protocol::Tcp, STEERED_MIXED, PortFlags::STEER.union(PortFlags::REMOTE))
}

/// How many ports, from [`SNAT`] on, the translation block has. With one, results are certain.
pub(crate) fn set_block(programs: &mut Programs, count: u16) -> Result<()> {
    let node = NodeConfig {
        snat_first: SNAT,
        snat_count: count,
        lookup_ifindex: ifindex("lo")?,
        cache_sets: redirector_tests::program::CACHE_SETS,
        flags: NodeConfig::FLAG_CLAMP_MSS,
        ..NodeConfig::default()
    };
    programs.set(MapName::Node, 0, node)
}

/// The index of an interface of the namespace that this thread is in.
pub(crate) fn ifindex(name: &str) -> Result<u32> {
    Ok(nix::net::if_::if_nametoindex(name)?)
}

fn add_service(
    programs: &mut Programs,
    id: u32,
    family: Family,
    port: u16,
    target: Target,
) -> Result<()> {
    // Backend, service and table line share a number.
    let (backend, table_size, flags) = match target {
        Target::Local(port) => (Backend::local(Port::new(port)), 1, 0),
        Target::LocalAt(addresses, port) => {
            (Backend::local_at(addresses.of(family).into(), Port::new(port)), 1, 0)
        }
        Target::Remote(addresses, port) => {
            (Backend::remote(addresses.of(family).into(), Port::new(port)), 1, 0)
        }
        Target::Empty => (Backend::NONE, 0, 0),
        Target::Silent => (Backend::NONE, 0, Service::FLAG_SILENT),
        Target::Missing => (Backend::NONE, 1, 0),
    };
    let table_offset = id * 16;
    programs.set(MapName::Backends, id, backend)?;
    programs.set(MapName::Maglev, id, MaglevLine { entries: [id; 16] })?;
    let random = if port == RANDOM { Service::FLAG_RANDOM } else { 0 };
    let flags = flags | random | limit_sources(programs, id, family, port)?;
    let service = Service {
        table_offset,
        table_size,
        internal_offset: table_offset,
        internal_size: table_size,
        flags,
        ..keep_client(programs, id, family, port)?
    };
    programs.set(MapName::Services, id, service)?;
    let address = NODE.of(family).into();
    let value = Frontend::new(id, address);
    let mut bits = PortFlags::FRONTEND;
    // As the agent does: also a table that is broken belongs to a service with backends elsewhere.
    if matches!(target, Target::Remote(..) | Target::Missing) {
        bits = bits.union(PortFlags::REMOTE);
    }
    for protocol in Protocol::ALL {
        let key = FrontendKey::new(address, Port::new(port), protocol);
        programs.insert(MapName::Frontends, key, value)?;
        mark(programs, protocol, port, bits)?;
    }
    Ok(())
}

/// Remembers the client where the service does, and returns what the service says of that.
fn keep_client(programs: &mut Programs, id: u32, family: Family, port: u16) -> Result<Service> {
    let now = crate::given::monotonic_now()?;
    let (origin, last_seen) = match port {
        PINNED => (Origin::Outside, now),
        PINNED_ONCE => (Origin::Outside, 1),
        PINNED_INSIDE => (Origin::Node, now),
        _ => return Ok(Service::default()),
    };
    // A machine that was just started is not as old as the longest time.
    let affinity_seconds = if port == PINNED_ONCE { 1 } else { 86_400 };
    let backend = number(family, REMOTE);
    let key = AffinityKey { group: id, client: CLIENT.of(family).into() };
    programs.keep(key, Affinity { backend, reserved: 0, last_seen })?;
    programs.insert(MapName::Takers, TakerKey { service: id, backend }, Taker::NONE.and(origin))?;
    Ok(Service { affinity_group: id, affinity_seconds, ..Service::default() })
}

/// Writes the service's source ranges, and returns the flag that it then has.
fn limit_sources(programs: &mut Programs, id: u32, family: Family, port: u16) -> Result<u32> {
    let single = match family {
        Family::V4 => 32,
        Family::V6 => 128,
    };
    let client = SourceRange::new(id, CLIENT.of(family).into(), single);
    match port {
        LOCAL_LIMITED | REMOTE_LIMITED | EMPTY_LIMITED => programs.admit(client)?,
        // Another service's, which admits nobody here.
        REMOTE_CLOSED => {
            programs.admit(SourceRange::new(id + 1000, CLIENT.of(family).into(), single))?;
        }
        _ => return Ok(0),
    }
    Ok(Service::FLAG_SOURCE_RANGES)
}

pub(crate) fn mark(
    programs: &mut Programs,
    protocol: Protocol,
    port: u16,
    bits: PortFlags,
) -> Result<()> {
    let (block, byte) = port_index(protocol, Port::new(port));
    programs.change(MapName::Ports, block, |block: &mut PortBlock| {
        block.flags[byte] |= bits.0;
    })
}
