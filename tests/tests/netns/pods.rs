//! Backends on the node itself, in networks of their own: behind a veth, as most container networks
//! have them, and behind a bridge.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use redirector_common::Family;
use redirector_tests::{
    agent::Lab,
    client,
    namespace::Namespace,
    server::{Server, Service},
    topology::{self, Addresses, CLIENT, FAMILIES, NODE1, NODE2},
    transfer, wait,
};

/// How a pod is joined to the node.
#[derive(Clone, Copy, Debug)]
enum Cable {
    Veth,
    Bridge,
}

const CABLES: [Cable; 2] = [Cable::Veth, Cable::Bridge];

/// The node, where pods see it.
const INSIDE: Addresses = Addresses::new(3, 1);
const POD: Addresses = Addresses::new(3, 2);

const CONFIG: &str = "
services:
  - name: web
    frontends: [{port: 80, protocol: TCP}, {port: 90, protocol: TCP}]
    backends:
      - {address: 198.18.3.2, port: 8080}
      - {address: '2001:db8:3::2', port: 8080}
  - name: dns
    frontends: [{port: 53, protocol: UDP}]
    backends:
      - {address: 198.18.3.2, port: 5353}
      - {address: '2001:db8:3::2', port: 5353}
  - name: policy
    frontends: [{port: 81, protocol: TCP}]
    trafficPolicy: Local
    backends:
      - {address: 198.18.2.2, port: 8080}
      - {address: '2001:db8:2::2', port: 8080}
      - {address: 198.18.3.2, port: 8080}
      - {address: '2001:db8:3::2', port: 8080}
";

/// Makes a pod on node 1, which becomes a router, as nodes with pods are.
fn add_pod(lab: &Lab, cable: Cable) -> Result<Namespace> {
    let node = &lab.net.node1;
    let pod = topology::add_pod(node, "veth1", INSIDE, POD)?;
    if matches!(cable, Cable::Bridge) {
        node.ip(&format!(
            "link add cni0 type bridge
             link set cni0 up
             address flush dev veth1
             link set veth1 master cni0
             address add {}/24 dev cni0
             address add {}/64 dev cni0 nodad",
            INSIDE.v4, INSIDE.v6
        ))?;
    }
    Ok(pod)
}

fn run(cable: Cable, test: impl FnOnce(&mut Lab, &Namespace) -> Result<()>) -> Result<()> {
    Lab::run(|lab| {
        let pod = add_pod(lab, cable)?;
        lab.write_config(CONFIG)?;
        lab.start(&[])?;
        test(lab, &pod).with_context(|| format!("{cable:?}"))
    })
}

fn frontend(family: Family, port: u16) -> SocketAddr {
    SocketAddr::new(NODE1.of(family), port)
}

/// The pod answers, and sees the client itself.
#[test]
fn pods_answer() -> Result<()> {
    for cable in CABLES {
        run(cable, |lab, pod| {
            let _tcp = Server::tcp(pod, 8080, Service::Whoami("pod"))?;
            let _udp = Server::udp(pod, 5353, Service::Whoami("pod"))?;
            for family in FAMILIES {
                for _ in 0..3 {
                    let tcp = client::whoami(&lab.net.client, frontend(family, 80))?;
                    let udp = client::whoami_udp(&lab.net.client, frontend(family, 53))?;
                    for answer in [tcp, udp] {
                        ensure!(answer.server == "pod", "{answer:?}");
                        ensure!(answer.client.ip() == CLIENT.of(family), "{answer:?}");
                    }
                }
            }
            let reasons = ["local-new", "local-reply", "remote-new", "steered-new"];
            let mut counts = [0; 4];
            for (count, reason) in counts.iter_mut().zip(reasons) {
                *count = lab.cli().packets(reason)?;
            }
            ensure!(counts[0] == 12 && counts[1] > 12, "{reasons:?}: {counts:?}");
            ensure!(counts[2..] == [0, 0], "{reasons:?}: {counts:?}");
            Ok(())
        })?;
    }
    Ok(())
}

/// A pod that comes while the agent runs, goes, and comes again with a link of its own: it is asked
/// as one that is here, and sees the client itself; other pods are asked all the while.
#[test]
fn pods_come_and_go() -> Result<()> {
    const NEXT: Addresses = Addresses::new(5, 2);
    let config = format!(
        "{CONFIG}
  - name: next
    frontends: [{{port: 82, protocol: TCP}}]
    backends:
      - {{address: {}, port: 8080}}
      - {{address: '{}', port: 8080}}
",
        NEXT.v4, NEXT.v6
    );
    run(Cable::Veth, |lab, pod| {
        lab.write_config(&config)?;
        let _pod = Server::tcp(pod, 8080, Service::Whoami("pod"))?;
        let sees = |port: u16, server: &str| {
            FAMILIES.iter().try_for_each(|family| {
                wait::until_true(&format!("{server} over {family:?}"), wait::SOON, || {
                    let to = frontend(*family, port);
                    let stream = client::tcp_within(&lab.net.client, to, Duration::from_secs(1));
                    let answer = stream.and_then(|stream| client::ask(&stream));
                    Ok(answer.is_ok_and(|answer| {
                        answer.server == server && answer.client.ip() == CLIENT.of(*family)
                    }))
                })
            })
        };
        for round in ["first", "again"] {
            let next = topology::add_pod(&lab.net.node1, "veth2", Addresses::new(5, 1), NEXT)?;
            let _next = Server::tcp(&next, 8080, Service::Whoami("next"))?;
            sees(82, "next").context(round)?;
            sees(80, "pod")?;
            lab.net.node1.ip("link del veth2")?;
            sees(80, "pod")?;
        }
        Ok(())
    })
}

