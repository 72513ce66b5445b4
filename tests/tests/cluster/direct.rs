//! Services whose endpoints answer clients themselves: `redirector.io/forwarding: dsr`.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::{Node, Service};
use redirector_common::{
    Family,
    Protocol::{Tcp, Udp},
};
use redirector_tests::{
    cli::Cli,
    client::{self, Pulse},
    cluster::{
        Cluster,
        build::{balance, mk_node, mk_port, mk_service},
        network::{CLIENT, node_address},
        probe::{await_servers, expect_server},
    },
    server,
    topology::{Addresses, FAMILIES},
    wait,
};
use serde_json::{Value, json};

use crate::{on_host, own};

const NODES: u8 = 3;

pub(crate) fn forward(service: &mut Service, how: &str) {
    let annotations = service.metadata.annotations.get_or_insert_default();
    annotations.insert("redirector.io/forwarding".to_owned(), how.to_owned());
}

fn web(how: &str) -> Service {
    let ports = vec![mk_port(Tcp, 80, 8080, 30080), mk_port(Udp, 90, 8081, 30090)];
    let mut web = mk_service("web", ports);
    forward(&mut web, how);
    web
}

/// Waits until every node has heard how packets are to be forwarded, and that all others take flows:
/// one that has not takes nothing from those that have.
pub(crate) fn await_forwarding(cluster: &mut Cluster, how: &str) -> Result<()> {
    let nodes = u8::try_from(cluster.net.nodes.len())?;
    for node in 1..=nodes {
        let pins = cluster.node(node).pins();
        wait::until_true("the other nodes to take flows", wait::SOON, || {
            let status = Cli::new(cluster.host(node), &pins).json(&["status"])?;
            Ok(status["direct"]["nodes"]["taking"] == nodes - 1)
        })?;
        wait::until_true("every node to forward alike", wait::SOON, || {
            let rows = cluster.rows(node, &["service", "list"])?;
            let mut ours = rows.iter().filter(|row| row["namespace"] == "default").peekable();
            Ok(ours.peek().is_some() && ours.all(|row| row["forwarding"] == how))
        })?;
    }
    Ok(())
}

/// Packets that a node has counted for a Reason.
fn counted(cluster: &Cluster, node: u8, reason: &str) -> Result<u64> {
    let rows = cluster.rows(node, &["counters"])?;
    let found = rows.iter().filter(|row| row["reason"] == reason);
    Ok(found.filter_map(|row| row["packets"].as_u64()).sum())
}

/// Whichever node is asked, the server sees the client: in the node's network and in one of its
/// own. Answers do not come by the node that was asked.
#[test]
fn clients_are_seen_at_every_node() -> Result<()> {
    Cluster::run(NODES, |cluster| {
        for (kind, plan) in
            [("on its host", on_host("pod", "web", 2)), ("own", own("pod", "web", 2))]
        {
            let pod = cluster.start_pod(plan)?;
            cluster.put_service(web("dsr"))?;
            await_forwarding(cluster, "dsr")?;
            let client = &cluster.net.client;
            for family in FAMILIES {
                for (protocol, port) in [(Tcp, 30080), (Udp, 30090)] {
                    for node in 1..=NODES {
                        let to = cluster.at(node, family, port);
                        await_servers(client, protocol, to, &["pod"])?;
                        expect_server(client, protocol, to, "pod", CLIENT.of(family))
                            .with_context(|| format!("a pod {kind}"))?;
                    }
                }
            }
            for node in [1, 3] {
                ensure!(counted(cluster, node, "dsr-new")? > 0, "node {node} handed nothing over");
                ensure!(
                    counted(cluster, node, "remote-reply")? == 0,
                    "answers came by node {node}"
                );
            }
            cluster.remove_service("web")?;
            cluster.remove_pod(pod)?;
        }
        Ok(())
    })
}

/// An address that no node has goes by tunnel: the node that takes it out knows it as its own
/// frontend.
#[test]
fn clients_of_a_load_balancer_are_seen() -> Result<()> {
    Cluster::run(NODES, |cluster| {
        let _pods = [
            cluster.start_pod(own("two", "web", 2))?,
            cluster.start_pod(on_host("three", "web", 3))?,
        ];
        let addresses = ["203.0.113.30".parse()?, "2001:db8:113::30".parse()?];
        for address in addresses {
            cluster.net.route(address, 1)?;
        }
        let mut web = web("dsr");
        balance(&mut web, &addresses);
        cluster.put_service(web)?;
        await_forwarding(cluster, "dsr")?;
        let client = &cluster.net.client;
        for (address, family) in addresses.into_iter().zip(FAMILIES) {
            for (protocol, port) in [(Tcp, 80), (Udp, 90)] {
                let to = SocketAddr::new(address, port);
                await_servers(client, protocol, to, &["two", "three"])?;
                for _ in 0..8 {
                    let seen = seen_by_server(cluster, protocol, to)?;
                    ensure!(seen == CLIENT.of(family), "{to} over {protocol:?}: {seen}");
                }
            }
        }
        ensure!(counted(cluster, 1, "dsr-new")? > 0);
        Ok(())
    })
}

fn seen_by_server(
    cluster: &Cluster,
    protocol: redirector_common::Protocol,
    to: SocketAddr,
) -> Result<std::net::IpAddr> {
    let client = &cluster.net.client;
    let who = match protocol {
        Tcp => client::whoami(client, to)?,
        Udp => client::whoami_udp(client, to)?,
    };
    Ok(who.client.ip())
}

