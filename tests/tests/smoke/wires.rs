//! VLANs and bonds, which not every kernel that tests run on has: the emulated ones do. One agent for
//! all, which is told by its file what to work on.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use redirector_common::Family;
use redirector_tests::{
    agent::Lab,
    client,
    namespace::{Namespace, run},
    server::Service,
    site::{CONFIG, PLACES, check_answers, check_answers_at, serve_names},
    topology::{Addresses, FAMILIES},
    wait,
};
use serde_json::Value;

/// Node 1 on VLAN 9 of its cable to the client.
const VLAN: Addresses = Addresses::new(6, 1);
/// Node 1 on its bond.
const BOND: Addresses = Addresses::new(4, 1);
/// How long an agent in an emulated machine may take to follow its file.
const PATIENCE: Duration = Duration::from_secs(60);
const MEMBERS: [(&str, &str); 2] = [("port0", "far0"), ("port1", "far1")];

#[test]
fn vlans_and_bonds() -> Result<()> {
    Lab::run(|lab| {
        let (client, node) = (&lab.net.client, &lab.net.node1);
        for (host, addresses) in [(node, VLAN), (client, VLAN.peer())] {
            host.ip(&format!(
                "link add link eth0 name eth0.9 type vlan id 9
                 link set eth0.9 up
                 {}",
                address(addresses, "eth0.9")
            ))?;
        }
        build_bond(node, client)?;
        let config = |interfaces: &str| format!("interfaces: [{interfaces}]\n{CONFIG}");
        lab.write_config(&config("eth0.9, bond0, eth1"))?;
        let command = lab.run_command()?;
        lab.start_command(command)?;
        lab.wait_ready()?;
        ensure!(state(lab, "eth0.9")?["xdp"] == "generic", "{}", state(lab, "eth0.9")?);
        ensure!(state(lab, "bond0")?["xdp"] == "native", "{}", state(lab, "bond0")?);
        {
            let _servers = serve_names(lab)?;
            for (at, name) in [(VLAN, "eth0.9"), (BOND, "bond0")] {
                check_answers_at(lab, at).with_context(|| name)?;
                for reason in ["steered-new", "local-new", "remote-new", "remote-established"] {
                    ensure!(packets(lab, reason, name)? > 0, "no {reason} on {name}");
                }
            }
        }
        live_through_members(lab)?;
        {
            let _servers = serve_names(lab)?;
            // Tagged frames on the cable below too: nothing is done twice.
            choose(lab, &config("eth0, eth0.9, bond0, eth1"), VLAN)?;
            // The kernel allows XDP on one of them alone.
            let why = state(lab, "eth0")?["xdpReason"].to_string();
            ensure!(why.contains("a device above it"), "{why}");
            check_answers_at(lab, VLAN).context("eth0 and eth0.9")?;
            check_answers(lab).context("eth0 and eth0.9, untagged")?;
            // On it alone: the address is no chosen interface's, and is named.
            let ours = |line: &&str| !line.contains("2001:");
            let named = config("eth0, eth1").lines().filter(ours).collect::<Vec<_>>().join("\n");
            let named = named.replace("{port", "{address: 198.18.6.1, port");
            let named = named.replace("- 80", "- 198.18.6.1:80").replace("- 53", "- 198.18.6.1:53");
            choose(lab, &named, VLAN)?;
            wait::until_true("eth0.9 to be left", PATIENCE, || {
                let is_left = state(lab, "eth0.9")?.is_null() && state(lab, "bond0")?.is_null();
                Ok(is_left && state(lab, "eth0")?["xdp"] == "native")
            })?;
            for place in PLACES {
                let frontend = |at: SocketAddr| SocketAddr::new(VLAN.v4.into(), at.port());
                let tcp = client::whoami(&lab.net.client, frontend(place.tcp(Family::V4)))?;
                let udp = client::whoami_udp(&lab.net.client, frontend(place.udp(Family::V4)))?;
                ensure!(
                    tcp.server == place.name() && udp.server == place.name(),
                    "{tcp:?} {udp:?}"
                );
            }
        }
        lab.stop()?;
        lab.cli().text(&["detach"])?;
        ensure!(!lab.has_pins(), "detach left pins");
        Ok(())
    })
}

