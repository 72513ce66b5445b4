//! `cargo xtask setup`: finds or installs what building and testing need.

mod debian;

use std::process::Command;

use anyhow::{Context, Result, bail};
use bpf_toolchain::{Compiler, find_linker};
use clap::Args;

use crate::cargo::cargo;
use crate::process::{self, describe, which};

/// Finds or installs the BPF toolchain and the programs that tests and the demo run.
#[derive(Args)]
pub(crate) struct Arguments {}

/// The version of bpf-linker that we test with.
const LINKER_VERSION: &str = "0.13.0";

/// Programs that tests and the demo run; those from `busybox` on for older kernels, the image, the
/// chart and the plugin.
const PROGRAMS: [&str; 13] = [
    "curl",
    "ethtool",
    "ip",
    "iperf3",
    "nc",
    "ps",
    "busybox",
    "cpio",
    "npm",
    "qemu-system-x86_64",
    "shellcheck",
    "strip",
    "xz",
];

/// Parts of the Rust toolchain that rustup's smallest profile leaves out, and how Cargo calls them.
const COMPONENTS: [(&str, &str); 2] = [("rustfmt", "fmt"), ("clippy", "clippy")];

pub(crate) fn run(_: &Arguments) -> Result<()> {
    complete()?;
    println!("setup: everything is there");
    Ok(())
}

/// Installs what is missing; silent if nothing is. The other commands start with it, so that each
/// of them is all that one has to run on a fresh machine.
pub(crate) fn complete() -> Result<()> {
    let missing = Missing::find();
    if missing.is_empty() {
        return Ok(());
    }
    missing.describe();
    if missing.rustup && !missing.components.is_empty() {
        install_components(&missing.components)?;
    }
    if missing.needs_system() {
        if !debian::is_here() {
            print_elsewhere(&missing);
            bail!("this is neither Debian nor Ubuntu: install what is listed above");
        }
        if !process::is_root() {
            debian::print_commands(&missing);
            bail!("installing packages needs root: run what is listed above");
        }
        debian::install(&missing)?;
    }

    let missing = Missing::find();
    if !missing.is_empty() {
        missing.describe();
        bail!("still not complete after installing: see above");
    }
    Ok(())
}

/// Installs programs that one can do without, where that is possible, and says where it is not.
pub(crate) fn offer(programs: &[&'static str]) {
    let missing: Vec<_> = programs.iter().copied().filter(|name| which(name).is_none()).collect();
    if missing.is_empty() {
        return;
    }
    eprintln!("setup: missing: {}", missing.join(", "));
    for program in missing {
        if let Err(error) = debian::install_program(program) {
            eprintln!("setup: going on without {program}: {error:#}");
        }
    }
}

/// What this machine lacks.
struct Missing {
    compiler: bool,
    /// Clippy for the BPF compiler that is there, or would be installed. Debian packages it
    /// apart; elsewhere the compiler's own warnings have to do.
    clippy: bool,
    linker: bool,
    programs: Vec<&'static str>,
    components: Vec<&'static str>,
    /// Whether the toolchain is rustup's, which has the components; else they are packages.
    rustup: bool,
}

impl Missing {
    fn find() -> Self {
        let compiler = Compiler::find();
        Self {
            clippy: compiler.as_ref().is_ok_and(|compiler| {
                compiler.clippy().is_none() && debian::packaged(compiler.rustc())
            }),
            compiler: compiler.is_err(),
            linker: !linker_runs(),
            programs: PROGRAMS.into_iter().filter(|program| which(program).is_none()).collect(),
            components: COMPONENTS
                .into_iter()
                .filter(|(_, subcommand)| {
                    process::output(cargo(subcommand).arg("--version")).is_err()
                })
                .map(|(component, _)| component)
                .collect(),
            rustup: which("rustup").is_some(),
        }
    }

    fn is_empty(&self) -> bool {
        !self.needs_system() && self.components.is_empty()
    }

    /// Whether something is missing that is not rustup's to install.
    fn needs_system(&self) -> bool {
        self.compiler
            || self.clippy
            || self.linker
            || !self.programs.is_empty()
            || !self.rustup && !self.components.is_empty()
    }

    fn describe(&self) {
        let rows = [
            (self.compiler, "a Rust compiler for BPF".to_owned()),
            (self.clippy, "clippy for the BPF compiler".to_owned()),
            (self.linker, "bpf-linker".to_owned()),
            (!self.programs.is_empty(), self.programs.join(", ")),
            (!self.components.is_empty(), self.components.join(", ")),
        ];
        for (_, what) in rows.iter().filter(|(missing, _)| *missing) {
            println!("setup: missing: {what}");
        }
    }
}

/// Whether bpf-linker is there and finds the LLVM that it was built with.
fn linker_runs() -> bool {
    find_linker().is_ok_and(|linker| process::output(Command::new(linker).arg("--version")).is_ok())
}

/// Builds bpf-linker with Debian's LLVM, which is as new as both compilers'.
fn install_linker() -> Command {
    let mut command = cargo("install");
    command
        .args(["bpf-linker", "--version", LINKER_VERSION, "--locked"])
        // A linker that is there but does not run is replaced.
        .args(["--force", "--no-default-features", "--features", "llvm-22"])
        .env("LLVM_PREFIX", debian::LLVM_PREFIX);
    command
}

fn install_components(components: &[&str]) -> Result<()> {
    let mut command = Command::new("rustup");
    command.args(["component", "add"]).args(components);
    println!("setup: running {}", describe(&command));
    process::run(&mut command)
        .with_context(|| format!("install {} for this Rust toolchain", components.join(" and ")))
}

fn print_elsewhere(missing: &Missing) {
    println!("On this system, run or install:");
    if missing.compiler {
        println!(
            "  rustup toolchain install nightly --profile minimal --component rust-src --component clippy"
        );
    }
    if missing.linker {
        println!(
            "  bpf-linker {LINKER_VERSION} or newer, from https://github.com/aya-rs/bpf-linker/releases\n  \
             or, with the development files of LLVM 22 installed:\n    \
             LLVM_PREFIX=<prefix of LLVM 22> {}",
            describe(&install_linker())
        );
    }
    if !missing.programs.is_empty() {
        println!("  the programs {}", missing.programs.join(", "));
    }
    if !missing.rustup && !missing.components.is_empty() {
        println!("  {} for this Rust toolchain", missing.components.join(", "));
    }
}
