//! `cargo xtask bench`: the benchmarks, which are a program of their own (`bench/`).

use std::ffi::OsString;
use std::process::Command;

use anyhow::{Result, bail};
use clap::Args;

use crate::cargo::{cargo, target_dir};
use crate::{process, setup};

/// Measures redirector's programs beside others that do less (see bench/README.md).
#[derive(Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Arguments {
    /// Which benchmark, and its options; --help lists them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    passed_on: Vec<OsString>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    // Standard output is for results.
    setup::complete()?;
    if !process::is_root() {
        bail!("needs root: run `cargo xtask bench` as root");
    }
    process::run(cargo("build").args(["--locked", "--release", "--package", "redirector-bench"]))?;
    let program = target_dir().join("release/redirector-bench");
    // Others on the machine disturb less.
    let mut command = Command::new("nice");
    process::run(command.args(["-n", "-20"]).arg(program).args(&arguments.passed_on))
}
