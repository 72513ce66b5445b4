//! Connections that do not end as they should, and such that begin where others were.

use proptest::prelude::*;
use redirector_common::packet::{Environment, Step, TcpFlags};
use redirector_common::{FlowState, Protocol, Reason, Tuple};

use crate::deciding::{client, node, packet, tcp, udp};
use crate::host::{Host, SECOND};

const SYN: u8 = TcpFlags::SYN;
const ACK: u8 = TcpFlags::ACK;
const FIN: u8 = TcpFlags::FIN;
const RST: u8 = TcpFlags::RST;

/// A node with one backend elsewhere behind two frontends, and one of its own behind a third.
fn host() -> Host {
    Host::serving(&[80, 81], &[82])
}

/// One connection, through the host.
struct Connection<'a> {
    host: &'a Host,
    there: Tuple,
    back: Tuple,
}

impl<'a> Connection<'a> {
    /// One whose SYN was sent.
    fn open(host: &'a Host) -> Self {
        let syn = tcp(client(4000), node(80), SYN);
        let (decision, outcome) = host.ingress(&syn);
        assert_eq!(decision.reason, Reason::RemoteNew);
        Self { host, there: syn.tuple, back: outcome.translated.reversed() }
    }

    /// One whose handshake is complete, and that is in the flow cache.
    fn establish(host: &'a Host) -> Self {
        let connection = Self::open(host);
        connection.says(&[(false, SYN | ACK), (true, ACK), (false, ACK), (true, ACK)]);
        assert_eq!(connection.state(), FlowState::Established);
        connection
    }

    /// Client (`true`) and backend send packets, which all get through.
    fn says(&self, packets: &[(bool, u8)]) {
        for &(forward, flags) in packets {
            let tuple = if forward { self.there } else { self.back };
            let (decision, outcome) = self.host.ingress(&packet(tuple, flags));
            assert_eq!(decision.step, Step::Forward, "{forward} {flags:#x}");
            let expected = if forward { self.back } else { self.there };
            assert_eq!(outcome.translated, expected.reversed());
            self.host.assert_whole();
        }
    }

    fn state(&self) -> FlowState {
        self.host.flows()[&self.there].state()
    }
}

#[test]
fn a_reset_that_nobody_believes_closes_nothing() {
    for forged_by_client in [true, false] {
        let host = host();
        let connection = Connection::establish(&host);
        connection.says(&[(forged_by_client, RST)]);
        assert_eq!(connection.state(), FlowState::Closed);
        // What was on its way, or the answer to a number that was nearly right.
        connection.says(&[(!forged_by_client, ACK), (!forged_by_client, ACK)]);
        assert_eq!(connection.state(), FlowState::Closed);
        host.now.set(host.now.get() + 100 * SECOND);
        connection.says(&[(forged_by_client, ACK)]);
        assert_eq!(connection.state(), FlowState::Established);
        host.now.set(host.now.get() + 100_000 * SECOND);
        connection.says(&[(true, ACK), (false, ACK)]);
    }
}

#[test]
fn a_reset_that_is_believed_stays_one() {
    let host = host();
    let connection = Connection::establish(&host);
    // The backend goes on until it hears of it, and the client repeats itself.
    connection.says(&[(true, RST), (false, ACK), (true, RST), (false, ACK | FIN), (true, RST)]);
    assert_eq!(connection.state(), FlowState::Closed);
    // The same with a client that had data on its way.
    let connection = Connection::establish(&host);
    connection.says(&[(true, ACK), (false, RST), (true, ACK), (false, RST), (true, ACK)]);
    assert_eq!(connection.state(), FlowState::Closed);
    host.now.set(host.now.get() + 121 * SECOND);
    assert!(host.flows()[&connection.there].is_expired(host.now.get()));
}

#[test]
fn a_reset_connection_that_goes_on_remembers_who_had_finished() {
    let host = host();
    let connection = Connection::establish(&host);
    connection.says(&[(true, FIN | ACK), (false, RST), (false, ACK), (true, ACK)]);
    assert_eq!(connection.state(), FlowState::HalfClosed);
    connection.says(&[(false, FIN | ACK)]);
    assert_eq!(connection.state(), FlowState::TimeWait);
}

#[test]
fn a_reset_of_an_earlier_connection_does_not_end_the_next() {
    let host = host();
    let connection = Connection::open(&host);
    connection.says(&[(true, RST), (false, SYN | ACK)]);
    assert_eq!(connection.state(), FlowState::SynReceived);
    connection.says(&[(true, ACK)]);
    assert_eq!(connection.state(), FlowState::Established);
}

#[test]
fn a_half_closed_connection_waits_for_its_answer() {
    let host = host();
    let connection = Connection::establish(&host);
    connection.says(&[(true, FIN | ACK), (false, ACK)]);
    host.now.set(host.now.get() + 3599 * SECOND);
    assert!(!host.flows()[&connection.there].is_expired(host.now.get()));
    connection.says(&[(false, ACK), (false, FIN | ACK), (true, ACK)]);
    assert_eq!(connection.state(), FlowState::TimeWait);
}

#[test]
fn a_connection_that_the_backend_had_forgotten_begins_anew() {
    let host = host();
    let connection = Connection::establish(&host);
    connection.says(&[(false, FIN | ACK)]);
    // The client was switched off, and uses the port again.
    host.now.set(host.now.get() + 600 * SECOND);
    connection.says(&[(true, SYN), (false, SYN | ACK), (true, ACK)]);
    assert_eq!(connection.state(), FlowState::Established);
    connection.says(&[(true, FIN | ACK)]);
    assert_eq!(connection.state(), FlowState::HalfClosed, "the FIN was of another connection");
}

