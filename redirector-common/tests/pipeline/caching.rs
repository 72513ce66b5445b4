//! The flow cache: it is never seen but in what is spared.

use proptest::prelude::*;
use redirector_common::cache::LIFETIME;
use redirector_common::packet::{Hook, Packet, Route, Step, TcpFlags};
use redirector_common::{Protocol, Reason, Tuple};

use crate::deciding::{client, node, packet, remote, tcp, udp};
use crate::host::{Host, SECOND};

const TICK: u64 = SECOND / 250;

/// A node with a backend elsewhere behind port 80 and one of its own behind 81, of each protocol.
fn host() -> Host {
    Host::serving(&[80], &[81])
}

/// Opens a TCP flow to a backend elsewhere and returns a packet of each direction.
fn open(host: &Host, port: u16) -> (Packet, Packet) {
    let (_, outcome) = host.ingress(&tcp(client(port), node(80), TcpFlags::SYN));
    let back = outcome.translated.reversed();
    let _ = host.ingress(&packet(back, TcpFlags::SYN | TcpFlags::ACK));
    let _ = host.ingress(&tcp(client(port), node(80), TcpFlags::ACK));
    (tcp(client(port), node(80), TcpFlags::ACK), packet(back, TcpFlags::ACK))
}

fn asked(host: &Host, hook: Hook, packet: &Packet) -> u32 {
    let before = host.asked.get();
    assert_eq!(host.at(hook, packet).0.step, Step::Forward);
    host.asked.get() - before
}

#[test]
fn established_packets_need_no_look_up() {
    let host = host();
    let (there, back) = open(&host, 4000);
    for hook in [Hook::Xdp, Hook::Ingress] {
        assert_eq!(host.at(hook, &there).0.reason, Reason::RemoteEstablished);
        assert_eq!(host.at(hook, &back).0.reason, Reason::RemoteReply);
        host.route.set(Route::Unreachable);
        assert_eq!(asked(&host, hook, &there) + asked(&host, hook, &back), 0);
        host.route.set(Route::Via);
    }
    host.assert_whole();
}

#[test]
fn changes_are_seen_at_once() {
    let host = host();
    let (there, _) = open(&host, 4000);
    assert_eq!(asked(&host, Hook::Xdp, &there), 0);
    host.raise_all_epochs();
    assert_eq!(asked(&host, Hook::Xdp, &there), 1);
    host.route.set(Route::Unreachable);
    host.raise_all_epochs();
    assert_eq!(host.at(Hook::Xdp, &there).0.reason, Reason::NoRoute);
}

#[test]
fn without_anyone_to_tell_of_changes_they_are_seen_soon() {
    let host = host();
    let (there, _) = open(&host, 4000);
    assert_eq!(asked(&host, Hook::Xdp, &there), 0);
    host.route.set(Route::Unreachable);
    host.now.set(host.now.get() + u64::from(LIFETIME) * TICK + 2 * SECOND);
    assert_eq!(host.at(Hook::Xdp, &there).0.reason, Reason::NoRoute);
}

#[test]
fn packets_that_ask_for_more_take_the_long_way() {
    let host = host();
    let (there, _) = open(&host, 4000);
    assert_eq!(asked(&host, Hook::Ingress, &there), 0);
    let last_hop = Packet { ttl: 1, ..there };
    assert_eq!(host.ingress(&last_hop).0.reason, Reason::TtlExceeded);
    let large = Packet { ip_len: 1281, ..there };
    assert_eq!(host.ingress(&large).0.reason, Reason::TooBig);
    let first_fragment = Packet { identification: 1, ..there };
    assert_eq!(host.at(Hook::Xdp, &first_fragment).0.step, Step::HandOver);
    let reset = Packet { flags: TcpFlags(TcpFlags::RST), ..there };
    assert_eq!(host.ingress(&reset).0.step, Step::Forward);
    assert_eq!(host.flows()[&there.tuple].state().name(), "closed");
}

#[test]
fn nothing_that_was_counted_is_lost() {
    let host = host();
    let mut sent = 0;
    // More flows than the cache has room for, so that they push each other out.
    let flows: Vec<_> = (0..4)
        .flat_map(|n| {
            let (there, back) = open(&host, 4000 + n);
            [there, back]
        })
        .collect();
    for round in 0..50 {
        for (n, packet) in flows.iter().enumerate() {
            for _ in 0..(n + round) % 3 {
                let _ = host.at(Hook::Xdp, packet);
                sent += 1;
            }
        }
        host.now.set(host.now.get() + 40 * TICK);
    }
    let counted: u64 = host.flows().values().map(|flow| flow.packets).sum();
    // Three packets opened each flow.
    assert_eq!(counted, sent + 3 * 4);
    let bytes: u64 = host.flows().values().map(|flow| flow.bytes).sum();
    assert_eq!(bytes, counted * 60);
}

