//! Why pinned maps cannot be read.

use std::io;
use std::path::PathBuf;

use aya::maps::MapError;
use redirector_common::map_name::MapName;

use crate::causes::chain;

/// Why the maps could not be read.
#[derive(Debug, thiserror::Error)]
pub enum PinnedError {
    /// There are no pins.
    #[error(
        "nothing is installed under {}: start the agent with 'redirector run' \
         (or name the directory with --bpffs)", dir.display()
    )]
    Missing {
        /// The directory looked under.
        dir: PathBuf,
    },
    /// The kernel refuses.
    #[error("no permission to read {}: run as root", path.display())]
    Denied {
        /// What was to be opened.
        path: PathBuf,
    },
    /// The pins of another version stand there.
    #[error(
        "{} has no {file}: another version of redirector installed what is there: \
         use that version, or start this version's agent with 'redirector run'", dir.display()
    )]
    Version {
        /// The directory looked under.
        dir: PathBuf,
        /// The pin that is missing.
        file: String,
    },
    /// A map is not what its name says.
    #[error(
        "cannot read map {name}: {what}: if another program pinned it, \
         name redirector's own directory with --bpffs"
    )]
    Unreadable {
        /// The map.
        name: &'static str,
        /// What the kernel said.
        what: String,
    },
}

pub(super) fn unreadable(name: MapName, what: String) -> PinnedError {
    PinnedError::Unreadable { name: name.name(), what }
}

/// What the kernel, or aya, has against it.
pub(super) fn refused(name: MapName, error: &MapError) -> PinnedError {
    unreadable(name, chain(error))
}

pub(super) fn is_gone(error: &MapError) -> bool {
    matches!(error, MapError::KeyNotFound) || os_error(error) == Some(libc::ENOENT)
}

/// The error number of the system call that failed, wherever in the chain it stands.
pub(super) fn os_error(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return error.raw_os_error();
        }
        next = error.source();
    }
    None
}
