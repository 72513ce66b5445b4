//! Options of the benchmarks that compare by turns.

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::{Pid, geteuid};

use crate::report::Output;

/// How samples are taken and shown.
#[derive(Args)]
pub(crate) struct Sampling {
    /// How to print results.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub(crate) output: Output,
    /// Samples of each, taken by turns.
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rounds: u32,
    /// The processor to run on.
    #[arg(long, default_value_t = 1)]
    cpu: usize,
    /// Spoils what is measured, to show that the checks notice.
    #[arg(long, hide = true)]
    pub(crate) spoil: bool,
}

impl Sampling {
    /// Keeps this thread, and what it starts, on the processor.
    pub(crate) fn start(&self) -> Result<()> {
        ensure!(geteuid().is_root(), "needs root: run it as root");
        let mut cpus = CpuSet::new();
        cpus.set(self.cpu).with_context(|| format!("no processor {}", self.cpu))?;
        sched_setaffinity(Pid::from_raw(0), &cpus)
            .with_context(|| format!("cannot run on processor {}", self.cpu))
    }
}

/// Reads a number of flows.
pub(crate) fn flows(text: &str) -> Result<u32, String> {
    let flows: Option<u32> = text.parse().ok();
    flows
        .filter(|flows| flows.is_power_of_two() && *flows <= 1 << 20)
        .ok_or_else(|| "not a power of two up to 1048576".to_owned())
}
