//! Attaching the programs to interfaces, and taking them off.
//!
//! What is attached outlives the agent: links are pinned, filters hang on their qdisc. An agent
//! that starts again finds them and replaces their programs in one step.

mod cgroup;
mod clsact;
mod follow;
mod tcx;
mod xdp;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::{fs, io};

use aya::programs::ProgramError;
use aya::programs::tc::TcError;

use super::loader::{LoadError, Programs};
use super::netlink::{Host, Interface};
use super::pins::{Hook, Pins};
use super::prerequisites::{KernelVersion, TCX_KERNEL};
use super::status::{InterfaceStatus, TcState, XdpState};
use super::syscall::{self, LinkInfo};
use crate::config::XdpMode;

pub use cgroup::{Clients, check_cgroup, detach_clients, find_root};
pub(super) use clsact::replace as replace_filters;

/// Why programs could not be attached to an interface, or taken off.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// There is no such interface.
    #[error("interface {name} does not exist; there are: {}", .existing.join(", "))]
    NoInterface {
        /// The name.
        name: String,
        /// Those that exist.
        existing: Vec<String>,
    },
    /// Its frames are not Ethernet frames.
    #[error("interface {0} carries no Ethernet frames from other hosts: choose one that does")]
    NotEthernet(String),
    /// Someone else's XDP program is on it.
    #[error(
        "interface {interface} already has an XDP program ({name}, id {id}): remove it \
         (ip link set dev {interface} xdp off, or stop what attached it), or set xdpMode: off"
    )]
    Busy {
        /// The interface.
        interface: String,
        /// Id of the other program.
        id: u32,
        /// Its name.
        name: String,
    },
    /// The mode asked for cannot be had.
    #[error("interface {interface}: no XDP in {mode} mode ({reason}): set xdpMode: auto")]
    Mode {
        /// The interface.
        interface: String,
        /// The mode.
        mode: &'static str,
        /// What the kernel said.
        reason: String,
    },
    /// A TC program could not be attached.
    #[error("interface {interface}: cannot attach to TC {hook}: {reason}")]
    Tc {
        /// The interface.
        interface: String,
        /// The hook.
        hook: &'static str,
        /// What the kernel said.
        reason: String,
    },
    /// There is nowhere to attach programs for sockets to.
    #[error(
        "no cgroup2 file system is mounted: mount one (mount -t cgroup2 none /sys/fs/cgroup), name \
         a directory on it with --cgroup, or do without clients on this machine: --no-local-clients"
    )]
    NoCgroups,
    /// What was named is no control group.
    #[error(
        "{} is no control group: {reason}: name a directory on a cgroup2 file system with --cgroup",
        .dir.display()
    )]
    NotACgroup {
        /// What was named.
        dir: PathBuf,
        /// What it is.
        reason: String,
    },
    /// A program for sockets could not be attached.
    #[error("control group {}: cannot attach to {hook}: {reason}", .dir.display())]
    Cgroup {
        /// The control group.
        dir: PathBuf,
        /// The hook.
        hook: &'static str,
        /// What the kernel said.
        reason: String,
    },
    /// A pin could not be made, opened or removed.
    #[error("{}: {source}", .path.display())]
    Pin {
        /// The pin.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The object is not what it should be.
    #[error(transparent)]
    Load(#[from] LoadError),
}

/// What an interface got.
#[derive(Debug)]
pub struct Attached {
    /// How XDP runs.
    pub xdp: XdpState,
    /// Why not in a better way.
    pub xdp_reason: Option<String>,
    /// Why XDP is not as asked for. TC goes on alone.
    pub xdp_error: Option<AttachError>,
    /// How TC programs are attached.
    pub tc: TcState,
}

/// Egress first: what ingress has let in must not be answered from a backend's own port.
const TC_HOOKS: [Hook; 2] = [Hook::Egress, Hook::Ingress];

/// Attaches programs to interfaces.
pub struct Attacher {
    programs: Programs,
    pins: Pins,
    has_tcx: bool,
    /// Interfaces whose filters run this process's programs; a filter cannot be asked.
    filtered: BTreeSet<u32>,
    /// Interfaces that programs were attached to, by index.
    seen: BTreeMap<u32, Seen>,
}

/// An interface when programs were attached to it.
#[derive(Debug)]
struct Seen {
    name: String,
    /// Why its XDP is no better.
    xdp_reason: Option<String>,
}

impl Attacher {
    /// With these programs. `kernel` decides how TC programs are attached; `earlier` is what an
    /// earlier agent attached.
    #[must_use]
    pub fn new(
        programs: Programs,
        pins: Pins,
        kernel: KernelVersion,
        earlier: &[InterfaceStatus],
    ) -> Self {
        let seen = earlier.iter().filter(|interface| interface.ifindex != 0).map(|interface| {
            let InterfaceStatus { name, xdp_reason, .. } = interface.clone();
            (interface.ifindex, Seen { name, xdp_reason })
        });
        Self {
            programs,
            pins,
            has_tcx: kernel >= TCX_KERNEL,
            filtered: BTreeSet::new(),
            seen: seen.collect(),
        }
    }

    /// Makes sure that our programs are on the interface. What is right already is left alone;
    /// a program of an earlier agent is replaced in one step.
    ///
    /// # Errors
    ///
    /// If TC cannot be had, without which there is nothing.
    pub fn attach(
        &mut self,
        interface: &Interface,
        mode: XdpMode,
    ) -> Result<Attached, AttachError> {
        check(interface)?;
        // TC first: it is complete by itself, and XDP only accelerates it.
        let tc = self.attach_tc(interface)?;
        let attached = match self.attach_xdp(interface, mode) {
            Ok((xdp, xdp_reason)) => Attached { xdp, xdp_reason, xdp_error: None, tc },
            Err(error) => {
                Attached { xdp: XdpState::Off, xdp_reason: None, xdp_error: Some(error), tc }
            }
        };
        let seen = Seen { name: interface.name.clone(), xdp_reason: attached.xdp_reason.clone() };
        self.seen.insert(interface.index, seen);
        Ok(attached)
    }

    fn attach_tc(&mut self, interface: &Interface) -> Result<TcState, AttachError> {
        if !self.has_tcx {
            for hook in TC_HOOKS {
                self.attach_filter(interface, hook)?;
            }
            self.filtered.insert(interface.index);
            return Ok(TcState::Clsact);
        }
        for hook in TC_HOOKS {
            self.attach_tcx(interface, hook)?;
        }
        // Left from an agent on the same, older kernel call.
        clsact::remove(&self.pins, &interface.name)?;
        Ok(TcState::Tcx)
    }
}

/// Whether programs could work on the interface at all.
///
/// # Errors
///
/// If they could not.
pub fn check(interface: &Interface) -> Result<(), AttachError> {
    if interface.is_ethernet && !interface.is_loopback {
        return Ok(());
    }
    Err(AttachError::NotEthernet(interface.name.clone()))
}

/// The chosen interfaces by name.
///
/// # Errors
///
/// If one does not exist.
pub fn find_interfaces<'a>(
    host: &'a Host,
    names: &[String],
) -> Result<Vec<&'a Interface>, AttachError> {
    names.iter().map(|name| find_interface(host, name)).collect()
}

