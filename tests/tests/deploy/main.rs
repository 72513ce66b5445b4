//! What is installed: manifests, the chart, the plugin, the image. `cargo xtask test --tier deploy`
//! brings helm and kubectl, and makes the image.

mod chart;
mod image;
mod manifests;
mod plugin;
mod strict;

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

/// A file of deploy/.
fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(path)
}

/// A tool that `cargo xtask test` has put somewhere, and says so by a variable; else of that name.
fn tool(variable: &str, name: &str) -> Command {
    Command::new(std::env::var_os(variable).unwrap_or_else(|| name.into()))
}

/// Runs a command; returns whether it succeeded, what it printed, and what it complained of.
fn run(command: &mut Command) -> Result<(bool, String, String)> {
    let output = command.output().with_context(|| {
        format!("cannot start {command:?}: run `cargo xtask test --tier deploy`")
    })?;
    Ok((
        output.status.success(),
        String::from_utf8(output.stdout)?,
        String::from_utf8_lossy(&output.stderr).into_owned(),
    ))
}
