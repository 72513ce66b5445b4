//! TC programs as links (kernel 6.6).

use aya::programs::TcAttachType;
use aya::programs::links::LinkOrder;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::{SchedClassifierLink, TcAttachOptions};

use super::xdp::program_id;
use super::{AttachError, Attacher, describe, find_link, remove_link};
use crate::dataplane::loader::Role;
use crate::dataplane::netlink::Interface;
use crate::dataplane::pins::Hook;

impl Attacher {
    pub(super) fn attach_tcx(
        &mut self,
        interface: &Interface,
        hook: Hook,
    ) -> Result<(), AttachError> {
        let path = self.pins.link(hook, &interface.name);
        let failed = |reason| AttachError::Tc {
            interface: interface.name.clone(),
            hook: hook.name(),
            reason,
        };
        let found = find_link(&path, interface)?;
        let program = self.programs.classifier(Role::at(hook))?;
        if let Some(link) = found {
            if link.program == program_id(Role::at(hook), program.info())? {
                return Ok(());
            }
            let link = PinnedLink::from_pin(&path)
                .and_then(|pinned| SchedClassifierLink::try_from(FdLink::from(pinned)))
                .map_err(|error| failed(error.to_string()))?;
            let id = program.attach_to_link(link);
            match id.and_then(|id| program.take_link(id)) {
                // The link lives on in its pin.
                Ok(_) => return Ok(()),
                Err(error) => {
                    let (name, reason) = (&interface.name, describe(&error));
                    tracing::warn!("{name}: the TC link takes no new program: {reason}");
                    remove_link(&path)?;
                }
            }
        }
        // First in the row: whoever comes later sees what we leave alone.
        let options = TcAttachOptions::TcxOrder(LinkOrder::first());
        let link = program
            .attach_with_options(&interface.name, attach_type(hook), options)
            .and_then(|id| program.take_link(id))
            .map_err(|error| failed(describe(&error)))?;
        let link = FdLink::try_from(link).map_err(|error| failed(error.to_string()))?;
        match link.pin(&path) {
            Ok(_) => Ok(()),
            Err(error) => Err(AttachError::Pin { path, source: std::io::Error::other(error) }),
        }
    }
}

pub(super) const fn attach_type(hook: Hook) -> TcAttachType {
    match hook {
        Hook::Xdp | Hook::Ingress => TcAttachType::Ingress,
        Hook::Egress => TcAttachType::Egress,
    }
}
