//! `cargo xtask test`: everything.

mod failures;
mod report;
pub(crate) mod summary;
pub(crate) mod tier;

use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context as _, Result};
use clap::Args;

use crate::lint::{Check, Finding};
use crate::{build, process, setup};
use report::{Outcome, Report};
use tier::Tier;

/// Runs everything: lints, the host tier, then as root the tiers that need the kernel.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Run this tier only (repeat for more); lints are left out.
    #[arg(long = "tier", value_enum, value_name = "NAME")]
    tiers: Vec<Tier>,
    /// Passed to the test programs: a filter by name, --nocapture and the like.
    #[arg(last = true)]
    passed_on: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let everything = arguments.tiers.is_empty();
    if everything || arguments.tiers.iter().any(|tier| tier.needs_agent()) {
        setup::complete()?;
    }
    let mut report = Report::default();
    if everything {
        for check in Check::ALL {
            report.add(check.name(), || check.run().map(Outcome::checked));
        }
    }
    let tiers = if everything { Tier::ALL.to_vec() } else { arguments.tiers.clone() };
    let mut built = false;
    for tier in tiers {
        if tier.needs_agent() && !built {
            report.add("build", || build::agent().map(|_| Outcome::checked(Finding::Clean)));
            built = true;
            if everything {
                report.add("demo", || run_demo().map(|()| Outcome::checked(Finding::Clean)));
            }
        }
        report.add(tier.name(), || tier.run(&arguments.passed_on));
    }
    report.print();
    // No message: the sum is the last line.
    Ok(if report.failed() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The demo as a user runs it: it fails where an answer is not what it tells its reader to expect.
fn run_demo() -> Result<()> {
    let myself = std::env::current_exe().context("cannot find this program's own file")?;
    process::run(Command::new(myself).arg("demo"))
}

impl Report {
    /// Does one thing and notes how it went and how long it took.
    fn add(&mut self, name: &'static str, work: impl FnOnce() -> Result<Outcome>) {
        println!("── {name}");
        let start = Instant::now();
        let outcome = work().unwrap_or_else(|error| {
            eprintln!("error: {name}: {error:#}");
            Outcome::failed(format!("{error:#}"))
        });
        self.push(name, outcome, start.elapsed());
    }
}
