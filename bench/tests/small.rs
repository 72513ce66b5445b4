//! Each benchmark on a small scale: it runs, prints what checks read, and notices where what it
//! measures does not work. Needs root; `REDIRECTOR_BIN` names the agent.

use std::process::{Command, Output};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

const PACKET: [&str; 9] =
    ["packet", "--flows", "16", "--services", "2", "--rounds", "1", "--cpu", "0"];
const VETH: [&str; 13] = [
    "veth",
    "--flows",
    "64",
    "--new",
    "64",
    "--packets",
    "1024",
    "--services",
    "1,20",
    "--rounds",
    "1",
    "--cpu",
    "0",
];
const CONNECTIONS: [&str; 13] = [
    "connections",
    "--clients",
    "2",
    "--time",
    "50",
    "--requests",
    "50",
    "--bulk",
    "1",
    "--rounds",
    "1",
    "--cpu",
    "0",
];

fn run(arguments: &[&str], more: &[&str]) -> Result<Output> {
    Command::new(env!("CARGO_BIN_EXE_redirector-bench"))
        .args(arguments)
        .args(more)
        .output()
        .context("starting the benchmark")
}

fn rows(arguments: &[&str]) -> Result<Vec<Value>> {
    let output = run(arguments, &["-o", "json"])?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{arguments:?}: {}: {said}", output.status);
    serde_json::from_slice(&output.stdout).context("not an array of JSON")
}

/// Whether there is a row with all of these values, and with numbers where numbers have to be.
fn ensure_row<'a>(
    rows: &'a [Value],
    wanted: &[(&str, &str)],
    numbers: &[&str],
) -> Result<&'a Value> {
    let row = rows
        .iter()
        .find(|row| wanted.iter().all(|(key, value)| row[key] == **value))
        .with_context(|| format!("no row of {wanted:?}"))?;
    for number in numbers {
        let value = row[number].as_f64().with_context(|| format!("{number} of {row}"))?;
        ensure!(value > 0.0, "{number} of {row}");
    }
    Ok(row)
}

fn ensure_noticed(arguments: &[&str], words: &str) -> Result<()> {
    let output = run(arguments, &["--spoil"])?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success(), "{arguments:?} measured what does not work: {said}");
    ensure!(said.contains(words), "{arguments:?} does not say {words:?}: {said}");
    Ok(())
}

#[test]
fn packets_have_their_cases() -> Result<()> {
    let rows = rows(&PACKET)?;
    for family in ["ipv4", "ipv6"] {
        for case in [
            "established",
            "established-udp",
            "reply",
            "new",
            "not-ours",
            "dsr-l2",
            "dsr-ipip",
            "steer-established",
            "steer-syn",
        ] {
            let wanted = [("case", case), ("family", family)];
            let row = ensure_row(&rows, &wanted, &["flows", "services"])?;
            // Beside other tests some packets seem to take less than an empty program's, whose time
            // is subtracted. Nothing is so many times another that seems to take none.
            let figures = [&row["ns"], &row["floorNs"]];
            ensure!(figures.iter().all(|figure| figure.is_number()), "{row}");
            ensure!(row["ratio"].is_number() || row["floorNs"] == 0.0, "{row}");
        }
    }
    Ok(())
}

#[test]
fn packets_without_their_flows_are_noticed() -> Result<()> {
    ensure_noticed(&PACKET, "checking Ours(Established, V4)")
}

#[test]
fn veth_has_its_peers() -> Result<()> {
    let rows = rows(&VETH)?;
    let paths = ["plain XDP_REDIRECT", "redirector", "kernel forwarding", "nftables", "iptables"];
    for family in ["ipv4", "ipv6"] {
        for case in ["veth-established-udp", "veth-new-udp"] {
            for path in paths {
                let wanted = [("case", case), ("family", family), ("path", path)];
                ensure_row(&rows, &wanted, &["ns", "packetsPerSecond", "floorNs", "ratio"])?;
            }
        }
    }
    Ok(())
}

#[test]
fn a_cable_that_is_pulled_is_noticed() -> Result<()> {
    ensure_noticed(&VETH, "did not arrive")
}

#[test]
fn connections_have_their_ways() -> Result<()> {
    let rows = rows(&CONNECTIONS)?;
    let ways = [
        ("local", ["direct", "redirector, steered", "redirector, DNAT", "nftables"]),
        ("remote", ["direct, XDP forwarding", "redirector, SNAT", "nftables", "iptables"]),
    ];
    for family in ["ipv4", "ipv6"] {
        for (backend, paths) in ways {
            for path in paths {
                for case in
                    ["connections-per-second", "latency-p99-us", "bulk-megabytes-per-second"]
                {
                    let wanted =
                        [("case", case), ("family", family), ("backend", backend), ("path", path)];
                    ensure_row(&rows, &wanted, &["value", "floorValue", "ratio"])?;
                }
            }
        }
    }
    Ok(())
}

#[test]
fn nothing_between_client_and_server_is_noticed() -> Result<()> {
    ensure_noticed(&CONNECTIONS, "connecting to")
}

#[test]
fn a_cluster_is_followed() -> Result<()> {
    let rows = rows(&["cluster", "--services", "20", "--endpoints", "3", "--changes", "20"])?;
    for case in ["first-sync", "change-in-maps-p50", "burst-entries"] {
        ensure_row(&rows, &[("case", case)], &["value"])?;
    }
    Ok(())
}
