//! Direct server return between two agents: the client's packets come to node A, the backend is on
//! node B, and B's answers go to the client by a way of their own.
//!
//! ```text
//!                       ┌──────── a segment, or a router ────────┐
//!        eth0 ── eth0 A eth1                                      eth0 B
//! client                                                          eth1 │
//!        eth1 ─────────────────────────────────────────────────────────┘
//! ```

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use redirector_common::Family;
use redirector_tests::{
    agent::Lab,
    client,
    namespace::Namespace,
    server::{Server, Service},
    topology::{Addresses, CLIENT, FAMILIES, NODE1, NODE1_INSIDE, NODE2, link, make_router},
    transfer, wait,
};
use socket2::SockRef;

const SEGMENT_A: Addresses = Addresses::new(4, 1);
const B: Addresses = Addresses::new(4, 2);
const B_OUTSIDE: Addresses = Addresses::new(8, 1);
const CLIENT_BACK: Addresses = Addresses::new(8, 2);

/// What is between the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Between {
    Nothing,
    Router,
}

/// Both nodes with their agents, and what is around them.
struct Pair {
    a: Lab,
    b: Lab,
}

impl Pair {
    fn run(between: Between, mode: &str, test: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let mut pair = Self { a: Lab::new()?, b: Lab::new()? };
        let result = pair.prepare(between, mode).and_then(|()| test(&mut pair));
        if result.is_err() {
            pair.a.print_state();
            pair.b.print_state();
        }
        result
    }

    fn prepare(&mut self, between: Between, mode: &str) -> Result<()> {
        self.cable(between)?;
        let config = config("dsr", mode);
        for lab in [&mut self.a, &mut self.b] {
            lab.write_config(&config)?;
        }
        let inside = if between == Between::Router { "eth1" } else { "eth2" };
        self.a.start(&["--interface", "eth0", "--interface", inside])?;
        self.b.start(&["--interface", "eth0", "--interface", "eth1"])
    }

    fn cable(&self, between: Between) -> Result<()> {
        let (client, a, b) = (&self.a.net.client, &self.a.net.node1, &self.b.net.node1);
        b.ip("link delete eth0\nlink delete eth1")?;
        let router = &self.a.net.node2;
        match between {
            Between::Nothing => link((a, "eth2", SEGMENT_A), (b, "eth0", B))?,
            Between::Router => {
                link((router, "eth1", SEGMENT_A), (b, "eth0", B))?;
                make_router(router)?;
                for (to, by) in [
                    ("198.18.4.0/24", NODE2.v4.to_string()),
                    ("2001:db8:4::/64", NODE2.v6.to_string()),
                ] {
                    a.ip(&format!("route add {to} via {by}"))?;
                }
                b.ip(&format!(
                    "route add 198.18.2.0/24 via {}\nroute add 2001:db8:2::/64 via {}",
                    SEGMENT_A.v4, SEGMENT_A.v6
                ))?;
            }
        }
        link((b, "eth1", B_OUTSIDE), (client, "eth1", CLIENT_BACK))?;
        b.ip(&format!(
            "route add 198.18.1.0/24 via {}\nroute add 2001:db8:1::/64 via {}",
            CLIENT_BACK.v4, CLIENT_BACK.v6
        ))?;
        for host in [client, b] {
            for interface in ["all", "eth0", "eth1"] {
                host.set_sysctl(&format!("net/ipv4/conf/{interface}/rp_filter"), "0")?;
            }
        }
        Ok(())
    }

    fn client(&self) -> &Namespace {
        &self.a.net.client
    }
}

fn config(forwarding: &str, mode: &str) -> String {
    let nodes: Vec<String> = [NODE1, NODE1_INSIDE, SEGMENT_A, B, B_OUTSIDE]
        .iter()
        .flat_map(|node| [node.v4.to_string(), format!("'{}'", node.v6)])
        .collect();
    let service = |name: &str, port: u16, to: u16, protocol: &str, forwarding: &str| {
        format!(
            "
  - name: {name}
    frontends: [{{port: {port}, protocol: {protocol}}}]
    forwarding: {forwarding}
    backends:
      - {{address: {}, port: {to}}}
      - {{address: '{}', port: {to}}}",
            B.v4, B.v6
        )
    };
    format!(
        "xdpMode: {mode}\nnodes: [{}]\nservices:{}{}{}{}\n",
        nodes.join(", "),
        service("web", 81, 8080, "TCP", forwarding),
        service("bulk", 83, 8083, "TCP", forwarding),
        service("dns", 54, 5353, "UDP", forwarding),
        service("plain", 82, 8080, "TCP", "snat"),
    )
}

