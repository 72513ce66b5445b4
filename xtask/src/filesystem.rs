//! Root file systems of programs: for virtual machines and for images.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::process;

/// Copies a program with its shared libraries, which keep their paths.
pub(crate) fn install(root: &Path, program: &Path, to: &str) -> Result<()> {
    copy(program, &root.join(to))?;
    // Fails for a program without any.
    let libraries = process::output(Command::new("ldd").arg(program)).unwrap_or_default();
    for library in libraries.split_whitespace().filter(|word| word.starts_with('/')) {
        let target = root.join(library.trim_start_matches('/'));
        if !target.exists() {
            copy(Path::new(library), &target)?;
        }
    }
    Ok(())
}

/// An empty directory, whatever was there.
pub(crate) fn make_empty(directory: &Path) -> Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory).with_context(|| format!("cannot remove {directory:?}"))?;
    }
    fs::create_dir_all(directory).with_context(|| format!("cannot create {directory:?}"))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let parent = to.parent().unwrap_or(to);
    fs::create_dir_all(parent).with_context(|| format!("cannot create {parent:?}"))?;
    fs::copy(from, to).with_context(|| format!("cannot copy {from:?} to {to:?}"))?;
    Ok(())
}
