//! Any datagrams of any clients, beside what an observer of both ends knows of them.

use std::collections::BTreeMap;

use proptest::prelude::*;
use redirector_common::packet::Step;
use redirector_common::{Reason, Tuple};

use crate::deciding::{client, node, packet, udp};
use crate::host::{Host, SECOND};

/// For how long a client that was answered may say nothing: the kernel's
/// `nf_conntrack_udp_timeout_stream`, as kube-proxy leaves it.
const PATIENCE: u64 = 120 * SECOND;

/// What an observer of both sides would say of a client's port and a frontend.
#[derive(Clone, Copy, Debug)]
struct Observed {
    /// As the backend sees it.
    sent: Tuple,
    answered: bool,
    last: u64,
}

impl Observed {
    /// Whether nothing may happen to it.
    fn is_protected(&self, now: u64) -> bool {
        self.answered && now - self.last <= PATIENCE
    }
}

/// What is known of clients' ports and frontends.
type Known = BTreeMap<(u16, u16), Observed>;

#[derive(Clone, Copy, Debug)]
enum Event {
    /// From a client's port to a frontend.
    Question(u16, u16),
    /// From the backend that was asked.
    Answer(u16, u16),
    /// So many seconds pass.
    Time(u64),
    /// What is over is collected.
    Collect,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        10 => (0u16..6, 80u16..=82).prop_map(|(port, frontend)| Event::Question(port, frontend)),
        6 => (0u16..6, 80u16..=82).prop_map(|(port, frontend)| Event::Answer(port, frontend)),
        3 => prop_oneof![4 => 0u64..60, 2 => 100u64..130, 1 => Just(5000)].prop_map(Event::Time),
        1 => Just(Event::Collect),
    ]
}

fn ask(host: &Host, known: &mut Known, of: (u16, u16)) {
    let now = host.now.get();
    let (decision, outcome) = host.ingress(&udp(client(4000 + of.0), node(of.1)));
    let before = known.get(&of).copied();
    let is_protected = before.is_some_and(|before| before.is_protected(now));
    if !matches!(decision.step, Step::Forward | Step::Deliver) {
        assert_eq!(decision.reason, Reason::SnatExhausted);
        assert!(!is_protected, "{before:?} has no port");
        known.remove(&of);
        return;
    }
    let is_new = matches!(decision.reason, Reason::LocalNew | Reason::RemoteNew);
    let sent = outcome.translated;
    match before {
        Some(before) if !is_new => assert_eq!(sent, before.sent),
        Some(_) => assert!(!is_protected, "{before:?} lost its flow"),
        None => assert!(is_new),
    }
    // Whose port it was, if somebody's, has lost it.
    known.retain(|key, other| {
        let is_taken = other.sent == sent && *key != of;
        assert!(!is_taken || !other.is_protected(now), "{other:?} lost its port");
        !is_taken
    });
    let answered = !is_new && before.is_some_and(|before| before.answered);
    known.insert(of, Observed { sent, answered, last: now });
}

fn answer(host: &Host, known: &mut Known, of: (u16, u16)) {
    let Some(before) = known.get(&of).copied() else { return };
    let now = host.now.get();
    let back = packet(before.sent.reversed(), 0);
    let (decision, outcome) = if of.1 == 82 { host.egress(&back) } else { host.ingress(&back) };
    if decision.step == Step::Pass {
        assert!(!before.is_protected(now), "{before:?} lost its reply half");
        known.remove(&of);
    } else {
        let there = udp(client(4000 + of.0), node(of.1)).tuple;
        assert_eq!(outcome.translated, there.reversed(), "somebody else's answer");
        known.insert(of, Observed { answered: true, last: now, ..before });
    }
}

proptest! {
    /// Halves never part; an answer goes to who has asked; and whoever is answered keeps backend
    /// and port for as long as behind kube-proxy.
    #[test]
    fn answers_go_to_who_has_asked(
        events in proptest::collection::vec(event(), 1..150),
        caches in any::<bool>(),
        ring_slots in prop_oneof![Just(0u32), Just(8), Just(64)],
    ) {
        let host = Host::crowded(caches, ring_slots);
        let mut known = Known::new();
        for event in events {
            match event {
                Event::Question(port, frontend) => ask(&host, &mut known, (port, frontend)),
                Event::Answer(port, frontend) => answer(&host, &mut known, (port, frontend)),
                Event::Time(seconds) => host.now.set(host.now.get() + seconds * SECOND),
                Event::Collect => host.collect(),
            }
            host.assert_whole();
        }
    }
}