/// The interface of this name.
///
/// # Errors
///
/// If it does not exist.
pub fn find_interface<'a>(host: &'a Host, name: &str) -> Result<&'a Interface, AttachError> {
    host.find(name).ok_or_else(|| AttachError::NoInterface {
        name: name.to_owned(),
        existing: host.interfaces.iter().map(|interface| interface.name.clone()).collect(),
    })
}

/// Takes our programs off an interface, whether it still exists or not.
///
/// # Errors
///
/// If a pin or a filter cannot be removed.
pub fn detach(pins: &Pins, interface: &str) -> Result<(), AttachError> {
    for hook in Hook::ALL {
        remove_link(&pins.link(hook, interface))?;
    }
    clsact::remove(pins, interface)
}

/// The link pinned at `path`, if it is still on the interface; one that is not is removed.
fn find_link(path: &Path, interface: &Interface) -> Result<Option<LinkInfo>, AttachError> {
    let failed = |source| AttachError::Pin { path: path.to_owned(), source };
    let link = match syscall::open_pin(path) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let info = syscall::link_info(std::os::fd::AsFd::as_fd(&link)).map_err(failed)?;
    if info.ifindex == interface.index {
        return Ok(Some(info));
    }
    // The interface was removed and made again: the old link leads nowhere.
    drop(link);
    remove_link(path)?;
    Ok(None)
}

/// Takes the link pinned at `path` off its interface and removes the pin. Without its pin the link
/// would go too, but at some later time, and the interface would look taken until then.
fn remove_link(path: &Path) -> Result<(), AttachError> {
    if let Ok(link) = syscall::open_pin(path) {
        // Where the kernel can't, the link goes with its pin.
        let _ = syscall::detach_link(std::os::fd::AsFd::as_fd(&link));
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(AttachError::Pin { path: path.to_owned(), source: error })
        }
        _ => Ok(()),
    }
}

/// The operating system's words for an error of aya's.
fn describe(error: &ProgramError) -> String {
    let code = error_code(error);
    match code {
        Some(libc::EOPNOTSUPP) => "the driver does not support it".to_owned(),
        Some(libc::EEXIST) => "a device above it (VLAN, bond or bridge) has a program".to_owned(),
        Some(code) => io::Error::from_raw_os_error(code).to_string(),
        None => error.to_string(),
    }
}

fn error_code(error: &ProgramError) -> Option<i32> {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "aya's enum: the rest carries no code of the operating system"
    )]
    match error {
        ProgramError::SyscallError(error) => error.io_error.raw_os_error(),
        ProgramError::IOError(error) => error.raw_os_error(),
        ProgramError::NetlinkError(error) => error.raw_os_error(),
        ProgramError::XdpError(aya::programs::xdp::XdpError::NetlinkError(error)) => {
            error.raw_os_error()
        }
        ProgramError::TcError(TcError::NetlinkError(error)) => error.raw_os_error(),
        ProgramError::TcError(TcError::IoError(error)) => error.raw_os_error(),
        _ => None,
    }
}
