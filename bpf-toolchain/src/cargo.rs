//! Cargo, run for the BPF target from inside another Cargo's build.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::{Compiler, Error, PROFILE, TARGET, Toolchain};

/// The instruction set: v3 adds 32-bit arithmetic and comparisons. The oldest kernel we run on
/// (6.1) has all of it.
const CPU: &str = "v3";

/// Packet fields are where the packet put them; without this, each is read byte by byte. For the
/// linker only, which generates the code: rustc warns that it does not know the feature.
const FEATURES: &str = "+allows-misaligned-mem-access";

/// `cargo <subcommand>` for packages that the caller adds, with an environment that depends on nothing but
/// `toolchain`.
pub(crate) fn command(
    toolchain: &Toolchain,
    workspace: &Path,
    target_dir: &Path,
    subcommand: &str,
    extra_flags: &[&str],
) -> Command {
    let mut command = subcommand_of(&toolchain.compiler, subcommand);
    match toolchain.compiler {
        Compiler::Prebuilt { .. } => {}
        Compiler::Source { .. } => {
            command.args(["-Z", "build-std=core"]);
        }
    }
    command
        .args(["--locked", "--profile", PROFILE, "--target", TARGET])
        .arg("--target-dir")
        .arg(target_dir)
        .current_dir(workspace)
        .stdin(Stdio::null());
    for (name, value) in std::env::vars_os() {
        if leaks(&name) {
            command.env_remove(&name);
        } else if name == "LD_LIBRARY_PATH" {
            command.env(&name, without_toolchains(&value));
        }
    }
    command
        .env("CARGO", toolchain.compiler.cargo())
        .env("RUSTC", toolchain.compiler.rustc())
        // Without this a compiler that is not a nightly refuses aya-ebpf's unstable feature.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", encode(&flags(&toolchain.linker, extra_flags)));
    command
}

/// Cargo about to run one of its subcommands.
fn subcommand_of(compiler: &Compiler, subcommand: &str) -> Command {
    // Cargo looks for clippy in its own bin directory first, where rustup's stand-in may be; only
    // the one beside the compiler can read that compiler's `core`.
    let mut command = match compiler.clippy() {
        Some(clippy) if subcommand == "clippy" => Command::new(clippy),
        Some(_) | None => Command::new(compiler.cargo()),
    };
    command.arg(subcommand);
    command
}

/// Runs Cargo; standard output goes where standard error goes, because a build script's standard
/// output is read by the outer Cargo.
pub(crate) fn run(command: &mut Command, doing: &'static str) -> Result<(), Error> {
    let start =
        |command: &Command, source| Error::Start { program: command.get_program().into(), source };
    let status =
        command.stdout(std::io::stderr()).status().map_err(|source| start(command, source))?;
    if status.success() {
        return Ok(());
    }
    let rustc = command
        .get_envs()
        .find(|(name, _)| *name == "RUSTC")
        .and_then(|(_, value)| value)
        .unwrap_or_default();
    Err(Error::Failed { doing, rustc: rustc.into(), status })
}

/// rustc's flags. rustc itself passes the CPU on to the linker.
fn flags(linker: &Path, extra: &[&str]) -> Vec<OsString> {
    let mut path = OsString::from("-Clinker=");
    path.push(linker);
    let mut flags = vec![
        path,
        "-Clink-arg=--btf".into(),
        "-Cdebuginfo=2".into(),
        format!("-Ctarget-cpu={CPU}").into(),
        format!("-Clink-arg=--cpu-features={FEATURES}").into(),
        format!("--cfg=bpf_target_arch=\"{}\"", target_arch()).into(),
        // Declared for rustc, which otherwise warns of a cfg that nobody knows.
        "--check-cfg=cfg(bpf_target_arch, values(any()))".into(),
    ];
    flags.extend(extra.iter().map(OsString::from));
    flags
}

/// Architecture of the kernel that runs the object: the one the agent is built for.
fn target_arch() -> String {
    std::env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_else(|_| std::env::consts::ARCH.into())
}

/// Flags as Cargo wants them: separated by 0x1f.
fn encode(flags: &[OsString]) -> OsString {
    flags.join(OsStr::new("\x1f"))
}

/// Whether a variable of the outer Cargo, of rustup or of clippy would change the inner build.
fn leaks(name: &OsStr) -> bool {
    /// Where Cargo keeps things, how it reaches the network, whom it shares processors with.
    const KEPT: [&str; 8] = [
        "CARGO_HOME",
        "CARGO_HTTP_",
        "CARGO_MAKEFLAGS",
        "CARGO_NET_",
        "CARGO_REGISTRIES_",
        "CARGO_REGISTRY_",
        "CARGO_SOURCE_",
        "CARGO_TERM_",
    ];
    const DROPPED: [&str; 9] = [
        "CARGO",
        "CLIPPY_ARGS",
        "CLIPPY_CONF_DIR",
        "RUSTC",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTC_WRAPPER",
        "RUSTDOCFLAGS",
        "RUSTFLAGS",
        "RUSTUP_TOOLCHAIN",
    ];
    let Some(name) = name.to_str() else {
        return false;
    };
    DROPPED.contains(&name)
        || name.starts_with("CARGO_") && !KEPT.iter().any(|kept| name.starts_with(kept))
}

/// A library path without the directories that rustup and Cargo put there for the outer
/// toolchain.
fn without_toolchains(libraries: &OsStr) -> OsString {
    let kept = std::env::split_paths(libraries)
        .filter(|directory| !directory.iter().any(|part| part == "toolchains"));
    std::env::join_paths(kept).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_reaches_registries_and_jobs_is_inherited() {
        for name in ["CARGO_HOME", "CARGO_NET_OFFLINE", "CARGO_MAKEFLAGS", "PATH"] {
            assert!(!leaks(OsStr::new(name)), "{name}");
        }
        for name in [
            "CARGO",
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_TARGET_DIR",
            "CARGO_PROFILE_BPF_LTO",
            "CARGO_CFG_TARGET_ARCH",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTUP_TOOLCHAIN",
        ] {
            assert!(leaks(OsStr::new(name)), "{name}");
        }
    }

    #[test]
    fn library_path_keeps_what_the_user_set() {
        let path = OsStr::new("/opt/llvm/lib:/root/.rustup/toolchains/stable/lib:/x");
        assert_eq!(without_toolchains(path), "/opt/llvm/lib:/x");
    }

    #[test]
    fn flags_name_the_linker_by_its_path() {
        let encoded = encode(&flags(Path::new("/a b/bpf-linker"), &["-Dwarnings"]));
        let encoded = encoded.to_str().unwrap();
        let flags: Vec<&str> = encoded.split('\x1f').collect();
        assert!(flags.contains(&"-Clinker=/a b/bpf-linker"), "{flags:?}");
        assert!(flags.contains(&"-Dwarnings"), "{flags:?}");
    }
}
