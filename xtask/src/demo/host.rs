//! A host: a network namespace, and what runs in it.

use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::process;

/// First on the `PATH` of every host.
pub(super) const BIN: &str = "/run/bin";

/// A host of the demo. Its namespace is in /run/netns under its name.
#[derive(Clone, Copy, Debug)]
pub(super) struct Host {
    pub(super) name: &'static str,
}

/// How a command ended, and all that it printed.
pub(super) struct Shown {
    pub(super) succeeded: bool,
    pub(super) text: String,
}

impl Host {
    /// A command that will run on this host.
    ///
    /// Not by `ip netns exec`: that mounts a new /sys, in which there is no /sys/fs/bpf.
    pub(super) fn command(self, words: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{}", self.name))
            .arg("--")
            .args(words)
            .env("PATH", path())
            .stdin(Stdio::null());
        command
    }

    /// Runs a command that has to succeed, silently.
    pub(super) fn run(self, words: &[&str]) -> Result<String> {
        process::output(&mut self.command(words)).with_context(|| format!("on {}", self.name))
    }

    /// Runs a command as if typed at this host, and shows both it and what it prints.
    pub(super) fn show(self, line: &str) -> Result<Shown> {
        println!("\n  {}$ {line}", self.name);
        let output = self
            .command(&["sh", "-c", line])
            .output()
            .with_context(|| format!("cannot start {line} on {}", self.name))?;
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        for line in text.lines() {
            println!("    {line}");
        }
        Ok(Shown { succeeded: output.status.success(), text })
    }

    /// Starts something that goes on. It ends with the demo at the latest.
    pub(super) fn start(self, command: &mut Command) -> Result<Child> {
        command.spawn().with_context(|| {
            format!("cannot start {} on {}", process::describe(command), self.name)
        })
    }
}

fn path() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{BIN}:{path}:/usr/sbin:/sbin")
}

impl Shown {
    /// Fails unless the command succeeded and printed `expected`.
    pub(super) fn must_contain(self, expected: &str) -> Result<()> {
        if self.succeeded && self.text.contains(expected) {
            return Ok(());
        }
        bail!("expected {expected:?} in the answer, found {:?}", self.text.trim());
    }

    /// Fails unless the command failed.
    pub(super) fn must_fail(self) -> Result<()> {
        if self.succeeded {
            bail!("expected no answer at this point, found {:?}", self.text.trim());
        }
        Ok(())
    }

    /// Fails unless the command succeeded.
    pub(super) fn must_succeed(self) -> Result<()> {
        if self.succeeded {
            return Ok(());
        }
        bail!("the command failed: {}", self.text.trim());
    }
}
