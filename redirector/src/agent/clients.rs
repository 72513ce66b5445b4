//! Clients on this machine: programs for sockets, on a control group.

use crate::dataplane::attach::{AttachError, Attacher, Clients, detach_clients, find_root};
use crate::dataplane::pins::Pins;
use crate::dataplane::status::ClientsStatus;

/// Sees to it that the programs are where they should be, and says where that is. A machine where
/// they cannot be serves everyone else all the same, unless the operator named the place.
///
/// # Errors
///
/// If they cannot be attached where the operator wants them, or not be taken off.
pub(super) fn keep(
    attacher: &mut Attacher,
    pins: &Pins,
    clients: &Clients,
) -> Result<Option<ClientsStatus>, AttachError> {
    let root = match clients {
        Clients::Nobody => {
            detach_clients(pins)?;
            return Ok(None);
        }
        Clients::Within(dir) => {
            attacher.attach_clients(dir)?;
            return Ok(Some(ClientsStatus { cgroup: Some(dir.clone()), error: None }));
        }
        Clients::Everybody => find_root(),
    };
    let (cgroup, outcome) = match root {
        Ok(dir) => {
            let outcome = attacher.attach_clients(&dir);
            (Some(dir), outcome)
        }
        Err(error) => (None, Err(error)),
    };
    let error = match outcome {
        Ok(()) => None,
        Err(error) => {
            // Half of them would send clients to backends and not tell them so.
            detach_clients(pins)?;
            Some(error.to_string())
        }
    };
    Ok(Some(ClientsStatus { cgroup, error }))
}
