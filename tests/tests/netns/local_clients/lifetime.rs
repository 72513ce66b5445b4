//! How long programs for sockets serve, and on which control group.

use std::{fs, net::SocketAddr};

use anyhow::{Context as _, Result, ensure};
use redirector_common::Family;
use redirector_tests::{
    agent::Lab,
    cgroup::Cgroup,
    cli::NO_LOCAL_CLIENTS,
    site::{CONFIG, serve_names},
    wait,
};

use super::{ask, check, localhost};

/// The numbers of the programs, by hook, as `status` has them.
fn programs(lab: &Lab) -> Result<Vec<(String, u64)>> {
    let status = lab.cli().json(&["status"])?;
    let programs = status["clients"]["programs"].as_array().context("no programs")?.iter();
    let program =
        |it: &serde_json::Value| Some((it["hook"].as_str()?.to_owned(), it["id"].as_u64()?));
    programs.map(|it| program(it).with_context(|| it.to_string())).collect()
}

#[test]
fn they_outlive_the_agent() -> Result<()> {
    let cgroup = Cgroup::new()?;
    let dir = cgroup.dir().to_str().context("not UTF-8")?.to_owned();
    let options = ["--cgroup", dir.as_str()];
    Lab::run_with_options(CONFIG, &options, |lab| {
        let _servers = serve_names(lab)?;
        let asked = SocketAddr::new(localhost(Family::V4), 80);
        let before = programs(lab)?;
        ensure!(before.len() == 8, "{before:?}");
        ensure!(cgroup.programs()? == 8, "the kernel has another opinion");
        lab.kill()?;
        check(&cgroup, &lab.net.node1, &[localhost])?;
        ensure!(programs(lab)? == before, "the programs went with the agent");
        // The next agent's take their place.
        lab.start(&options)?;
        let after = programs(lab)?;
        ensure!(after.iter().all(|it| !before.contains(it)), "{before:?} and {after:?}");
        ensure!(cgroup.programs()? == 8, "earlier programs are still there");
        check(&cgroup, &lab.net.node1, &[localhost])?;
        // Another control group.
        let other = Cgroup::new()?;
        lab.stop()?;
        lab.start(&["--cgroup", other.dir().to_str().context("not UTF-8")?])?;
        ensure!((cgroup.programs()?, other.programs()?) == (0, 8), "not moved");
        ask(&other, &lab.net.node1, "tcp", asked)?;
        // None any more.
        lab.stop()?;
        lab.start(&[])?;
        ensure!(other.programs()? == 0, "not taken off");
        ensure!(programs(lab)?.is_empty(), "status still has them");
        ensure!(ask(&cgroup, &lab.net.node1, "tcp", asked).is_err(), "still served");
        // And all of it goes.
        lab.stop()?;
        lab.start(&options)?;
        lab.stop()?;
        lab.cli().text(&["detach"])?;
        ensure!(cgroup.programs()? == 0 && !lab.has_pins(), "something is left");
        ensure!(ask(&cgroup, &lab.net.node1, "tcp", asked).is_err(), "still served");
        Ok(())
    })
}

/// A control group that is removed under the agent is told of.
#[test]
fn a_control_group_that_goes() -> Result<()> {
    Lab::run(|lab| {
        lab.write_config(CONFIG)?;
        let cgroup = Cgroup::new()?;
        lab.start(&["--cgroup", cgroup.dir().to_str().context("not UTF-8")?])?;
        drop(cgroup);
        // The kernel takes it down in its own time.
        wait::until_true("status to tell", wait::SOON, || {
            Ok(lab.cli().text(&["status"])?.contains("NOT served: the control group is gone"))
        })
    })
}

#[test]
fn what_is_no_control_group_is_refused() -> Result<()> {
    Lab::run(|lab| {
        lab.write_config(CONFIG)?;
        for (dir, reason) in [("/tmp", "cgroup2"), ("/nowhere", "No such file")] {
            let mut command = lab.run_command()?;
            command.env_remove(NO_LOCAL_CLIENTS);
            command.args(["--interface", "eth0", "--cgroup", dir]);
            let output = command.output()?;
            let said = String::from_utf8_lossy(&output.stderr);
            let last = said.lines().last().unwrap_or_default();
            ensure!(output.status.code() == Some(1), "{dir}: {output:?}");
            for part in [dir, reason, "--cgroup"] {
                ensure!(last.contains(part), "{dir}: {said}");
            }
            ensure!(!lab.has_pins() || fs::read_dir(lab.bpffs.pins())?.next().is_none(), "left");
        }
        Ok(())
    })
}
