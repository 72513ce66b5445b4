//! Which backend a new flow goes to, and that flows that are there stay.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::ErrorKind,
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use redirector_common::Family;
use redirector_tests::{
    agent::Lab,
    client::{self, Pulse},
    crowd::{self, TCP, UDP, all, apply, ask_tcp, config},
    server::{Server, Service},
    topology::{FAMILIES, NODE1, NODE2},
    wait,
};

/// Who answers how many of so many connections.
fn counts(lab: &Lab, family: Family, connections: usize) -> Result<BTreeMap<String, usize>> {
    let mut counts = BTreeMap::new();
    for _ in 0..connections {
        *counts.entry(ask_tcp(lab, family)?).or_insert(0) += 1;
    }
    Ok(counts)
}

/// By weight, wherever the backends are: the one here must not get what XDP leaves over.
#[test]
fn random_shares() -> Result<()> {
    Lab::run_with(&config("algorithm: random\n", all), |lab| {
        let _servers = crowd::serve(lab)?;
        for family in FAMILIES {
            // 100 each; six standard deviations are 49.
            let counts = counts(lab, family, 300)?;
            ensure!(counts.len() == 3, "{counts:?}");
            ensure!(counts.values().all(|count| (51..150).contains(count)), "{counts:?}");
        }
        let algorithm = &lab.cli().json(&["service", "get", "crowd"])?["algorithm"];
        ensure!(algorithm == "random", "{algorithm}");
        Ok(())
    })
}

/// The algorithm, the weights and the backends change; every flow goes on where it was.
#[test]
fn flows_stay_whatever_changes() -> Result<()> {
    Lab::run_with(&config("", all), |lab| {
        let mut servers = Vec::new();
        for (host, port) in [(&lab.net.node1, 8080), (&lab.net.node2, 8080), (&lab.net.node2, 8081)]
        {
            servers.push(Server::tcp(host, port, Service::Echo)?);
            servers.push(Server::udp(host, port, Service::Echo)?);
        }
        let mut streams = Vec::new();
        let mut pulses = Vec::new();
        for family in FAMILIES {
            for _ in 0..12 {
                streams
                    .push(client::tcp(&lab.net.client, SocketAddr::new(NODE1.of(family), TCP[0]))?);
            }
            for _ in 0..4 {
                let frontend = SocketAddr::new(NODE1.of(family), UDP[0]);
                let socket = client::udp(&lab.net.client, frontend)?;
                pulses.push(Pulse::start(socket, Duration::from_millis(5))?);
            }
        }
        let drained = |name: &str| Some(if name == "there" { ", weight: 0" } else { "" });
        let ending = |name: &str| Some(if name == "here" { ", state: terminating" } else { "" });
        let ended = |_: &str| Some(", state: terminating");
        let heavy = |name: &str| Some(if name == "beyond" { ", weight: 50" } else { "" });
        let local = "trafficPolicy: Local\n";
        let steps = [
            config("algorithm: random\n", all),
            config("sessionAffinitySeconds: 60\n", drained),
            config("algorithm: random\n", ending),
            config("", ended),
            config(local, heavy),
            config(local, ending),
            config("", all),
        ];
        for step in steps {
            apply(lab, &step)?;
            for stream in &streams {
                client::echo(stream, b"and on").with_context(|| step.clone())?;
            }
            for pulse in &pulses {
                pulse.beat(20).with_context(|| step.clone())?;
            }
        }
        for pulse in pulses {
            pulse.finish()?;
        }
        streams.iter().try_for_each(client::finish)
    })
}

/// A terminating backend and a drained one keep their flows, are seen to, and get no new ones.
#[test]
fn ending_backends() -> Result<()> {
    Lab::run_with(&config("", all), |lab| {
        let _servers = crowd::serve(lab)?;
        let member = |name: &str| {
            Some(match name {
                "here" => ", state: terminating",
                "there" => ", weight: 0",
                _ => "",
            })
        };
        apply(lab, &config("", member))?;
        for family in FAMILIES {
            let counts = counts(lab, family, 30)?;
            ensure!(counts.keys().eq(["beyond"]), "{counts:?}");
        }
        let shown = lab.cli().text(&["service", "get", "crowd"])?;
        let is_shown = |word| shown.lines().filter(|line| line.contains(word)).count();
        ensure!(is_shown("terminating") == 1 && is_shown("draining") == 2, "{shown}");
        let listed = lab.cli().text(&["service", "list"])?;
        ensure!(listed.contains("(draining)"), "{listed}");

        // Better than none at all.
        let member = |name: &str| (name == "here").then_some(", state: terminating");
        apply(lab, &config("", member))?;
        for family in FAMILIES {
            let counts = counts(lab, family, 5)?;
            ensure!(counts.keys().eq(["here"]), "{counts:?}");
        }
        Ok(())
    })
}

