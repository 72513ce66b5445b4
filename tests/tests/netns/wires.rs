//! More interfaces than two, and of more kinds: packets that come by one and leave by another,
//! bridges, devices whose driver has no XDP.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use redirector_tests::{
    agent::Lab,
    client,
    namespace::Namespace,
    server::{Server, Service},
    site::{CONFIG, PLACES, check_answers, check_answers_at, serve_echo, serve_names},
    topology::{Addresses, CLIENT, FAMILIES, NODE1, NODE1_INSIDE, NODE2, link},
    transfer, wait,
};
use serde_json::Value;

const MODES: [&str; 3] = ["native", "generic", "off"];

/// The client's second cable to node 1.
const FRONT: (Addresses, Addresses) = (Addresses::new(4, 1), Addresses::new(4, 2));
/// Node 2's second cable to node 1.
const BACK: (Addresses, Addresses) = (Addresses::new(5, 1), Addresses::new(5, 2));

/// Packets of a Reason on an interface.
fn packets(lab: &Lab, reason: &str, interface: &str) -> Result<u64> {
    let rows = lab.cli().rows(&["counters"])?;
    let of = |row: &&Value| row["reason"] == reason && row["interface"] == interface;
    Ok(rows.iter().filter(of).filter_map(|row| row["packets"].as_u64()).sum())
}

fn options<'a>(names: &[&'a str], mode: &'a str) -> Vec<&'a str> {
    let names = names.iter().flat_map(|name| ["--interface", name]);
    ["--xdp-mode", mode].into_iter().chain(names).collect()
}

/// In by eth0, out by eth1, back by eth2, out by eth3: no packet takes the way of another.
#[test]
fn four_ways() -> Result<()> {
    for mode in MODES {
        Lab::run(|lab| {
            let (client, node1, node2) = (&lab.net.client, &lab.net.node1, &lab.net.node2);
            link((node1, "eth3", FRONT.0), (client, "eth3", FRONT.1))?;
            link((node1, "eth2", BACK.0), (node2, "eth2", BACK.1))?;
            for host in [client, node1, node2] {
                // What comes by another way than it would be answered by is not a forgery here.
                for name in ["all", "default", "eth0", "eth1", "eth2", "eth3"] {
                    let setting = format!("net/ipv4/conf/{name}/rp_filter");
                    if host.sysctl(&setting).is_ok() {
                        host.set_sysctl(&setting, "0")?;
                    }
                }
            }
            // Addresses of its other cables are reached over the new ones.
            for family in FAMILIES {
                let whole = if family == redirector_common::Family::V4 { 32 } else { 128 };
                // UDP servers that listen on every address answer from the one that the way says.
                let (seen, behind) = (CLIENT.of(family), FRONT.1.of(family));
                let source = NODE1.of(family);
                node1
                    .ip(&format!("route add {seen}/{whole} via {behind} dev eth3 src {source}"))?;
                let (seen, behind) = (NODE1_INSIDE.of(family), BACK.0.of(family));
                let source = NODE2.of(family);
                node2
                    .ip(&format!("route add {seen}/{whole} via {behind} dev eth2 src {source}"))?;
            }
            lab.write_config(CONFIG)?;
            lab.start(&options(&["eth0", "eth1", "eth2", "eth3"], mode))?;
            {
                let _servers = serve_names(lab)?;
                check_answers(lab)?;
                check_answers_at(lab, FRONT.0)?;
            }
            for (reason, interface) in [
                ("remote-new", "eth0"),
                ("remote-established", "eth0"),
                ("remote-reply", "eth2"),
                ("local-new", "eth0"),
                ("local-reply", "eth3"),
                ("steered-new", "eth0"),
                ("remote-new", "eth3"),
            ] {
                ensure!(packets(lab, reason, interface)? > 0, "no {reason} on {interface}");
            }
            for (reason, interface) in
                [("remote-reply", "eth1"), ("local-reply", "eth0"), ("no-reply-flow", "eth2")]
            {
                ensure!(packets(lab, reason, interface)? == 0, "{reason} on {interface}");
            }
            for place in PLACES {
                let _server = place.serve_tcp(lab, Service::Bulk)?;
                for family in FAMILIES {
                    let stream = client::tcp(&lab.net.client, place.tcp(family))?;
                    transfer::exchange(&stream, 1 << 20, 1 << 20)
                        .with_context(|| format!("{place:?} over {family:?}, XDP {mode}"))?;
                }
            }
            Ok(())
        })
        .with_context(|| format!("XDP {mode}"))?;
    }
    Ok(())
}

