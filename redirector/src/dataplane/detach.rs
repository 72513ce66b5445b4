//! Removing everything that an agent left in the kernel.

use std::path::{Path, PathBuf};
use std::{fs, io};

use redirector_common::map_name::MapName;

use super::attach::{self, AttachError};
use super::lock::{Lock, LockError};
use super::maps;
use super::pins::Pins;
use super::prerequisites::{self, PrerequisiteError};
use super::resize::Turn;
use super::sysctl::{SysctlError, Sysctls};
use super::table::TableError;

/// Why something is left.
#[derive(Debug, thiserror::Error)]
pub enum DetachError {
    /// An agent is at work.
    #[error("{0}: stop it first")]
    Running(LockError),
    /// The directory cannot be locked.
    #[error(transparent)]
    Lock(LockError),
    /// Too few privileges.
    #[error(transparent)]
    Prerequisite(#[from] PrerequisiteError),
    /// Something cannot be taken off.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// A kernel setting cannot be put back.
    #[error("cannot put a kernel setting back: {0}")]
    Sysctl(#[from] SysctlError),
    /// The map that remembers kernel settings cannot be read.
    #[error(transparent)]
    Table(#[from] TableError),
    /// A pin or directory cannot be removed.
    #[error("{}: {source}", .path.display())]
    File {
        /// What.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Takes programs off all interfaces, puts kernel settings back, and removes pins and
/// directories. Where nothing is there, nothing is done.
///
/// # Errors
///
/// If an agent holds the directory; else the first thing that cannot be removed. What comes after
/// it is removed all the same.
pub fn detach(pins: &Pins) -> Result<(), DetachError> {
    if !pins.dir().exists() {
        return Ok(());
    }
    prerequisites::check_own_privileges()?;
    let lock = Lock::take(pins).map_err(|error| match error {
        LockError::Held { .. } => DetachError::Running(error),
        LockError::File { .. } => DetachError::Lock(error),
    })?;
    detach_locked(pins, &lock)
}

/// The same for who has the directory already.
///
/// # Errors
///
/// The first thing that cannot be removed.
pub fn detach_locked(pins: &Pins, _lock: &Lock) -> Result<(), DetachError> {
    // Or tables that are being made larger would be left behind, or made again.
    let _turn = match Turn::take(pins) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(DetachError::File { path: pins.maps(), source: error });
        }
        turn => turn.ok(),
    };
    let mut outcome = Ok(());
    let mut note = |result: Result<(), DetachError>| {
        if outcome.is_ok() {
            outcome = result;
        }
    };
    // Packets and calls stop coming before anything that they need goes.
    note(attach::detach_clients(pins).map_err(Into::into));
    match pins.attached() {
        Ok(interfaces) => {
            for interface in interfaces {
                note(attach::detach(pins, &interface).map_err(Into::into));
            }
        }
        Err(source) => note(Err(DetachError::File { path: pins.links(), source })),
    }
    let restored = restore_sysctls(pins);
    let is_restored = restored.is_ok();
    note(restored);
    note(remove_maps(pins, is_restored));
    for dir in [pins.links(), pins.maps(), pins.dir().to_owned()] {
        note(remove_dir(&dir));
    }
    outcome
}

fn restore_sysctls(pins: &Pins) -> Result<(), DetachError> {
    if !pins.map(MapName::Sysctls).exists() {
        return Ok(());
    }
    let mut memory = maps::sysctls(pins)?;
    Ok(Sysctls::default().restore(&mut memory)?)
}

/// Removes every map's pin, of whatever version; the memory of kernel settings only once they
/// are put back.
fn remove_maps(pins: &Pins, with_sysctls: bool) -> Result<(), DetachError> {
    let dir = pins.maps();
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| DetachError::File { path, source }
    };
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(&dir)(error)),
    };
    for entry in entries {
        let path = entry.map_err(failed(&dir))?.path();
        if with_sysctls || path != pins.map(MapName::Sysctls) {
            fs::remove_file(&path).map_err(failed(&path))?;
        }
    }
    Ok(())
}

fn remove_dir(dir: &Path) -> Result<(), DetachError> {
    match fs::remove_dir(dir) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // The file system is mounted at this very directory.
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Ok(()),
        Err(source) => Err(DetachError::File { path: dir.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_to_detach_is_no_error() {
        let dir = tempfile::tempdir().expect("temporary directory");
        assert!(detach(&Pins::new(dir.path().join("absent"))).is_ok());
    }
}
