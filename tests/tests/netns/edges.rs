//! What a router does besides forwarding: finding neighbours, telling senders of errors.

use std::{
    io::ErrorKind,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use redirector_common::Family;
use redirector_tests::{
    agent::Lab,
    client, frame,
    namespace::Namespace,
    packet::{Flags, Packet},
    server::{Server, Service},
    site::{CONFIG, PLACES, Place, check_answers, serve_echo, serve_names},
    topology::{CLIENT, FAMILIES, NODE1, NODE1_INSIDE, NODE2},
    transfer, wait,
};

/// Everything that takes no address from the packet that it answers must know the neighbour.
#[test]
fn forgotten_neighbours() -> Result<()> {
    for mode in ["native", "off"] {
        Lab::run_with_options(CONFIG, &["--xdp-mode", mode], |lab| {
            let _servers = serve_names(lab)?;
            for host in [&lab.net.client, &lab.net.node1, &lab.net.node2] {
                host.ip("-4 neigh flush all\n-6 neigh flush all")?;
            }
            check_answers(lab)
        })?;
    }
    Ok(())
}

#[test]
fn forgotten_neighbours_of_established_flows() -> Result<()> {
    Lab::run_with(CONFIG, |lab| {
        let _servers = serve_echo(lab)?;
        for family in FAMILIES {
            let stream = client::tcp(&lab.net.client, Place::Remote.tcp(family))?;
            client::echo(&stream, b"before")?;
            for interface in ["eth0", "eth1"] {
                lab.net.node1.ip(&format!("-4 neigh flush dev {interface}"))?;
                lab.net.node1.ip(&format!("-6 neigh flush dev {interface}"))?;
            }
            client::echo(&stream, b"after")?;
            client::finish(&stream)?;
        }
        Ok(())
    })
}

/// The way to the backend is narrower than the way to the node: the client is told and sends
/// smaller packets.
#[test]
fn path_mtu_discovery() -> Result<()> {
    for mode in ["native", "off"] {
        Lab::run_with_options(CONFIG, &["--xdp-mode", mode], |lab| {
            // Only the node's own end: the backend offers to receive large segments.
            lab.net.node1.ip("link set eth1 mtu 1400")?;
            // A super-packet is cut on the way, so only single ones can be too large.
            for offloads in ["tso off gso off", "tso on gso on"] {
                lab.net.client.set_offloads("eth0", offloads)?;
                let _server = Place::Remote.serve_tcp(lab, Service::Bulk)?;
                for family in FAMILIES {
                    lab.net.client.ip("-4 route flush cache\n-6 route flush cache")?;
                    let before = lab.cli().packets("too-big")?;
                    let stream = client::tcp(&lab.net.client, Place::Remote.tcp(family))?;
                    transfer::exchange(&stream, 2 << 20, 1)
                        .with_context(|| format!("{family:?}, {offloads}, XDP {mode}"))?;
                    let after = lab.cli().packets("too-big")?;
                    ensure!(after > before, "nothing was too big over {family:?}, {offloads}");
                    let route = lab.net.client.ip(&format!("route get {}", NODE1.of(family)))?;
                    ensure!(route.contains("mtu 1400"), "the client learnt nothing: {route}");
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// The way becomes narrower under a flow that is in use: the client is told before what is
/// remembered of the way runs out by itself, a second or more later.
#[test]
fn a_way_that_becomes_narrower() -> Result<()> {
    const ROUNDS: usize = 9;
    const AT_ONCE: Duration = Duration::from_millis(500);
    Lab::run_with(CONFIG, |lab| {
        let _servers = serve_echo(lab)?;
        for family in FAMILIES {
            let mut took = Vec::new();
            for _ in 0..ROUNDS {
                lab.net.node1.ip("link set eth1 mtu 1500")?;
                lab.net.client.ip("-4 route flush cache\n-6 route flush cache")?;
                let socket = client::udp(&lab.net.client, Place::Remote.udp(family))?;
                for _ in 0..60 {
                    client::round_trip(&socket, b"small")?;
                    thread::sleep(Duration::from_millis(5));
                }
                let before = lab.cli().packets("too-big")?;
                lab.net.node1.ip("link set eth1 mtu 1350")?;
                let start = Instant::now();
                wait::until_true("the client to be told", wait::SOON, || {
                    // What does not fit is sent in pieces once the client knows.
                    client::round_trip(&socket, b"small")?;
                    socket.send(&[7; 1400])?;
                    Ok(lab.cli().packets("too-big")? > before)
                })?;
                took.push(start.elapsed());
            }
            // What the machine has no time for says nothing, nor does one that ran out just then.
            took.sort();
            ensure!(took[ROUNDS / 2] <= AT_ONCE, "{family:?}: {took:?}");
        }
        Ok(())
    })
}

/// The client's packets are one hop short of the backend; the one at home they reach.
#[test]
fn time_exceeded() -> Result<()> {
    Lab::run_with(CONFIG, |lab| {
        let _servers = serve_echo(lab)?;
        for family in FAMILIES {
            let before = time_exceeded_seen(&lab.net.client, family)?;
            let socket = client::udp(&lab.net.client, Place::Remote.udp(family))?;
            let hops = socket2::SockRef::from(&socket);
            match family {
                Family::V4 => hops.set_ttl_v4(1)?,
                Family::V6 => hops.set_unicast_hops_v6(1)?,
            }
            socket.send(b"too far")?;
            wait::until_true("the client to be told", wait::SOON, || {
                Ok(time_exceeded_seen(&lab.net.client, family)? > before)
            })?;
            ensure!(lab.cli().packets("ttl-exceeded")? > 0);

            let socket = client::udp(&lab.net.client, Place::Local.udp(family))?;
            let hops = socket2::SockRef::from(&socket);
            match family {
                Family::V4 => hops.set_ttl_v4(1)?,
                Family::V6 => hops.set_unicast_hops_v6(1)?,
            }
            client::round_trip(&socket, b"near enough")?;
        }
        Ok(())
    })
}

/// What the host's stack has counted of "time exceeded" messages with a right checksum.
fn time_exceeded_seen(host: &Namespace, family: Family) -> Result<u64> {
    host.enter(move || {
        let (file, name) = match family {
            Family::V4 => ("snmp", "InTimeExcds"),
            Family::V6 => ("snmp6", "Icmp6InTimeExcds"),
        };
        let text = std::fs::read_to_string(format!("/proc/thread-self/net/{file}"))?;
        let value = match family {
            // Two lines for each protocol: names, then values.
            Family::V4 => {
                let mut lines = text.lines().filter(|line| line.starts_with("Icmp:"));
                let mut words = || lines.next().map(str::split_whitespace);
                let (names, values) = (words().context("no names")?, words().context("no values")?);
                names.zip(values).find(|(found, _)| *found == name).map(|(_, value)| value)
            }
            Family::V6 => text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim),
        };
        Ok(value.context("no such counter")?.parse()?)
    })
}

/// A service that has no backend in one family refuses there at once.
#[test]
fn no_backend() -> Result<()> {
    let config = "
services:
  - name: half
    frontends:
      - {port: 85, protocol: TCP}
      - {port: 85, protocol: UDP}
    backends:
      - {address: 198.18.2.2, port: 8080}
  - name: other-half
    frontends:
      - {port: 86, protocol: TCP}
      - {port: 86, protocol: UDP}
    backends:
      - {address: '2001:db8:2::2', port: 8080}
";
    Lab::run_with(config, |lab| {
        // The error must also get through where hosts leave checksums to their cards.
        let families = [(Family::V6, 85), (Family::V4, 86)];
        let cases = ["tx off", "tx on"].into_iter().flat_map(|o| families.map(|(f, p)| (o, f, p)));
        for (offloads, family, port) in cases {
            lab.net.client.set_offloads("eth0", offloads)?;
            lab.net.node1.set_offloads("eth0", offloads)?;
            let frontend = SocketAddr::new(NODE1.of(family), port);
            let start = Instant::now();
            let error = client::tcp(&lab.net.client, frontend).err();
            let kind =
                error.as_ref().and_then(|e| e.downcast_ref::<std::io::Error>()).map(|e| e.kind());
            ensure!(kind == Some(ErrorKind::ConnectionRefused), "{frontend}: {error:?}");
            // On a veth the answer comes while the socket is still busy sending, which makes it
            // miss it: it hears the one to its second attempt, a second later.
            ensure!(start.elapsed() < Duration::from_secs(10), "after {:?}", start.elapsed());

            let socket = client::udp(&lab.net.client, frontend)?;
            socket.send(b"anybody there?")?;
            let error = wait::uninterrupted(|| socket.recv(&mut [0; 16])).err();
            let kind = error.as_ref().map(std::io::Error::kind);
            ensure!(kind == Some(ErrorKind::ConnectionRefused), "{frontend} over UDP: {error:?}");
        }
        ensure!(lab.cli().packets("no-backend")? >= 8);
        Ok(())
    })
}

/// The client is the backend's own node: there and back through node 1, by one interface.
#[test]
fn hairpin() -> Result<()> {
    for mode in ["native", "off"] {
        hairpin_in(mode).with_context(|| format!("XDP {mode}"))?;
    }
    Ok(())
}

fn hairpin_in(mode: &str) -> Result<()> {
    Lab::run_with_options(CONFIG, &["--xdp-mode", mode], |lab| {
        let _servers = serve_names(lab)?;
        for family in FAMILIES {
            for place in PLACES {
                let inside = NODE1_INSIDE.of(family);
                let frontend = SocketAddr::new(inside, place.tcp(family).port());
                // Before anything could be sent again; a machine that stands still has that
                // happen, but not each time.
                let answer = wait::until("no packet to be lost", wait::SOON, || {
                    let start = Instant::now();
                    let answer = client::whoami(&lab.net.node2, frontend)?;
                    Ok((start.elapsed() < Duration::from_millis(900)).then_some(answer))
                })?;
                let seen = match place {
                    Place::Local => NODE2.of(family),
                    Place::Remote => inside,
                };
                ensure!(
                    answer.server == place.name() && answer.client.ip() == seen,
                    "{frontend}: {answer:?}"
                );
                let frontend = SocketAddr::new(inside, place.udp(family).port());
                let answer = client::whoami_udp(&lab.net.node2, frontend)?;
                ensure!(answer.client.ip() == seen, "{frontend}: {answer:?}");
            }
        }
        Ok(())
    })
}

/// A tag that the kernel takes out of the frame before TC sees it does not travel on: the backend
/// gets the datagram, and its answer the client.
#[test]
fn tagged_frames() -> Result<()> {
    for mode in ["native", "off"] {
        Lab::run_with_options(CONFIG, &["--xdp-mode", mode], |lab| {
            let _servers = serve_echo(lab)?;
            for family in FAMILIES {
                let frontend = Place::Remote.udp(family);
                let socket = client::udp_from(&lab.net.client, 45020, frontend)?;
                let source = SocketAddr::new(CLIENT.of(family), 45020);
                let macs = (lab.net.node1.mac("eth0")?, lab.net.client.mac("eth0")?);
                for tags in [[9].as_slice(), &[9, 10]] {
                    let tagged = Packet::udp(source, frontend).macs(macs.0, macs.1).vlans(tags);
                    frame::inject(&lab.net.client, "eth0", &tagged.bytes())?;
                    let mut answer = [0; 64];
                    let count = wait::uninterrupted(|| socket.recv(&mut answer))
                        .with_context(|| format!("{tags:?} over {family:?}, XDP {mode}"))?;
                    ensure!(tagged.bytes().ends_with(&answer[..count]) && count == 33);
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// Somebody who knows a connection's ends and not its numbers cannot take its flow from it.
#[test]
fn resets_with_wrong_numbers() -> Result<()> {
    for mode in ["native", "off"] {
        Lab::run_with_options(CONFIG, &["--xdp-mode", mode], |lab| {
            let _servers = serve_echo(lab)?;
            let macs = (lab.net.node1.mac("eth0")?, lab.net.client.mac("eth0")?);
            for family in FAMILIES {
                let stream = client::tcp(&lab.net.client, Place::Remote.tcp(family))?;
                client::echo(&stream, b"before")?;
                let (source, frontend) = (stream.local_addr()?, stream.peer_addr()?);
                let has_state = |state: &str| -> Result<bool> {
                    let rows = lab.cli().rows(&["flow", "list"])?;
                    let own = rows.iter().find(|row| row["client"] == source.to_string());
                    Ok(own.context("the flow is gone")?["state"] == state)
                };
                let forged = Packet::tcp(Flags::RST, source, frontend).macs(macs.0, macs.1);
                frame::inject(&lab.net.client, "eth0", &forged.bytes())?;
                wait::until_true("the RST to be seen", wait::SOON, || has_state("closed"))?;
                client::echo(&stream, b"after")?;
                ensure!(has_state("established")?, "{family:?}, XDP {mode}");
                client::finish(&stream)?;
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// Other traffic of and to the node is none of ours.
#[test]
fn other_traffic() -> Result<()> {
    Lab::run_with(CONFIG, |lab| {
        let _direct = Server::tcp(&lab.net.node1, 7777, Service::Whoami("direct"))?;
        let _backend = Server::tcp(&lab.net.node2, 7777, Service::Whoami("backend"))?;
        for family in FAMILIES {
            let answer = client::whoami(&lab.net.client, SocketAddr::new(NODE1.of(family), 7777))?;
            ensure!(answer.server == "direct", "{answer:?}");
            let answer = client::whoami(&lab.net.node1, SocketAddr::new(NODE2.of(family), 7777))?;
            ensure!(answer.server == "backend", "{answer:?}");
        }
        Ok(())
    })
}
