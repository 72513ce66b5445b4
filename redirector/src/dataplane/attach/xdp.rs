//! XDP: in the driver where that works, else in the kernel's generic form, else not at all.

use aya::programs::links::{FdLink, LinkError, PinnedLink};
use aya::programs::xdp::XdpLink;
use aya::programs::{ProgramError, XdpMode as Flags, loaded_programs};

use super::{AttachError, Attacher, describe, error_code, find_link, remove_link};
use crate::config::XdpMode;
use crate::dataplane::loader::{LoadError, Role};
use crate::dataplane::netlink::Interface;
use crate::dataplane::pins::Hook;
use crate::dataplane::status::XdpState;

type Outcome = (XdpState, Option<String>);

impl Attacher {
    /// What XDP the interface got, and why not better.
    pub(super) fn attach_xdp(
        &mut self,
        interface: &Interface,
        mode: XdpMode,
    ) -> Result<Outcome, AttachError> {
        let path = self.pins.link(Hook::Xdp, &interface.name);
        let found = find_link(&path, interface)?;
        let Some(wanted) = modes(mode) else {
            remove_link(&path)?;
            return Ok((XdpState::Off, Some("switched off".to_owned())));
        };
        if let Some(link) = found {
            let state = match interface.xdp {
                Some(program) if program.is_generic => XdpState::Generic,
                _ => XdpState::Native,
            };
            if wanted.contains(&state) && self.keep_xdp(interface, role(state), link.program)? {
                return Ok((state, (state != wanted[0]).then(|| self.reason(interface))));
            }
            // Another mode takes another link. TC serves meanwhile.
            remove_link(&path)?;
        } else if let Some(other) = interface.xdp {
            return Err(busy(interface, other.id));
        }
        self.try_modes(interface, mode, wanted)
    }

    /// Why what the interface has already is no better: found out when it was attached.
    fn reason(&self, interface: &Interface) -> String {
        let seen = self.seen.get(&interface.index).and_then(|seen| seen.xdp_reason.clone());
        seen.unwrap_or_else(|| "kept from an earlier agent".to_owned())
    }

    fn try_modes(
        &mut self,
        interface: &Interface,
        mode: XdpMode,
        wanted: &[XdpState],
    ) -> Result<Outcome, AttachError> {
        let mut reasons = Vec::new();
        for state in wanted {
            match self.make_xdp(interface, *state)? {
                Ok(()) => return Ok((*state, join(&reasons))),
                Err(reason) => reasons.push(format!("{}: {reason}", state.name())),
            }
        }
        match (mode, wanted) {
            (XdpMode::Native | XdpMode::Generic, [state, ..]) => Err(AttachError::Mode {
                interface: interface.name.clone(),
                mode: state.name(),
                reason: join(&reasons).unwrap_or_default(),
            }),
            _ => Ok((XdpState::Off, join(&reasons))),
        }
    }

    /// Makes and pins a link; the inner error is why this mode cannot be had.
    fn make_xdp(
        &mut self,
        interface: &Interface,
        state: XdpState,
    ) -> Result<Result<(), String>, AttachError> {
        let path = self.pins.link(Hook::Xdp, &interface.name);
        let flags = match state {
            XdpState::Native => Flags::Driver,
            XdpState::Generic => Flags::Skb,
            XdpState::Off => return Ok(Ok(())),
        };
        let program = self.programs.xdp(role(state))?;
        let link =
            program.attach_to_if_index(interface.index, flags).and_then(|id| program.take_link(id));
        let link = match link {
            Ok(link) => link,
            Err(error) if error_code(&error) == Some(libc::EBUSY) => {
                // It came between our look at the interface and now.
                return Err(busy(interface, 0));
            }
            Err(error) => return Ok(Err(describe(&error))),
        };
        // aya falls back to an attachment that ends with the process: useless to us, and undone
        // as the link is dropped here.
        let link = match FdLink::try_from(link) {
            Ok(link) => link,
            Err(LinkError::InvalidLink) => {
                return Ok(Err("the kernel refuses a link".to_owned()));
            }
            Err(error) => return Ok(Err(error.to_string())),
        };
        match link.pin(&path) {
            Ok(_) => Ok(Ok(())),
            Err(error) => Err(AttachError::Pin { path, source: std::io::Error::other(error) }),
        }
    }

    /// Sees to it that the pinned link runs our program, which takes the place of an earlier
    /// agent's in one step; `false` if the link does not take it.
    fn keep_xdp(
        &mut self,
        interface: &Interface,
        role: Role,
        running: u32,
    ) -> Result<bool, AttachError> {
        let program = self.programs.xdp(role)?;
        if running == program_id(role, program.info())? {
            return Ok(true);
        }
        let link = PinnedLink::from_pin(self.pins.link(Hook::Xdp, &interface.name))
            .and_then(|pinned| XdpLink::try_from(FdLink::from(pinned)))
            .map_err(|error| error.to_string());
        let replaced = link.and_then(|link| {
            let id = program.attach_to_link(link);
            // The link lives on in its pin.
            id.and_then(|id| program.take_link(id)).map(drop).map_err(|error| describe(&error))
        });
        if let Err(reason) = &replaced {
            tracing::warn!("{}: the XDP link takes no new program: {reason}", interface.name);
        }
        Ok(replaced.is_ok())
    }
}

pub(super) fn program_id(
    role: Role,
    info: Result<aya::programs::ProgramInfo, ProgramError>,
) -> Result<u32, AttachError> {
    info.map(|info| info.id()).map_err(|error| {
        AttachError::Load(LoadError::Program { name: role.name(), reason: describe(&error) })
    })
}

/// Which program a mode takes.
const fn role(state: XdpState) -> Role {
    match state {
        XdpState::Generic => Role::Generic,
        XdpState::Native | XdpState::Off => Role::Driver,
    }
}

/// The modes to try, best first; `None`: none.
const fn modes(mode: XdpMode) -> Option<&'static [XdpState]> {
    match mode {
        XdpMode::Auto => Some(&[XdpState::Native, XdpState::Generic]),
        XdpMode::Native => Some(&[XdpState::Native]),
        XdpMode::Generic => Some(&[XdpState::Generic]),
        XdpMode::Off => None,
    }
}

fn join(reasons: &[String]) -> Option<String> {
    (!reasons.is_empty()).then(|| reasons.join("; "))
}

fn busy(interface: &Interface, id: u32) -> AttachError {
    let name = loaded_programs()
        .filter_map(Result::ok)
        .find(|program| program.id() == id)
        .and_then(|program| program.name_as_str().map(str::to_owned));
    AttachError::Busy {
        interface: interface.name.clone(),
        id,
        name: name.filter(|name| !name.is_empty()).unwrap_or_else(|| "without a name".to_owned()),
    }
}
