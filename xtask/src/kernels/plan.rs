//! Which test programs run in a machine.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result};

use crate::cargo::cargo;
use crate::process;
use crate::test::tier::Tier;

/// How much is run: emulation is slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// The verifier's figures.
    Figures,
    /// Also real traffic, and the rows of the program tier in which kernels differ: loading,
    /// reaching into packets, flows.
    Essential,
    /// Also the rest of the program tier.
    Everything,
}

/// A test program, and what it is told.
pub(super) struct Test {
    pub(super) name: &'static str,
    pub(super) executable: PathBuf,
    /// Names of tests to run; empty: all.
    pub(super) only: &'static [&'static str],
}

impl Plan {
    /// Test targets, and which of their tests.
    fn targets(self) -> &'static [(&'static str, &'static [&'static str])] {
        match self {
            Self::Figures => &[("verifier", &[])],
            Self::Essential => &[
                ("verifier", &[]),
                ("smoke", &[]),
                ("program", &["loading::", "headers::", "flows::"]),
            ],
            Self::Everything => &[("verifier", &[]), ("smoke", &[]), ("program", &[])],
        }
    }

    /// Whether an agent is run.
    pub(super) fn needs_agent(self) -> bool {
        match self {
            Self::Figures => false,
            Self::Essential | Self::Everything => true,
        }
    }

    /// Builds the test programs and returns a copy of each in `directory`, without debugging
    /// information: the machine has little memory, and reads slowly.
    pub(super) fn build(self, directory: &Path) -> Result<Vec<Test>> {
        let executables = build(self.targets().iter().map(|(name, _)| *name))?;
        let mut tests = Vec::new();
        for &(name, only) in self.targets() {
            let executable =
                find(&executables, name).with_context(|| format!("Cargo built no test {name}"))?;
            tests.push(Test { name, executable: strip(&executable, directory, name)?, only });
        }
        Ok(tests)
    }
}

/// A copy of a program without debugging information.
pub(super) fn strip(program: &Path, directory: &Path, name: &str) -> Result<PathBuf> {
    std::fs::create_dir_all(directory)
        .with_context(|| format!("cannot create {}", directory.display()))?;
    let copy = directory.join(name);
    process::run(std::process::Command::new("strip").arg("-o").arg(&copy).arg(program))?;
    Ok(copy)
}

/// What Cargo says of each target of the package of tests.
fn build(targets: impl Iterator<Item = &'static str>) -> Result<Vec<serde_json::Value>> {
    let mut command = cargo("test");
    command.args(["--locked", "--no-run", "--package", Tier::PACKAGE]);
    command.arg("--message-format=json-render-diagnostics");
    for name in targets {
        command.args(["--test", name]);
    }
    let output = process::output(command.stderr(Stdio::inherit()))?;
    Ok(output.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

fn find(messages: &[serde_json::Value], name: &str) -> Option<PathBuf> {
    messages.iter().find_map(|message| {
        let is_it = message["target"]["name"] == name && message["profile"]["test"] == true;
        is_it.then(|| message["executable"].as_str()).flatten().map(PathBuf::from)
    })
}
