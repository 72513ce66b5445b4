//! Connections that do not end as they should, and such that begin where others were.

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

/// Nobody gets a flow that is kept for days without that somebody answered it.
#[test]
fn a_refused_connection_has_nothing_to_go_on_with() {
    let host = host();
    let connection = Connection::open(&host);
    connection.says(&[(false, RST | ACK), (false, ACK), (true, ACK), (true, ACK)]);
    assert_eq!(connection.state(), FlowState::Closed);
    // And one that begins in its place ends as any other.
    let connection = Connection::open(&host);
    connection.says(&[(false, SYN | ACK), (true, ACK), (true, FIN | ACK)]);
    assert_eq!(connection.state(), FlowState::HalfClosed);
}

/// An answer to a SYN that comes late opens nothing again; nor does a RST that nobody believes.
#[test]
fn a_finished_connection_stays_so() {
    let host = host();
    let connection = Connection::establish(&host);
    connection.says(&[(true, FIN | ACK), (false, FIN | ACK), (false, SYN | ACK), (true, ACK)]);
    assert_eq!(connection.state(), FlowState::TimeWait);
    connection.says(&[(false, RST), (false, ACK), (true, ACK)]);
    assert!(connection.state().is_finished());
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
