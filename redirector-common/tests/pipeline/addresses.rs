//! Translation to several addresses of the interface by which packets leave.

use std::collections::BTreeSet;

use proptest::prelude::*;
use redirector_common::packet::{Packet, TcpFlags};
use redirector_common::{
    Address, Backend, Direction, Family, Port, Protocol, Reason, SnatAddressKey, Tuple,
};

use crate::deciding::{node, packet, tcp};
use crate::host::{Host, IFINDEX, v4};

const SYN: u8 = TcpFlags::SYN;
const ACK: u8 = TcpFlags::ACK;
const RST: u8 = TcpFlags::RST;

/// A node with a backend elsewhere behind port 80 and one of its own behind 81 and 82, and these
/// addresses besides 192.0.2.1.
fn host(further: &[u8]) -> Host {
    let mut host = Host::new();
    host.serve(&[80], Protocol::Tcp, Some(Backend::remote(v4(50), Port::new(8080))));
    host.serve(&[81, 82], Protocol::Tcp, Some(Backend::local(Port::new(8080))));
    set(&mut host, further);
    host
}

fn set(host: &mut Host, further: &[u8]) {
    let entries = (1..)
        .zip(further)
        .map(|(position, last)| (SnatAddressKey::new(IFINDEX, Family::V4, position), v4(*last)));
    host.snat_addresses = entries.collect();
}

fn from(client: u16, port: u16, flags: u8) -> Packet {
    let [high, low] = client.to_be_bytes();
    tcp((Address::from_v4([10, 9, high, low]), Port::new(4000)), node(port), flags)
}

/// Opens a connection to the backend elsewhere; what it comes from there, if it can be had.
fn establish(host: &Host, client: u16) -> Option<Tuple> {
    let (decision, outcome) = host.ingress(&from(client, 80, SYN));
    if decision.reason == Reason::SnatExhausted {
        return None;
    }
    assert_eq!(decision.reason, Reason::RemoteNew);
    let back = outcome.translated.reversed();
    assert_eq!(host.ingress(&packet(back, SYN | ACK)).0.reason, Reason::RemoteReply);
    assert_eq!(host.ingress(&from(client, 80, ACK)).0.reason, Reason::RemoteEstablished);
    Some(outcome.translated)
}

fn reset(host: &Host, client: u16) {
    let _ = host.ingress(&from(client, 80, RST));
}

#[test]
fn each_address_has_every_port_and_freed_ones_are_had_at_once() {
    let host = host(&[21, 22]);
    let sources: Vec<Tuple> = (0..12).map(|client| establish(&host, client).unwrap()).collect();
    let seen: BTreeSet<_> = sources.iter().map(|it| (it.source, it.source_port)).collect();
    assert_eq!(seen.len(), 12);
    let addresses: Vec<Address> = sources.iter().map(|it| it.source).collect();
    assert_eq!(addresses, [[v4(1); 4], [v4(21); 4], [v4(22); 4]].concat(), "one after the other");
    for client in 100..110 {
        assert_eq!(establish(&host, client), None);
    }
    for client in 0..12 {
        reset(&host, client);
        let again = establish(&host, 200 + client).unwrap();
        assert_eq!(again, sources[usize::from(client)], "the only one that is free");
    }
    for (client, translated) in (200..).zip(&sources) {
        let (_, outcome) = host.ingress(&packet(translated.reversed(), ACK));
        assert_eq!(outcome.translated.reversed(), from(client, 80, ACK).tuple);
    }
    host.assert_whole();
}

#[test]
fn while_the_first_has_ports_the_others_are_left_alone() {
    let mut host = host(&[21]);
    host.node.snat_count = 8192;
    host.flow_capacity.set(10_000);
    for client in 0..1000 {
        assert_eq!(establish(&host, client).unwrap().source, v4(1));
    }
}