fn at(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address, port)
}

fn serve(b: &Namespace) -> Result<[Server; 4]> {
    Ok([
        Server::tcp(b, 8080, Service::Whoami("b"))?,
        Server::tcp(b, 8083, Service::Bulk)?,
        // The route to the client would have it answer from another of B's addresses.
        Server::udp_at(b, SocketAddr::new(B.of(Family::V4), 5353), Service::Echo)?,
        Server::udp_at(b, SocketAddr::new(B.of(Family::V6), 5353), Service::Echo)?,
    ])
}

fn all(between: Between, mode: &str) -> Result<()> {
    Pair::run(between, mode, |pair| {
        let _servers = serve(&pair.b.net.node1)?;
        for family in FAMILIES {
            answers(pair, family)
                .with_context(|| format!("{family:?}, {between:?}, XDP {mode}"))?;
        }
        let dropped = pair.b.cli().packets("tunnel-no-flow")?;
        ensure!(dropped == 0, "{dropped} packets in tunnels without a flow");
        changes(pair, mode)
    })
}

/// The client's address reaches the server, the answer the client, and A sees nothing of that.
fn answers(pair: &Pair, family: Family) -> Result<()> {
    let (client, frontend) = (pair.client(), |port| at(NODE1.of(family), port));
    let replies = pair.a.cli().packets("remote-reply")?;
    for _ in 0..3 {
        let answer = client::whoami(client, frontend(81)).context("TCP")?;
        ensure!(answer.client.ip() == CLIENT.of(family), "{answer:?}");
    }
    let socket = client::udp(client, frontend(54))?;
    for size in [100, 1400, 2000, 8000, 100] {
        let datagram: Vec<u8> = (0..=252_u8).cycle().take(size).collect();
        // The first that is too large for the tunnel tells the client so.
        let answer = client::round_trip(&socket, &datagram)
            .or_else(|_| client::round_trip(&socket, &datagram))
            .with_context(|| format!("a datagram of {size} bytes"))?;
        ensure!(answer == datagram, "a datagram of {size} bytes");
    }
    let stray = pair.b.cli().packets("fragment-without-first")?;
    ensure!(stray == 0, "{stray} fragments without a first");
    let stream = client::tcp(client, frontend(83))?;
    transfer::exchange(&stream, 4 << 20, 4 << 20).context("a transfer")?;
    let after = pair.a.cli().packets("remote-reply")?;
    ensure!(after == replies, "{} answers came by A", after - replies);
    let answer = client::whoami(client, frontend(82)).context("with SNAT")?;
    ensure!(answer.client.ip() != CLIENT.of(family), "{answer:?}");
    Ok(())
}

/// Checksums are left to "hardware" that never computes them, as veths have it of themselves.
fn without_checksums(between: Between, mode: &str) -> Result<()> {
    Pair::run(between, mode, |pair| {
        let (client, a, b) = (pair.client(), &pair.a.net.node1, &pair.b.net.node1);
        for host in [client, a, &pair.a.net.node2, b] {
            for interface in ["eth0", "eth1", "eth2"] {
                // Not every host has all.
                if host.ifindex(interface).is_ok() {
                    host.set_offloads(interface, "tx on")?;
                }
            }
        }
        let _servers = serve(b)?;
        for family in FAMILIES {
            answers(pair, family)
                .and_then(|()| transfers(pair, family, between, true))
                .with_context(|| format!("{family:?}, {between:?}, XDP {mode}"))?;
        }
        Ok(())
    })
}

