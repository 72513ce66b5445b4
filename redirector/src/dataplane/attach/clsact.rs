//! TC programs as filters of a clsact qdisc, for kernels without tcx.
//!
//! A filter cannot be pinned: it stays with its qdisc until someone removes it. A directory among
//! the pins stands for ours, so that they are found again.

use std::path::Path;
use std::{fs, io};

use aya::programs::tc::{
    NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle, qdisc_add_clsact,
};
use rtnetlink::sys::Socket;
use rtnetlink::sys::protocols::NETLINK_ROUTE;

use super::tcx::attach_type;
use super::{AttachError, Attacher, TC_HOOKS, describe, error_code};
use crate::dataplane::loader::{Programs, Role};
use crate::dataplane::netlink::Interface;
use crate::dataplane::netlink_raw::{self, ACK, DUMP, Question, REQUEST};
use crate::dataplane::pins::{Hook, Pins};

/// Early in the row, and unlikely to be anyone else's.
const PRIORITY: u16 = 0x7264;
const HANDLE: TcHandle = TcHandle::new(0, 0x7264);

// Numbers of <linux/pkt_sched.h>.
const CLSACT_HANDLE: u32 = 0xffff_0000;
const CLSACT: u32 = 0xffff_fff1;
const INGRESS: u32 = 0xffff_fff2;
const EGRESS: u32 = 0xffff_fff3;

impl Attacher {
    pub(super) fn attach_filter(
        &mut self,
        interface: &Interface,
        hook: Hook,
    ) -> Result<(), AttachError> {
        if self.filtered.contains(&interface.index) {
            return Ok(());
        }
        make_qdisc(&self.pins, interface)?;
        let failed = |reason| AttachError::Tc {
            interface: interface.name.clone(),
            hook: hook.name(),
            reason,
        };
        let program = self.programs.classifier(Role::at(hook))?;
        // A filter of an earlier agent is replaced in one step.
        let replaced = our_filter(&interface.name, hook)
            .and_then(|link| program.attach_to_link(link).map_err(|error| code_of(&error)));
        let link = match replaced {
            Ok(id) => program.take_link(id),
            Err(_) => {
                let options = TcAttachOptions::Netlink(NlOptions {
                    priority: PRIORITY,
                    handle: HANDLE,
                    classid: None,
                });
                program
                    .attach_with_options(&interface.name, attach_type(hook), options)
                    .and_then(|id| program.take_link(id))
            }
        };
        // Dropped, it would take the filter with it.
        link.map(std::mem::forget).map_err(|error| failed(describe(&error)))
    }
}

/// Has our filters on an interface run other programs.
pub(in crate::dataplane) fn replace(
    programs: &mut Programs,
    interface: &str,
) -> Result<(), AttachError> {
    for hook in TC_HOOKS {
        let failed =
            |reason| AttachError::Tc { interface: interface.to_owned(), hook: hook.name(), reason };
        let filter = our_filter(interface, hook).map_err(|error| failed(error.to_string()))?;
        let program = programs.classifier(Role::at(hook))?;
        let link = program.attach_to_link(filter).and_then(|id| program.take_link(id));
        // Dropped, it would take the filter with it.
        link.map(std::mem::forget).map_err(|error| failed(describe(&error)))?;
    }
    Ok(())
}

/// Removes our filters from an interface, and the qdisc if it is ours.
pub(super) fn remove(pins: &Pins, interface: &str) -> Result<(), AttachError> {
    let marker = pins.clsact(interface);
    if !marker.exists() {
        return Ok(());
    }
    if let Some(index) = index_of(interface) {
        for hook in [Hook::Ingress, Hook::Egress] {
            if let Ok(link) = our_filter(interface, hook) {
                // Gone already is as good.
                drop(link);
            }
        }
        if marker.join("made").exists() {
            let removed = netlink_raw::open(NETLINK_ROUTE).and_then(|socket| {
                // Others may have hung theirs on it since.
                if has_filters(&socket, index)? { Ok(()) } else { delete_qdisc(&socket, index) }
            });
            removed.map_err(|error| AttachError::Tc {
                interface: interface.to_owned(),
                hook: "clsact",
                reason: error.to_string(),
            })?;
        }
    }
    for path in [marker.join("made"), marker] {
        match fs::remove_dir(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(AttachError::Pin { path, source });
            }
            _ => {}
        }
    }
    Ok(())
}

fn make_qdisc(pins: &Pins, interface: &Interface) -> Result<(), AttachError> {
    let marker = pins.clsact(&interface.name);
    match qdisc_add_clsact(&interface.name) {
        Ok(()) => make_dir(&marker.join("made")),
        Err(TcError::AlreadyAttached) => make_dir(&marker),
        Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => {
            make_dir(&marker)
        }
        Err(error) => Err(AttachError::Tc {
            interface: interface.name.clone(),
            hook: "clsact",
            reason: error.to_string(),
        }),
    }
}

fn make_dir(path: &Path) -> Result<(), AttachError> {
    fs::create_dir_all(path).map_err(|source| AttachError::Pin { path: path.to_owned(), source })
}

fn our_filter(interface: &str, hook: Hook) -> io::Result<SchedClassifierLink> {
    SchedClassifierLink::attached(interface, attach_type(hook), PRIORITY, HANDLE, None)
}

fn code_of(error: &aya::programs::ProgramError) -> io::Error {
    io::Error::from_raw_os_error(error_code(error).unwrap_or(libc::EIO))
}

fn index_of(interface: &str) -> Option<i32> {
    // Not from sysfs, which may be another namespace's.
    let index = nix::net::if_::if_nametoindex(interface).ok()?;
    i32::try_from(index).ok()
}

/// Whether anyone's filter hangs on the clsact qdisc.
fn has_filters(socket: &Socket, index: i32) -> io::Result<bool> {
    const RTM_GETTFILTER: u16 = 46;
    let mut count = 0;
    for parent in [INGRESS, EGRESS] {
        let body = traffic_control(index, 0, parent);
        let question = Question { kind: RTM_GETTFILTER, flags: REQUEST | DUMP, body };
        netlink_raw::ask(socket, &question, |_| count += 1)?;
    }
    Ok(count > 0)
}

/// Asks the kernel to delete the clsact qdisc; there being none is no error.
fn delete_qdisc(socket: &Socket, index: i32) -> io::Result<()> {
    const RTM_DELQDISC: u16 = 37;
    let body = traffic_control(index, CLSACT_HANDLE, CLSACT);
    let question = Question { kind: RTM_DELQDISC, flags: REQUEST | ACK, body };
    match netlink_raw::ask(socket, &question, |_| {}) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) => Ok(()),
        outcome => outcome,
    }
}

/// A `struct tcmsg`.
fn traffic_control(index: i32, handle: u32, parent: u32) -> Vec<u8> {
    let mut body = vec![0; 4];
    body.extend(index.to_ne_bytes());
    body.extend(handle.to_ne_bytes());
    body.extend(parent.to_ne_bytes());
    body.extend([0; 4]);
    body
}
