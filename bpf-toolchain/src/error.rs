//! What can go wrong.

use std::fmt;
use std::path::PathBuf;
use std::process::ExitStatus;

/// Why there is no object. Every message is one line that says what to do.
#[derive(Debug)]
pub enum Error {
    /// No rustc on this machine can compile for BPF.
    NoCompiler,
    /// bpf-linker is neither on the `PATH` nor where Cargo installs programs.
    NoLinker,
    /// A program could not be started.
    Start {
        /// The program.
        program: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Cargo ended with an error, which it explained on standard error.
    Failed {
        /// What Cargo was doing.
        doing: &'static str,
        /// The compiler that was used.
        rustc: PathBuf,
        /// How Cargo ended.
        status: ExitStatus,
    },
    /// Cargo said that it built the object, but it is not there.
    NoObject {
        /// Where the object should be.
        path: PathBuf,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCompiler => f.write_str(
                "no Rust compiler for BPF found (a rustc with `core` for bpfel-unknown-none, or \
                 rustup's nightly with rust-src): run `cargo xtask setup`",
            ),
            Self::NoLinker => f.write_str(
                "bpf-linker found neither on the PATH nor in Cargo's bin directory: \
                 run `cargo xtask setup`",
            ),
            Self::Start { program, source } => {
                write!(f, "cannot start {}: {source}", program.display())
            }
            Self::Failed { doing, rustc, status } => write!(
                f,
                "{doing} with {} failed ({status}): the messages above say why",
                rustc.display()
            ),
            Self::NoObject { path } => write!(
                f,
                "cargo built the eBPF crate but left no object at {}: does the crate's name in \
                 redirector-ebpf/Cargo.toml still fit?",
                path.display()
            ),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Start { source, .. } => Some(source),
            Self::NoCompiler | Self::NoLinker | Self::Failed { .. } | Self::NoObject { .. } => None,
        }
    }
}
