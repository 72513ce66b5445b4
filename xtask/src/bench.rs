//! `cargo xtask bench`: the benchmarks, which are a program of their own (`bench/`).

use std::ffi::OsString;
use std::process::Command;

use anyhow::{Result, bail};
use clap::Args;

use crate::cargo::{cargo, target_dir};
use crate::{build, process, setup};

/// Measures redirector's programs beside others that do less (see bench/README.md).
#[derive(Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Arguments {
    /// Which benchmark, and its options; --help lists them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    passed_on: Vec<OsString>,
}

impl Arguments {
    fn names(&self, benchmark: &str) -> bool {
        self.passed_on.first().is_some_and(|first| first == benchmark)
    }

    /// Programs that are measured beside ours; what is not there is left out.
    fn peers(&self) -> &'static [&'static str] {
        if self.names("veth") {
            &["nft", "iptables-restore"]
        } else if self.names("connections") {
            &["nft", "iptables-restore", "haproxy", "socat"]
        } else {
            &[]
        }
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    // Standard output is for results.
    setup::complete()?;
    if !process::is_root() {
        bail!("needs root: run `cargo xtask bench` as root");
    }
    setup::offer(arguments.peers());
    process::run(cargo("build").args(["--locked", "--release", "--package", "redirector-bench"]))?;
    let program = target_dir().join("release/redirector-bench");
    // Others on the machine disturb less.
    let mut command = Command::new("nice");
    if arguments.names("connections") {
        command.env(build::AGENT, build::agent()?);
    }
    process::run(command.args(["-n", "-20"]).arg(program).args(&arguments.passed_on))
}
