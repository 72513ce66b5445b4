//! Kernel settings that the data path needs. What stood there before is kept in `SYSCTLS`, so
//! that `detach` can put it back with no agent left to ask.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use redirector_common::node::{SysctlKey, SysctlValue};

use super::table::{Table, TableError};

const RESERVED_PORTS: &str = "net/ipv4/ip_local_reserved_ports";
/// Route look-ups of the programs start from the loopback device and are look-ups of a router.
/// With the switch on for this device alone they work on hosts that forward nothing.
const LOOPBACK_FORWARDING: [&str; 2] =
    ["net/ipv4/conf/lo/forwarding", "net/ipv6/conf/lo/forwarding"];

/// A setting could not be read, written or remembered.
#[derive(Debug, thiserror::Error)]
pub enum SysctlError {
    /// `/proc/sys` refuses.
    #[error("{}: {source}", .path.display())]
    File {
        /// The setting.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A list of ports is not one.
    #[error("{}: not a list of ports: {text:?}", .path.display())]
    NotPorts {
        /// The setting.
        path: PathBuf,
        /// What stood there.
        text: String,
    },
    /// The map that remembers refuses.
    #[error(transparent)]
    Table(#[from] TableError),
    /// A value is too long to be remembered.
    #[error("{}: the value is longer than redirector can remember ({len} bytes)", .path.display())]
    TooLong {
        /// The setting.
        path: PathBuf,
        /// Its length.
        len: usize,
    },
}

/// Names the directory of the settings where it is not `/proc/sys`: a container that is not
/// privileged has that read-only, and can be given the host's elsewhere.
pub const ROOT_VARIABLE: &str = "REDIRECTOR_PROC_SYS";

/// The settings under one root.
#[derive(Clone, Debug)]
pub struct Sysctls {
    root: PathBuf,
}

impl Default for Sysctls {
    fn default() -> Self {
        Self { root: env::var_os(ROOT_VARIABLE).unwrap_or_else(|| "/proc/sys".into()).into() }
    }
}

impl Sysctls {
    /// The settings as files under `root`.
    #[must_use]
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Reserves the ports of `block` and turns the loopback device's forwarding switch on. What
    /// is already so is left alone; what is changed is remembered first.
    ///
    /// # Errors
    ///
    /// If a setting cannot be changed. IPv6 switched off is no error.
    pub fn apply(
        &self,
        memory: &mut impl Table<SysctlKey, SysctlValue>,
        block: RangeInclusive<u16>,
    ) -> Result<(), SysctlError> {
        self.reserve(memory, block)?;
        for name in LOOPBACK_FORWARDING {
            self.switch_on(memory, name)?;
        }
        Ok(())
    }

    /// Puts everything back that is remembered.
    ///
    /// # Errors
    ///
    /// The first setting that cannot be put back; those after it have been all the same.
    pub fn restore(
        &self,
        memory: &mut impl Table<SysctlKey, SysctlValue>,
    ) -> Result<(), SysctlError> {
        let mut outcome = Ok(());
        for (key, value) in memory.entries()? {
            let done = match key.as_str() {
                RESERVED_PORTS => self.release(value.as_str()),
                name => self.write(name, value.as_str()),
            };
            let done = match done {
                // The setting has gone with its interface or protocol: nothing is left of us.
                Err(SysctlError::File { source, .. })
                    if source.kind() == io::ErrorKind::NotFound =>
                {
                    Ok(())
                }
                done => done,
            };
            match done {
                Ok(()) => memory.remove(&key)?,
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        outcome
    }

    /// Adds `block` to the reserved ports. What is remembered is not what stood there but the
    /// ports that we added: others may add theirs after us.
    fn reserve(
        &self,
        memory: &mut impl Table<SysctlKey, SysctlValue>,
        block: RangeInclusive<u16>,
    ) -> Result<(), SysctlError> {
        let key = self.key(RESERVED_PORTS)?;
        let ours = match memory.entries()?.get(&key) {
            Some(value) => self.parse(value.as_str())?,
            None => Ports::default(),
        };
        let block = Ports::from_range(block);
        let present = self.parse(&self.read(RESERVED_PORTS)?)?;
        let foreign = present.without(&ours);
        let added = block.without(&foreign);
        let wanted = foreign.union(&added);
        if added != ours {
            // Both, until the setting is written: a crash between must not leak a port.
            let text = added.union(&ours).to_string();
            memory.set(&key, &self.value(RESERVED_PORTS, &text)?)?;
        }
        if wanted != present {
            self.write(RESERVED_PORTS, &wanted.to_string())?;
        }
        if added != ours {
            memory.set(&key, &self.value(RESERVED_PORTS, &added.to_string())?)?;
        }
        Ok(())
    }

    fn release(&self, ours: &str) -> Result<(), SysctlError> {
        let ours = self.parse(ours)?;
        let present = self.parse(&self.read(RESERVED_PORTS)?)?;
        let wanted = present.without(&ours);
        if wanted == present {
            return Ok(());
        }
        self.write(RESERVED_PORTS, &wanted.to_string())
    }

    fn switch_on(
        &self,
        memory: &mut impl Table<SysctlKey, SysctlValue>,
        name: &str,
    ) -> Result<(), SysctlError> {
        let before = match self.read(name) {
            Ok(before) => before,
            // The kernel has no IPv6.
            Err(SysctlError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        if before == "1" {
            return Ok(());
        }
        let key = self.key(name)?;
        if !memory.entries()?.contains_key(&key) {
            memory.set(&key, &self.value(name, &before)?)?;
        }
        self.write(name, "1")
    }

    fn read(&self, name: &str) -> Result<String, SysctlError> {
        let path = self.root.join(name);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(text.trim().to_owned()),
            Err(source) => Err(SysctlError::File { path, source }),
        }
    }

    fn write(&self, name: &str, text: &str) -> Result<(), SysctlError> {
        let path = self.root.join(name);
        // An empty write changes nothing; an empty line empties a list.
        fs::write(&path, format!("{text}\n")).map_err(|source| SysctlError::File { path, source })
    }

    fn parse(&self, text: &str) -> Result<Ports, SysctlError> {
        Ports::parse(text).ok_or_else(|| SysctlError::NotPorts {
            path: self.root.join(RESERVED_PORTS),
            text: text.to_owned(),
        })
    }

    fn key(&self, name: &str) -> Result<SysctlKey, SysctlError> {
        SysctlKey::new(name).ok_or_else(|| too_long(&self.root, name, name))
    }

    fn value(&self, name: &str, text: &str) -> Result<SysctlValue, SysctlError> {
        SysctlValue::new(text).ok_or_else(|| too_long(&self.root, name, text))
    }
}

fn too_long(root: &Path, name: &str, text: &str) -> SysctlError {
    SysctlError::TooLong { path: root.join(name), len: text.len() }
}

/// A set of ports as the kernel writes it: `22,80-90`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Ports {
    /// First to last; neither overlapping nor touching.
    ranges: BTreeMap<u16, u16>,
}

impl Ports {
    fn from_range(range: RangeInclusive<u16>) -> Self {
        range.collect()
    }

    fn parse(text: &str) -> Option<Self> {
        let mut ports = Vec::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            ports.push(first.trim().parse::<u16>().ok()?..=last.trim().parse::<u16>().ok()?);
        }
        Some(ports.into_iter().flatten().collect())
    }

    fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        self.ranges.iter().flat_map(|(first, last)| *first..=*last)
    }

    fn contains(&self, port: u16) -> bool {
        self.ranges.range(..=port).next_back().is_some_and(|(_, last)| port <= *last)
    }

    fn union(&self, other: &Self) -> Self {
        self.iter().chain(other.iter()).collect()
    }

    fn without(&self, other: &Self) -> Self {
        self.iter().filter(|port| !other.contains(*port)).collect()
    }
}

impl FromIterator<u16> for Ports {
    fn from_iter<I: IntoIterator<Item = u16>>(ports: I) -> Self {
        let sorted: std::collections::BTreeSet<u16> = ports.into_iter().collect();
        let mut ranges = BTreeMap::new();
        let mut open: Option<(u16, u16)> = None;
        for port in sorted {
            open = match open {
                Some((first, last)) if last.checked_add(1) == Some(port) => Some((first, port)),
                Some((first, last)) => {
                    ranges.insert(first, last);
                    Some((port, port))
                }
                None => Some((port, port)),
            };
        }
        ranges.extend(open);
        Self { ranges }
    }
}

impl std::fmt::Display for Ports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, (first, last)) in self.ranges.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            if first == last {
                write!(f, "{comma}{first}")?;
            } else {
                write!(f, "{comma}{first}-{last}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Memory = BTreeMap<SysctlKey, SysctlValue>;

    struct Host {
        dir: tempfile::TempDir,
        sysctls: Sysctls,
        memory: Memory,
    }

    impl Host {
        fn new(reserved: &str) -> Self {
            let dir = tempfile::tempdir().expect("temporary directory");
            for name in LOOPBACK_FORWARDING.iter().chain([&RESERVED_PORTS]) {
                let path = dir.path().join(name);
                fs::create_dir_all(path.parent().expect("has one")).expect("made");
                fs::write(path, "0\n").expect("written");
            }
            let host = Self { sysctls: Sysctls::at(dir.path()), dir, memory: Memory::new() };
            host.set(RESERVED_PORTS, reserved);
            host
        }

        fn set(&self, name: &str, text: &str) {
            fs::write(self.dir.path().join(name), text).expect("written");
        }

        fn get(&self, name: &str) -> String {
            self.sysctls.read(name).expect("read")
        }

        fn apply(&mut self, block: RangeInclusive<u16>) {
            self.sysctls.apply(&mut self.memory, block).expect("applied");
        }

        fn restore(&mut self) {
            self.sysctls.restore(&mut self.memory).expect("restored");
            assert!(self.memory.is_empty());
        }
    }

    #[test]
    fn what_was_there_comes_back() {
        let mut host = Host::new("22,60000-60010\n");
        host.apply(49152..=57343);
        assert_eq!(host.get(RESERVED_PORTS), "22,49152-57343,60000-60010");
        assert_eq!(host.get(LOOPBACK_FORWARDING[0]), "1");
        host.restore();
        assert_eq!(host.get(RESERVED_PORTS), "22,60000-60010");
        assert_eq!(host.get(LOOPBACK_FORWARDING[1]), "0");
    }

    #[test]
    fn ports_that_others_reserved_stay_reserved() {
        let mut host = Host::new("50000-50005");
        host.apply(50000..=50009);
        host.apply(50000..=50009);
        assert_eq!(host.get(RESERVED_PORTS), "50000-50009");
        host.set(RESERVED_PORTS, "80,50000-50009");
        host.restore();
        assert_eq!(host.get(RESERVED_PORTS), "80,50000-50005");
    }

    #[test]
    fn a_changed_block_replaces_the_old_one() {
        let mut host = Host::new("");
        host.apply(50000..=50009);
        host.apply(51000..=51009);
        assert_eq!(host.get(RESERVED_PORTS), "51000-51009");
        host.restore();
        assert_eq!(host.get(RESERVED_PORTS), "");
    }

    #[test]
    fn a_switch_that_was_on_is_not_ours() {
        let mut host = Host::new("");
        host.set(LOOPBACK_FORWARDING[0], "1\n");
        host.apply(50000..=50009);
        host.restore();
        assert_eq!(host.get(LOOPBACK_FORWARDING[0]), "1");
        assert_eq!(host.get(LOOPBACK_FORWARDING[1]), "0");
    }

    #[test]
    fn lists_are_read_and_written_as_the_kernel_does() {
        for text in ["", "1", "1-2", "1,3-5,65535", "0-65535"] {
            assert_eq!(Ports::parse(text).expect("ports").to_string(), text);
        }
        assert_eq!(Ports::parse("3,1-2").expect("ports").to_string(), "1-3");
        assert_eq!(Ports::parse("a"), None);
    }
}
