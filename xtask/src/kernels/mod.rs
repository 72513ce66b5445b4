//! `cargo xtask kernels`: older kernels, in a virtual machine.

mod figures;
mod initramfs;
mod machine;
mod packages;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::cargo::{cargo, target_dir};
use crate::{process, setup};
use figures::{Figures, Growth};
use machine::Accelerator;

/// The series that we support from: what Debian 12 and 13 ship.
const SERIES: [&str; 2] = ["6.1", "6.12"];

/// Runs the programs and their tests on Debian's older kernels, in QEMU.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Run on this series only (repeat for more).
    #[arg(long = "kernel", value_name = "SERIES", value_parser = SERIES)]
    kernels: Vec<String>,
    /// Record what the verifier says now in tests/verifier.json.
    #[arg(long)]
    record: bool,
    /// Ask for the verifier's figures only; the program tier takes minutes under emulation.
    #[arg(long)]
    figures_only: bool,
    /// Seconds after which a machine that has not ended is stopped.
    #[arg(long, value_name = "SECONDS", default_value_t = 1800)]
    timeout: u64,
    /// How the processor is provided. Nested KVM is often broken, so emulation is the default.
    #[arg(long, value_enum, default_value_t = Accelerator::Tcg)]
    accelerator: Accelerator,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        bail!("these kernels are for x86-64: run this on such a machine");
    }
    setup::complete()?;
    packages::complete()?;
    let tests =
        build_tests(if arguments.figures_only { &["verifier"] } else { &["verifier", "program"] })?;
    let mut recorded = Figures::read()?;
    let mut problems = Vec::new();
    let mut table = String::new();
    let series = SERIES.iter().filter(|series| {
        arguments.kernels.is_empty() || arguments.kernels.iter().any(|kernel| kernel == *series)
    });
    for &series in series {
        let kernel = packages::fetch(series)?;
        println!("── Linux {series}: {}", kernel.release);
        let initramfs = initramfs::build(&kernel, &tests)?;
        let limit = Duration::from_secs(arguments.timeout);
        let outcome = machine::boot(&kernel, &initramfs, arguments.accelerator, limit)?;
        problems.extend(outcome.problems(&tests).map(|problem| format!("{series}: {problem}")));
        if arguments.record {
            recorded.set(series, &outcome.figures);
        } else {
            let growth = recorded.compare(series, &outcome.figures);
            problems.extend(growth.iter().map(Growth::to_string));
        }
        table += &outcome.render(series);
    }
    print!("\n{:<7} {:<15} {:>8} {:>6}\n{table}", "KERNEL", "PROGRAM", "VERIFIED", "STACK");
    for problem in &problems {
        eprintln!("error: {problem}");
    }
    if !problems.is_empty() {
        return Ok(ExitCode::FAILURE);
    }
    if arguments.record {
        recorded.write()?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A test program.
struct Test {
    name: String,
    executable: PathBuf,
}

/// Builds test programs of the tiers that need root.
fn build_tests(names: &[&str]) -> Result<Vec<Test>> {
    let mut command = cargo("test");
    command.args(["--locked", "--no-run", "--package", crate::test::tier::Tier::PACKAGE]);
    command.arg("--message-format=json-render-diagnostics");
    for name in names {
        command.args(["--test", name]);
    }
    command.stderr(std::process::Stdio::inherit());
    let output = process::output(&mut command)?;
    let messages: Vec<serde_json::Value> =
        output.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let find = |name: &str| {
        messages.iter().find_map(|message| {
            let is_it = message["target"]["name"] == name && message["profile"]["test"] == true;
            is_it.then(|| message["executable"].as_str()).flatten().map(PathBuf::from)
        })
    };
    names
        .iter()
        .map(|name| {
            let executable = find(name).with_context(|| format!("Cargo built no test {name}"))?;
            Ok(Test { name: (*name).to_owned(), executable })
        })
        .collect()
}

/// Where kernels and initramfs stand.
fn directory() -> PathBuf {
    target_dir().join("kernels")
}