/// Connections go on when the service changes, and new ones go as it says then.
fn changes(pair: &Pair, mode: &str) -> Result<()> {
    let client = pair.client();
    for family in FAMILIES {
        for (forwarding, keeps) in [("snat", false), ("dsr", true)] {
            let stream = client::tcp(client, at(NODE1.of(family), 83))?;
            // Who hands over must find someone who takes.
            let labs = if keeps { [&pair.b, &pair.a] } else { [&pair.a, &pair.b] };
            for lab in labs {
                lab.write_config(&config(forwarding, mode))?;
                wait::until_true("the change", wait::SOON, || {
                    let services = lab.cli().rows(&["service", "list"])?;
                    let web = services.iter().find(|service| service["name"] == "web");
                    Ok(web.is_some_and(|service| service["forwarding"] == forwarding))
                })?;
            }
            let answer = client::whoami(client, at(NODE1.of(family), 81))?;
            ensure!((answer.client.ip() == CLIENT.of(family)) == keeps, "{forwarding}: {answer:?}");
            transfer::exchange(&stream, 1 << 20, 1 << 20)
                .with_context(|| format!("a connection from before {forwarding}, {family:?}"))?;
        }
    }
    Ok(())
}

/// Bytes that timestamps take from each segment.
const TIMESTAMPS: u32 = 12;

/// The client knows from the answer to its SYN how much fits into the tunnel, and nobody has to tell
/// it; on a common segment everything fits. Without the clamp it has to be told.
fn segments(between: Between, mode: &str) -> Result<()> {
    Pair::run(between, mode, |pair| {
        let _server = Server::tcp(&pair.b.net.node1, 8083, Service::Bulk)?;
        for clamps in [true, false] {
            if !clamps {
                do_not_clamp(pair, mode)?;
            }
            for family in FAMILIES {
                transfers(pair, family, between, clamps).with_context(|| {
                    format!("{family:?}, {between:?}, XDP {mode}, clamps: {clamps}")
                })?;
            }
        }
        Ok(())
    })
}

fn do_not_clamp(pair: &Pair, mode: &str) -> Result<()> {
    let config = format!("mssClamp: false\n{}", config("dsr", mode));
    for lab in [&pair.a, &pair.b] {
        lab.write_config(&config)?;
        wait::until_true("the change", wait::SOON, || {
            Ok(lab.cli().json(&["status"])?["direct"]["mssClamp"] == false)
        })?;
    }
    Ok(())
}

fn transfers(pair: &Pair, family: Family, between: Between, clamps: bool) -> Result<()> {
    let too_big = || pair.a.cli().packets("too-big");
    let before = too_big()?;
    let stream = client::tcp(pair.client(), at(NODE1.of(family), 83))?;
    let is_tunnel = between == Between::Router;
    let (segment, header) = match family {
        Family::V4 => (1500 - 40, 20),
        Family::V6 => (1500 - 60, 40),
    };
    let expected = if is_tunnel && clamps { segment - header } else { segment };
    let found = SockRef::from(&stream).tcp_mss()?;
    ensure!(found == expected - TIMESTAMPS, "segments of {found} bytes, not {expected}");
    transfer::exchange(&stream, 4 << 20, 4 << 20)?;
    let told = too_big()? - before;
    ensure!((told > 0) == (is_tunnel && !clamps), "told {told} times");
    Ok(())
}

#[test]
fn segments_that_fit_into_tunnels_native() -> Result<()> {
    segments(Between::Router, "native")
}

#[test]
fn segments_that_fit_into_tunnels_off() -> Result<()> {
    segments(Between::Router, "off")
}

#[test]
fn segments_on_a_common_segment() -> Result<()> {
    segments(Between::Nothing, "native")
}

#[test]
fn checksums_left_to_the_card() -> Result<()> {
    for between in [Between::Nothing, Between::Router] {
        for mode in ["native", "generic", "off"] {
            without_checksums(between, mode)?;
        }
    }
    Ok(())
}

#[test]
fn same_segment_native() -> Result<()> {
    all(Between::Nothing, "native")
}

#[test]
fn same_segment_generic() -> Result<()> {
    all(Between::Nothing, "generic")
}

#[test]
fn same_segment_off() -> Result<()> {
    all(Between::Nothing, "off")
}

#[test]
fn routed_native() -> Result<()> {
    all(Between::Router, "native")
}

#[test]
fn routed_generic() -> Result<()> {
    all(Between::Router, "generic")
}

#[test]
fn routed_off() -> Result<()> {
    all(Between::Router, "off")
}
