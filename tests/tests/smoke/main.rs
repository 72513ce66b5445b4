//! One run through everything that a kernel has to offer: hooks, both families, both protocols,
//! local and forwarded, an agent that is killed and comes back, and nothing left in the end. Needs
//! root.
//!
//! `cargo xtask kernels` runs this in emulated machines, where loading the programs takes most of
//! the time: so it is one test, and few agents.

mod wires;

use anyhow::{Context as _, Result, ensure};
use redirector::dataplane::prerequisites::{KernelVersion, TCX_KERNEL};
use redirector_tests::{
    agent::{ADMIN, Lab, get},
    client, deployed,
    server::Service,
    site::{CONFIG, PLACES, check_answers, serve_names},
    topology::FAMILIES,
    wait,
};
use std::{ffi::OsStr, process::Command, time::Duration};

/// How long an agent may take to start in an emulated machine.
const LOADING: Duration = Duration::from_secs(120);

#[test]
fn traffic_flows_and_outlives_the_agent() -> Result<()> {
    Lab::run(|lab| {
        lab.write_config(CONFIG)?;
        start(lab)?;
        lab.wait_ready()?;
        let tc = if KernelVersion::running()? < TCX_KERNEL { "clsact" } else { "tcx" };
        check_hooks(lab, tc)?;
        {
            let _servers = serve_names(lab)?;
            check_answers(lab)?;
        }
        outlive(lab)?;
        lab.stop()?;
        lab.cli().text(&["detach"])?;
        ensure!(!lab.has_pins(), "detach left pins");
        for interface in ["eth0", "eth1"] {
            let links = lab.net.node1.ip(&format!("link show dev {interface}"))?;
            ensure!(!links.contains("xdp"), "detach left XDP: {links}");
            let qdiscs = lab.net.node1.run("tc", ["qdisc", "show", "dev", interface])?;
            ensure!(!qdiscs.contains("clsact"), "detach left a queueing discipline: {qdiscs}");
        }
        Ok(())
    })
}

/// With the powers that deploy/ gives it, and no others.
fn start(lab: &mut Lab) -> Result<()> {
    let agent = lab.run_command()?;
    // nsenter, which `agent` is, has to be stronger.
    let words: Vec<_> = agent.get_args().map(OsStr::to_owned).collect();
    let program = words.iter().position(|word| word == "--").context("no -- of nsenter")? + 1;
    let mut command = Command::new(agent.get_program());
    command.args(&words[..program]).arg("setpriv").args(deployed::confinement()?);
    command.arg("--").args(&words[program..]);
    command.args(["--interface", "eth0", "--interface", "eth1"]);
    command.envs(agent.get_envs().filter_map(|(name, value)| Some((name, value?))));
    lab.start_command(command)
}

/// XDP in the driver, and TC by the means of this kernel.
fn check_hooks(lab: &Lab, tc: &str) -> Result<()> {
    let status = lab.cli().json(&["status"])?;
    let interfaces = status["interfaces"].as_array().context("no interfaces")?;
    ensure!(interfaces.len() == 2, "{status}");
    for interface in interfaces {
        let has = |key: &str, value: &str| interface[key] == *value;
        ensure!(has("xdp", "native") && has("tc", tc), "expected native and {tc}: {interface}");
    }
    Ok(())
}

/// Connections go on while there is no agent, and after another has taken over.
fn outlive(lab: &mut Lab) -> Result<()> {
    let mut servers = Vec::new();
    let mut streams = Vec::new();
    for place in PLACES {
        servers.push(place.serve_tcp(lab, Service::Echo)?);
        for family in FAMILIES {
            streams.push(client::tcp(&lab.net.client, place.tcp(family))?);
        }
    }
    let echo = |what: &'static [u8]| streams.iter().try_for_each(|it| client::echo(it, what));
    echo(b"with an agent")?;
    lab.kill()?;
    echo(b"without")?;
    start(lab)?;
    // They would not wait for an emulated machine to load the programs in silence.
    wait::until_true("another agent to be ready", LOADING, || {
        echo(b"meanwhile")?;
        Ok(get(&lab.net.node1, ADMIN, "/readyz").is_ok_and(|(status, _)| status == 200))
    })?;
    echo(b"with another")
}
