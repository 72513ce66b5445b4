//! `redirector detach`: removes everything that an agent left in the kernel.

use anyhow::Result;
use clap::Args;

use super::{BpffsArgs, render};
use crate::dataplane::detach::detach;

/// Options of `redirector detach`.
#[derive(Args, Debug)]
pub struct DetachArgs {
    #[command(flatten)]
    bpffs: BpffsArgs,
}

/// Runs the command. That nothing is there is no error, so that it can be run twice.
///
/// # Errors
///
/// If an agent is at work, or something cannot be removed.
pub fn run(args: &DetachArgs) -> Result<()> {
    let pins = args.bpffs.pins();
    let dir = pins.dir().display();
    if !pins.dir().exists() {
        render::say(&format!("nothing is installed under {dir}"));
        return Ok(());
    }
    detach(&pins)?;
    render::say(&format!("removed programs, maps and changes of kernel settings of {dir}"));
    Ok(())
}
