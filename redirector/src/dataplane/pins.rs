//! Where things stand under the bpffs directory.
//!
//! ```text
//! <dir>/maps/FLOWS.v1         maps, by name and layout version
//! <dir>/links/xdp.eth0        links: what is attached, by hook and interface
//! <dir>/links/ingress.eth0
//! <dir>/links/egress.eth0
//! ```

use std::path::{Path, PathBuf};

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
        self.maps().join(format!("{}.v{}", name.name(), name.layout()))
    }

    /// A link's pin.
    #[must_use]
    pub fn link(&self, hook: Hook, interface: &str) -> PathBuf {
        self.links().join(format!("{}.{interface}", hook.name()))
    }
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