/// Two cables to the client's bridge, one of them in use.
fn build_bond(node: &Namespace, client: &Namespace) -> Result<()> {
    client.ip("link add lan0 type bridge\nlink set lan0 up")?;
    node.ip("link add bond0 type bond mode active-backup miimon 50")?;
    for (near, far) in MEMBERS {
        let make = format!(
            "link add {near} netns {} type veth peer name {far} netns {}",
            node.name(),
            client.name()
        );
        run("ip", make.split_whitespace())?;
        node.set_offloads(near, "tx off gro on")?;
        client.set_offloads(far, "tx off gro on")?;
        client.ip(&format!("link set {far} up\nlink set {far} master lan0"))?;
        node.ip(&format!("link set {near} master bond0"))?;
    }
    node.ip("link set bond0 up")?;
    node.set_offloads("bond0", "tx off")?;
    client.set_offloads("lan0", "tx off")?;
    node.ip(&address(BOND, "bond0"))?;
    client.ip(&address(BOND.peer(), "lan0"))?;
    Ok(())
}

fn address(addresses: Addresses, interface: &str) -> String {
    format!(
        "address add {}/24 dev {interface}
         address add {}/64 dev {interface} nodad",
        addresses.v4, addresses.v6
    )
}

/// Members fail, go and come while connections live.
fn live_through_members(lab: &Lab) -> Result<()> {
    let mut servers = Vec::new();
    let mut streams = Vec::new();
    for place in PLACES {
        servers.push(place.serve_tcp(lab, Service::Echo)?);
        for family in FAMILIES {
            let frontend = SocketAddr::new(BOND.of(family), place.tcp(family).port());
            streams.push(client::tcp(&lab.net.client, frontend)?);
        }
    }
    let steps = [
        "link set port0 down",
        "link set port0 nomaster",
        "link set port0 master bond0",
        "link set port1 nomaster",
        "link set port1 master bond0",
        "link set port0 down",
    ];
    for step in ["link show bond0"].iter().chain(&steps) {
        lab.net.node1.ip(step)?;
        for stream in &streams {
            client::echo(stream, b"still there").with_context(|| format!("after {step}"))?;
        }
    }
    ensure!(state(lab, "bond0")?["xdp"] == "native", "{}", state(lab, "bond0")?);
    Ok(())
}

/// Has the agent work by another file, on `eth0` too, and awaits frontends at an address.
fn choose(lab: &Lab, config: &str, node: Addresses) -> Result<()> {
    lab.write_config(config)?;
    wait::until_true("programs on eth0", PATIENCE, || {
        let tc = state(lab, "eth0")?["tc"].clone();
        Ok(tc.is_string() && tc != "off")
    })?;
    wait::until_true("frontends", PATIENCE, || {
        Ok(lab.cli().text(&["service", "list", "-o", "json"])?.contains(&node.v4.to_string()))
    })
}

/// What `status` says of an interface.
fn state(lab: &Lab, name: &str) -> Result<Value> {
    let status = lab.cli().json(&["status"])?;
    let interfaces = status["interfaces"].as_array().context("no interfaces")?;
    let found = interfaces.iter().find(|interface| interface["name"] == name);
    Ok(found.cloned().unwrap_or(Value::Null))
}

fn packets(lab: &Lab, reason: &str, interface: &str) -> Result<u64> {
    let rows = lab.cli().rows(&["counters"])?;
    let of = |row: &&Value| row["reason"] == reason && row["interface"] == interface;
    Ok(rows.iter().filter(of).filter_map(|row| row["packets"].as_u64()).sum())
}
