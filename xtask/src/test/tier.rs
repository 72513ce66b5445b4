//! The tiers of tests.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use super::failures::Failures;
use super::report::Outcome;
use super::summary::Summary;
use crate::cargo::cargo;
use crate::charts::Tools;
use crate::lint::Finding;
use crate::{build, image, kernels, process};

/// How many tests of a program run at once.
const THREADS: &str = "RUST_TEST_THREADS";

/// A set of tests that need the same of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Tier {
    /// Pure code: no root, no kernel.
    Host,
    /// Every program is loaded and fed with packets.
    Program,
    /// Real clients and servers in network namespaces.
    Netns,
    /// Agents killed, restarted and replaced under load.
    Restart,
    /// Agents on the nodes of a cluster, against an API server.
    Cluster,
    /// Each benchmark, on a small scale.
    Bench,
    /// Manifests, chart, image and plugin.
    Deploy,
    /// The essential of it all on older kernels, in virtual machines.
    Kernels,
}

impl Tier {
    pub(crate) const ALL: [Self; 8] = [
        Self::Host,
        Self::Program,
        Self::Netns,
        Self::Restart,
        Self::Cluster,
        Self::Bench,
        Self::Deploy,
        Self::Kernels,
    ];

    /// The package of most tiers that need root.
    pub(crate) const PACKAGE: &str = "redirector-tests";

    /// The package that its test programs are in.
    pub(crate) fn package(self) -> &'static str {
        match self {
            Self::Bench => "redirector-bench",
            Self::Host
            | Self::Program
            | Self::Netns
            | Self::Restart
            | Self::Cluster
            | Self::Deploy
            | Self::Kernels => Self::PACKAGE,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Program => "program",
            Self::Netns => "netns",
            Self::Restart => "restart",
            Self::Cluster => "cluster",
            Self::Bench => "bench",
            Self::Deploy => "deploy",
            Self::Kernels => "kernels",
        }
    }

    /// The tier's own test programs. Plain `cargo test` passes them by (`test = false`), because
    /// they need root and more.
    pub(crate) fn targets(self) -> &'static [&'static str] {
        match self {
            Self::Host => &[],
            Self::Program => &["program"],
            Self::Netns => &["netns"],
            Self::Restart => &["restart"],
            Self::Cluster => &["cluster"],
            Self::Bench => &["small"],
            Self::Deploy => &["deploy"],
            Self::Kernels => &["smoke", "verifier"],
        }
    }

    /// Whether the tier runs the release binary.
    pub(super) fn needs_agent(self) -> bool {
        !self.targets().is_empty()
    }

    /// Whether the tier's tests wait for others most of the time, so that more of them can run at
    /// once than there are processors.
    fn waits(self) -> bool {
        self == Self::Cluster
    }

    /// Runs the tier; tests that fail are part of the outcome, all else is an error.
    pub(super) fn run(self, passed_on: &[String]) -> Result<Outcome> {
        if self == Self::Kernels {
            return run_kernels();
        }
        let mut command = cargo("test");
        command.arg("--locked");
        if self.needs_agent() {
            if !process::is_root() {
                bail!("needs root: run `cargo xtask test` as root");
            }
            let agent = build::tested();
            command.env(build::AGENT, &agent).args(["--package", self.package()]);
            for target in self.targets() {
                command.args(["--test", target]);
            }
            if self.waits() && std::env::var_os(THREADS).is_none() {
                command.env(THREADS, "4");
            }
            if self == Self::Deploy {
                let Tools { helm, kubectl } = Tools::find()?;
                command.env("REDIRECTOR_HELM", helm).env("REDIRECTOR_KUBECTL", kubectl);
                command.env("REDIRECTOR_IMAGE", image::of(&agent)?);
            }
        } else {
            // The rest of the programs of a workspace says more than the first one that fails.
            command.arg("--no-fail-fast");
        }
        let (summary, failures, succeeded) = run_counting(command.arg("--").args(passed_on))?;
        Ok(judge(summary, succeeded)?.telling(failures.into_lines()))
    }
}

fn run_kernels() -> Result<Outcome> {
    if !kernels::POSSIBLE {
        let note = "not run: the older kernels are for x86-64";
        return Ok(Outcome::checked(Finding::NotRun(note)));
    }
    let sum = kernels::run_with(&kernels::Arguments::default(), Some(&build::tested()))?;
    Ok(Outcome::tests(sum.passed, sum.problems))
}

/// What a run of tests amounts to.
fn judge(summary: Summary, succeeded: bool) -> Result<Outcome> {
    if summary.passed + summary.failed == 0 {
        bail!("no test ran");
    }
    if summary.ignored > 0 {
        bail!("{} tests are ignored: mend or delete them", summary.ignored);
    }
    if !succeeded && summary.failed == 0 {
        bail!("a test program did not end as it should: see above");
    }
    Ok(Outcome::tests(summary.passed, summary.failed))
}

/// Runs a command, shows what it prints, adds up the summaries of tests in it, and keeps what it
/// says of failures.
fn run_counting(command: &mut Command) -> Result<(Summary, Failures, bool)> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", process::describe(command)))?;
    let (mut summary, mut failures) = (Summary::default(), Failures::default());
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).split(b'\n') {
            let line = line.context("cannot read what the tests print")?;
            let line = String::from_utf8_lossy(&line);
            println!("{line}");
            summary.add(&line);
            failures.add(&line);
        }
    }
    let status = child.wait().context("cannot wait for the tests")?;
    Ok((summary, failures, status.success()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(passed: u32, failed: u32, ignored: u32) -> Summary {
        Summary { passed, failed, ignored }
    }

    #[test]
    fn a_tier_without_tests_fails() {
        assert!(judge(summary(0, 0, 0), true).is_err());
        assert!(judge(summary(1, 0, 0), true).is_ok());
    }

    #[test]
    fn ignored_tests_and_crashes_fail() {
        assert!(judge(summary(3, 0, 1), true).is_err());
        assert!(judge(summary(3, 0, 0), false).is_err());
    }

    #[test]
    fn failed_tests_are_counted() {
        let outcome = judge(summary(3, 2, 0), false).unwrap();
        assert_eq!(outcome, Outcome::tests(3, 2));
    }
}
