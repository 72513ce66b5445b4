//! What an event says of a packet.

use redirector_common::packet::{Hook, Packet, TcpFlags};
use redirector_common::{
    Address, Backend, Direction, Event, Manner, Port, PortFlags, Protocol, Reason, Tuple, Watch,
};

use crate::host::{Host, IFINDEX, v4};

const SYN: u8 = TcpFlags::SYN;
const ACK: u8 = TcpFlags::ACK;

fn client() -> (Address, Port) {
    (Address::from_v4([198, 51, 100, 9]), Port::new(4000))
}

fn frontend() -> (Address, Port) {
    (v4(1), Port::new(80))
}

fn packet(flags: u8, source: (Address, Port), destination: (Address, Port)) -> Packet {
    let tuple = Tuple::new(Protocol::Tcp, source, destination);
    Packet { tuple, ip_len: 60, ttl: 64, flags: TcpFlags(flags), ..Packet::EMPTY }
}

/// What is told of a packet that a hook has decided about.
fn told(host: &Host, hook: Hook, packet: &Packet) -> Event {
    let (decision, outcome) = host.at(hook, packet);
    let mut event = Event::EMPTY;
    event.describe(host, packet, &outcome, decision.reason.into(), hook);
    assert_eq!(event.reason(), Some(decision.reason));
    event
}

#[test]
fn a_request_and_its_reply_are_of_one_flow() {
    let backend = (v4(5), Port::new(8080));
    let mut host = Host::new();
    host.serve(&[80], Protocol::Tcp, Some(Backend::remote(backend.0, backend.1)));
    let request = told(&host, Hook::Ingress, &packet(SYN, client(), frontend()));
    assert_eq!(request.reason(), Some(Reason::RemoteNew));
    assert_eq!(request.direction(), Some(Direction::Forward));
    assert_eq!(request.out_ifindex, IFINDEX);
    let translated = *request.translated().expect("translated");
    host.mark(translated.source_port.number(), PortFlags::SNAT);
    let source = (translated.source, translated.source_port);
    let reply = told(&host, Hook::Ingress, &packet(SYN | ACK, backend, source));
    assert_eq!(reply.reason(), Some(Reason::RemoteReply));
    assert_eq!(reply.direction(), Some(Direction::Reply));
    for event in [request, reply] {
        assert_eq!(event.client(), Some(client()));
        assert_eq!(event.frontend(), Some(frontend()));
        assert_eq!(event.backend(), Some(backend));
        assert_eq!(event.service, 1);
        assert!(Watch::NONE.matches(&event));
        let mut services = Watch::NONE.services;
        services[0] = 1;
        assert!(Watch { services, ..Watch::NONE }.matches(&event));
        services[0] = 2;
        assert!(!Watch { services, ..Watch::NONE }.matches(&event));
    }
}

#[test]
fn a_drop_has_a_service_and_no_backend() {
    let mut host = Host::new();
    host.serve(&[80], Protocol::Tcp, None);
    // What the packet before it has left.
    let mut event = Event::EMPTY;
    let syn = packet(SYN, client(), frontend());
    let (decision, mut outcome) = host.ingress(&syn);
    outcome.translated = syn.tuple;
    event.describe(&host, &syn, &outcome, decision.reason.into(), Hook::Ingress);
    assert_eq!(event.reason(), Some(Reason::NoBackend));
    assert_eq!((event.service, event.backend(), event.translated()), (1, None, None));
    assert_eq!((event.client(), event.frontend()), (Some(client()), Some(frontend())));
    assert_eq!((event.direction(), event.out_ifindex), (None, 0));
}

#[test]
fn what_is_steered_goes_to_the_listener() {
    let mut host = Host::new();
    host.serve(&[80], Protocol::Tcp, Some(Backend::local(Port::new(8080))));
    host.mark(80, PortFlags::STEER);
    host.listeners.borrow_mut().insert((v4(1), 8080));
    let event = told(&host, Hook::Ingress, &packet(SYN, client(), frontend()));
    assert_eq!(event.reason(), Some(Reason::SteeredNew));
    assert_eq!(event.backend(), Some((v4(1), Port::new(8080))));
    assert_eq!(event.service, 1);
}

/// Also once the outcome says only where the packet goes.
#[test]
fn what_is_handed_over_has_its_backend() {
    let backend = (v4(5), Port::new(8080));
    let mut host = Host::new();
    host.serve(&[80], Protocol::Tcp, Some(Backend::remote(backend.0, backend.1)));
    let syn = packet(SYN, client(), frontend());
    let (decision, mut outcome) = host.ingress(&syn);
    outcome.manner = Manner::Tunnel;
    outcome.translated = syn.tuple;
    let mut event = Event::EMPTY;
    event.describe(&host, &syn, &outcome, decision.reason.into(), Hook::Ingress);
    assert_eq!(event.backend(), Some(backend));
}

#[test]
fn what_has_no_ports_has_no_ends() {
    let host = Host::new();
    let stale = packet(SYN, client(), frontend());
    let mut event = Event::EMPTY;
    let (_, outcome) = host.ingress(&stale);
    event.describe(&host, &stale, &outcome, Reason::NotIp.into(), Hook::Ingress);
    assert_eq!((event.claimed(), event.client(), event.backend()), (None, None, None));
    assert!(Watch::NONE.matches(&event));
    assert!(!Watch { protocol: 6, ..Watch::NONE }.matches(&event));
}
