//! One agent for each bpffs directory.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd as _, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, Flock, FlockArg, fcntl};
use nix::sys::stat::{SFlag, fstat};

use super::pins::Pins;

/// Names the descriptor that a process which begins anew leaves to itself.
const VARIABLE: &str = "REDIRECTOR_LOCK";

/// Holds the directory until it is dropped or the process ends.
#[derive(Debug)]
pub struct Lock {
    held: Flock<File>,
}

/// Why the directory cannot be held.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another agent has it.
    #[error("another redirector ({}) already runs on {}", holder(.pid), .dir.display())]
    Held {
        /// The directory.
        dir: PathBuf,
        /// Who has it, where the kernel tells.
        pid: Option<u32>,
    },
    /// The file system refuses.
    #[error("{}: {source}", .dir.display())]
    File {
        /// The directory.
        dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

fn holder(pid: &Option<u32>) -> String {
    pid.map_or_else(|| "pid unknown".to_owned(), |pid| format!("pid {pid}"))
}

impl Lock {
    /// Takes the directory, which must exist, without waiting.
    ///
    /// # Errors
    ///
    /// If another process has it, with its pid.
    pub fn take(pins: &Pins) -> Result<Self, LockError> {
        let dir = pins.dir();
        let file = |source| LockError::File { dir: dir.to_owned(), source };
        match lock(dir, FlockArg::LockExclusiveNonblock) {
            Ok(held) => Ok(Self { held }),
            Err(Errno::EWOULDBLOCK) => {
                Err(LockError::Held { dir: dir.to_owned(), pid: find_holder(dir) })
            }
            Err(error) => Err(file(error.into())),
        }
    }

    /// What this process had before it began anew.
    #[must_use]
    pub fn inherited() -> Option<Self> {
        let number: RawFd = std::env::var(VARIABLE).ok()?.parse().ok()?;
        let is_ours = number > 2 && {
            // SAFETY: borrowed for this question alone, which fails where it is none.
            let unknown = unsafe { BorrowedFd::borrow_raw(number) };
            fstat(unknown).is_ok_and(|it| {
                SFlag::from_bits_truncate(it.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR
            })
        };
        if !is_ours {
            return None;
        }
        // SAFETY: an open directory that whoever began anew left to this process, and nobody else.
        let file = unsafe { File::from_raw_fd(number) };
        fcntl(&file, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).ok()?;
        let held = Flock::lock(file, FlockArg::LockExclusiveNonblock).ok()?;
        Some(Self { held })
    }

    /// Whether it is that of these pins.
    #[must_use]
    pub fn is_of(&self, pins: &Pins) -> bool {
        is_at(&self.held, pins.dir())
    }

    /// Leaves the directory to what this process is about to become.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn bequeath(&self, command: &mut Command) -> io::Result<()> {
        fcntl(self.held.as_fd(), FcntlArg::F_SETFD(FdFlag::empty()))?;
        command.env(VARIABLE, self.held.as_raw_fd().to_string());
        Ok(())
    }
}

/// Locks what stands at `path` when it is locked: whoever had it before may have removed it, and
/// another may have been made since.
pub(super) fn lock(path: &Path, how: FlockArg) -> Result<Flock<File>, Errno> {
    loop {
        let opened = File::open(path)
            .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))?;
        let held = Flock::lock(opened, how).map_err(|(_, error)| error)?;
        if is_at(&held, path) {
            return Ok(held);
        }
    }
}

fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(ours), Ok(there)) => (ours.dev(), ours.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

/// The process that holds a lock on `dir`, if one does.
#[must_use]
pub fn find_holder(dir: &Path) -> Option<u32> {
    let meta = fs::metadata(dir).ok()?;
    let locks = fs::read_to_string("/proc/locks").ok()?;
    parse_locks(&locks, meta.dev(), meta.ino())
}

/// Finds a holder in the text of `/proc/locks`:
/// `1: FLOCK  ADVISORY  WRITE 2011 00:1f:4 0 EOF`, where the device is major:minor in
/// hexadecimal and the inode decimal.
fn parse_locks(locks: &str, device: u64, inode: u64) -> Option<u32> {
    let file = format!(
        "{:02x}:{:02x}:{inode}",
        nix::sys::stat::major(device),
        nix::sys::stat::minor(device)
    );
    locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let flock = words.iter().position(|word| *word == "FLOCK")?;
        // Waiting requests have an arrow before the word.
        if words.contains(&"->") || *words.get(flock + 4)? != file {
            return None;
        }
        words.get(flock + 3)?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_who_was_first() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let pins = Pins::new(dir.path());
        let first = Lock::take(&pins).expect("free");
        let error = Lock::take(&pins).expect_err("held");
        let expected = format!(
            "another redirector (pid {}) already runs on {}",
            std::process::id(),
            dir.path().display()
        );
        assert_eq!(error.to_string(), expected);
        drop(first);
        assert!(Lock::take(&pins).is_ok());
    }

    #[test]
    fn waiting_processes_are_not_holders() {
        let device = nix::sys::stat::makedev(0, 0x1f);
        let locks = "1: POSIX  ADVISORY  WRITE 7 00:1f:4 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 8 00:1f:5 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 10 00:1f:4 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 9 00:1f:4 0 EOF\n";
        assert_eq!(parse_locks(locks, device, 4), Some(9));
        assert_eq!(parse_locks(locks, device, 6), None);
    }
}