/// Policy Local means this node, whose pods they are.
#[test]
fn pods_are_local() -> Result<()> {
    run(Cable::Veth, |lab, pod| {
        let _pod = Server::tcp(pod, 8080, Service::Whoami("pod"))?;
        let _elsewhere = Server::tcp(&lab.net.node2, 8080, Service::Whoami("node2"))?;
        for family in FAMILIES {
            for _ in 0..12 {
                let answer = client::whoami(&lab.net.client, frontend(family, 81))?;
                ensure!(answer.server == "pod", "{answer:?}");
            }
        }
        Ok(())
    })
}

/// Bulk data both ways, also while the agent is gone.
#[test]
fn bulk_transfers() -> Result<()> {
    for cable in CABLES {
        run(cable, |lab, pod| {
            let _server = Server::tcp(pod, 8080, Service::Bulk)?;
            for family in FAMILIES {
                let stream = client::tcp(&lab.net.client, frontend(family, 80))?;
                transfer::exchange(&stream, 16 << 20, 16 << 20)?;
            }
            lab.kill()?;
            for family in FAMILIES {
                let stream = client::tcp(&lab.net.client, frontend(family, 80))?;
                transfer::exchange(&stream, 1 << 20, 1 << 20)?;
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// One port of the client to both frontends of a pod, and to the pod itself.
#[test]
fn one_port_by_three_ways() -> Result<()> {
    run(Cable::Veth, |lab, pod| {
        for (network, gateway) in
            [("198.18.3.0/24", NODE1.of(Family::V4)), ("2001:db8:3::/64", NODE1.of(Family::V6))]
        {
            lab.net.client.ip(&format!("route add {network} via {gateway}"))?;
        }
        let _server = Server::tcp(pod, 8080, Service::Echo)?;
        for family in FAMILIES {
            let ways =
                [SocketAddr::new(POD.of(family), 8080), frontend(family, 80), frontend(family, 90)];
            // The pod cannot tell a direct connection from the first of the others by its ports, so
            // that one has another.
            let ports = [45020, 45021, 45021];
            let streams = ways
                .iter()
                .zip(ports)
                .map(|(way, port)| client::tcp_from(&lab.net.client, port, *way))
                .collect::<Result<Vec<_>>>()?;
            for _ in 0..3 {
                for stream in &streams {
                    client::echo(stream, b"hello")?;
                }
            }
        }
        Ok(())
    })
}

/// What pods send of their own is nobody's reply.
#[test]
fn pods_are_clients_too() -> Result<()> {
    run(Cable::Bridge, |lab, pod| {
        for (host, via) in [(&lab.net.client, NODE1), (&lab.net.node2, Addresses::new(2, 1))] {
            host.ip(&format!("route add 198.18.3.0/24 via {}", via.v4))?;
            host.ip(&format!("route add 2001:db8:3::/64 via {}", via.v6))?;
        }
        let _client = Server::tcp(&lab.net.client, 8080, Service::Whoami("client"))?;
        let _node2 = Server::tcp(&lab.net.node2, 8080, Service::Whoami("node2"))?;
        for family in FAMILIES {
            for (server, host) in [("client", CLIENT), ("node2", NODE2)] {
                let stream = client::tcp_from(pod, 8080, SocketAddr::new(host.of(family), 8080))?;
                let answer = client::ask(&stream)?;
                ensure!(answer.server == server, "{answer:?}");
                ensure!(answer.client == SocketAddr::new(POD.of(family), 8080), "{answer:?}");
            }
        }
        Ok(())
    })
}

/// A pod that ends and comes again at the same address, with its link; and one that is behind an
/// interface which clients come by as well: there, too, it answers.
#[test]
fn pods_behind_a_chosen_interface() -> Result<()> {
    Lab::run(|lab| {
        let pod = add_pod(lab, Cable::Bridge)?;
        lab.write_config(CONFIG)?;
        lab.start(&["--interface", "eth0", "--interface", "cni0"])?;
        let _server = Server::tcp(&pod, 8080, Service::Whoami("pod"))?;
        for family in FAMILIES {
            let answer = client::whoami(&lab.net.client, frontend(family, 80))?;
            ensure!(answer.server == "pod", "{answer:?}");
            ensure!(answer.client.ip() == INSIDE.of(family), "{answer:?}");
            // The pod is its own client, by way of the node.
            let answer = client::whoami(&pod, SocketAddr::new(INSIDE.of(family), 80))?;
            ensure!(answer.server == "pod", "{answer:?}");
        }
        Ok(())
    })
}
