//! `monitor` and `capture`: what is seen of real traffic while it is watched.

use std::{
    io::{BufRead, BufReader, Read},
    net::SocketAddr,
    process::{Child, ChildStdin, ChildStdout, Output, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use redirector_tests::{
    agent::{Lab, finish_soon},
    cli::refusal,
    client,
    site::{CONFIG, Place, serve_echo},
    topology::{CLIENT, FAMILIES, NODE1, NODE1_INSIDE, NODE2},
    wait,
};
use serde_json::Value;

/// A frontend without backends.
const WITHOUT: &str = "
  - name: nobody
    frontends:
      - {port: 90, protocol: TCP}
    backends: []
";

/// A command that watches.
struct Watching {
    child: Option<Child>,
    output: BufReader<ChildStdout>,
    errors: BufReader<std::process::ChildStderr>,
}

impl Watching {
    /// Starts it, and waits until it does watch.
    fn start(lab: &Lab, arguments: &[&str]) -> Result<Self> {
        let mut command = lab.cli().command(arguments)?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let output = BufReader::new(child.stdout.take().context("no stdout")?);
        let errors = BufReader::new(child.stderr.take().context("no stderr")?);
        let mut watching = Self { child: Some(child), output, errors };
        let mut line = String::new();
        watching.errors.read_line(&mut line)?;
        ensure!(line.starts_with("watching"), "{line}");
        Ok(watching)
    }

    /// The next event.
    fn next(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        serde_json::from_str(&line).with_context(|| format!("no JSON: {line}"))
    }
}
