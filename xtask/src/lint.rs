//! `cargo xtask lint`: format, clippy, documentation, licences.

use anyhow::{Context, Result, bail};
use bpf_toolchain::Lints;
use clap::Args;

use crate::cargo::{cargo, target_dir, workspace};
use crate::process;
use crate::test::tier::Tier;

/// Checks format, clippy (host and BPF), documentation and, with cargo-deny there, licences.
#[derive(Args)]
pub(crate) struct Arguments {}

pub(crate) fn run(_: &Arguments) -> Result<()> {
    let mut failed = Vec::new();
    for check in Check::ALL {
        println!("── {}", check.name());
        match check.run() {
            Ok(Finding::Clean) => {}
            Ok(Finding::CleanBut(note) | Finding::NotRun(note)) => println!("{note}"),
            Err(error) => {
                eprintln!("error: {error:#}");
                failed.push(check.name());
            }
        }
    }
    if failed.is_empty() {
        println!("lint: clean");
        Ok(())
    } else {
        bail!("failed: {}", failed.join(", "))
    }
}

/// What a check came to, if it found nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Finding {
    /// Nothing to say.
    Clean,
    /// Clean, but less was looked at than one would expect.
    CleanBut(&'static str),
    /// This machine can't do it.
    NotRun(&'static str),
}

/// One thing that is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Check {
    /// rustfmt.
    Format,
    /// Clippy on everything that runs in user space.
    Clippy,
    /// Clippy on the eBPF crate, for its own target.
    Bpf,
    /// rustdoc: broken links, missing documentation.
    Documentation,
    /// cargo-deny: licences, advisories, bans.
    Dependencies,
}

impl Check {
    pub(crate) const ALL: [Self; 5] =
        [Self::Format, Self::Clippy, Self::Bpf, Self::Documentation, Self::Dependencies];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Format => "format",
            Self::Clippy => "clippy",
            Self::Bpf => "clippy-bpf",
            Self::Documentation => "doc",
            Self::Dependencies => "deny",
        }
    }

    /// Does it.
    pub(crate) fn run(self) -> Result<Finding> {
        match self {
            Self::Format => {
                process::run(cargo("fmt").args(["--all", "--check"])).map(|()| Finding::Clean)
            }
            Self::Clippy => clippy().map(|()| Finding::Clean),
            Self::Bpf => bpf(),
            Self::Documentation => process::run(
                cargo("doc")
                    .args(["--locked", "--no-deps", "--document-private-items"])
                    .env("RUSTDOCFLAGS", "-Dwarnings"),
            )
            .map(|()| Finding::Clean),
            Self::Dependencies => dependencies(),
        }
    }
}

fn clippy() -> Result<()> {
    process::run(cargo("clippy").args(["--locked", "--all-targets", "--", "-Dwarnings"]))?;
    // Tiers that need root are out of reach of --all-targets, so that `cargo test` is, too.
    let mut command = cargo("clippy");
    command.args(["--locked", "--package", Tier::PACKAGE, "--package", Tier::Bench.package()]);
    for target in Tier::ALL.into_iter().flat_map(Tier::targets) {
        command.args(["--test", target]);
    }
    process::run(command.args(["--", "-Dwarnings"]))
}

fn bpf() -> Result<Finding> {
    let target = bpf_toolchain::target_dir(&target_dir());
    match bpf_toolchain::lint_object(workspace(), &target)? {
        Lints::Clippy => Ok(Finding::Clean),
        Lints::Compiler => {
            Ok(Finding::CleanBut("compiler warnings only: this BPF compiler comes without clippy"))
        }
    }
}

fn dependencies() -> Result<Finding> {
    if process::which("cargo-deny").is_none() {
        return Ok(Finding::NotRun("not run: cargo-deny is not installed"));
    }
    process::run(cargo("deny").args(["--workspace", "check"]))
        .context("see deny.toml")
        .map(|()| Finding::Clean)
}