/// Two CPUs that see a FIN each, and not yet the other's, both say that the connection is half
/// closed. The next packet of either end makes up for it.
#[test]
fn ends_that_meet_are_both_seen() {
    for is_acknowledged in [true, false] {
        let host = host();
        let connection = Connection::establish(&host);
        host.raise_all_epochs();
        for key in [connection.there, connection.back] {
            let half = host.flow(&key).unwrap();
            half.set_fin_seen();
            half.set_state(FlowState::HalfClosed);
        }
        if is_acknowledged {
            connection.says(&[(true, ACK)]);
            assert_eq!(connection.state(), FlowState::TimeWait);
        }
        assert_eq!(host.ingress(&packet(connection.there, SYN)).0.reason, Reason::RemoteNew);
    }
}

/// Of nobody but those who shake hands flows are kept for longer than of any who knocks.
#[test]
fn who_never_shook_hands_is_half_open() {
    let host = host();
    let connection = Connection::open(&host);
    connection.says(&[(true, FIN | ACK), (true, FIN), (true, ACK), (true, 0)]);
    assert_eq!(connection.state(), FlowState::SynSent);
    connection.says(&[(false, SYN | ACK), (true, 0), (true, FIN), (true, TcpFlags::SYN | ACK)]);
    assert_eq!(connection.state(), FlowState::SynReceived);
}

/// Somebody removes an old flow half by half; in between its client comes again.
#[test]
fn what_is_left_of_an_earlier_flow_is_not_believed() {
    for protocol in Protocol::ALL {
        for is_first_gone in [true, false] {
            let host = host();
            let send = |source, destination, flags| match protocol {
                Protocol::Tcp => tcp(source, destination, flags),
                Protocol::Udp => udp(source, destination),
            };
            let syn = send(client(4000), node(82), SYN);
            let (_, outcome) = host.ingress(&syn);
            let back = outcome.translated.reversed();
            let _ = host.egress(&packet(back, syn.flags.0 | ACK));
            let _ = host.ingress(&send(client(4000), node(82), ACK));
            for flags in [FIN | ACK, RST] {
                let _ = host.ingress(&send(client(4000), node(82), flags));
            }
            host.now.set(host.now.get() + 200 * SECOND);
            host.remove_flow(if is_first_gone { &syn.tuple } else { &back });
            assert_eq!(host.ingress(&syn).0.reason, Reason::LocalNew);
            host.assert_whole();
            assert!(host.flows().values().all(|half| half.state().is_half_open()));
        }
    }
}

/// However a half has lost the other: a client that tries again gets its answer.
#[test]
fn a_half_alone_is_made_whole() {
    for (protocol, flags) in [(Protocol::Tcp, SYN), (Protocol::Udp, 0)] {
        let host = host();
        let first = packet(Tuple::new(protocol, client(4000), node(80)), flags);
        let (_, outcome) = host.ingress(&first);
        host.remove_flow(&outcome.translated.reversed());
        host.now.set(host.now.get() + 2 * SECOND);
        let (decision, outcome) = host.ingress(&first);
        assert_eq!(decision.reason, Reason::RemoteNew);
        let (decision, _) = host.ingress(&packet(outcome.translated.reversed(), flags | ACK));
        assert_eq!(decision.reason, Reason::RemoteReply);
        host.assert_whole();
    }
}

/// A half that has lost the other leaves alone what stands in its place.
#[test]
fn another_flows_half_is_left_alone() {
    let mut host = host();
    host.node.snat_count = 1;
    let connection = Connection::open(&host);
    host.remove_flow(&connection.back);
    let other = tcp(client(4001), node(80), SYN);
    let (decision, outcome) = host.ingress(&other);
    assert_eq!(
        (decision.reason, outcome.translated.reversed()),
        (Reason::RemoteNew, connection.back)
    );
    let _ = host.ingress(&packet(connection.back, SYN | ACK));
    let _ = host.ingress(&tcp(client(4001), node(80), ACK));
    let _ = host.ingress(&packet(connection.there, RST));
    assert_eq!(host.flows()[&other.tuple].state(), FlowState::Established);
    let (decision, _) = host.ingress(&packet(connection.there, SYN));
    assert_eq!(decision.reason, Reason::SnatExhausted);
    host.assert_whole();
    assert_eq!(host.flows().len(), 2);
}

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
        if flags == SYN | ACK
            && !forward
            && (!self.open || self.reset.is_some() || self.fins != [false; 2])
        {
            *self = Self { answered: true, ..Self::new(self.sent, now) };
        } else if flags & RST != 0 {
            self.reset = Some([false; 2]);
        } else if flags & SYN == 0 && self.answered {
            self.open |= forward;
            self.fins[end] |= flags & FIN != 0;
            if let Some(alive) = &mut self.reset {
                alive[end] = true;
                if *alive == [true; 2] {
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

/// Removes what is over, as the agent does.
fn collect(host: &Host) {
    let (now, flows) = (host.now.get(), host.flows());
    for (key, half) in &flows {
        let partner = half.translated.reversed();
        if half.is_expired(now) && flows.get(&partner).is_none_or(|half| half.is_expired(now)) {
            host.remove_flow(key);
            host.remove_flow(&partner);
        }
    }
}

/// What is known of the connections of clients' ports to frontends.
type Known = std::collections::BTreeMap<(u16, u16), Observed>;

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
        let mut host = host();
        (host.caches, host.node.ring_slots, host.node.snat_count) = (caches, ring_slots, 6);
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
                Event::Collect => collect(&host),
            }
            host.assert_whole();
        }
    }
}
