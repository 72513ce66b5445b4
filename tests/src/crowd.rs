//! A service with several backends, here and elsewhere, that say who they are.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Result, bail};
use redirector_common::{Family, Protocol};

use crate::{
    agent::Lab,
    client,
    server::{Server, Service},
    topology::NODE1,
    wait,
};

/// The backends: names, the addresses of the file, ports.
pub const MEMBERS: [(&str, [&str; 2], u16); 3] = [
    ("here", ["local", "local"], 8080),
    ("there", ["198.18.2.2", "2001:db8:2::2"], 8080),
    ("beyond", ["198.18.2.2", "2001:db8:2::2"], 8081),
];

/// Frontends of the service: two over TCP, two over UDP.
pub const TCP: [u16; 2] = [80, 81];
/// See [`TCP`].
pub const UDP: [u16; 2] = [53, 54];

/// The agent's file: the service `crowd` with these settings, and of its backends those that
/// `member` has words for.
pub fn config(settings: &str, member: impl Fn(&str) -> Option<&'static str>) -> String {
    let mut text = format!("services:\n  - name: crowd\n{}    frontends:\n", indented(settings));
    for port in TCP {
        text += &format!("      - {{port: {port}}}\n");
    }
    for port in UDP {
        text += &format!("      - {{port: {port}, protocol: UDP}}\n");
    }
    text += "    backends:\n";
    for (name, addresses, port) in MEMBERS {
        let Some(words) = member(name) else {
            continue;
        };
        let addresses: BTreeSet<_> = addresses.into_iter().collect();
        for address in addresses {
            text += &format!("      - {{address: '{address}', port: {port}{words}}}\n");
        }
    }
    text
}

fn indented(settings: &str) -> String {
    settings.lines().map(|line| format!("    {line}\n")).collect()
}

/// Every backend, as usual.
pub fn all(_: &str) -> Option<&'static str> {
    Some("")
}

/// Starts every backend, over TCP and UDP.
///
/// # Errors
///
/// If one can't be started.
pub fn serve(lab: &Lab) -> Result<Vec<Server>> {
    let mut servers = Vec::new();
    for (name, addresses, port) in MEMBERS {
        let host = if addresses[0] == "local" { &lab.net.node1 } else { &lab.net.node2 };
        servers.push(Server::tcp(host, port, Service::Whoami(name))?);
        servers.push(Server::udp(host, port, Service::Whoami(name))?);
    }
    Ok(servers)
}

/// Who answers a new flow.
///
/// # Errors
///
/// If nobody does.
pub fn ask(lab: &Lab, protocol: Protocol, address: IpAddr, port: u16) -> Result<String> {
    let frontend = SocketAddr::new(address, port);
    let answer = match protocol {
        Protocol::Tcp => client::whoami(&lab.net.client, frontend)?,
        Protocol::Udp => client::whoami_udp(&lab.net.client, frontend)?,
    };
    Ok(answer.server)
}

/// Who answers a new connection to the first frontend.
///
/// # Errors
///
/// If nobody does.
pub fn ask_tcp(lab: &Lab, family: Family) -> Result<String> {
    ask(lab, Protocol::Tcp, NODE1.of(family), TCP[0])
}

/// Asks until everyone has answered, or that would be a miracle: one in a hundred millions if
/// each of three has a third of the clients.
///
/// # Errors
///
/// If nobody answers, or only some do.
pub fn meet_everyone(mut ask: impl FnMut() -> Result<String>) -> Result<()> {
    let mut met = BTreeSet::new();
    for _ in 0..50 {
        met.insert(ask()?);
        if met.len() == MEMBERS.len() {
            return Ok(());
        }
    }
    bail!("only {met:?} answer")
}

/// Replaces the file, and waits until the agent has brought the maps in line.
///
/// # Errors
///
/// If it does not.
pub fn apply(lab: &Lab, config: &str) -> Result<()> {
    if std::fs::read_to_string(lab.config_path())? == config {
        return Ok(());
    }
    let syncs = || -> Result<f64> {
        Ok(lab.metric("redirector_sync_duration_seconds_count")?.unwrap_or_default())
    };
    let before = syncs()?;
    lab.write_config(config)?;
    wait::until_true("the maps to be brought in line", wait::SOON, || Ok(syncs()? > before))
}
