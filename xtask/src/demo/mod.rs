//! `cargo xtask demo`: real clients reach real servers through published ports.
//!
//! Everything happens in namespaces of the demo's own, which end with it: see [`isolation`].

mod host;
mod isolation;
mod network;
mod server;
mod story;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, bail};
use clap::Args;

use crate::{build, process, setup};

pub(crate) use server::{Arguments as ServerArguments, run as run_server};

/// Shows published ports at work: hosts in namespaces, real servers, curl before and after.
#[derive(Args)]
pub(crate) struct Arguments {
    /// We are the process inside the namespaces.
    #[arg(long, hide = true)]
    inside: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    if arguments.inside {
        isolation::settle()?;
        story::tell(&build::binary())?;
        return Ok(ExitCode::SUCCESS);
    }
    if !process::is_root() {
        bail!("namespaces and eBPF programs need root: run `cargo xtask demo` as root");
    }
    setup::complete()?;
    println!("Building the agent (release, with the eBPF object in it)…");
    build::release()?;

    let start = Instant::now();
    let code = isolation::run_isolated(&["demo", "--inside"])?;
    println!(
        "\nThe namespaces are gone, and with them every process, mount and program of the demo \
         ({:.1} s).",
        start.elapsed().as_secs_f64()
    );
    Ok(code)
}
