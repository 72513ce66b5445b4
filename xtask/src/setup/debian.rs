//! Packages of Debian and Ubuntu.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use super::{Missing, install_linker, print_elsewhere};
use crate::process::{self, describe};

/// Where Debian's LLVM 22 stands.
pub(super) const LLVM_PREFIX: &str = "/usr/lib/llvm-22";

/// A rustc with `core` for BPF, and clippy for it.
const COMPILER: [&str; 4] = ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf", CLIPPY];
const CLIPPY: &str = "rust-web-clippy";

/// What building bpf-linker takes.
const LINKER: [&str; 5] = ["g++", "libpolly-22-dev", "libzstd-dev", "llvm-22-dev", "zlib1g-dev"];

/// Whether this is Debian or one of its descendants.
pub(super) fn is_here() -> bool {
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    is_debian(&release) && process::which("apt-get").is_some()
}

fn is_debian(os_release: &str) -> bool {
    os_release
        .lines()
        .filter_map(|line| line.split_once('='))
        .filter(|(name, _)| matches!(*name, "ID" | "ID_LIKE"))
        .flat_map(|(_, value)| value.trim_matches(['"', '\'']).split_whitespace())
        .any(|id| matches!(id, "debian" | "ubuntu"))
}

/// Whether a compiler is Debian's own.
pub(super) fn packaged(rustc: &Path) -> bool {
    is_here() && rustc == Path::new("/usr/bin/rustc")
}

/// Installs what is missing, saying each step before it is done.
pub(super) fn install(missing: &Missing) -> Result<()> {
    let packages = packages(missing);
    if !packages.is_empty() {
        let mut update = apt_get(&["update", "--quiet"]);
        println!("setup: running {}", describe(&update));
        // A source that can't be reached need not be the one that has what we want.
        if let Err(error) = process::run(&mut update) {
            println!("setup: {error:#}; going on with the package lists that there are");
        }
        let unknown: Vec<&str> =
            packages.iter().copied().filter(|package| !has_candidate(package)).collect();
        if !unknown.is_empty() {
            print_elsewhere(missing);
            bail!(
                "the package sources of this machine do not have {}: install what is listed above",
                unknown.join(", ")
            );
        }
        let mut install = install_packages(&packages);
        println!("setup: running {}", describe(&install));
        process::run(&mut install)?;
    }
    if missing.linker {
        let mut install = install_linker();
        println!(
            "setup: running LLVM_PREFIX={LLVM_PREFIX} {} (takes a minute or two)",
            describe(&install)
        );
        process::run(&mut install)?;
    }
    Ok(())
}

/// Installs the package of one program, quietly.
pub(super) fn install_program(program: &'static str) -> Result<()> {
    if !is_here() {
        bail!("this is neither Debian nor Ubuntu: install it");
    }
    let package = package_of(program);
    if !has_candidate(package) {
        // The lists may be missing, or may be old.
        process::output(&mut apt_get(&["update", "--quiet"]))?;
    }
    process::output(&mut install_packages(&[package])).map(drop)
}

/// What [`install`] would run.
pub(super) fn print_commands(missing: &Missing) {
    let packages = packages(missing);
    println!("Run:");
    if !packages.is_empty() {
        println!("  {}", describe(&apt_get(&["update"])));
        println!("  {}", describe(&install_packages(&packages)));
    }
    if missing.linker {
        println!("  LLVM_PREFIX={LLVM_PREFIX} {}", describe(&install_linker()));
    }
}

fn packages(missing: &Missing) -> Vec<&'static str> {
    let mut packages = Vec::new();
    if missing.compiler {
        packages.extend(COMPILER);
    } else if missing.clippy {
        packages.push(CLIPPY);
    }
    if missing.linker {
        packages.extend(LINKER);
    }
    packages.extend(missing.programs.iter().map(|program| package_of(program)));
    if !missing.rustup {
        packages.extend(missing.components.iter().map(|part| package_of(part)));
    }
    packages.sort_unstable();
    packages.dedup();
    packages
}

/// The package that brings a program, or a part of the toolchain.
fn package_of(program: &'static str) -> &'static str {
    match program {
        "busybox" => "busybox-static",
        "ip" => "iproute2",
        "iptables-restore" => "iptables",
        "nc" => "netcat-openbsd",
        "nft" => "nftables",
        "ps" => "procps",
        "qemu-system-x86_64" => "qemu-system-x86",
        "strip" => "binutils",
        "xz" => "xz-utils",
        "clippy" => CLIPPY,
        "rustfmt" => "rustfmt-web",
        same => same,
    }
}

fn install_packages(packages: &[&str]) -> Command {
    let mut command = apt_get(&["install", "--yes", "--no-install-recommends"]);
    command.args(packages);
    command
}

fn apt_get(arguments: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    command
        .args(arguments)
        // Another apt may be at work on a machine that has just started.
        .args(["-o", "DPkg::Lock::Timeout=300"])
        .env("DEBIAN_FRONTEND", "noninteractive");
    command
}

fn has_candidate(package: &str) -> bool {
    process::output(Command::new("apt-cache").args(["policy", package])).is_ok_and(|policy| {
        policy
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Candidate:"))
            .any(|candidate| candidate.trim() != "(none)")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descendants_of_debian_are_known_by_their_likeness() {
        assert!(is_debian("NAME=x\nID=debian\n"));
        assert!(is_debian("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n"));
        assert!(!is_debian("ID=fedora\nNAME=debian\n"));
        assert!(!is_debian("ID=\"opensuse-leap\"\nID_LIKE=\"suse opensuse\"\n"));
        assert!(!is_debian(""));
    }

    #[test]
    fn only_what_is_missing_is_installed() {
        let missing = Missing {
            compiler: false,
            clippy: true,
            linker: false,
            programs: vec!["ip", "curl"],
            components: Vec::new(),
            rustup: true,
        };
        assert_eq!(packages(&missing), ["curl", "iproute2", "rust-web-clippy"]);
    }
}
