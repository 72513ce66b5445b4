//! What is attached, by the pinned links and the kernel's word on them.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::time::SystemTime;

use aya::programs::loaded_programs;

use super::pins::{ClientHook, Hook, Pins};
use super::syscall;

/// A program at a hook of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// Where.
    pub hook: Hook,
    /// The interface, by the name that it had when the program was attached.
    pub interface: String,
    /// Its index; `None` once it is gone.
    pub ifindex: Option<u32>,
    /// The kernel's number of the program.
    pub program_id: u32,
    /// The program's name; empty where the kernel does not tell.
    pub program: String,
    /// When the program was loaded.
    pub loaded_at: Option<SystemTime>,
}

/// Everything that is attached by links under `pins`, by interface and hook.
///
/// # Errors
///
/// If the pins may not be read.
pub fn attached(pins: &Pins) -> io::Result<Vec<Attached>> {
    let entries = match std::fs::read_dir(pins.links()) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let programs = programs();
    let mut attached = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let Some((hook, interface)) = name.to_str().and_then(parse) else {
            continue;
        };
        let link = match syscall::open_pin(&entry.path()) {
            Ok(link) => syscall::link_info(link.as_fd())?,
            // The agent has left the interface since the pins were listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let (program, loaded_at) = programs.get(&link.program).cloned().unwrap_or_default();
        attached.push(Attached {
            hook,
            interface,
            ifindex: (link.ifindex != 0).then_some(link.ifindex),
            program_id: link.program,
            program,
            loaded_at,
        });
    }
    attached.sort_by(|a, b| (&a.interface, a.hook).cmp(&(&b.interface, b.hook)));
    Ok(attached)
}

/// A program for sockets on a control group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachedClient {
    /// Where.
    pub hook: ClientHook,
    /// Whether the control group is still there.
    pub is_alive: bool,
    /// The kernel's number of the program.
    pub program_id: u32,
    /// The program's name; empty where the kernel does not tell.
    pub program: String,
    /// When the program was loaded.
    pub loaded_at: Option<SystemTime>,
}

/// Every program for sockets that is attached by links under `pins`, by hook.
///
/// # Errors
///
/// If the pins may not be read.
pub fn attached_clients(pins: &Pins) -> io::Result<Vec<AttachedClient>> {
    let mut attached = Vec::new();
    let programs = programs();
    for hook in ClientHook::ALL {
        let link = match syscall::open_pin(&pins.client_link(hook)) {
            Ok(link) => syscall::link_info(link.as_fd())?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let (program, loaded_at) = programs.get(&link.program).cloned().unwrap_or_default();
        attached.push(AttachedClient {
            hook,
            is_alive: link.cgroup() != 0,
            program_id: link.program,
            program,
            loaded_at,
        });
    }
    Ok(attached)
}

/// Hook and interface of a link's pin.
fn parse(file: &str) -> Option<(Hook, String)> {
    let (word, interface) = file.split_once('-')?;
    let hook = Hook::ALL.into_iter().find(|hook| hook.name() == word)?;
    Some((hook, interface.replace(':', ".")))
}

/// Names and ages of the kernel's programs, by number. One that is unloaded meanwhile, or that
/// the kernel won't describe, is left out.
fn programs() -> BTreeMap<u32, (String, Option<SystemTime>)> {
    loaded_programs()
        .filter_map(Result::ok)
        .map(|program| {
            let name = program.name_as_str().unwrap_or_default().to_owned();
            (program.id(), (name, program.loaded_at()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_name_hook_and_interface() {
        let parsed = |file| parse(file).map(|(hook, interface)| (hook.name(), interface));
        assert_eq!(parsed("xdp-eth0"), Some(("xdp", "eth0".to_owned())));
        assert_eq!(parsed("egress-a-b:7"), Some(("egress", "a-b.7".to_owned())));
        assert_eq!(parse("clsact-eth0"), None);
        assert_eq!(parse("xdp"), None);
    }

    #[test]
    fn without_links_nothing_is_attached() {
        let none = attached(&Pins::new("/nowhere/redirector")).expect("no error");
        assert!(none.is_empty());
    }
}
