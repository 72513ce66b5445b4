//! What must be so before anything is loaded: privileges, kernel, BPF file system.

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::statfs::statfs;

use super::pins::{DEFAULT_DIR, Pins};

/// The oldest kernel that the programs are made for.
pub const OLDEST_KERNEL: KernelVersion = KernelVersion { major: 6, minor: 1 };
/// The first kernel with links to TC hooks (tcx), commit e420bed02507.
pub const TCX_KERNEL: KernelVersion = KernelVersion { major: 6, minor: 6 };

/// Where the BPF file system is by convention.
const BPFFS: &str = "/sys/fs/bpf";
const BPFFS_MAGIC: i64 = 0xcafe_4a11;

const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

/// Why the data path cannot be had here.
#[derive(Debug, thiserror::Error)]
pub enum PrerequisiteError {
    /// Capabilities are missing.
    #[error("missing privileges ({}): run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON", .0.join(", "))]
    Privileges(Vec<&'static str>),
    /// The kernel is older than the programs need.
    #[error("kernel {0} is too old: {OLDEST_KERNEL} or newer is needed")]
    KernelTooOld(KernelVersion),
    /// The kernel's version is not two numbers.
    #[error("cannot tell the kernel's version from {0:?}")]
    KernelUnknown(String),
    /// The BPF file system is not mounted where it usually is.
    #[error("no BPF file system is mounted at {BPFFS}: mount -t bpf bpf {BPFFS}")]
    NotMounted,
    /// A directory of the user's choice is elsewhere.
    #[error(
        "{0} is not on a BPF file system: choose a directory under {BPFFS}, or mount one there \
         (mount -t bpf bpf DIR)"
    )]
    NotBpffs(PathBuf),
    /// The file system refuses.
    #[error("{path}: {source}")]
    File {
        /// What was touched.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// First two numbers of a kernel's version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KernelVersion {
    /// 6 of 6.1.
    pub major: u32,
    /// 1 of 6.1.
    pub minor: u32,
}

impl KernelVersion {
    /// The running kernel's.
    ///
    /// # Errors
    ///
    /// If it is not to be told.
    pub fn running() -> Result<Self, PrerequisiteError> {
        let path = PathBuf::from("/proc/sys/kernel/osrelease");
        let release =
            fs::read_to_string(&path).map_err(|source| PrerequisiteError::File { path, source })?;
        Self::parse(&release)
            .ok_or_else(|| PrerequisiteError::KernelUnknown(release.trim().to_owned()))
    }

    /// From `6.12.3-amd64`.
    #[must_use]
    pub fn parse(release: &str) -> Option<Self> {
        let mut numbers = release.split(|c: char| !c.is_ascii_digit());
        Some(Self { major: numbers.next()?.parse().ok()?, minor: numbers.next()?.parse().ok()? })
    }
}

impl std::fmt::Display for KernelVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Checks privileges, kernel and file system, in this order, and returns the kernel's version.
///
/// # Errors
///
/// The first thing that is missing.
pub fn check(pins: &Pins) -> Result<KernelVersion, PrerequisiteError> {
    check_own_privileges()?;
    let kernel = check_kernel(KernelVersion::running()?)?;
    check_bpffs(pins)?;
    Ok(kernel)
}

/// Checks the capabilities of this process.
///
/// # Errors
///
/// If some are missing.
pub fn check_own_privileges() -> Result<(), PrerequisiteError> {
    check_privileges(effective_capabilities()?)
}

/// Checks the capabilities of a set as `/proc/self/status` shows it.
///
/// # Errors
///
/// If some are missing.
pub fn check_privileges(capabilities: u64) -> Result<(), PrerequisiteError> {
    let has = |capability: u32| capabilities & (1 << capability) != 0;
    let mut missing = Vec::new();
    if !has(CAP_NET_ADMIN) {
        missing.push("CAP_NET_ADMIN");
    }
    // CAP_SYS_ADMIN contains the other two (Linux 5.8).
    if !has(CAP_BPF) && !has(CAP_SYS_ADMIN) {
        missing.push("CAP_BPF");
    }
    if !has(CAP_PERFMON) && !has(CAP_SYS_ADMIN) {
        missing.push("CAP_PERFMON");
    }
    if missing.is_empty() {
        return Ok(());
    }
    Err(PrerequisiteError::Privileges(missing))
}

/// Checks that a kernel is new enough.
///
/// # Errors
///
/// If it is not.
pub fn check_kernel(kernel: KernelVersion) -> Result<KernelVersion, PrerequisiteError> {
    if kernel < OLDEST_KERNEL {
        return Err(PrerequisiteError::KernelTooOld(kernel));
    }
    Ok(kernel)
}

/// Checks that the directory is, or would be, on a BPF file system.
///
/// # Errors
///
/// If it would not.
pub fn check_bpffs(pins: &Pins) -> Result<(), PrerequisiteError> {
    let dir = pins.dir();
    let existing = nearest_existing(dir);
    let found = statfs(existing).map_err(|error| PrerequisiteError::File {
        path: existing.to_owned(),
        source: error.into(),
    })?;
    if found.filesystem_type().0 == BPFFS_MAGIC {
        return Ok(());
    }
    if dir.starts_with(BPFFS) || dir == Path::new(DEFAULT_DIR) {
        return Err(PrerequisiteError::NotMounted);
    }
    Err(PrerequisiteError::NotBpffs(dir.to_owned()))
}

/// Makes the directories for pins.
///
/// # Errors
///
/// If the file system refuses.
pub fn make_dirs(pins: &Pins) -> Result<(), PrerequisiteError> {
    for path in [pins.maps(), pins.links()] {
        fs::create_dir_all(&path).map_err(|source| PrerequisiteError::File { path, source })?;
    }
    Ok(())
}

fn nearest_existing(dir: &Path) -> &Path {
    dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"))
}

fn effective_capabilities() -> Result<u64, PrerequisiteError> {
    let path = PathBuf::from("/proc/self/status");
    let status =
        fs::read_to_string(&path).map_err(|source| PrerequisiteError::File { path, source })?;
    Ok(status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(major: u32, minor: u32) -> KernelVersion {
        KernelVersion { major, minor }
    }

    #[test]
    fn versions_are_read_from_release_names() {
        assert_eq!(KernelVersion::parse("6.1.0-40-amd64\n"), Some(version(6, 1)));
        assert_eq!(KernelVersion::parse("6.12-rc3"), Some(version(6, 12)));
        assert_eq!(KernelVersion::parse("linux"), None);
    }

    #[test]
    fn an_old_kernel_is_refused_by_name() {
        let error = check_kernel(version(5, 15)).expect_err("too old");
        assert_eq!(error.to_string(), "kernel 5.15 is too old: 6.1 or newer is needed");
        assert!(check_kernel(version(6, 1)).is_ok());
        assert!(check_kernel(version(10, 0)).is_ok());
    }

    #[test]
    fn missing_privileges_are_named() {
        let error = check_privileges(1 << CAP_BPF).expect_err("missing");
        assert_eq!(
            error.to_string(),
            "missing privileges (CAP_NET_ADMIN, CAP_PERFMON): run as root, or with CAP_BPF, \
             CAP_NET_ADMIN and CAP_PERFMON"
        );
        assert!(check_privileges(1 << CAP_NET_ADMIN | 1 << CAP_SYS_ADMIN).is_ok());
    }

    #[test]
    fn another_file_system_is_refused() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let pins = Pins::new(dir.path().join("deeper/still"));
        let error = check_bpffs(&pins).expect_err("not a bpffs");
        assert!(error.to_string().contains("is not on a BPF file system"), "{error}");
    }
}