/// The way changes under connections: to the backend and to the client.
#[test]
fn ways_that_change() -> Result<()> {
    Lab::run(|lab| {
        let (client, node1, node2) = (&lab.net.client, &lab.net.node1, &lab.net.node2);
        link((node1, "eth3", FRONT.0), (client, "eth3", FRONT.1))?;
        link((node1, "eth2", BACK.0), (node2, "eth2", BACK.1))?;
        lab.write_config(CONFIG)?;
        lab.start(&options(&["eth0", "eth1", "eth2", "eth3"], "auto"))?;
        let _servers = serve_echo(lab)?;
        let mut streams = Vec::new();
        for family in FAMILIES {
            for place in PLACES {
                streams.push(client::tcp(&lab.net.client, place.tcp(family))?);
            }
        }
        let echo = |what: &'static [u8]| {
            (0..5).try_for_each(|_| streams.iter().try_for_each(|it| client::echo(it, what)))
        };
        echo(b"one way")?;
        for family in FAMILIES {
            let whole = if family == redirector_common::Family::V4 { 32 } else { 128 };
            let (far, by) = (CLIENT.of(family), FRONT.1.of(family));
            lab.net.node1.ip(&format!("route add {far}/{whole} via {by} dev eth3"))?;
            let (far, by) = (NODE2.of(family), BACK.1.of(family));
            lab.net.node1.ip(&format!("route add {far}/{whole} via {by} dev eth2"))?;
        }
        echo(b"another way")?;
        ensure!(packets(lab, "remote-reply", "eth1")? > 0, "node 2 answers as it did");
        for family in FAMILIES {
            let whole = if family == redirector_common::Family::V4 { 32 } else { 128 };
            lab.net.node1.ip(&format!("route del {}/{whole} dev eth3", CLIENT.of(family)))?;
            lab.net.node1.ip(&format!("route del {}/{whole} dev eth2", NODE2.of(family)))?;
        }
        echo(b"and back")
    })
}

/// Puts node 1's outer cable into a bridge, which gets the host's address.
fn build_bridge(node: &Namespace) -> Result<()> {
    node.ip(&format!(
        "link add br0 type bridge
         link set br0 up
         address flush dev eth0
         link set eth0 master br0
         address add {}/24 dev br0
         address add {}/64 dev br0 nodad",
        NODE1.v4, NODE1.v6
    ))
    .map(drop)
}

/// The host's address is a bridge's; the cable is its port.
#[test]
fn a_bridge() -> Result<()> {
    for mode in ["auto", "generic", "off"] {
        Lab::run(|lab| {
            build_bridge(&lab.net.node1)?;
            lab.write_config(CONFIG)?;
            lab.start(&options(&["br0", "eth1"], mode))?;
            {
                let _servers = serve_names(lab)?;
                check_answers(lab)?;
                ensure!(packets(lab, "remote-new", "br0")? == 4);
                ensure!(packets(lab, "steered-new", "br0")? == 2);
            }
            for place in PLACES {
                let _server = place.serve_tcp(lab, Service::Bulk)?;
                for family in FAMILIES {
                    let stream = client::tcp(&lab.net.client, place.tcp(family))?;
                    transfer::exchange(&stream, 4 << 20, 4 << 20)
                        .with_context(|| format!("{place:?} over {family:?}, XDP {mode}"))?;
                }
            }
            Ok(())
        })
        .with_context(|| format!("XDP {mode}"))?;
    }
    Ok(())
}

/// Pods in the clients' own network, behind the same bridge: backends elsewhere, by way of it.
#[test]
fn pods_behind_the_bridge() -> Result<()> {
    const POD: Addresses = Addresses::new(1, 9);
    let config = "
services:
  - name: web
    frontends: [{port: 81, protocol: TCP}, {port: 54, protocol: UDP}]
    backends:
      - {address: 198.18.1.9, port: 8080}
      - {address: '2001:db8:1::9', port: 8080}
";
    Lab::run(|lab| {
        build_bridge(&lab.net.node1)?;
        let pod = Namespace::new("pod")?;
        link((&lab.net.node1, "veth1", Addresses::new(9, 1)), (&pod, "eth0", POD))?;
        lab.net.node1.ip("address flush dev veth1\nlink set veth1 master br0")?;
        lab.write_config(config)?;
        lab.start(&options(&["br0"], "auto"))?;
        let _tcp = Server::tcp(&pod, 8080, Service::Whoami("pod"))?;
        let _udp = Server::udp(&pod, 8080, Service::Whoami("pod"))?;
        for family in FAMILIES {
            for host in [&lab.net.client, &pod] {
                let tcp = client::whoami(host, SocketAddr::new(NODE1.of(family), 81))?;
                let udp = client::whoami_udp(host, SocketAddr::new(NODE1.of(family), 54))?;
                for answer in [tcp, udp] {
                    ensure!(answer.server == "pod", "{answer:?}");
                    ensure!(answer.client.ip() == NODE1.of(family), "{answer:?}");
                }
            }
            // Frames that the bridge only passes on are none of ours.
            let direct = client::whoami(&lab.net.client, SocketAddr::new(POD.of(family), 8080))?;
            ensure!(direct.client.ip() == CLIENT.of(family), "{direct:?}");
        }
        Ok(())
    })
}

