//! Hosts and the links between them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use redirector_common::Family;

use crate::namespace::{Namespace, run};

/// Both families, for tests that do the same in each.
pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// A host's address in both families.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// IPv4.
    pub v4: Ipv4Addr,
    /// IPv6.
    pub v6: Ipv6Addr,
}

impl Addresses {
    /// Host `host` of test network `net`: `198.18.net.host` (RFC 2544) and `2001:db8:net::host`
    /// (RFC 3849).
    #[must_use]
    pub const fn new(net: u8, host: u8) -> Self {
        Self {
            v4: Ipv4Addr::new(198, 18, net, host),
            v6: Ipv6Addr::new(0x2001, 0xdb8, net as u16, 0, 0, 0, 0, host as u16),
        }
    }

    /// Host 2 of the network, whose host 1 this is: on cables to the client, the client.
    #[must_use]
    pub const fn peer(self) -> Self {
        let [_, _, net, _] = self.v4.octets();
        Self::new(net, 2)
    }

    /// The address of one family.
    #[must_use]
    pub const fn of(self, family: Family) -> IpAddr {
        match family {
            Family::V4 => IpAddr::V4(self.v4),
            Family::V6 => IpAddr::V6(self.v6),
        }
    }
}

/// The client.
pub const CLIENT: Addresses = Addresses::new(1, 2);
/// Node 1 as the client sees it, on `eth0`.
pub const NODE1: Addresses = Addresses::new(1, 1);
/// Node 1 as node 2 sees it, on `eth1`.
pub const NODE1_INSIDE: Addresses = Addresses::new(2, 1);
/// Node 2.
pub const NODE2: Addresses = Addresses::new(2, 2);

/// ```text
/// client eth0 ── eth0 node1 eth1 ── eth0 node2
/// ```
///
/// The agent runs on node 1. No host is a router, and node 2 has no route to the client: it
/// answers node 1 or nobody.
#[derive(Debug)]
pub struct Topology {
    /// Where clients run.
    pub client: Namespace,
    /// Where the agent runs, and local backends.
    pub node1: Namespace,
    /// Where backends elsewhere run.
    pub node2: Namespace,
}

impl Topology {
    /// Makes the hosts and links.
    ///
    /// # Errors
    ///
    /// If something can't be made: this needs root, `ip` and `ethtool`.
    pub fn new() -> Result<Self> {
        let topology = Self {
            client: Namespace::new("client")?,
            node1: Namespace::new("node1")?,
            node2: Namespace::new("node2")?,
        };
        let Self { client, node1, node2 } = &topology;
        link((client, "eth0", CLIENT), (node1, "eth0", NODE1))?;
        link((node1, "eth1", NODE1_INSIDE), (node2, "eth0", NODE2))?;
        Ok(topology)
    }
}

/// Joins a network of its own, as a pod has one, to a node, which becomes a router.
///
/// # Errors
///
/// If it can't be made.
pub fn add_pod(
    node: &Namespace,
    name: &str,
    inside: Addresses,
    pod: Addresses,
) -> Result<Namespace> {
    let host = Namespace::new("pod")?;
    link((node, name, inside), (&host, "eth0", pod))?;
    route_default(&host, inside)?;
    make_router(node)?;
    Ok(host)
}

/// Makes a host a router.
///
/// # Errors
///
/// If the kernel refuses.
pub fn make_router(host: &Namespace) -> Result<()> {
    host.set_sysctl("net/ipv4/ip_forward", "1")?;
    host.set_sysctl("net/ipv6/conf/all/forwarding", "1")
}

/// Gives a host a way by a neighbour to whatever it has no other one to.
///
/// # Errors
///
/// If it has one already, or there is no such neighbour.
pub fn route_default(host: &Namespace, via: Addresses) -> Result<()> {
    host.ip(&format!("route add default via {}\nroute add default via {}", via.v4, via.v6))
        .map(drop)
}

/// Joins two hosts by a cable: a pair of veth devices, up, with addresses.
///
/// # Errors
///
/// If it can't be made.
pub fn link(
    (host, name, addresses): (&Namespace, &str, Addresses),
    (peer, peer_name, peer_addresses): (&Namespace, &str, Addresses),
) -> Result<()> {
    run(
        "ip",
        format!(
            "link add {name} netns {} type veth peer name {peer_name} netns {}",
            host.name(),
            peer.name()
        )
        .split_whitespace(),
    )?;
    let ends = [(host, name, addresses), (peer, peer_name, peer_addresses)];
    for (host, name, _) in ends {
        // Packets whose checksums are left to "hardware" would go past XDP. And a veth drops frames
        // sent to it from XDP unless it polls, which GRO makes it do; the other end learns of that
        // when it comes up.
        host.set_offloads(name, "tx off gro on")?;
    }
    for (host, name, addresses) in ends {
        host.ip(&format!(
            "link set {name} up
             address add {}/24 dev {name}
             address add {}/64 dev {name} nodad",
            addresses.v4, addresses.v6
        ))?;
    }
    Ok(())
}
