//! Pins follow their interfaces.
//!
//! A link stays with its interface whatever becomes of that: it may be renamed, move to another
//! network namespace, or be removed and made again under its old name. Pins are named by
//! interfaces, so they are renamed with them; where that is not possible, programs are taken off.

use std::path::Path;
use std::{fs, io};

use super::{AttachError, Attacher, clsact, remove_link};
use crate::dataplane::netlink::{Host, Interface};
use crate::dataplane::pins::Hook;
use crate::dataplane::syscall::{self, LinkInfo};

impl Attacher {
    /// Renames pins whose interface has another name now, if that one is `chosen`; removes those
    /// whose interface is gone, or is none of ours by its new name.
    ///
    /// # Errors
    ///
    /// If a pin can't be read, renamed or removed.
    pub fn follow(&mut self, host: &Host, chosen: &[String]) -> Result<(), AttachError> {
        let is_here = |index: u32| host.interfaces.iter().any(|it| it.index == index);
        self.filtered.retain(|index| is_here(*index));
        let names = self.pins.attached().map_err(|error| failed(&self.pins.links(), error))?;
        for name in &names {
            for hook in Hook::ALL {
                self.follow_link(hook, name, host, chosen)?;
            }
            self.follow_filters(name, host, chosen)?;
        }
        self.seen.retain(|index, _| is_here(*index));
        Ok(())
    }

    fn follow_link(
        &self,
        hook: Hook,
        name: &str,
        host: &Host,
        chosen: &[String],
    ) -> Result<(), AttachError> {
        let path = self.pins.link(hook, name);
        let link = match syscall::open_pin(&path) {
            Ok(link) => link,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed(&path, error)),
        };
        let info = syscall::link_info(std::os::fd::AsFd::as_fd(&link))
            .map_err(|error| failed(&path, error))?;
        drop(link);
        let interface = host.interfaces.iter().find(|it| is_on(hook, &info, it));
        match interface.filter(|it| chosen.contains(&it.name)) {
            Some(interface) if interface.name == name => Ok(()),
            Some(interface) => {
                let new = self.pins.link(hook, &interface.name);
                if new.exists() {
                    // Two have exchanged their names: this one gets a new link.
                    return remove_link(&path);
                }
                tracing::info!("{name} is {} now: {} goes with it", interface.name, hook.name());
                fs::rename(&path, &new).map_err(|error| failed(&path, error))
            }
            None => remove_link(&path),
        }
    }

    /// A filter can't be asked where it is: it is where it was put.
    fn follow_filters(
        &self,
        name: &str,
        host: &Host,
        chosen: &[String],
    ) -> Result<(), AttachError> {
        let marker = self.pins.clsact(name);
        let index = self.seen.iter().find(|(_, seen)| seen.name == name).map(|(index, _)| *index);
        let (true, Some(index)) = (marker.exists(), index) else {
            return Ok(());
        };
        let Some(interface) = host.interfaces.iter().find(|it| it.index == index) else {
            return clsact::remove(&self.pins, name);
        };
        if interface.name == name {
            return Ok(());
        }
        let new = self.pins.clsact(&interface.name);
        if !new.exists() {
            fs::rename(&marker, &new).map_err(|error| failed(&marker, error))?;
        }
        if chosen.contains(&interface.name) {
            return Ok(());
        }
        clsact::remove(&self.pins, &interface.name)
    }
}

/// Whether a link is on an interface of this host. One that has moved to another network namespace
/// keeps its XDP program, and may have the index there that another one has here.
fn is_on(hook: Hook, link: &LinkInfo, interface: &Interface) -> bool {
    let is_program = match hook {
        Hook::Xdp => interface.xdp.is_some(),
        Hook::Ingress | Hook::Egress => true,
    };
    link.ifindex == interface.index && is_program
}

fn failed(path: &Path, source: io::Error) -> AttachError {
    AttachError::Pin { path: path.to_owned(), source }
}
