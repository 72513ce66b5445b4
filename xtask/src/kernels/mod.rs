//! `cargo xtask kernels`: older kernels, in a virtual machine.

mod figures;
mod initramfs;
mod machine;
mod packages;
mod plan;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;

use crate::cargo::target_dir;
use crate::{build, setup};
use figures::{Figures, Growth};
use machine::Accelerator;
use plan::Plan;

/// The series that we support from: what Debian 12 and 13 ship.
const SERIES: [&str; 2] = ["6.1", "6.12"];

/// Seconds after which a machine that has not ended is stopped.
const LIMIT: u64 = 1800;

/// Whether this machine can do it: the kernels are for x86-64.
pub(crate) const POSSIBLE: bool = cfg!(all(target_os = "linux", target_arch = "x86_64"));

/// Runs the programs, their tests and an agent on Debian's older kernels, in QEMU.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Run on this series only (repeat for more).
    #[arg(long = "kernel", value_name = "SERIES", value_parser = SERIES)]
    kernels: Vec<String>,
    /// Record what the verifier says now in tests/verifier.json.
    #[arg(long)]
    record: bool,
    /// Ask for the verifier's figures only.
    #[arg(long, conflicts_with = "everything")]
    figures_only: bool,
    /// Run the whole program tier, not just its essential part.
    #[arg(long)]
    everything: bool,
    /// Seconds after which a machine that has not ended is stopped.
    #[arg(long, value_name = "SECONDS", default_value_t = LIMIT)]
    timeout: u64,
    /// How the processor is provided. Nested KVM is often broken, so emulation is the default.
    #[arg(long, value_enum, default_value_t = Accelerator::Tcg)]
    accelerator: Accelerator,
}

impl Default for Arguments {
    /// As `cargo xtask test` runs it.
    fn default() -> Self {
        Self {
            kernels: Vec::new(),
            record: false,
            figures_only: false,
            everything: false,
            timeout: LIMIT,
            accelerator: Accelerator::Tcg,
        }
    }
}

impl Arguments {
    fn plan(&self) -> Plan {
        match (self.figures_only, self.everything) {
            (true, _) => Plan::Figures,
            (false, true) => Plan::Everything,
            (false, false) => Plan::Essential,
        }
    }

    fn includes(&self, series: &str) -> bool {
        self.kernels.is_empty() || self.kernels.iter().any(|kernel| kernel == series)
    }
}

/// How tests went.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sum {
    /// Tests that passed.
    pub(crate) passed: u32,
    /// All that is wrong.
    pub(crate) problems: u32,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    if !POSSIBLE {
        bail!("these kernels are for x86-64: run this on such a machine");
    }
    setup::complete()?;
    let agent = if arguments.plan().needs_agent() { Some(build::agent()?) } else { None };
    let sum = run_with(arguments, agent.as_deref())?;
    Ok(if sum.problems == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Does it, with an agent that is already built.
pub(crate) fn run_with(arguments: &Arguments, agent: Option<&Path>) -> Result<Sum> {
    let tests = arguments.plan().build(&directory())?;
    let agent = agent.map(|agent| plan::strip(agent, &directory(), "redirector")).transpose()?;
    let limit = Duration::from_secs(arguments.timeout);
    let boot = &|series: &str| {
        let kernel = packages::fetch(series)?;
        println!("{series:>5} │ Linux {}", kernel.release);
        let initramfs = initramfs::build(&kernel, &tests, agent.as_deref())?;
        machine::boot(series, &kernel, &initramfs, arguments.accelerator, limit)
    };
    // Side by side: each machine has one processor.
    let outcomes = thread::scope(|scope| {
        let threads: Vec<_> = SERIES
            .into_iter()
            .filter(|series| arguments.includes(series))
            .map(|series| (series, scope.spawn(move || boot(series))))
            .collect();
        threads
            .into_iter()
            .map(|(series, thread)| match thread.join() {
                Ok(outcome) => Ok((series, outcome?)),
                Err(_) => bail!("the thread that runs Linux {series} panicked"),
            })
            .collect::<Result<Vec<_>>>()
    })?;

    let mut recorded = Figures::read()?;
    let mut problems = Vec::new();
    let mut table = String::new();
    let mut passed = 0;
    for (series, outcome) in outcomes {
        problems.extend(outcome.problems(&tests).map(|problem| format!("{series}: {problem}")));
        if arguments.record {
            recorded.set(series, &outcome.figures);
        } else {
            let growth = recorded.compare(series, &outcome.figures);
            problems.extend(growth.iter().map(Growth::to_string));
        }
        passed += outcome.sum().passed;
        table += &outcome.render(series);
    }
    print!("\n{:<7} {:<15} {:>8} {:>6}\n{table}", "KERNEL", "PROGRAM", "VERIFIED", "STACK");
    for problem in &problems {
        eprintln!("error: {problem}");
    }
    if arguments.record && problems.is_empty() {
        recorded.write()?;
    }
    Ok(Sum { passed, problems: u32::try_from(problems.len()).unwrap_or(u32::MAX) })
}

/// Where kernels and initramfs stand.
fn directory() -> PathBuf {
    target_dir().join("kernels")
}
