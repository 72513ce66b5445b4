//! `cargo xtask build`: the release binary.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::cargo;
use crate::process;
use crate::setup;

/// Names the agent that tests run, if not the one that we build.
pub(crate) const AGENT: &str = "REDIRECTOR_BIN";

/// Builds the release binary, with the eBPF object embedded, at target/release/redirector.
#[derive(Args)]
pub(crate) struct Arguments {}

pub(crate) fn run(_: &Arguments) -> Result<()> {
    setup::complete()?;
    let binary = release()?;
    println!("{}", binary.display());
    Ok(())
}

/// Builds the agent for release and returns the path of the program.
pub(crate) fn release() -> Result<PathBuf> {
    process::run(cargo::cargo("build").args([
        "--locked",
        "--release",
        "--package",
        "redirector",
        "--bin",
        "redirector",
    ]))?;
    Ok(binary())
}

/// The agent that tests run: the one that is named, else a release build.
pub(crate) fn agent() -> Result<PathBuf> {
    match std::env::var_os(AGENT) {
        Some(agent) => Ok(agent.into()),
        None => release(),
    }
}

/// The agent that tests run, which is built already.
pub(crate) fn tested() -> PathBuf {
    std::env::var_os(AGENT).map_or_else(binary, PathBuf::from)
}

/// Where the release binary is.
pub(crate) fn binary() -> PathBuf {
    cargo::target_dir().join("release/redirector")
}
