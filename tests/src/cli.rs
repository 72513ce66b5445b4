//! The program's commands.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::namespace::Namespace;

/// The program under test: `REDIRECTOR_BIN`, else the release build.
///
/// # Errors
///
/// If there is none: says how to make one.
pub fn program() -> Result<PathBuf> {
    let path = env::var_os("REDIRECTOR_BIN").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/release/redirector"),
        PathBuf::from,
    );
    path.canonicalize().with_context(|| {
        format!("no program at {path:?}: run `cargo xtask build`, or set REDIRECTOR_BIN")
    })
}

/// Keeps an agent from serving clients on the machine itself.
pub const NO_LOCAL_CLIENTS: &str = "REDIRECTOR_NO_LOCAL_CLIENTS";

/// Runs commands on a host, about one directory of pins.
#[derive(Clone, Copy, Debug)]
pub struct Cli<'a> {
    host: &'a Namespace,
    pins: &'a Path,
}

impl<'a> Cli<'a> {
    /// Commands on `host` about the pins in `pins`.
    #[must_use]
    pub const fn new(host: &'a Namespace, pins: &'a Path) -> Self {
        Self { host, pins }
    }

    /// The command with its `--bpffs`, not yet started.
    ///
    /// # Errors
    ///
    /// If there is no program.
    pub fn command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = self.host.command(program()?);
        command.args(arguments).arg("--bpffs").arg(self.pins);
        // Every process on the machine would be a client of the test.
        command.env(NO_LOCAL_CLIENTS, "true");
        Ok(command)
    }

    /// Runs a command, whatever comes of it.
    ///
    /// # Errors
    ///
    /// If it can't be started.
    pub fn output(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = self.command(arguments)?;
        command.output().with_context(|| format!("starting {command:?}"))
    }

    /// Runs a command that must succeed and returns what it printed.
    ///
    /// # Errors
    ///
    /// If it fails: the message holds what it printed.
    pub fn text(&self, arguments: &[&str]) -> Result<String> {
        let output = self.output(arguments)?;
        ensure!(
            output.status.success(),
            "redirector {}: {}: {}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Runs a reading command and returns its JSON.
    ///
    /// # Errors
    ///
    /// If it fails or what it prints is not JSON.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.text(&[arguments, &["-o", "json"]].concat())?;
        serde_json::from_str(&text)
            .with_context(|| format!("redirector {}: not JSON: {text}", arguments.join(" ")))
    }

    /// Runs a command that prints an array and returns its rows.
    ///
    /// # Errors
    ///
    /// As [`Self::json`], or if it is no array.
    pub fn rows(&self, arguments: &[&str]) -> Result<Vec<Value>> {
        let value = self.json(arguments)?;
        let Value::Array(rows) = value else {
            bail!("redirector {}: not an array: {value}", arguments.join(" "));
        };
        Ok(rows)
    }

    /// Packets counted with this Reason, over all interfaces.
    ///
    /// # Errors
    ///
    /// As [`Self::rows`].
    pub fn packets(&self, reason: &str) -> Result<u64> {
        let rows = self.rows(&["counters"])?;
        let counted = rows.iter().filter(|row| row["reason"] == reason);
        Ok(counted.filter_map(|row| row["packets"].as_u64()).sum())
    }

    /// A command that must fail with exit code 1 and one line on stderr, which is returned.
    ///
    /// # Errors
    ///
    /// If it does not fail like that.
    pub fn refusal(&self, arguments: &[&str]) -> Result<String> {
        let output = self.output(arguments)?;
        refusal(&output).with_context(|| format!("redirector {}", arguments.join(" ")))
    }
}

/// The one line with which a command failed.
///
/// # Errors
///
/// If it did not fail with exit code 1 and one line on stderr, apart from log lines.
pub fn refusal(output: &Output) -> Result<String> {
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(1),
        "should have failed with exit code 1, but: {}: {}{stderr}",
        output.status,
        String::from_utf8_lossy(&output.stdout)
    );
    let noise = ["panicked", "RUST_BACKTRACE", "stack backtrace"];
    ensure!(!noise.iter().any(|noise| stderr.contains(noise)), "it panicked: {stderr}");
    let line = stderr.lines().last().context("failed without a word")?;
    Ok(line.to_owned())
}
