//! Where things stand under the bpffs directory.
//!
//! ```text
//! <dir>/maps/FLOWS_v1         maps, by name and layout version
//! <dir>/maps/FLOWS_v1:new     a larger one that is to take its place; then `:next`
//! <dir>/links/xdp-eth0        links: what is attached, by hook and interface
//! <dir>/links/ingress-eth0
//! <dir>/links/egress-eth0
//! <dir>/links/connect4        and seven more, on a control group: for clients on this machine
//! <dir>/links/clsact-eth0     directory: before kernel 6.6 TC programs are no links but filters
//! <dir>/links/clsact-eth0/made  directory: the qdisc that they hang on is ours too
//! ```
//!
//! The BPF file system allows no dots in names; a dot in an interface's name becomes a colon,
//! which no interface's name has.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::{fs, io};

use redirector_common::map_name::MapName;

/// Where the pins stand unless `--bpffs` says otherwise.
pub const DEFAULT_DIR: &str = "/sys/fs/bpf/redirector";

/// Paths under one bpffs directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pins {
    dir: PathBuf,
}

impl Pins {
    /// The layout under `dir`.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// The directory itself.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Directory of the maps.
    #[must_use]
    pub fn maps(&self) -> PathBuf {
        self.dir.join("maps")
    }

    /// Directory of the links.
    #[must_use]
    pub fn links(&self) -> PathBuf {
        self.dir.join("links")
    }

    /// A map's pin.
    #[must_use]
    pub fn map(&self, name: MapName) -> PathBuf {
        self.maps().join(Self::map_file(name))
    }

    /// The pin of a map that is to take another one's place.
    #[must_use]
    pub fn staged(&self, name: MapName, stage: Stage) -> PathBuf {
        let word = match stage {
            Stage::New => "new",
            Stage::Next => "next",
        };
        self.maps().join(format!("{}:{word}", Self::map_file(name)))
    }

    /// Name of a map's pin.
    #[must_use]
    pub fn map_file(name: MapName) -> String {
        format!("{}_v{}", name.name(), name.layout())
    }

    /// A link's pin.
    #[must_use]
    pub fn link(&self, hook: Hook, interface: &str) -> PathBuf {
        self.links().join(link_file(hook.name(), interface))
    }

    /// The pin of a link on a control group.
    #[must_use]
    pub fn client_link(&self, hook: ClientHook) -> PathBuf {
        self.links().join(hook.name())
    }

    /// Stands for filters on an interface, which cannot be pinned.
    #[must_use]
    pub fn clsact(&self, interface: &str) -> PathBuf {
        self.links().join(link_file("clsact", interface))
    }

    /// Interfaces that have a pin.
    ///
    /// # Errors
    ///
    /// If the directory cannot be read; there being none is no error.
    pub fn attached(&self) -> io::Result<BTreeSet<String>> {
        let entries = match fs::read_dir(self.links()) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
            Err(error) => return Err(error),
        };
        let mut interfaces = BTreeSet::new();
        for entry in entries {
            let name = entry?.file_name();
            if let Some((_, interface)) = name.to_str().and_then(|name| name.split_once('-')) {
                interfaces.insert(interface.replace(':', "."));
            }
        }
        Ok(interfaces)
    }
}

/// How far a larger map is that takes another one's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It is being filled; no program that is attached uses it.
    New,
    /// Programs are going over to it.
    Next,
}

fn link_file(hook: &str, interface: &str) -> String {
    format!("{hook}-{}", interface.replace('.', ":"))
}

/// Where a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Hook {
    /// XDP, in the driver or in the kernel's generic form.
    Xdp,
    /// TC ingress.
    Ingress,
    /// TC egress.
    Egress,
}

impl Hook {
    /// All hooks.
    pub const ALL: [Self; 3] = [Self::Xdp, Self::Ingress, Self::Egress];

    /// The word in pins and listings.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Xdp => "xdp",
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

/// Where a program for sockets is attached, in a control group. Its name has no `-`, which tells
/// its pin from those of interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ClientHook {
    /// What a socket tells of its peer's address, IPv4.
    GetPeerName4,
    /// The same, IPv6.
    GetPeerName6,
    /// Whom a datagram came from, IPv4.
    RecvMsg4,
    /// The same, IPv6.
    RecvMsg6,
    /// A datagram without a connection, IPv4.
    SendMsg4,
    /// The same, IPv6.
    SendMsg6,
    /// A connection, IPv4.
    Connect4,
    /// The same, IPv6.
    Connect6,
}

impl ClientHook {
    /// All hooks, in the order of attaching: what is to be told back is, before anyone is sent
    /// elsewhere.
    pub const ALL: [Self; 8] = [
        Self::GetPeerName4,
        Self::GetPeerName6,
        Self::RecvMsg4,
        Self::RecvMsg6,
        Self::SendMsg4,
        Self::SendMsg6,
        Self::Connect4,
        Self::Connect6,
    ];

    /// The word in pins and listings: the kernel's.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::GetPeerName4 => "getpeername4",
            Self::GetPeerName6 => "getpeername6",
            Self::RecvMsg4 => "recvmsg4",
            Self::RecvMsg6 => "recvmsg6",
            Self::SendMsg4 => "sendmsg4",
            Self::SendMsg6 => "sendmsg6",
            Self::Connect4 => "connect4",
            Self::Connect6 => "connect6",
        }
    }

    /// Name of the program in the object file.
    #[must_use]
    pub const fn program(self) -> &'static str {
        match self {
            Self::GetPeerName4 => "rd_getpeername4",
            Self::GetPeerName6 => "rd_getpeername6",
            Self::RecvMsg4 => "rd_recvmsg4",
            Self::RecvMsg6 => "rd_recvmsg6",
            Self::SendMsg4 => "rd_sendmsg4",
            Self::SendMsg6 => "rd_sendmsg6",
            Self::Connect4 => "rd_connect4",
            Self::Connect6 => "rd_connect6",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attached_interfaces_are_read_back_from_the_pins() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let pins = Pins::new(dir.path());
        assert_eq!(pins.attached().expect("none"), BTreeSet::new());
        for interface in ["eth0", "eth0.100", "a-b"] {
            for path in [pins.link(Hook::Xdp, interface), pins.clsact(interface)] {
                assert!(!path.file_name().is_some_and(|name| name.to_string_lossy().contains('.')));
                fs::create_dir_all(path).expect("made");
            }
        }
        let expected = ["a-b", "eth0", "eth0.100"].map(str::to_owned);
        assert_eq!(pins.attached().expect("read"), BTreeSet::from(expected));
    }
}
