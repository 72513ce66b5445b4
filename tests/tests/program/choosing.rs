//! Where a new flow goes: clients that stay with a backend, random selection, and addresses that
//! only frontends have.

use anyhow::Result;
use redirector_common::Reason;
use redirector_tests::{packet::Flags, topology::FAMILIES};

use crate::{
    case::{Case, INWARD, check_all},
    given::{CLIENT_PORT, to_backend, to_frontend, transports},
    world::{self, OTHER_CLIENT, VIP, at, mac},
};

/// The table leads nowhere: whoever gets through was remembered.
#[test]
fn clients_that_stay() -> Result<()> {
    let mut cases = Vec::new();
    for family in FAMILIES {
        for (protocol, opening) in transports(Flags::SYN) {
            for hook in INWARD {
                let name = format!("{protocol} over {family:?}");
                let packet = to_frontend(opening, family, world::PINNED);
                cases.push(
                    Case::new(&name, hook, &packet)
                        .forwards(Reason::RemoteNew, &to_backend(&packet, family)),
                );
                let other = packet
                    .clone()
                    .coming_from(at(OTHER_CLIENT, family, CLIENT_PORT))
                    .macs(mac(1, 1), mac(1, 4));
                let name = format!("{protocol} over {family:?}, another client");
                cases.push(Case::new(name, hook, &other).drops(Reason::Inconsistent));
                let rows = [
                    (world::PINNED_ONCE, "time is over"),
                    (world::PINNED_INSIDE, "the backend takes no clients from outside"),
                ];
                for (port, why) in rows {
                    let packet = to_frontend(opening, family, port);
                    let name = format!("{protocol} over {family:?}, {why}");
                    cases.push(Case::new(name, hook, &packet).drops(Reason::Inconsistent));
                }
            }
        }
    }
    check_all(cases)
}

/// By the packet and the time, so XDP needs to leave nothing to TC ingress.
#[test]
fn random_selection() -> Result<()> {
    let mut cases = Vec::new();
    for family in FAMILIES {
        for (protocol, opening) in transports(Flags::SYN) {
            let name = format!("{protocol} over {family:?}");
            let packet = to_frontend(opening, family, world::RANDOM);
            for hook in INWARD {
                cases.push(
                    Case::new(&name, hook, &packet)
                        .forwards(Reason::RemoteNew, &to_backend(&packet, family)),
                );
            }
        }
    }
    check_all(cases)
}

#[test]
fn addresses_that_only_frontends_have() -> Result<()> {
    let mut cases = Vec::new();
    for family in FAMILIES {
        for (protocol, opening) in transports(Flags::SYN) {
            for hook in INWARD {
                // Of no frontend, of another address's, of the translation block.
                for port in [world::UNDEFINED, world::REMOTE, world::SNAT] {
                    let name = format!("{protocol} over {family:?} to port {port}");
                    let packet = to_frontend(opening, family, port);
                    let to_vip = packet.clone().going_to(at(VIP, family, port));
                    cases.push(Case::new(&name, hook, &to_vip).drops(Reason::UndefinedPort));
                    if port == world::UNDEFINED {
                        let name = format!("{name} of the node");
                        cases.push(Case::new(name, hook, &packet).passes(Reason::NotOurs));
                    }
                }
            }
        }
    }
    check_all(cases)
}
