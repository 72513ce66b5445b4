//! Services that only some clients may use.

use anyhow::Result;
use redirector::dataplane::pins::Hook;
use redirector_common::Reason;
use redirector_tests::{packet::Flags, topology::FAMILIES};

use crate::{
    case::{Case, INWARD, check_all},
    given::{CLIENT_PORT, Given, to_backend, to_frontend, transports},
    world::{self, NODE, OTHER_CLIENT, at, mac},
};

/// XDP and TC drop alike whom the ranges leave out; XDP leaves to TC what it always does.
#[test]
fn new_flows() -> Result<()> {
    let mut cases = Vec::new();
    for family in FAMILIES {
        for (protocol, opening) in transports(Flags::SYN) {
            let name = format!("{protocol} over {family:?}");
            let by_other = |port| {
                to_frontend(opening, family, port)
                    .coming_from(at(OTHER_CLIENT, family, CLIENT_PORT))
                    .macs(mac(1, 1), mac(1, 4))
            };
            for hook in INWARD {
                let packet = to_frontend(opening, family, world::REMOTE_LIMITED);
                cases.push(
                    Case::new(format!("{name} from inside"), hook, &packet)
                        .forwards(Reason::RemoteNew, &to_backend(&packet, family)),
                );
                cases.push(
                    Case::new(
                        format!("{name} from outside"),
                        hook,
                        &by_other(world::REMOTE_LIMITED),
                    )
                    .drops(Reason::SourceDenied),
                );
                let packet = to_frontend(opening, family, world::REMOTE_CLOSED);
                cases.push(
                    Case::new(format!("{name} where nobody is admitted"), hook, &packet)
                        .drops(Reason::SourceDenied),
                );
            }
            let packet = to_frontend(opening, family, world::LOCAL_LIMITED);
            let delivered = packet.clone().going_to(at(NODE, family, world::LOCAL_PORT));
            cases.push(
                Case::new(format!("{name} from inside to here"), Hook::Ingress, &packet)
                    .delivers(Reason::LocalNew, &delivered),
            );
            for (port, what) in [(world::LOCAL_LIMITED, "here"), (world::EMPTY_LIMITED, "nobody")] {
                let what = format!("{name} from outside to {what}");
                cases.push(
                    Case::new(&what, Hook::Ingress, &by_other(port)).drops(Reason::SourceDenied),
                );
                cases.push(
                    Case::new(&what, Hook::Xdp, &by_other(port)).passes(Reason::SourceDenied),
                );
            }
        }
    }
    check_all(cases)
}

/// Flows that were open before the ranges changed go on.
#[test]
fn established_flows() -> Result<()> {
    let mut cases = Vec::new();
    for family in FAMILIES {
        for hook in INWARD {
            for (protocol, later) in transports(Flags::ACK) {
                let frontend = at(NODE, family, world::REMOTE_CLOSED);
                let packet = to_frontend(later, family, world::REMOTE_CLOSED);
                cases.push(
                    Case::new(format!("{protocol} over {family:?}"), hook, &packet)
                        .given(Given::remote(protocol, family).frontend(frontend))
                        .forwards(Reason::RemoteEstablished, &to_backend(&packet, family)),
                );
            }
        }
    }
    check_all(cases)
}