/// Addresses that no node has.
const VIPS: [&str; 2] = ["203.0.113.80", "2001:db8:113::80"];

/// A backend that is removed keeps its connections, unless the file says that their clients are
/// to be reset, at addresses of the node and at those that no node has; those of others go on either
/// way.
#[test]
fn connections_of_backends_that_are_removed() -> Result<()> {
    let file = |mode: &str, removed: &str, member: fn(&str) -> Option<&'static str>| {
        let [v4, v6] = VIPS.map(|vip| format!("      - {{address: '{vip}', port: 443}}\n"));
        let frontends = format!("    frontends:\n{v4}{v6}");
        let services = config("", member).replace("    frontends:\n", &frontends);
        format!("xdpMode: {mode}\nremovedBackends: {removed}\n{services}")
    };
    let without = |name: &str| (name != "there").then_some("");
    Lab::run_with(&file("native", "keep", all), |lab| {
        lab.net.client.ip("route add 203.0.113.0/24 via 198.18.1.1
             route add 2001:db8:113::/64 via 2001:db8:1::1")?;
        let mut servers = Vec::new();
        for (host, port) in [(&lab.net.node1, 8080), (&lab.net.node2, 8080), (&lab.net.node2, 8081)]
        {
            servers.push(Server::tcp(host, port, Service::Echo)?);
        }
        for (mode, removed) in
            [("native", "keep"), ("native", "reset"), ("off", "keep"), ("off", "reset")]
        {
            for (family, vip) in FAMILIES.into_iter().zip(VIPS) {
                apply(lab, &file(mode, removed, all))?;
                let there = SocketAddr::new(NODE2.of(family), 8080).to_string();
                let mut streams = open_to_everyone(lab, (NODE1.of(family), TCP[0]).into())?;
                streams.extend(open_to_everyone(lab, (vip.parse::<IpAddr>()?, 443).into())?);
                apply(lab, &file(mode, removed, without))?;
                if removed == "reset" {
                    wait::until_true("nobody to be led to what was removed", wait::SOON, || {
                        Ok(!backends(lab)?.values().any(|backend| *backend == there))
                    })?;
                }
                for (backend, stream) in &streams {
                    let end = client::echo(stream, b"still there?");
                    let which =
                        || format!("{mode}, {removed}: {:?} {backend:?}", stream.peer_addr());
                    if removed == "reset" && *backend == there {
                        let error = end.err().context("it goes on").with_context(which)?;
                        let kind = error.downcast_ref().map(std::io::Error::kind);
                        ensure!(kind == Some(ErrorKind::ConnectionReset), "{}: {error:#}", which());
                    } else {
                        end.with_context(which)?;
                        client::finish(stream)?;
                    }
                }
            }
        }
        Ok(())
    })
}

/// A client hears of every connection that lost its backend, also of those that it made from one
/// port of its own to several frontends.
#[test]
fn connections_from_one_port_to_several_frontends_are_reset() -> Result<()> {
    let file = |name: &'static str| {
        format!("removedBackends: reset\n{}", config("", move |it| (it == name).then_some("")))
    };
    Lab::run_with(&file("there"), |lab| {
        let _servers = [8080, 8081]
            .map(|port| Server::tcp(&lab.net.node2, port, Service::Echo))
            .into_iter()
            .collect::<Result<Vec<_>>>()?;
        for family in FAMILIES {
            apply(lab, &file("there"))?;
            let mut streams = Vec::new();
            for port in TCP {
                let frontend = SocketAddr::new(NODE1.of(family), port);
                let stream = client::tcp_from(&lab.net.client, 40000, frontend)?;
                client::echo(&stream, b"hello")?;
                streams.push(stream);
            }
            apply(lab, &file("beyond"))?;
            let there = SocketAddr::new(NODE2.of(family), 8080).to_string();
            wait::until_true("nobody to be led to what was removed", wait::SOON, || {
                Ok(!backends(lab)?.values().any(|backend| *backend == there))
            })?;
            for stream in &streams {
                let error = client::echo(stream, b"still there?").err().context("it goes on")?;
                let kind = error.downcast_ref().map(std::io::Error::kind);
                ensure!(kind == Some(ErrorKind::ConnectionReset), "{error:#}");
            }
        }
        Ok(())
    })
}

