//! `redirector detach` leaves nothing.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use redirector_tests::{
    agent::Lab,
    client,
    site::{CONFIG, PLACES, check_answers, serve_names},
    topology::FAMILIES,
};

/// Settings that the agent may change.
const SETTINGS: [&str; 3] = [
    "net/ipv4/ip_local_reserved_ports",
    "net/ipv4/conf/lo/forwarding",
    "net/ipv6/conf/lo/forwarding",
];

/// All that an agent could leave on node 1.
fn traces(lab: &Lab) -> Result<BTreeMap<String, String>> {
    let node = &lab.net.node1;
    let mut traces = BTreeMap::new();
    for setting in SETTINGS {
        traces.insert(setting.to_owned(), node.sysctl(setting)?);
    }
    for interface in ["eth0", "eth1"] {
        let link = node.ip(&format!("-details link show dev {interface}"))?;
        let xdp = link.lines().filter(|line| line.contains("xdp")).collect::<String>();
        traces.insert(format!("XDP on {interface}"), xdp);
        let qdisc = node.run("tc", ["qdisc", "show", "dev", interface])?;
        traces.insert(format!("qdiscs of {interface}"), qdisc);
    }
    traces.insert("pins".to_owned(), lab.has_pins().to_string());
    Ok(traces)
}

#[test]
fn nothing_is_left() -> Result<()> {
    for mode in ["native", "generic", "off"] {
        Lab::run(|lab| {
            // Not the default, so that it must be put back and not merely cleared.
            lab.net.node1.set_sysctl(SETTINGS[0], "7000-7010")?;
            let before = traces(lab)?;
            lab.write_config(CONFIG)?;
            lab.start(&["--xdp-mode", mode])?;
            let during = traces(lab)?;
            ensure!(before != during, "the agent left no trace at all: {during:?}");
            lab.kill()?;
            lab.cli().text(&["detach"])?;
            let after = traces(lab)?;
            ensure!(before == after, "before: {before:#?}, after: {after:#?}");

            let _servers = serve_names(lab)?;
            for family in FAMILIES {
                for place in PLACES {
                    let refused = client::whoami(&lab.net.client, place.tcp(family)).is_err();
                    ensure!(refused, "{place:?} over {family:?} still answers");
                }
            }
            // And it can all begin again.
            lab.start(&["--xdp-mode", mode])?;
            if mode != "generic" {
                check_answers(lab)?;
            }
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn on_exit() -> Result<()> {
    Lab::run(|lab| {
        let before = traces(lab)?;
        lab.write_config(CONFIG)?;
        lab.start(&["--detach-on-exit"])?;
        let status = lab.stop()?;
        ensure!(status.success(), "the agent ended with {status}");
        let after = traces(lab)?;
        ensure!(before == after, "before: {before:#?}, after: {after:#?}");
        Ok(())
    })
}

/// Under an agent that runs, it is refused.
#[test]
fn not_under_an_agent() -> Result<()> {
    Lab::run_with(CONFIG, |lab| {
        let line = lab.cli().refusal(&["detach"])?;
        ensure!(line.contains("pid"), "does not say who has it: {line}");
        let _servers = serve_names(lab)?;
        check_answers(lab)
    })
}

#[test]
fn nothing_to_detach() -> Result<()> {
    Lab::run(|lab| {
        let before = traces(lab)?;
        let output = lab.cli().output(&["detach"])?;
        ensure!(matches!(output.status.code(), Some(0 | 1)), "{output:?}");
        let after = traces(lab)?;
        ensure!(before == after, "before: {before:#?}, after: {after:#?}");
        Ok(())
    })
}