/// How packets are forwarded changes while clients are connected: nobody notices.
#[test]
fn connections_outlive_a_change_of_forwarding() -> Result<()> {
    Cluster::run(NODES, |cluster| {
        let _pods = [
            cluster.start_pod_with(own("two", "web", 2), &server::Service::Echo)?,
            cluster.start_pod_with(on_host("three", "web", 3), &server::Service::Echo)?,
        ];
        cluster.put_service(web("snat"))?;
        let mut connections = Vec::new();
        let mut pulses = Vec::new();
        for (round, how) in ["snat", "dsr", "snat", "dsr"].into_iter().enumerate() {
            cluster.change_service("web", |web| forward(web, how))?;
            await_forwarding(cluster, how)?;
            for family in FAMILIES {
                open(cluster, family, &mut connections)
                    .with_context(|| format!("round {round}: {how}, {family:?}"))?;
                let to = cluster.at(1, family, 30090);
                let socket = client::udp_once_served(&cluster.net.client, to)?;
                pulses.push(Pulse::start(socket, Duration::from_millis(10))?);
            }
            for (number, stream) in connections.iter().enumerate() {
                client::echo(stream, &[b'x'; 20_000])
                    .with_context(|| format!("round {round}: {how}, connection {number}"))?;
            }
            for pulse in &pulses {
                pulse.beat(20)?;
            }
        }
        for pulse in pulses {
            pulse.finish()?;
        }
        for stream in connections {
            client::finish(&stream)?;
        }
        Ok(())
    })
}

/// Some connections to node 1: enough to reach every server.
fn open(
    cluster: &Cluster,
    family: Family,
    connections: &mut Vec<std::net::TcpStream>,
) -> Result<()> {
    wait::until_true("a connection", wait::SOON, || {
        Ok(client::tcp(&cluster.net.client, cluster.at(1, family, 30080)).is_ok())
    })?;
    for _ in 0..6 {
        let stream = client::tcp(&cluster.net.client, cluster.at(1, family, 30080))?;
        client::echo(&stream, b"hello")?;
        connections.push(stream);
    }
    Ok(())
}

/// Nodes come, go and change addresses; what each knows of the others follows, and nothing else
/// changes.
#[test]
fn nodes_come_and_go() -> Result<()> {
    Cluster::run(NODES, |cluster| {
        let _pod = cluster.start_pod(own("pod", "web", 1))?;
        cluster.put_service(web("dsr"))?;
        await_forwarding(cluster, "dsr")?;
        let of = |nodes: &[Addresses]| -> Vec<String> {
            let mut all: Vec<String> =
                nodes.iter().flat_map(|it| [it.v4.to_string(), it.v6.to_string()]).collect();
            all.sort();
            all
        };
        let [two, three] = [2, 3].map(node_address);
        await_peers(cluster, &of(&[two, three]))?;
        let pins = cluster.node(1).pins();
        let told = Cli::new(cluster.host(1), &pins).json(&["status"])?["direct"].take();
        let expected = json!({
            // Two ports, both families.
            "services": 4,
            "peers": 4,
            "nodes": {"known": 2, "taking": 2},
            "unlisted": [],
            "tunnelMtu": {"eth0": {"ipv4": 1480, "ipv6": 1460}},
            "mssClamp": true,
        });
        ensure!(told == expected, "{told}");
        // Node 4 has no agent; nobody asks it.
        let (four, moved) = (node_address(4), node_address(5));
        cluster.put(&mk_node("node4", four, "even"))?;
        await_peers(cluster, &of(&[two, three, four]))?;
        cluster.put(&mk_node("node4", moved, "even"))?;
        await_peers(cluster, &of(&[two, three, moved]))?;
        cluster.api.store().remove::<Node>("", "node4")?;
        await_peers(cluster, &of(&[two, three]))?;
        let client = &cluster.net.client;
        for family in FAMILIES {
            expect_server(client, Tcp, cluster.at(3, family, 30080), "pod", CLIENT.of(family))?;
        }
        Ok(())
    })
}

/// Waits until node 1 knows these addresses of other nodes, and its service's frontends on them.
fn await_peers(cluster: &Cluster, expected: &[String]) -> Result<()> {
    let mut found = (Vec::new(), Vec::new());
    let done = wait::until_true("the other nodes to be known", wait::SOON, || {
        let peers = cluster.rows(1, &["map", "dump", "PEERS"])?;
        let peers = texts(peers.iter().map(|row| &row["address"]));
        let frontends = cluster.rows(1, &["map", "dump", "FRONTENDS"])?;
        let foreign = frontends.iter().filter(|row| {
            row["foreign"] == true && row["frontend"].as_str().is_some_and(|it| it.ends_with("tcp"))
        });
        found = (peers, texts(foreign.map(|row| &row["frontend"])));
        Ok(found.0 == expected && found.1.len() == expected.len())
    });
    done.with_context(|| format!("wanted {expected:?}, found {found:?}"))
}

fn texts<'a>(values: impl Iterator<Item = &'a Value>) -> Vec<String> {
    let mut all: Vec<String> =
        values.filter_map(|value| value.as_str().map(str::to_owned)).collect();
    all.sort();
    all
}
