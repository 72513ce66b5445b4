//! The network of a cluster.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::Result;
use redirector_common::Family;

use crate::{
    namespace::{Namespace, run},
    topology::{Addresses, link, make_router, route_default},
};

/// The client.
pub const CLIENT: Addresses = Addresses::new(9, 2);
/// The router, as nodes see it.
const ROUTER: Addresses = Addresses::new(1, 254);
/// The router, as the client sees it.
const OUTSIDE: Addresses = Addresses::new(9, 254);
/// Where the API server listens.
pub const API: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 18, 1, 254)), 6443);

/// A node's address, on `eth0`; nodes count from 1.
#[must_use]
pub const fn node_address(number: u8) -> Addresses {
    Addresses::new(1, number)
}

/// The network of a node's pods.
const fn pod_net(node: u8) -> u8 {
    10 + node
}

/// The address of a pod in a namespace of its own.
#[must_use]
pub const fn pod_address(node: u8, number: u8) -> Addresses {
    Addresses::new(pod_net(node), number)
}

/// The node, as its pods see it.
const fn gateway(node: u8) -> Addresses {
    Addresses::new(pod_net(node), 254)
}

/// ```text
///                         ┌── eth0 node1 ── pods
/// client eth0 ── router ──┼── eth0 node2 ── pods
///             API server  └── eth0 node3 ── pods
/// ```
///
/// Nodes are routers, as Kubernetes' are, and know the way to each other's pods. The client and
/// the router do not.
#[derive(Debug)]
pub struct Network {
    /// Where clients run.
    pub client: Namespace,
    /// Between the client and the nodes.
    pub router: Namespace,
    /// The nodes.
    pub nodes: Vec<Namespace>,
}

impl Network {
    /// Makes the hosts and links of so many nodes.
    ///
    /// # Errors
    ///
    /// If something can't be made: this needs root, `ip` and `ethtool`.
    pub fn new(nodes: u8) -> Result<Self> {
        let client = Namespace::new("client")?;
        let router = Namespace::new("router")?;
        link((&client, "eth0", CLIENT), (&router, "outside", OUTSIDE))?;
        make_router(&router)?;
        router.ip(&format!(
            "link add inside type bridge
             link set inside up
             address add {}/24 dev inside
             address add {}/64 dev inside nodad",
            ROUTER.v4, ROUTER.v6
        ))?;
        route_default(&client, OUTSIDE)?;
        let mut network = Self { client, router, nodes: Vec::new() };
        for number in 1..=nodes {
            network.add_node(number, nodes)?;
        }
        Ok(network)
    }

    fn add_node(&mut self, number: u8, of: u8) -> Result<()> {
        let node = Namespace::new(&format!("node{number}"))?;
        let port = format!("node{number}");
        cable((&node, "eth0"), (&self.router, &port))?;
        self.router.ip(&format!("link set {port} master inside"))?;
        let address = node_address(number);
        node.ip(&format!(
            "address add {}/24 dev eth0
             address add {}/64 dev eth0 nodad",
            address.v4, address.v6
        ))?;
        make_router(&node)?;
        route_default(&node, ROUTER)?;
        for other in (1..=of).filter(|other| *other != number) {
            let (net, via) = (pod_address(other, 0), node_address(other));
            node.ip(&format!(
                "route add {}/24 via {}
                 route add {}/64 via {}",
                net.v4, via.v4, net.v6, via.v6
            ))?;
        }
        self.nodes.push(node);
        Ok(())
    }

    /// A namespace of a pod's own on a node, with the pod's address.
    pub(super) fn add_pod(&self, node: u8, number: u8) -> Result<Namespace> {
        let pod = Namespace::new(&format!("pod{node}-{number}"))?;
        let host = &self.nodes[usize::from(node) - 1];
        let port = format!("pod{number}");
        cable((&pod, "eth0"), (host, &port))?;
        let (address, gateway) = (pod_address(node, number), gateway(node));
        pod.ip(&format!(
            "address add {} peer {} dev eth0
             route add default via {}
             address add {}/128 dev eth0 nodad
             route add {} dev eth0
             route add default via {}",
            address.v4, gateway.v4, gateway.v4, address.v6, gateway.v6, gateway.v6
        ))?;
        host.ip(&format!(
            "address add {} peer {} dev {port}
             address add {}/128 dev {port} nodad
             route add {} dev {port}",
            gateway.v4, address.v4, gateway.v6, address.v6
        ))?;
        Ok(pod)
    }

    /// Makes the router send what is for an address to a node: what a load balancer, or a router
    /// that was told of an external address, does.
    ///
    /// # Errors
    ///
    /// If the router refuses.
    pub fn route(&self, address: IpAddr, node: u8) -> Result<()> {
        let family = if address.is_ipv4() { Family::V4 } else { Family::V6 };
        let via = node_address(node).of(family);
        self.router.ip(&format!("route replace {address} via {via}")).map(drop)
    }
}

/// Joins two hosts by a pair of veth devices, up, without addresses.
fn cable((host, name): (&Namespace, &str), (peer, peer_name): (&Namespace, &str)) -> Result<()> {
    let (netns, peer_netns) = (host.name(), peer.name());
    let command =
        format!("link add {name} netns {netns} type veth peer name {peer_name} netns {peer_netns}");
    run("ip", command.split_whitespace())?;
    for (host, name) in [(host, name), (peer, peer_name)] {
        // As `topology::link` explains.
        host.set_offloads(name, "tx off gro on")?;
    }
    for (host, name) in [(host, name), (peer, peer_name)] {
        host.ip(&format!("link set {name} up"))?;
    }
    Ok(())
}
