//! Builds the eBPF programs, which the library embeds.

use std::path::{Path, PathBuf};
use std::{env, fs, process};

use bpf_toolchain::Error;

fn main() {
    let out = path_of("OUT_DIR").join("redirector-ebpf");
    let manifest = path_of("CARGO_MANIFEST_DIR");
    let Some(workspace) = manifest.parent() else {
        fail("the package stands in no workspace");
    };
    println!("cargo::rerun-if-changed=build.rs");
    for input in bpf_toolchain::INPUTS {
        println!("cargo::rerun-if-changed={}", workspace.join(input).display());
    }
    for variable in ["PATH", "REDIRECTOR_BPF_RUSTC"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let target = bpf_toolchain::target_dir(&target_dir(&out));
    match bpf_toolchain::build_object(workspace, &target, bpf_toolchain::PROGRAMS) {
        Ok(object) => copy(&object, &out),
        // Tests of everything else need no compiler for BPF.
        Err(error @ (Error::NoCompiler | Error::NoLinker)) if !is_release() => {
            println!("cargo::warning={error}: building without the eBPF programs");
            // A file that is never there: once the compiler is installed, look again.
            println!("cargo::rerun-if-changed=no-compiler-for-bpf");
            if let Err(error) = fs::write(&out, []) {
                fail(&format!("{}: {error}", out.display()));
            }
        }
        Err(error) => fail(&error.to_string()),
    }
}

/// The directory that everything is built in: `<target>/<profile>/build/<package>/out` is ours.
fn target_dir(out: &Path) -> PathBuf {
    out.ancestors().nth(5).unwrap_or(out).to_owned()
}

fn is_release() -> bool {
    env::var("PROFILE").is_ok_and(|profile| profile == "release")
}

fn copy(object: &Path, to: &Path) {
    if let Err(error) = fs::copy(object, to) {
        fail(&format!("{} to {}: {error}", object.display(), to.display()));
    }
}

fn path_of(variable: &str) -> PathBuf {
    match env::var_os(variable) {
        Some(path) => PathBuf::from(path),
        None => fail(&format!("{variable} is not set")),
    }
}

fn fail(message: &str) -> ! {
    for line in message.lines() {
        println!("cargo::error={line}");
    }
    process::exit(1);
}