/// Connections to every backend, with the address of each backend; none for the program here,
/// whose connections are in no table.
fn open_to_everyone(lab: &Lab, frontend: SocketAddr) -> Result<Vec<(String, TcpStream)>> {
    let mut streams = Vec::new();
    // So many that a miss of one of three is a matter of one in many millions.
    for _ in 0..50 {
        let stream = client::tcp(&lab.net.client, frontend)?;
        client::echo(&stream, b"hello")?;
        streams.push(stream);
    }
    let backends = backends(lab)?;
    let mut found = Vec::new();
    for stream in streams {
        let client = stream.local_addr()?.to_string();
        found.push((backends.get(&client).cloned().unwrap_or_default(), stream));
    }
    let different: BTreeSet<&str> = found.iter().map(|(backend, _)| backend.as_str()).collect();
    ensure!(different.len() == 3, "{different:?}");
    Ok(found)
}

/// Backends of established flows, by client.
fn backends(lab: &Lab) -> Result<BTreeMap<String, String>> {
    let rows = lab.cli().rows(&["flow", "list"])?;
    let established = rows.iter().filter(|row| row["state"] == "established");
    let text = |row: &serde_json::Value, key: &str| row[key].as_str().map(str::to_owned);
    Ok(established.filter_map(|row| Some((text(row, "client")?, text(row, "backend")?))).collect())
}

/// A client that keeps its socket hears of another backend, also where there was
/// none for a while.
#[test]
fn datagrams_leave_backends_that_go() -> Result<()> {
    Lab::run_with(&config("", all), |lab| {
        let _servers = crowd::serve(lab)?;
        for family in FAMILIES {
            let socket = client::udp(&lab.net.client, SocketAddr::new(NODE1.of(family), UDP[0]))?;
            socket.set_read_timeout(Some(Duration::from_secs(1)))?;
            for _ in 0..2 {
                apply(lab, &config("", all))?;
                let first = answer(&socket, None)?;
                // A terminating one keeps it.
                let name = first.clone();
                let ending =
                    move |it: &str| Some(if it == name { ", state: terminating" } else { "" });
                apply(lab, &config("", ending))?;
                ensure!(answer(&socket, None)? == first, "{first} lost its flow");
                let name = first.clone();
                apply(lab, &config("", move |it| (it != name).then_some("")))?;
                answer(&socket, Some(&first))?;

                apply(lab, &config("", |_| None))?;
                wait::until_true("the client to be refused", wait::SOON, || {
                    // Answers to what was asked before may still come.
                    let sent = socket.send(b"who?");
                    let answer =
                        sent.and_then(|_| wait::uninterrupted(|| socket.recv(&mut [0; 100])));
                    Ok(answer.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused))
                })
                .with_context(|| format!("over {family:?}"))?;
                apply(lab, &config("", |it| (it == "there").then_some("")))?;
                ensure!(answer(&socket, None)? == "there", "over {family:?}");
            }
        }
        Ok(())
    })
}

/// Who answers, which must be another than `gone`.
fn answer(socket: &std::net::UdpSocket, gone: Option<&str>) -> Result<String> {
    wait::until(&format!("another than {gone:?}"), wait::SOON, || {
        let mut buffer = [0; 100];
        // What is late answers another question.
        socket.set_nonblocking(true)?;
        while socket
            .recv(&mut buffer)
            .map_or_else(|it| it.kind() != ErrorKind::WouldBlock, |_| true)
        {}
        socket.set_nonblocking(false)?;
        let sent = socket.send(b"who?");
        if sent.is_ok()
            && let Ok(count) = wait::uninterrupted(|| socket.recv(&mut buffer))
        {
            let text = String::from_utf8_lossy(buffer.get(..count).unwrap_or(&[])).into_owned();
            let name = text.split([' ', '=']).nth(1).unwrap_or_default().to_owned();
            return Ok(Some(name).filter(|name| Some(name.as_str()) != gone));
        }
        Ok(None)
    })
}
