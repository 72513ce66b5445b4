//! bpf-linker.

use std::path::{Path, PathBuf};

use crate::Error;

const NAME: &str = "bpf-linker";

/// Looks for bpf-linker on the `PATH` and where `cargo install` puts programs.
///
/// # Errors
///
/// [`Error::NoLinker`].
pub fn find_linker() -> Result<PathBuf, Error> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(cargo_bin())
        .map(|directory| directory.join(NAME))
        .find(|file| is_executable(file))
        .ok_or(Error::NoLinker)
}

/// Directory of programs that Cargo installed.
fn cargo_bin() -> Option<PathBuf> {
    std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(std::env::home_dir()?.join(".cargo")))
        .map(|home| home.join("bin"))
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    file.metadata()
        .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}
