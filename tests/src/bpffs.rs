//! A bpffs of the test's own.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::TempDir;

use crate::namespace::prefix;

/// A temporary directory with a bpffs on it, unmounted when dropped.
#[derive(Debug)]
pub struct Bpffs {
    dir: TempDir,
}

impl Bpffs {
    /// Mounts one.
    ///
    /// # Errors
    ///
    /// If it can't be mounted: this needs root.
    pub fn new() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix(&(prefix() + "bpf-")).tempdir()?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("bpffs"), dir.path(), Some("bpf"), flags, None::<&str>)
            .with_context(|| format!("mounting a bpffs on {:?}", dir.path()))?;
        Ok(Self { dir })
    }

    /// Where it is mounted.
    #[must_use]
    pub fn root(&self) -> &Path {
        self.dir.path()
    }

    /// The directory that the agent is given; not there until it makes it.
    #[must_use]
    pub fn pins(&self) -> PathBuf {
        self.dir.path().join("redirector")
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        if let Err(error) = umount2(self.dir.path(), MntFlags::MNT_DETACH) {
            eprintln!("unmounting {:?}: {error}", self.dir.path());
        }
    }
}
