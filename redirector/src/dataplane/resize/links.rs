//! Giving everything that is attached new programs.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

use super::super::attach;
use super::super::attached::{attached, attached_clients};
use super::super::loader::{LoadError, Programs, Role};
use super::super::pins::{Hook, Pins};
use super::super::syscall;
use super::ResizeError;

/// Has every link and filter under `pins` run the programs, each in one step.
pub(super) fn replace(pins: &Pins, programs: &mut Programs) -> Result<(), ResizeError> {
    let failed = |source| ResizeError::Pin { path: pins.links(), source };
    for link in attached(pins).map_err(failed)? {
        if link.ifindex.is_none() {
            continue;
        }
        let role = match link.hook {
            Hook::Xdp if link.program.starts_with(Role::Generic.name()) => Role::Generic,
            Hook::Xdp => Role::Driver,
            Hook::Ingress | Hook::Egress => Role::at(link.hook),
        };
        let refused = |error: &dyn std::fmt::Display| LoadError::Program {
            name: role.name(),
            reason: error.to_string(),
        };
        let path = pins.link(link.hook, &link.interface);
        let program = match link.hook {
            Hook::Xdp => programs.xdp(role)?.fd().map_err(|error| refused(&error))?.as_fd(),
            Hook::Ingress | Hook::Egress => {
                programs.classifier(role)?.fd().map_err(|error| refused(&error))?.as_fd()
            }
        };
        update(path, program)?;
    }
    for name in pins.attached().map_err(failed)? {
        // An interface takes its filters with it.
        if pins.clsact(&name).exists() && nix::net::if_::if_nametoindex(name.as_str()).is_ok() {
            attach::replace_filters(programs, &name)
                .map_err(|error| failed(io::Error::other(error.to_string())))?;
        }
    }
    for link in attached_clients(pins).map_err(failed)? {
        if !link.is_alive {
            continue;
        }
        let program = programs.client(link.hook)?;
        let fd = program.fd().map_err(|error| LoadError::Program {
            name: link.hook.program(),
            reason: error.to_string(),
        })?;
        update(pins.client_link(link.hook), fd.as_fd())?;
    }
    Ok(())
}

/// Has the link that is pinned at `path` run the program, unless what it was on is gone meanwhile.
fn update(path: PathBuf, program: BorrowedFd<'_>) -> Result<(), ResizeError> {
    let updated =
        syscall::open_pin(&path).and_then(|link| syscall::update_link(link.as_fd(), program));
    match updated {
        Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => Ok(()),
        updated => updated.map_err(|source| ResizeError::Pin { path, source }),
    }
}
