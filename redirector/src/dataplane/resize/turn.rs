//! One at a time: either tables are made larger, or an agent changes what is there.

use std::fs::File;
use std::io;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::super::lock::{find_holder, lock};
use super::super::pins::Pins;

/// The right to make tables larger, to give links other programs, and to write the node's settings;
/// ends when it is dropped, or with the process.
///
/// An agent that did this at the same time would give links the programs back that they had, which
/// use the old tables.
#[derive(Debug)]
pub struct Turn {
    _held: Flock<File>,
}

impl Turn {
    /// Waits for whoever has it, which is for seconds at most.
    ///
    /// # Errors
    ///
    /// If the directory of the maps cannot be opened or locked.
    pub fn take(pins: &Pins) -> io::Result<Self> {
        Ok(Self { _held: lock(&pins.maps(), FlockArg::LockExclusive)? })
    }

    /// Takes it if nobody has it.
    ///
    /// # Errors
    ///
    /// If the directory of the maps cannot be opened or locked.
    pub fn try_take(pins: &Pins) -> io::Result<Option<Self>> {
        match lock(&pins.maps(), FlockArg::LockExclusiveNonblock) {
            Ok(held) => Ok(Some(Self { _held: held })),
            Err(Errno::EWOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Who has it, where the kernel tells.
    #[must_use]
    pub fn holder(pins: &Pins) -> Option<u32> {
        find_holder(&pins.maps())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let pins = Pins::new(dir.path());
        assert!(Turn::try_take(&pins).is_err(), "there is no directory yet");
        std::fs::create_dir_all(pins.maps()).expect("a directory");
        let first = Turn::try_take(&pins).expect("a lock").expect("free");
        assert!(Turn::try_take(&pins).expect("a lock").is_none());
        assert_eq!(Turn::holder(&pins), Some(std::process::id()));
        drop(first);
        drop(Turn::take(&pins).expect("free again"));
    }
}