/// The cable becomes a port of a bridge, and none again, under the agent.
#[test]
fn a_cable_that_becomes_a_port() -> Result<()> {
    Lab::run(|lab| {
        lab.write_config(CONFIG)?;
        lab.start(&options(&["eth0", "br0", "eth1"], "auto"))?;
        let _servers = serve_names(lab)?;
        check_answers(lab)?;
        build_bridge(&lab.net.node1)?;
        wait::until_true("programs on the bridge", wait::SOON, || {
            Ok(interface(lab, "br0")?["xdp"] == "generic")
        })?;
        // On both, the port's programs are the first to see a packet.
        check_answers(lab)?;
        lab.net.node1.ip(&format!(
            "link del br0
             address add {}/24 dev eth0
             address add {}/64 dev eth0 nodad",
            NODE1.v4, NODE1.v6
        ))?;
        wait::until_true("the bridge to be missed", wait::SOON, || {
            Ok(interface(lab, "br0")?["xdp"] == "off")
        })?;
        wait::until_true("frontends on the cable", wait::SOON, || {
            let frontends = lab.cli().json(&["service", "list"])?.to_string();
            Ok(FAMILIES.iter().all(|it| frontends.contains(&NODE1.of(*it).to_string())))
        })?;
        check_answers(lab)
    })
}

fn interface(lab: &Lab, name: &str) -> Result<Value> {
    let status = lab.cli().json(&["status"])?;
    let interfaces = status["interfaces"].as_array().context("no interfaces")?;
    let found = interfaces.iter().find(|interface| interface["name"] == name);
    Ok(found.cloned().unwrap_or(Value::Null))
}

/// Drivers that have no XDP of their own: the kernel's form serves, and `status` says why, also
/// when everything has been looked at again, and by the next agent.
#[test]
fn drivers_without_xdp() -> Result<()> {
    const WHY: &str = "native: the driver does not support it";
    for (name, make) in [
        ("br0", "link add br0 type bridge\nlink set eth0 master br0"),
        ("mv0", "link add mv0 link eth0 type macvlan mode bridge"),
    ] {
        Lab::run(|lab| {
            let node = &lab.net.node1;
            node.ip(&format!(
                "{make}
                 address flush dev eth0
                 link set {name} up
                 address add {}/24 dev {name}
                 address add {}/64 dev {name} nodad",
                NODE1.v4, NODE1.v6
            ))?;
            // The device below has no address, and must not answer for the one above it.
            node.set_sysctl("net/ipv4/conf/eth0/arp_ignore", "1")?;
            lab.write_config(CONFIG)?;
            lab.start(&options(&[name, "eth1"], "auto"))?;
            let check = |lab: &Lab| {
                let said = interface(lab, name)?;
                ensure!(said["xdp"] == "generic" && said["xdpReason"] == WHY, "{said}");
                ensure!(said["error"].is_null() && said["tc"] == "tcx", "{said}");
                ensure!(interface(lab, "eth1")?["xdp"] == "native");
                let text = lab.cli().text(&["status"])?;
                let line = text.lines().find(|line| line.starts_with(name)).context("no line")?;
                ensure!(line.contains("generic") && line.ends_with(WHY), "{line}");
                Ok(())
            };
            check(lab)?;
            // Everything is looked at again.
            lab.write_config(&CONFIG.replace("80:8080", "80:8080\n  - 82:8080"))?;
            lab.signal(Signal::SIGHUP)?;
            wait::until_true("the file to be read", wait::SOON, || {
                Ok(lab.cli().text(&["service", "list"])?.contains("82:8080"))
            })?;
            check(lab)?;
            let metric = format!("redirector_xdp_mode{{interface=\"{name}\",mode=\"generic\"}}");
            ensure!(lab.metric(&metric)? == Some(1.0), "{metric}");
            {
                let _servers = serve_names(lab)?;
                check_answers(lab)?;
            }
            lab.kill()?;
            lab.start(&options(&[name, "eth1"], "auto"))?;
            check(lab)?;
            lab.stop()?;
            lab.cli().text(&["detach"])?;
            let line = lab.refused(&options(&[name], "native"))?;
            let line = redirector_tests::cli::refusal(&line)?;
            ensure!(line.contains(name) && line.contains("does not support"), "{line}");
            Ok(())
        })
        .with_context(|| name.to_owned())?;
    }
    Ok(())
}
