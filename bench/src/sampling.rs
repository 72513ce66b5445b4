//! Options of the benchmarks that compare by turns.

use std::io;

use anyhow::{Context as _, Error, Result, ensure};
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

    /// As [`start`](Self::start), and nobody else gets the processor in the middle of a sample: for
    /// samples that are taken in one system call. Processes that are started from here do not have
    /// this.
    pub(crate) fn start_undisturbed(&self) -> Result<()> {
        self.start()?;
        let priority = libc::sched_param { sched_priority: 50 };
        let policy = libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK;
        // SAFETY: the parameters are valid while the call lasts.
        if unsafe { libc::sched_setscheduler(0, policy, &raw const priority) } != 0 {
            let error = io::Error::last_os_error();
            eprintln!("samples may be disturbed: no real-time priority: {error}");
        }
        Ok(())
    }
}

/// How often a sample is taken until none of it was interrupted.
const ATTEMPTS: usize = 20;

/// Takes a sample; again, after `tidy`, where a signal broke off what the kernel did many times over.
pub(crate) fn uninterrupted<S>(
    subject: &mut S,
    mut sample: impl FnMut(&mut S) -> Result<f64>,
    mut tidy: impl FnMut(&mut S) -> Result<()>,
) -> Result<f64> {
    for _ in 1..ATTEMPTS {
        match sample(subject) {
            Err(error) if is_interruption(&error) => tidy(subject)?,
            outcome => return outcome,
        }
    }
    sample(subject)
}

fn is_interruption(error: &Error) -> bool {
    let kinds = error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>());
    kinds.map(io::Error::kind).any(|kind| kind == io::ErrorKind::Interrupted)
}

/// Reads a number of flows.
pub(crate) fn flows(text: &str) -> Result<u32, String> {
    let flows: Option<u32> = text.parse().ok();
    flows
        .filter(|flows| flows.is_power_of_two() && *flows <= 1 << 20)
        .ok_or_else(|| "not a power of two up to 1048576".to_owned())
}
