//! Programs for sockets, on a control group: clients on this machine.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use aya::programs::CgroupAttachMode;
use aya::programs::links::FdLink;
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use super::{AttachError, Attacher, describe, remove_link};
use crate::dataplane::loader::LoadError;
use crate::dataplane::pins::{ClientHook, Pins};
use crate::dataplane::syscall::{self, LinkInfo};

/// Which programs on this machine reach frontends as clients.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Clients {
    /// None: only packets that come in by an interface are redirected.
    Nobody,
    /// All.
    #[default]
    Everybody,
    /// Those in this control group, a directory.
    Within(PathBuf),
}

impl Attacher {
    /// Makes sure that our programs are on the control group at `dir`, and on no other. What is
    /// right already is left alone; a program of an earlier agent is replaced in one step.
    ///
    /// # Errors
    ///
    /// If `dir` is no control group, or the kernel refuses.
    pub fn attach_clients(&mut self, dir: &Path) -> Result<(), AttachError> {
        let cgroup = Cgroup::open(dir)?;
        ClientHook::ALL.into_iter().try_for_each(|hook| self.attach_client(&cgroup, hook))
    }

    fn attach_client(&mut self, cgroup: &Cgroup, hook: ClientHook) -> Result<(), AttachError> {
        let path = self.pins.client_link(hook);
        let failed =
            |reason| AttachError::Cgroup { dir: cgroup.dir.clone(), hook: hook.name(), reason };
        let program = self.programs.client(hook)?;
        if let Some((link, info)) = find_link(&path, cgroup)? {
            let id = program.info().map(|info| info.id()).map_err(|error| LoadError::Program {
                name: hook.program(),
                reason: describe(&error),
            })?;
            if info.program == id {
                return Ok(());
            }
            let fd = program.fd().map_err(|error| failed(describe(&error)))?;
            match syscall::update_link(link.as_fd(), fd.as_fd()) {
                Ok(()) => return Ok(()),
                Err(error) => {
                    tracing::warn!("the {} link takes no new program: {error}", hook.name());
                    remove_link(&path)?;
                }
            }
        }
        let link = program
            .attach(&cgroup.file, CgroupAttachMode::Single)
            .and_then(|id| program.take_link(id))
            .map_err(|error| failed(describe(&error)))?;
        let link = FdLink::try_from(link).map_err(|error| failed(error.to_string()))?;
        match link.pin(&path) {
            Ok(_) => Ok(()),
            Err(error) => Err(AttachError::Pin { path, source: io::Error::other(error) }),
        }
    }
}

/// Takes the programs for sockets off: first those that send clients elsewhere, last those that
/// tell them whom they asked for.
///
/// # Errors
///
/// If a pin cannot be removed.
pub fn detach_clients(pins: &Pins) -> Result<(), AttachError> {
    ClientHook::ALL.iter().rev().try_for_each(|hook| remove_link(&pins.client_link(*hook)))
}

/// Whether programs could be attached there.
///
/// # Errors
///
/// If it is no control group.
pub fn check_cgroup(dir: &Path) -> Result<(), AttachError> {
    Cgroup::open(dir).map(drop)
}

/// The control group of every process, as far as this one can see.
///
/// # Errors
///
/// If version 2 of control groups is not mounted.
pub fn find_root() -> Result<PathBuf, AttachError> {
    let path = Path::new("/proc/self/mountinfo");
    let mounts = fs::read_to_string(path)
        .map_err(|source| AttachError::Pin { path: path.to_owned(), source })?;
    topmost(&mounts).ok_or(AttachError::NoCgroups)
}

/// Where a control group hierarchy of version 2 is mounted, nearest to its root. In a container the
/// host's, mounted into it, begins above the container's own: at `/../..`.
fn topmost(mountinfo: &str) -> Option<PathBuf> {
    let mounts = mountinfo.lines().filter_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        if kind.split(' ').next() != Some("cgroup2") {
            return None;
        }
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        let above = root.split('/').filter(|part| *part == "..").count();
        let below = root.split('/').filter(|part| !part.is_empty() && *part != "..").count();
        Some((above, std::cmp::Reverse(below), unescape(point)))
    });
    let best =
        mounts.reduce(|best, next| if (next.0, next.1) > (best.0, best.1) { next } else { best });
    best.map(|(_, _, point)| PathBuf::from(point))
}

/// The kernel writes blanks and backslashes as three octal digits.
fn unescape(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (code, plain)| text.replace(code, plain))
}

/// An open control group.
struct Cgroup {
    dir: PathBuf,
    file: File,
    /// The kernel's number, which is the directory's inode number too.
    id: u64,
}

impl Cgroup {
    fn open(dir: &Path) -> Result<Self, AttachError> {
        let refused = |reason: String| AttachError::NotACgroup { dir: dir.to_owned(), reason };
        let kind = statfs(dir).map_err(|error| refused(io::Error::from(error).to_string()))?;
        if kind.filesystem_type() != CGROUP2_SUPER_MAGIC {
            return Err(refused("it is not on a cgroup2 file system".to_owned()));
        }
        let opened = File::open(dir).and_then(|file| file.metadata().map(|it| (file, it)));
        let (file, metadata) = opened.map_err(|error| refused(error.to_string()))?;
        if !metadata.is_dir() {
            return Err(refused("it is no directory".to_owned()));
        }
        Ok(Self { dir: dir.to_owned(), file, id: metadata.ino() })
    }
}

/// The link pinned at `path`, if it is on this control group; one that is not is removed.
fn find_link(
    path: &Path,
    cgroup: &Cgroup,
) -> Result<Option<(std::os::fd::OwnedFd, LinkInfo)>, AttachError> {
    let failed = |source| AttachError::Pin { path: path.to_owned(), source };
    let link = match syscall::open_pin(path) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let info = syscall::link_info(link.as_fd()).map_err(failed)?;
    if info.cgroup() == cgroup.id {
        return Ok(Some((link, info)));
    }
    drop(link);
    remove_link(path)?;
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_nearest_to_the_root_is_found() {
        let cases = [
            (
                "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw",
                "/sys/fs/cgroup/unified",
            ),
            (
                "30 23 0:26 /a /mnt/part rw - cgroup2 none rw\n\
                 31 23 0:26 / /sys/fs/cgroup rw shared:9 - cgroup2 cgroup2 rw",
                "/sys/fs/cgroup",
            ),
            (
                "30 23 0:26 / /sys/fs/cgroup ro - cgroup2 cgroup rw\n\
                 31 23 0:26 /../.. /host/my\\040cgroup rw - cgroup2 cgroup rw\n\
                 32 23 0:26 /.. /elsewhere rw - cgroup2 cgroup rw",
                "/host/my cgroup",
            ),
        ];
        for (mounts, expected) in cases {
            assert_eq!(topmost(mounts).as_deref(), Some(Path::new(expected)), "{mounts}");
        }
        assert_eq!(topmost("32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu"), None);
    }

    #[test]
    fn an_ordinary_directory_is_refused() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let error = Cgroup::open(dir.path()).err().expect("refused").to_string();
        assert!(error.contains("not on a cgroup2 file system"), "{error}");
        let error = Cgroup::open(&dir.path().join("absent")).err().expect("refused").to_string();
        assert!(error.contains("No such file"), "{error}");
    }
}
