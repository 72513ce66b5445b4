//! Finds a compiler for BPF and builds the eBPF object with it.
//!
//! Used by build scripts of packages that embed such an object, and by `cargo xtask`. It has no
//! dependencies, so that a build script that uses it costs next to nothing.
//!
//! A compiler for BPF is one of:
//!
//! * a rustc whose sysroot already has `core` for [`TARGET`] (Debian's `rustc-web` with
//!   `libstd-rust-web-dev-bpf`), told by `RUSTC_BOOTSTRAP=1` to accept the unstable feature that
//!   aya-ebpf needs;
//! * rustup's nightly with the `rust-src` component, which builds `core` along with the object.

mod cargo;
mod compiler;
mod error;
mod linker;
mod script;

use std::path::{Path, PathBuf};

pub use compiler::Compiler;
pub use error::Error;
pub use linker::find_linker;
pub use script::embed;

/// The target triple of the object.
pub const TARGET: &str = "bpfel-unknown-none";

/// The package that holds redirector's eBPF programs.
pub const PROGRAMS: &str = "redirector-ebpf";

/// The package that holds the programs which the benchmark measures ours against.
pub const FLOORS: &str = "redirector-floors";

/// The Cargo profile, in the workspace's manifest, that the object is built with. There is one
/// only: the verifier refuses unoptimised programs, so debug builds of the agent embed the same
/// object.
const PROFILE: &str = "bpf";

/// Everything that building the object takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toolchain {
    /// Compiles Rust to LLVM bitcode for BPF.
    pub compiler: Compiler,
    /// Path of bpf-linker, which makes the object out of the bitcode.
    pub linker: PathBuf,
}

impl Toolchain {
    /// Looks for a compiler and a linker on this machine.
    ///
    /// # Errors
    ///
    /// [`Error::NoCompiler`] or [`Error::NoLinker`].
    pub fn find() -> Result<Self, Error> {
        Ok(Self { compiler: Compiler::find()?, linker: find_linker()? })
    }
}

/// Where the object is built: under the workspace's `target` directory, once for all profiles of
/// the agent.
#[must_use]
pub fn target_dir(workspace_target: &Path) -> PathBuf {
    workspace_target.join("bpf")
}

/// Builds the eBPF object of `package`, in the workspace at `workspace`, in `target_dir` and
/// returns its path.
///
/// Cheap when nothing changed: Cargo decides. The object is shared by everything that builds in
/// `target_dir`, so a caller that keeps it makes a copy.
///
/// # Errors
///
/// No toolchain, or the build failed; the compiler's own messages went to standard error.
pub fn build_object(workspace: &Path, target_dir: &Path, package: &str) -> Result<PathBuf, Error> {
    let toolchain = Toolchain::find()?;
    let mut command = cargo::command(&toolchain, workspace, target_dir, "build", &[]);
    cargo::run(command.args(["--package", package]), "building the eBPF object")?;

    let object = target_dir.join(TARGET).join(PROFILE).join(package);
    if object.is_file() { Ok(object) } else { Err(Error::NoObject { path: object }) }
}

/// How thoroughly [`lint_object`] looked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lints {
    /// Clippy and the compiler.
    Clippy,
    /// The compiler alone: this BPF compiler comes without clippy.
    Compiler,
}

/// Checks the eBPF crates for the BPF target with every warning an error.
///
/// # Errors
///
/// No toolchain, or there are warnings; they went to standard error.
pub fn lint_object(workspace: &Path, target_dir: &Path) -> Result<Lints, Error> {
    let toolchain = Toolchain::find()?;
    let (subcommand, lints) = if toolchain.compiler.clippy().is_some() {
        ("clippy", Lints::Clippy)
    } else {
        ("check", Lints::Compiler)
    };
    let mut command =
        cargo::command(&toolchain, workspace, target_dir, subcommand, &["-Dwarnings"]);
    let packages = ["--package", PROGRAMS, "--package", FLOORS];
    cargo::run(command.args(packages), "checking the eBPF crates")?;
    Ok(lints)
}