/// What may happen.
#[derive(Clone, Debug)]
enum Event {
    /// A packet from a client's port to a frontend, or its reply; now and then by a hook where it
    /// does not belong.
    Packet { port: u16, frontend: u16, protocol: Protocol, flags: u8, reply: bool, hook: Hook },
    /// So many ticks pass.
    Time(u64),
    /// The route changes, and the agent tells.
    Route(Route),
}

fn event() -> impl Strategy<Value = Event> {
    let flags = prop_oneof![
        4 => Just(TcpFlags::ACK),
        2 => Just(TcpFlags::SYN),
        1 => Just(TcpFlags::SYN | TcpFlags::ACK),
        1 => Just(TcpFlags::FIN | TcpFlags::ACK),
        1 => Just(TcpFlags::RST),
    ];
    let hook = prop_oneof![Just(Hook::Xdp), Just(Hook::Ingress), Just(Hook::Egress)];
    let protocol = prop_oneof![2 => Just(Protocol::Tcp), 1 => Just(Protocol::Udp)];
    prop_oneof![
        // Clients whose ports are frontends' too: their replies look like requests to who does not
        // know which way they go.
        12 => (80u16..83, 80u16..=81, protocol, flags, any::<bool>(), hook).prop_map(
            |(port, frontend, protocol, flags, reply, hook)| {
                let flags = if protocol == Protocol::Tcp { flags } else { 0 };
                Event::Packet { port, frontend, protocol, flags, reply, hook }
            }
        ),
        2 => prop_oneof![0u64..100, Just(300), Just(40_000)].prop_map(Event::Time),
        1 => prop_oneof![
            2 => Just(Route::Via),
            1 => Just(Route::Unresolved),
            1 => Just(Route::Unreachable)
        ]
        .prop_map(Event::Route),
    ]
}

/// The reply to a flow's packets as a host has it, if it has the flow.
fn reply_tuple(host: &Host, forward: &Tuple) -> Option<Tuple> {
    host.flows().get(forward).map(|flow| flow.translated.reversed())
}

proptest! {
    /// A node with the cache and one without answer alike, whatever happens.
    #[test]
    fn the_cache_changes_nothing(events in proptest::collection::vec(event(), 1..120)) {
        let with = host();
        let mut without = host();
        without.caches = false;
        for event in events {
            match event {
                Event::Time(ticks) => for host in [&with, &without] {
                    host.now.set(host.now.get() + ticks * TICK);
                },
                Event::Route(route) => for host in [&with, &without] {
                    host.route.set(route);
                    host.raise_all_epochs();
                },
                Event::Packet { port, frontend, protocol, flags, reply, hook } => {
                    let forward = match protocol {
                        Protocol::Tcp => tcp(client(port), node(frontend), flags),
                        Protocol::Udp => udp(client(port), node(frontend)),
                    };
                    let tuple = reply_tuple(&without, &forward.tuple);
                    prop_assert_eq!(reply_tuple(&with, &forward.tuple), tuple);
                    let answers = [&with, &without].map(|host| match tuple {
                        Some(tuple) if reply => host.at(hook, &packet(tuple, flags)),
                        Some(_) | None => host.at(hook, &forward),
                    });
                    let [(decided, done), (expected, model)] = answers;
                    prop_assert_eq!(decided, expected);
                    if matches!(decided.step, Step::Deliver | Step::Forward) {
                        prop_assert_eq!(done.translated, model.translated);
                    }
                }
            }
            let totals = [&with, &without].map(|host| {
                let flows = host.flows();
                flows.iter().map(|(key, flow)| (*key, flow.state(), flow.packets, flow.bytes))
                    .collect::<Vec<_>>()
            });
            prop_assert_eq!(&totals[0], &totals[1]);
        }
        with.assert_whole();
    }
}

#[test]
fn a_port_used_again_is_another_flow() {
    let mut host = host();
    host.node.snat_count = 64;
    let (there, back) = open(&host, 4000);
    let _ = (asked(&host, Hook::Xdp, &there), asked(&host, Hook::Xdp, &back));
    let _ = host.ingress(&Packet { flags: TcpFlags(TcpFlags::RST), ..there });
    let (again, _) = open(&host, 4000);
    let (_, outcome) = host.at(Hook::Xdp, &again);
    let expected = host.flows()[&again.tuple].translated;
    assert_eq!(outcome.translated, expected);
    assert_eq!(outcome.translated.destination, remote(8080).0);
}