#[test]
fn no_port_is_taken_while_another_address_has_a_free_one() {
    let host = host(&[21]);
    // All half-open.
    for client in 0..8 {
        assert_eq!(host.ingress(&from(client, 80, SYN)).0.reason, Reason::RemoteNew);
    }
    assert_eq!(host.flows().len(), 16);
    for client in 10..20 {
        assert_eq!(host.ingress(&from(client, 80, SYN)).0.reason, Reason::RemoteNew);
        assert_eq!(host.flows().len(), 16, "in the place of another");
    }
    let established: Vec<_> = (20..28).map(|client| establish(&host, client)).collect();
    assert!(established.iter().all(Option::is_some));
    assert_eq!(establish(&host, 30), None);
    host.assert_whole();
}

#[test]
fn addresses_come_and_go() {
    let mut host = host(&[]);
    let first: Vec<_> = (0..4).map(|client| establish(&host, client).unwrap()).collect();
    assert_eq!(establish(&host, 4), None, "by default there is one");
    set(&mut host, &[21]);
    let second: Vec<_> = (4..8).map(|client| establish(&host, client).unwrap()).collect();
    assert!(first.iter().all(|it| it.source == v4(1)));
    assert!(second.iter().all(|it| it.source == v4(21)));
    set(&mut host, &[22]);
    assert_eq!(establish(&host, 8).unwrap().source, v4(22));
    for (client, translated) in (4..).zip(&second) {
        let (decision, outcome) = host.ingress(&from(client, 80, ACK));
        assert_eq!(decision.reason, Reason::RemoteEstablished);
        assert_eq!(outcome.translated, *translated, "a flow keeps what it began with");
    }
    host.assert_whole();
}

#[test]
fn a_backend_on_this_host_sees_the_client_always() {
    let mut host = host(&[21, 22]);
    host.node.snat_count = 1;
    for (port, reason) in [(81, Reason::LocalNew), (82, Reason::LocalNew)] {
        let (decision, outcome) = host.ingress(&from(1, port, SYN));
        assert_eq!(decision.reason, reason);
        assert_eq!(outcome.translated.source, from(1, port, SYN).tuple.source);
    }
    host.assert_whole();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]
    #[test]
    fn no_two_flows_look_the_same_to_the_backend(
        block in prop_oneof![1_u16..5, Just(40)],
        random: u32,
        steps in proptest::collection::vec((0_u16..40, 0..12), 1..200),
    ) {
        let mut host = host(&[21]);
        host.node.snat_count = block;
        host.random.set(random);
        let mut addresses = vec![v4(1), v4(21)];
        for (client, step) in steps {
            match step {
                0 => {
                    let further: Vec<u8> = (21..21 + (client % 4) as u8).collect();
                    set(&mut host, &further);
                    addresses = further.iter().map(|last| v4(*last)).collect();
                    addresses.push(v4(1));
                }
                1..4 => reset(&host, client),
                4 => drop(host.ingress(&from(client, 80, SYN))),
                _ => {
                    let flows = host.flows();
                    let key = from(client, 80, SYN).tuple;
                    if flows.get(&key).is_some_and(|it| !it.state().is_finished()) {
                        continue;
                    }
                    let taken = flows.values().filter(|flow| {
                        flow.direction() == Direction::Forward
                            && !flow.state().is_finished()
                            && !flow.state().is_half_open()
                            && addresses.contains(&flow.translated.source)
                    });
                    let is_full = taken.count() == usize::from(block) * addresses.len();
                    match establish(&host, client) {
                        Some(it) => prop_assert!(addresses.contains(&it.source)),
                        // A large block is not tried as a whole.
                        None => prop_assert!(is_full || block > 32),
                    }
                }
            }
            host.assert_whole();
            let flows = host.flows();
            let forward = flows.values().filter(|flow| flow.direction() == Direction::Forward);
            let seen: BTreeSet<_> = forward.clone().map(|flow| flow.translated).collect();
            prop_assert_eq!(seen.len(), forward.count());
        }
    }
}
