//! An interface with a second address that sources may be translated to.

use anyhow::Result;
use redirector::dataplane::pins::Hook;
use redirector_common::{Address, FlowState, Protocol, Reason, SnatAddressKey, map_name::MapName};
use redirector_tests::{
    packet::Flags,
    topology::{Addresses, FAMILIES},
};

use crate::{
    case::{Case, INWARD, check_all_in},
    given::{CLIENT_PORT, Given, from_backend, to_backend, to_client, to_frontend, transports},
    world::{self, CLIENT, NODE, OTHER_CLIENT, at, mac},
};

/// Node 1's second address on `eth1`.
const SECOND: Addresses = Addresses::new(2, 21);

fn check(cases: Vec<Case>) -> Result<()> {
    let fill = |programs: &mut redirector_tests::program::Programs| {
        let ifindex = world::ifindex("eth1")?;
        FAMILIES.into_iter().try_for_each(|family| {
            let key = SnatAddressKey::new(ifindex, family, 1);
            programs.insert(MapName::SnatAddresses, key, Address::from(SECOND.of(family)))
        })
    };
    check_all_in(fill, cases)
}

#[test]
fn it_is_used_when_the_first_has_no_port() -> Result<()> {
    let mut cases = Vec::new();
    for family in FAMILIES {
        for hook in INWARD {
            for (protocol, transport) in transports(Flags::SYN) {
                let name = format!("{protocol} over {family:?}");
                let new = match protocol {
                    Protocol::Tcp => FlowState::SynSent,
                    Protocol::Udp => FlowState::Unreplied,
                };
                let one = Given::remote(protocol, family);
                let two = one.client(at(OTHER_CLIENT, family, CLIENT_PORT)).source(at(
                    SECOND,
                    family,
                    world::SNAT,
                ));
                let third = at(CLIENT, family, CLIENT_PORT + 1);
                let packet = to_frontend(transport, family, world::REMOTE).coming_from(third);
                let by_first = to_backend(&packet, family);
                let by_second = by_first.clone().coming_from(at(SECOND, family, world::SNAT));
                let opened = one.client(third);
                cases.extend([
                    Case::new(format!("{name}, nothing in use"), hook, &packet)
                        .forwards(Reason::RemoteNew, &by_first)
                        .then(&opened, new),
                    Case::new(format!("{name}, the first in use"), hook, &packet)
                        .given(one)
                        .forwards(Reason::RemoteNew, &by_second)
                        .then(&opened, new),
                    Case::new(format!("{name}, the second in use"), hook, &packet)
                        .given(two)
                        .forwards(Reason::RemoteNew, &by_first)
                        .then(&opened, new),
                    Case::new(format!("{name}, the first half-open"), hook, &packet)
                        .given(one.state(new))
                        .forwards(Reason::RemoteNew, &by_second)
                        .then(&opened, new),
                    Case::new(format!("{name}, both in use"), hook, &packet)
                        .given(one)
                        .given(two)
                        .drops(Reason::SnatExhausted),
                ]);
            }
        }
    }
    check(cases)
}

#[test]
fn answers_come_back_by_it() -> Result<()> {
    let mut cases = Vec::new();
    for family in FAMILIES {
        for (protocol, transport) in transports(Flags::ACK) {
            let name = format!("{protocol} over {family:?}");
            let one = Given::remote(protocol, family);
            let other = at(OTHER_CLIENT, family, CLIENT_PORT);
            let second = at(SECOND, family, world::SNAT);
            for hook in INWARD {
                let reply = from_backend(transport, family).going_to(second);
                let sent = to_client(&reply, family).going_to(other).macs(mac(1, 4), mac(1, 1));
                cases.push(
                    Case::new(format!("{name}, reply"), hook, &reply)
                        .by("eth1")
                        .given(one)
                        .given(one.client(other).source(second))
                        .forwards(Reason::RemoteReply, &sent),
                );
            }
        }
    }
    check(cases)
}

/// A client's port that a backend on this host sees already is translated, its address never.
#[test]
fn backends_here_see_the_client() -> Result<()> {
    let mut cases = Vec::new();
    for family in FAMILIES {
        for (protocol, transport) in transports(Flags::SYN) {
            let name = format!("{protocol} over {family:?}");
            let one = Given::local(protocol, family);
            let taken = one.frontend(at(NODE, family, world::EMPTY)).source(at(
                CLIENT,
                family,
                world::SNAT,
            ));
            let packet = to_frontend(transport, family, world::LOCAL_ALIAS);
            cases.push(
                Case::new(format!("{name}, no port left"), Hook::Ingress, &packet)
                    .given(one)
                    .given(taken)
                    .drops(Reason::SnatExhausted),
            );
        }
    }
    check(cases)
}
