//! What can't work is said in one line that names it.

use std::{
    fs,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use redirector::dataplane::pins::Pins;
use redirector_common::map_name::MapName;
use redirector_tests::{
    agent::{ADMIN, Lab, finish_soon},
    cli::{Cli, refusal},
    program::Programs,
    site::{CONFIG, check_answers, serve_names},
};

/// Runs an agent that must refuse to start, and returns its last line.
fn refused(lab: &Lab, options: &[&str]) -> Result<String> {
    refusal(&lab.refused(options)?)
}

fn says(line: &str, words: &[&str]) -> Result<()> {
    for word in words {
        ensure!(line.contains(word), "it should say {word:?}: {line}");
    }
    Ok(())
}

const BOTH: [&str; 4] = ["--interface", "eth0", "--interface", "eth1"];

#[test]
fn no_privileges() -> Result<()> {
    Lab::run(|lab| {
        lab.write_config(CONFIG)?;
        let agent = lab.run_command()?;
        // Root by name, without a single capability.
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set=-all", "--inh-caps=-all", "--"]);
        // Entering the namespace takes privileges: that goes first.
        let arguments: Vec<_> = agent.get_args().collect();
        let split = arguments.iter().position(|a| *a == "--").context("no -- after nsenter")?;
        let mut all = Command::new(agent.get_program());
        all.args(&arguments[..=split]).arg(command.get_program()).args(command.get_args());
        all.args(&arguments[split + 1..]).args(BOTH);
        all.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let line = refusal(&finish_soon(all.spawn()?)?)?;
        says(&line, &["privileges", "CAP_BPF", "CAP_NET_ADMIN"])
    })
}

#[test]
fn no_bpffs() -> Result<()> {
    Lab::run(|lab| {
        lab.write_config(CONFIG)?;
        let elsewhere = tempfile::tempdir()?;
        let pins = elsewhere.path().join("redirector");
        let mut command = Cli::new(&lab.net.node1, &pins).command(&["run"])?;
        command.arg("--config").arg(lab.config_path()).args(BOTH);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let line = refusal(&finish_soon(command.spawn()?)?)?;
        says(&line, &["BPF", "mount"])?;
        ensure!(!pins.exists(), "it made {pins:?}");
        Ok(())
    })
}

#[test]
fn no_such_interface() -> Result<()> {
    Lab::run(|lab| {
        lab.write_config(CONFIG)?;
        let line = refused(lab, &["--interface", "eth7"])?;
        says(&line, &["eth7", "eth0", "eth1"])
    })
}

/// Another XDP program is left where it is.
#[test]
fn an_interface_that_is_taken() -> Result<()> {
    Lab::run(|lab| {
        lab.write_config(CONFIG)?;
        let stranger = lab.net.node1.enter(|| {
            let mut programs = Programs::load()?;
            programs.attach_xdp("eth0")?;
            Ok(programs)
        })?;
        let before = lab.net.node1.ip("-details link show dev eth0")?;
        let options = [BOTH.as_slice(), &["--xdp-mode", "native"]].concat();
        let line = refused(lab, &options)?;
        says(&line, &["eth0", "XDP"])?;
        let after = lab.net.node1.ip("-details link show dev eth0")?;
        ensure!(xdp(&before) == xdp(&after), "before: {before}, after: {after}");
        drop(stranger);

        lab.start(&["--xdp-mode", "native"])?;
        let _servers = serve_names(lab)?;
        check_answers(lab)
    })
}

fn xdp(link: &str) -> String {
    link.lines().filter(|line| line.contains("prog/xdp")).collect()
}

/// What is pinned under a map's name is something else.
#[test]
fn a_map_that_is_no_such_map() -> Result<()> {
    Lab::run(|lab| {
        lab.write_config(CONFIG)?;
        lab.start(&[])?;
        lab.kill()?;
        let pins = Pins::new(lab.bpffs.pins());
        fs::remove_file(pins.map(MapName::Flows))?;
        fs::rename(pins.map(MapName::Node), pins.map(MapName::Flows))?;
        let line = refused(lab, &BOTH)?;
        says(&line, &["FLOWS"])
    })
}

#[test]
fn the_admin_address_is_in_use() -> Result<()> {
    Lab::run(|lab| {
        lab.write_config(CONFIG)?;
        let _taken = lab.net.node1.enter(|| Ok(std::net::TcpListener::bind(ADMIN)?))?;
        let line = refused(lab, &BOTH)?;
        says(&line, &["127.0.0.1:9961"])?;
        ensure!(!lab.has_pins(), "it left pins behind");
        Ok(())
    })
}

#[test]
fn a_second_agent() -> Result<()> {
    Lab::run_with(CONFIG, |lab| {
        let options = [BOTH.as_slice(), &["--admin-address", "127.0.0.1:9962"]].concat();
        let line = refused(lab, &options)?;
        let holder = lab.agent_id().context("no agent")?.to_string();
        says(&line, &["already", &holder])?;
        let _servers = serve_names(lab)?;
        check_answers(lab)
    })
}

#[test]
fn files_that_are_no_good() -> Result<()> {
    Lab::run(|lab| {
        let bad = [
            ("publish: ['80:8080', '80:9090']", ["80", "redirector.yaml"]),
            ("publish: ['0:8080']", ["0", "redirector.yaml"]),
            ("publish: ['80-82:8080-8081']", ["80-82", "redirector.yaml"]),
            ("publsh: []", ["publsh", "redirector.yaml"]),
            ("snatPorts: 5-1", ["5-1", "redirector.yaml"]),
        ];
        for (text, words) in bad {
            lab.write_config(text)?;
            let output = lab.refused(&BOTH)?;
            refusal(&output)?;
            let stderr = String::from_utf8_lossy(&output.stderr);
            says(&stderr, &words)?;
            ensure!(!lab.has_pins(), "it left pins behind");
        }
        fs::remove_file(lab.config_path())?;
        says(&refused(lab, &BOTH)?, &["redirector.yaml"])
    })
}

/// Commands without anything to look at.
#[test]
fn commands_without_maps() -> Result<()> {
    Lab::run(|lab| {
        for command in [
            ["service", "list"].as_slice(),
            &["flow", "list"],
            &["counters"],
            &["map", "list"],
            &["status"],
        ] {
            let line = lab.cli().refusal(command)?;
            let pins = lab.bpffs.pins();
            says(&line, &[&pins.to_string_lossy()])?;
        }
        Ok(())
    })
}

#[test]
fn wrong_usage() -> Result<()> {
    Lab::run(|lab| {
        for command in [["frobnicate"].as_slice(), &["service"], &["map", "dump"]] {
            let output =
                lab.net.node1.command(redirector_tests::cli::program()?).args(command).output()?;
            ensure!(output.status.code() == Some(2), "{command:?}: {output:?}");
        }
        Ok(())
    })
}
