//! Ports of clients: kept where possible, translated where two flows would look alike.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use redirector_common::Family;
use redirector_tests::{
    agent::Lab,
    client,
    server::{Server, Service},
    site::{CONFIG, PLACES, Place, node2, serve_echo, serve_names},
    topology::{FAMILIES, NODE1},
    wait,
};

/// Two frontends for each backend.
const TWICE: &str = "
publish:
  - 80:8080
  - 90:8080
  - 53:5353/udp
  - 63:5353/udp
services:
  - name: web
    frontends:
      - {port: 81, protocol: TCP}
      - {port: 91, protocol: TCP}
    backends:
      - {address: 198.18.2.2, port: 8080}
      - {address: '2001:db8:2::2', port: 8080}
  - name: dns
    frontends:
      - {port: 54, protocol: UDP}
      - {port: 64, protocol: UDP}
    backends:
      - {address: 198.18.2.2, port: 5353}
      - {address: '2001:db8:2::2', port: 5353}
";

fn plus_ten(frontend: SocketAddr) -> SocketAddr {
    SocketAddr::new(frontend.ip(), frontend.port() + 10)
}

#[test]
fn a_local_backend_sees_the_clients_port() -> Result<()> {
    Lab::run_with(CONFIG, |lab| {
        let _servers = serve_names(lab)?;
        for family in FAMILIES {
            let stream = client::tcp_from(&lab.net.client, 45001, Place::Local.tcp(family))?;
            let answer = client::ask(&stream)?;
            ensure!(answer.client.port() == 45001, "{answer:?}");
        }
        Ok(())
    })
}

/// One client port, two frontends, one backend: two flows.
#[test]
fn one_port_to_two_frontends() -> Result<()> {
    Lab::run_with(TWICE, |lab| {
        let _servers = serve_echo(lab)?;
        for family in FAMILIES {
            for place in PLACES {
                let what = || format!("{place:?} over {family:?}");
                let tcp = place.tcp(family);
                let one = client::tcp_from(&lab.net.client, 45002, tcp).with_context(what)?;
                let two =
                    client::tcp_from(&lab.net.client, 45002, plus_ten(tcp)).with_context(what)?;
                for _ in 0..3 {
                    client::echo(&one, b"one").with_context(what)?;
                    client::echo(&two, b"two").with_context(what)?;
                }
                client::finish(&one)?;
                client::echo(&two, b"two alone").with_context(what)?;
                client::finish(&two)?;

                let udp = place.udp(family);
                let one = client::udp_from(&lab.net.client, 45003, udp)?;
                let two = client::udp_from(&lab.net.client, 45003, plus_ten(udp))?;
                for _ in 0..3 {
                    ensure!(client::round_trip(&one, b"one").with_context(what)? == b"one");
                    ensure!(client::round_trip(&two, b"two").with_context(what)? == b"two");
                }
            }
        }
        Ok(())
    })
}

/// The port that one frontend leads to is another frontend: nothing is translated twice.
#[test]
fn chained_ports() -> Result<()> {
    Lab::run_with("publish: ['80:8080', '8080:9090']", |lab| {
        let _first = Server::tcp(&lab.net.node1, 8080, Service::Whoami("8080"))?;
        let _second = Server::tcp(&lab.net.node1, 9090, Service::Whoami("9090"))?;
        for family in FAMILIES {
            for (port, server) in [(80, "8080"), (8080, "9090"), (9090, "9090")] {
                let frontend = SocketAddr::new(NODE1.of(family), port);
                let answer = client::whoami(&lab.net.client, frontend)?;
                ensure!(answer.server == server, "{frontend}: {answer:?}");
            }
        }
        Ok(())
    })
}

/// A translation block of two ports: a third flow is dropped, and counted, until one has ended.
#[test]
fn every_port_in_use() -> Result<()> {
    Lab::run_with(&format!("snatPorts: 50000-50001\n{CONFIG}"), |lab| {
        let _servers = serve_echo(lab)?;
        let frontend = Place::Remote.tcp(Family::V4);
        let one = client::tcp(&lab.net.client, frontend)?;
        let two = client::tcp(&lab.net.client, frontend)?;
        let third = client::udp(&lab.net.client, Place::Remote.udp(Family::V4))?;
        client::round_trip(&third, b"another backend port, another block")?;
        let try_third =
            |patience| Ok(client::tcp_within(&lab.net.client, frontend, patience).is_ok());
        let came_through: Result<bool> = try_third(Duration::from_millis(300));
        ensure!(!came_through?, "a third flow came through");
        wait::until_true("it to be counted", wait::SOON, || {
            Ok(lab.cli().packets("snat-exhausted")? > 0)
        })?;
        let gauges = ["redirector_snat_ports", "redirector_snat_ports_used"];
        let [ports, used] = gauges.map(|gauge| lab.metric(gauge));
        let (ports, used) = (ports?.context("no gauge")?, used?.context("no gauge")?);
        ensure!(ports == 2.0 && used == 2.0, "{used} of {ports}");
        let status = lab.cli().text(&["status"])?;
        let busiest = format!("2 of 2 in use for {}", node2(Family::V4, 8080));
        ensure!(status.contains(&busiest), "not {busiest}: {status}");
        client::echo(&one, b"still here")?;
        client::echo(&two, b"still here")?;

        // A port of a flow that has ended is free at once.
        client::reset(one)?;
        wait::until_true("a port to come free", wait::SOON, || {
            try_third(Duration::from_millis(500))
        })?;
        client::echo(&two, b"still here")?;
        client::finish(&two)
    })
}

/// The block is the translation's alone: the kernel gives its ports to no socket.
#[test]
fn the_block_is_reserved() -> Result<()> {
    Lab::run_with(&format!("snatPorts: 50000-50999\n{CONFIG}"), |lab| {
        let reserved = lab.net.node1.sysctl("net/ipv4/ip_local_reserved_ports")?;
        ensure!(reserved.contains("50000-50999"), "reserved: {reserved}");
        Ok(())
    })
}

/// A client that reset its connection uses the port again at once: a new flow in the old one's
/// place.
#[test]
fn a_port_used_again() -> Result<()> {
    Lab::run_with(CONFIG, |lab| {
        let _servers = serve_echo(lab)?;
        for family in FAMILIES {
            for place in PLACES {
                for round in 0..10 {
                    let stream = client::tcp_from(&lab.net.client, 45004, place.tcp(family))?;
                    client::echo(&stream, b"hello")
                        .with_context(|| format!("{place:?} over {family:?}, round {round}"))?;
                    client::reset(stream)?;
                }
            }
        }
        Ok(())
    })
}

/// Flows that have ended are collected: soonest those of datagrams that nobody answers.
#[test]
fn ended_flows_go() -> Result<()> {
    Lab::run_with(CONFIG, |lab| {
        let _server = Place::Remote.serve_tcp(lab, Service::Echo)?;
        let stays = client::tcp(&lab.net.client, Place::Remote.tcp(Family::V4))?;
        client::echo(&stays, b"hello")?;
        for family in FAMILIES {
            for place in PLACES {
                client::udp(&lab.net.client, place.udp(family))?.send(b"hello")?;
            }
        }
        ensure!(lab.cli().rows(&["flow", "list"])?.len() > 1);
        wait::until_true("unanswered flows to go", Duration::from_secs(60), || {
            Ok(lab.cli().rows(&["flow", "list"])?.len() == 1)
        })?;
        client::echo(&stays, b"still here")
    })
}
