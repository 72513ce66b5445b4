//! What build scripts of packages that embed an object do.

use std::path::{Path, PathBuf};
use std::{env, fs, process};

use crate::{Error, build_object, target_dir};

/// In a build script: builds the object of `package` and leaves it in `OUT_DIR` under that name.
///
/// `inputs` are the files and directories of the workspace that it depends on: the script runs
/// again when one of them changes. Without a toolchain the file is empty, in other builds than
/// those for release: tests of everything else need none. Whatever else goes wrong ends the build.
pub fn embed(package: &str, inputs: &[&str]) {
    let manifest = path_of("CARGO_MANIFEST_DIR");
    let Some(workspace) = manifest.parent() else {
        fail("the package stands in no workspace");
    };
    println!("cargo::rerun-if-changed=build.rs");
    for input in inputs {
        println!("cargo::rerun-if-changed={}", workspace.join(input).display());
    }
    for variable in ["PATH", "REDIRECTOR_BPF_RUSTC"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let out = path_of("OUT_DIR").join(package);
    match build_object(workspace, &target_dir(&workspace_target(&out)), package) {
        Ok(object) => copy(&object, &out),
        Err(error @ (Error::NoCompiler | Error::NoLinker)) if !is_release() => {
            println!("cargo::warning={error}: building without the programs of {package}");
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
fn workspace_target(out: &Path) -> PathBuf {
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
