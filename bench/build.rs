//! Builds the programs that ours are measured against.

use std::path::{Path, PathBuf};
use std::{env, fs, process};

use bpf_toolchain::Error;

fn main() {
    let out = path_of("OUT_DIR").join("redirector-floors");
    let manifest = path_of("CARGO_MANIFEST_DIR");
    let Some(workspace) = manifest.parent() else {
        fail("the package stands in no workspace");
    };
    for input in ["build.rs", "floors", "../Cargo.toml", "../Cargo.lock"] {
        println!("cargo::rerun-if-changed={}", manifest.join(input).display());
    }
    println!("cargo::rerun-if-env-changed=PATH");
    // `<target>/<profile>/build/<package>/out` is ours.
    let target = out.ancestors().nth(5).map_or_else(PathBuf::new, Path::to_owned);
    let target = bpf_toolchain::target_dir(&target);
    match bpf_toolchain::build_object(workspace, &target, bpf_toolchain::FLOORS) {
        Ok(object) => {
            if let Err(error) = fs::copy(&object, &out) {
                fail(&format!("{} to {}: {error}", object.display(), out.display()));
            }
        }
        // So that all else can be built and linted; the benchmark will say that it can't run.
        Err(error @ (Error::NoCompiler | Error::NoLinker)) => {
            println!("cargo::warning={error}: building without the programs to compare with");
            if let Err(error) = fs::write(&out, []) {
                fail(&format!("{}: {error}", out.display()));
            }
        }
        Err(error) => fail(&error.to_string()),
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
