//! `kubectl redirector`, with a kubectl that says what it was asked.

use std::{fs, os::unix::fs::PermissionsExt as _, process::Command};

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;

use crate::{deploy, run};

/// Answers as a cluster with one agent on each of two nodes; of the agents, one is not ready.
const KUBECTL: &str = r#"#!/bin/sh
for word; do printf '<%s>' "$word" >>"$ASKED"; done
echo >>"$ASKED"
case "$*" in
*" get pods "*node1*) echo redirector-abcde ;;
*" get pods "*node3*) ;;
*" get pods "*) printf 'redirector-abcde node1\nredirector-fghij node2\n' ;;
*" exec "*) exit 7 ;;
esac
"#;

struct Cluster {
    dir: TempDir,
}

impl Cluster {
    fn new() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let kubectl = dir.path().join("kubectl");
        fs::write(&kubectl, KUBECTL)?;
        fs::set_permissions(&kubectl, fs::Permissions::from_mode(0o755))?;
        Ok(Self { dir })
    }

    /// Runs the plugin; returns its exit code, what it complained of, and the last call of kubectl.
    fn run(&self, arguments: &[&str]) -> Result<(i32, String, String)> {
        let path = std::env::var("PATH")?;
        let asked = self.dir.path().join("asked");
        let mut command = Command::new(deploy("kubectl-redirector"));
        command.args(arguments).env("ASKED", &asked);
        command.env("PATH", format!("{}:{path}", self.dir.path().display()));
        let output = command.output()?;
        let calls = fs::read_to_string(&asked).unwrap_or_default();
        Ok((
            output.status.code().context("ended by a signal")?,
            String::from_utf8(output.stderr)?,
            calls.lines().last().unwrap_or_default().to_owned(),
        ))
    }
}

#[test]
fn a_command_goes_to_the_nodes_agent() -> Result<()> {
    let cluster = Cluster::new()?;
    let (code, complaint, call) =
        cluster.run(&["--node", "node1", "flow", "list", "--service", "a b"])?;
    // The command's own exit code.
    ensure!(code == 7, "{code}: {complaint}");
    ensure!(
        call == "<--namespace><redirector><exec><redirector-abcde><--container><agent><-->\
                 </redirector><flow><list><--service><a b>",
        "{call}"
    );
    Ok(())
}

#[test]
fn connection_options_are_passed_on() -> Result<()> {
    let cluster = Cluster::new()?;
    let (code, complaint, call) = cluster.run(&[
        "--context=prod",
        "--kubeconfig",
        "/k c",
        "-n",
        "edge",
        "--node=node1",
        "status",
        "-o",
        "json",
    ])?;
    ensure!(code == 7, "{code}: {complaint}");
    ensure!(
        call == "<--context=prod><--kubeconfig=/k c><--namespace><edge><exec><redirector-abcde>\
                 <--container><agent><--></redirector><status><-o><json>",
        "{call}"
    );
    Ok(())
}

#[test]
fn what_is_missing_is_said() -> Result<()> {
    let cluster = Cluster::new()?;
    for (arguments, code, said) in [
        (&["status"][..], 2, "--node"),
        (&["--node", "node1"], 2, "command"),
        (&["--node"], 2, "--node"),
        (&["--nod", "node1", "status"], 2, "--nod"),
        (&["--node", "node3", "status"], 1, "no agent runs on node3"),
    ] {
        let (found, complaint, _) = cluster.run(arguments)?;
        ensure!(found == code && complaint.contains(said), "{arguments:?}: {found}: {complaint}");
    }
    // Without a node, the choice.
    let (_, complaint, _) = cluster.run(&["status"])?;
    ensure!(complaint.contains("node1") && complaint.contains("node2"), "{complaint}");
    Ok(())
}

#[test]
fn it_is_clean_shell() -> Result<()> {
    let (clean, findings, complaint) =
        run(Command::new("shellcheck").arg("--shell=sh").arg(deploy("kubectl-redirector")))?;
    ensure!(clean, "{findings}{complaint}");
    Ok(())
}
