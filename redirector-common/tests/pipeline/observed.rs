//! Any packets of any connections, beside what an observer of both ends knows of them.

use std::collections::BTreeMap;

use proptest::prelude::*;
use redirector_common::packet::{Step, TcpFlags};
use redirector_common::{Reason, Tuple};

use crate::deciding::{client, node, packet, tcp};
use crate::host::{Host, SECOND};

const SYN: u8 = TcpFlags::SYN;
const ACK: u8 = TcpFlags::ACK;
const FIN: u8 = TcpFlags::FIN;
const RST: u8 = TcpFlags::RST;

/// What an observer of both sides would say of a connection, of which it knows nothing but the
/// packets that got through.
#[derive(Clone, Copy, Debug)]
struct Observed {
    /// As the backend sees it.
    sent: Tuple,
    answered: bool,
    open: bool,
    fins: [bool; 2],
    /// Who went on after a RST, if there was one.
    reset: Option<[bool; 2]>,
    last: u64,
}

impl Observed {
    fn new(sent: Tuple, now: u64) -> Self {
        Self { sent, answered: false, open: false, fins: [false; 2], reset: None, last: now }
    }

    fn see(&mut self, forward: bool, flags: u8, now: u64) {
        let end = usize::from(!forward);
        self.last = now;
        let is_finished = self.fins == [true; 2];
        let is_doubtful = !self.open || self.reset.is_some() || self.fins != [false; 2];
        if flags == SYN | ACK && !forward && is_doubtful && (!is_finished || self.reset.is_some()) {
            *self = Self { answered: true, ..Self::new(self.sent, now) };
        } else if flags & RST != 0 {
            self.reset = Some([false; 2]);
        } else if flags & SYN == 0 && self.answered {
            self.open |= forward;
            self.fins[end] |= flags & FIN != 0;
            if let Some(alive) = &mut self.reset {
                alive[end] = true;
                if *alive == [true; 2] && self.fins != [true; 2] {
                    self.reset = None;
                }
            }
        }
    }

    /// Whether nothing may happen to it.
    fn is_protected(&self, now: u64) -> bool {
        let patience = if self.fins == [false; 2] { 432_000 } else { 3600 };
        self.open
            && self.reset.is_none()
            && self.fins != [true; 2]
            && now - self.last <= patience * SECOND
    }

    /// Whether its client may have another at once.
    fn is_finished(&self) -> bool {
        self.fins == [true; 2] || self.reset.is_some()
    }
}

#[derive(Clone, Copy, Debug)]
enum Event {
    /// A packet from a client's port to a frontend, or a backend's answer.
    Packet { port: u16, frontend: u16, flags: u8, forward: bool },
    /// A connection is opened properly.
    Open { port: u16, frontend: u16 },
    /// So many seconds pass.
    Time(u64),
    /// What is over is collected.
    Collect,
}

fn event() -> impl Strategy<Value = Event> {
    let flags = prop_oneof![
        4 => Just(ACK),
        3 => Just(SYN),
        2 => Just(SYN | ACK),
        3 => Just(FIN | ACK),
        2 => Just(RST),
        1 => Just(RST | ACK),
    ];
    prop_oneof![
        12 => (0u16..6, 80u16..=82, flags, any::<bool>()).prop_map(
            |(port, frontend, flags, forward)| Event::Packet { port, frontend, flags, forward }
        ),
        4 => (0u16..6, 80u16..=82).prop_map(|(port, frontend)| Event::Open { port, frontend }),
        2 => prop_oneof![4 => 0u64..200, 1 => Just(4000), 1 => Just(500_000)].prop_map(Event::Time),
        1 => Just(Event::Collect),
    ]
}

/// What is known of the connections of clients' ports to frontends.
type Known = BTreeMap<(u16, u16), Observed>;

fn exchange(
    host: &Host,
    known: &mut Known,
    (port, frontend): (u16, u16),
    flags: u8,
    forward: bool,
) {
    let now = host.now.get();
    let there = tcp(client(4000 + port), node(frontend), flags);
    let before = known.get(&(port, frontend)).copied();
    if forward {
        let (decision, outcome) = host.ingress(&there);
        let is_new = matches!(decision.reason, Reason::LocalNew | Reason::RemoteNew);
        if matches!(decision.step, Step::Forward | Step::Deliver) {
            let sent = outcome.translated;
            match before {
                Some(before) if !is_new => assert_eq!(sent, before.sent),
                Some(before) => assert!(!before.is_protected(now), "{before:?} lost its flow"),
                None => assert!(is_new),
            }
            // Whose port it was, if somebody's, has lost it.
            known.retain(|key, other| {
                let is_taken = other.sent == sent && *key != (port, frontend);
                assert!(!is_taken || !other.is_protected(now), "{other:?} lost its port");
                !is_taken
            });
            let observed = known.entry((port, frontend)).or_insert(Observed::new(sent, now));
            if is_new {
                *observed = Observed::new(sent, now);
            } else {
                observed.see(forward, flags, now);
            }
        } else {
            assert!(before.is_none_or(|before| !before.is_protected(now)), "{before:?}");
            known.remove(&(port, frontend));
        }
        if flags == SYN && before.is_some_and(|before| before.is_finished()) {
            assert!(is_new || decision.reason == Reason::SnatExhausted, "{:?}", decision.reason);
        }
    } else if let Some(before) = before {
        let back = packet(before.sent.reversed(), flags);
        let (decision, outcome) =
            if frontend == 82 { host.egress(&back) } else { host.ingress(&back) };
        if decision.step == Step::Pass {
            assert!(!before.is_protected(now), "{before:?} lost its reply half");
            known.remove(&(port, frontend));
        } else {
            assert_eq!(outcome.translated, there.tuple.reversed(), "somebody else's answer");
            known.entry((port, frontend)).and_modify(|it| it.see(forward, flags, now));
        }
    }
}

proptest! {
    /// Halves never part; an answer goes to whose connection it is of; what is open keeps its
    /// backend; and what is finished can be had again at once.
    #[test]
    fn connections_are_what_both_ends_see(
        events in proptest::collection::vec(event(), 1..150),
        caches in any::<bool>(),
        ring_slots in prop_oneof![Just(0u32), Just(8), Just(64)],
    ) {
        let host = Host::crowded(caches, ring_slots);
        let mut known = Known::new();
        for event in events {
            match event {
                Event::Packet { port, frontend, flags, forward } => {
                    exchange(&host, &mut known, (port, frontend), flags, forward);
                }
                Event::Open { port, frontend } => {
                    for (forward, flags) in [(true, SYN), (false, SYN | ACK), (true, ACK)] {
                        exchange(&host, &mut known, (port, frontend), flags, forward);
                    }
                }
                Event::Time(seconds) => host.now.set(host.now.get() + seconds * SECOND),
                Event::Collect => host.collect(),
            }
            host.assert_whole();
        }
    }
}
