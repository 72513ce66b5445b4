//! The compilers that can make BPF.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::{Error, TARGET};

/// Names a rustc to use before all others.
const OVERRIDE: &str = "REDIRECTOR_BPF_RUSTC";

/// A compiler for BPF.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compiler {
    /// A rustc whose sysroot has `core` for BPF.
    Prebuilt {
        /// Path of the compiler.
        rustc: PathBuf,
        /// The Cargo that fits it.
        cargo: PathBuf,
    },
    /// A nightly rustc with the source of `core`, which is built along with the object.
    Source {
        /// Path of the compiler.
        rustc: PathBuf,
        /// The Cargo that fits it.
        cargo: PathBuf,
    },
}

impl Compiler {
    /// The first compiler on this machine that can make BPF.
    ///
    /// # Errors
    ///
    /// [`Error::NoCompiler`].
    pub fn find() -> Result<Self, Error> {
        candidates()
            .into_iter()
            .find_map(Self::prebuilt)
            .or_else(Self::nightly)
            .ok_or(Error::NoCompiler)
    }

    /// `rustc` as a compiler for BPF, if its sysroot has the target.
    fn prebuilt(rustc: PathBuf) -> Option<Self> {
        if !has_core(&print(&rustc, &["--print", "target-libdir", "--target", TARGET])?) {
            return None;
        }
        // Where rustup's stand-in answers, the compiler itself is in the sysroot.
        let sysroot = print(&rustc, &["--print", "sysroot"])?;
        let own = sysroot.join("bin/rustc");
        let rustc = if own.is_file() { own } else { rustc };
        let cargo = cargo_beside(&rustc);
        Some(Self::Prebuilt { rustc, cargo })
    }

    /// rustup's nightly, if it has the source of `core`.
    fn nightly() -> Option<Self> {
        let rustc = print(Path::new("rustup"), &["which", "--toolchain", "nightly", "rustc"])?;
        let sysroot = print(&rustc, &["--print", "sysroot"])?;
        if !sysroot.join("lib/rustlib/src/rust/library/core").is_dir() {
            return None;
        }
        let cargo = cargo_beside(&rustc);
        Some(Self::Source { rustc, cargo })
    }

    /// Path of the compiler.
    #[must_use]
    pub fn rustc(&self) -> &Path {
        match self {
            Self::Prebuilt { rustc, .. } | Self::Source { rustc, .. } => rustc,
        }
    }

    /// Path of the Cargo that fits the compiler.
    #[must_use]
    pub fn cargo(&self) -> &Path {
        match self {
            Self::Prebuilt { cargo, .. } | Self::Source { cargo, .. } => cargo,
        }
    }

    /// Path of the `cargo-clippy` that came with the compiler, if it did. Another toolchain's
    /// can't help: it can't read this one's `core`.
    #[must_use]
    pub fn clippy(&self) -> Option<PathBuf> {
        let cargo_clippy = self.rustc().with_file_name("cargo-clippy");
        let driver = self.rustc().with_file_name("clippy-driver");
        (cargo_clippy.is_file() && driver.is_file()).then_some(cargo_clippy)
    }
}

/// Compilers to ask, the likeliest first. `RUSTC` is the one that runs a build script's build.
fn candidates() -> Vec<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value: &OsString| !value.is_empty());
    [variable(OVERRIDE), Some("/usr/bin/rustc".into()), variable("RUSTC"), Some("rustc".into())]
        .into_iter()
        .flatten()
        .map(PathBuf::from)
        .collect()
}

/// Whether `directory` holds a compiled `core`. rustc names the directory of every target it
/// knows, installed or not.
fn has_core(directory: &Path) -> bool {
    std::fs::read_dir(directory).is_ok_and(|entries| {
        entries.flatten().any(|entry| {
            let name = entry.file_name();
            let name = name.as_encoded_bytes();
            name.starts_with(b"libcore-") && name.ends_with(b".rlib")
        })
    })
}

/// The Cargo in the compiler's own directory, else the one that runs this build.
fn cargo_beside(rustc: &Path) -> PathBuf {
    let beside = rustc.with_file_name("cargo");
    if beside.is_file() {
        beside
    } else {
        std::env::var_os("CARGO").map_or_else(|| "cargo".into(), PathBuf::from)
    }
}

/// The path that `program` prints; `None` if it can't be run, fails, or prints nothing.
fn print(program: &Path, arguments: &[&str]) -> Option<PathBuf> {
    let output = Command::new(program)
        .args(arguments)
        // rustup must say what it lacks, not fetch it.
        .env("RUSTUP_AUTO_INSTALL", "0")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let path = String::from_utf8(output.stdout).ok()?;
    let path = path.trim();
    (output.status.success() && !path.is_empty()).then(|| path.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_without_core_is_no_target() {
        let empty = std::env::temp_dir().join(format!("bpf-toolchain-{}", std::process::id()));
        std::fs::create_dir_all(&empty).unwrap();
        assert!(!has_core(&empty));
        std::fs::write(empty.join("libcore-0123.rmeta"), "").unwrap();
        assert!(!has_core(&empty));
        std::fs::write(empty.join("libcore-0123.rlib"), "").unwrap();
        assert!(has_core(&empty));
        std::fs::remove_dir_all(&empty).unwrap();
        assert!(!has_core(&empty));
    }

    #[test]
    fn programs_that_fail_print_no_path() {
        assert_eq!(print(Path::new("/nonexistent/rustc"), &[]), None);
        assert_eq!(print(Path::new("false"), &[]), None);
        assert_eq!(print(Path::new("true"), &[]), None);
        assert_eq!(print(Path::new("echo"), &["/a b"]), Some("/a b".into()));
    }
}
