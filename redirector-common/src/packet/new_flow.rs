//! Opening a flow: from frontend to backend, and both halves into the table.

use super::cached::Place;
use super::decide::{Decision, Outcome, Step, deliver, established, forward, is_moving, unclaimed};
use super::environment::{Inserted, Recorded};
use super::select::{choose, remember};
use super::steer::{Steering, steer};
use super::{Environment, FlowEntry, Hook, IcmpError, Packet, Route, Scratch, Socket, handover};
use crate::node::MAX_SNAT_ADDRESSES;
use crate::{
    Address, Direction, Frontend, FrontendKey, Manner, Origin, Port, Protocol, Reason, Service,
    SnatAddressKey, Tuple, words,
};

/// Ports of the translation block that are tried for one new flow, and as many again if need be,
/// taken from flows that are finished or half-open: a flood must not keep the ports from everyone
/// else. From a random start, so that a client's retransmission tries others.
const PORT_ATTEMPTS: u32 = 16;

/// The same of every further address: all of them together should not cost many times what one
/// does.
const FURTHER_ATTEMPTS: u32 = 8;

/// A block of so many ports is tried as a whole.
const SMALL_BLOCK: u32 = 32;

/// Decides about a packet to a possible frontend that belongs to no flow.
#[inline(always)]
pub(super) fn open<E: Environment>(
    environment: &E,
    packet: &Packet,
    place: Place,
    hook: Hook,
    len: u16,
    steering: Steering,
    outcome: &mut Outcome,
) -> Decision {
    let tuple = &packet.tuple;
    let key = FrontendKey::new(tuple.destination, tuple.destination_port, tuple.protocol());
    let Some(frontend) = environment.frontend(&key) else {
        return unclaimed(environment, packet, steering.flags(), Reason::NotOurs);
    };
    // An acknowledgement may end a handshake that was steered and of which the kernel has kept no
    // state: it goes the way of its SYN.
    let opens = matches!(tuple.protocol(), Protocol::Udp) || packet.flags.opens();
    if packet.is_tunnelled() && !opens {
        return Decision::drop(Reason::TunnelNoFlow);
    }
    let may_steer = steering.is_possible() && frontend.local_address == tuple.destination;
    let may_answer = may_steer && matches!(hook, Hook::Ingress) && packet.flags.acknowledges();
    if !opens && !may_answer {
        if is_moving(environment) {
            return Decision::drop(Reason::TableMoves);
        }
        return Decision::pass(Reason::NoFlow);
    }
    let Some(service) = environment.service(frontend.service) else {
        return Decision::drop(Reason::Inconsistent);
    };
    // Only here: flows that are open go on when the ranges change, and a service without ranges
    // pays for none.
    if opens
        && service.limits_sources()
        && !environment.source_allowed(frontend.service, &tuple.source)
    {
        return Decision::drop(Reason::SourceDenied);
    }
    let origin =
        if packet.is_tunnelled() || frontend.is_foreign() { Origin::Peer } else { Origin::Outside };
    let (_, size) = service.table(origin);
    if size == 0 {
        return if packet.is_tunnelled() {
            Decision::drop(Reason::TunnelNoBackend)
        } else if frontend.is_foreign() {
            Decision::pass(Reason::NotOurs)
        } else if opens {
            no_backend(environment, &service, hook, outcome)
        } else {
            Decision::pass(Reason::NoFlow)
        };
    }
    let Some(mut scratch) = environment.scratch() else {
        return Decision::drop(Reason::Inconsistent);
    };
    // SAFETY: the environment gives scratch memory to one packet at a time.
    let scratch = unsafe { scratch.as_mut() };
    // Noted where the verifier does not follow it, or it would walk all that comes twice.
    scratch.affinity_group = service.affinity_group;
    scratch.wanted = wanted(&service, &frontend, &tuple.destination) as u32;
    let Some(id) = choose(environment, frontend.service, &service, origin, tuple) else {
        return Decision::drop(Reason::Inconsistent);
    };
    let Some(backend) = environment.backend(id) else {
        return Decision::drop(Reason::Inconsistent);
    };
    if !backend.is_some() {
        return Decision::drop(Reason::Inconsistent);
    }
    let client = (tuple.source, tuple.source_port);
    let local = backend.is_local();
    let address = match (local, backend.address.is_unspecified()) {
        (true, true) => frontend.local_address,
        (true, false) | (false, _) => backend.address,
    };
    outcome.translated = Tuple::new(tuple.protocol(), client, (address, backend.port));
    if may_steer && backend.is_own() && steer(environment, packet, hook, &outcome.translated) {
        if !opens {
            return Decision::pass(Reason::SteeredEstablished);
        }
        remember(environment, scratch.affinity_group, &tuple.source, id);
        environment.count_steered(packet, frontend.service);
        return Decision::pass(Reason::SteeredNew);
    }
    if !opens {
        return Decision::pass(Reason::NoFlow);
    }
    // The choice was made by the first SYN, and backends may have changed since.
    if matches!(hook, Hook::Xdp)
        && steering.is_possible()
        && !local
        && matches!(environment.socket(packet), Socket::Open)
    {
        return Decision::pass(Reason::SteeredEstablished).unless_xdp(hook);
    }
    if is_moving(environment) {
        // It may be there, or be opened in a table that is about to go.
        return Decision::drop(Reason::TableMoves);
    }
    let mut decision = if packet.is_tunnelled() {
        // Recorded wherever it was uncovered: nothing on the packet tells TC ingress of it.
        Decision::deliver(Reason::LocalNew)
    } else if local {
        deliver(hook, Reason::LocalNew)
    } else {
        outcome.manner = scratch.wanted();
        let route = if packet.ttl <= 1 {
            Route::TooFar
        } else {
            handover::find_way(environment, packet, len, true, outcome)
        };
        forward(environment, hook, Reason::RemoteNew, route, outcome)
    };
    if !matches!(decision.step, Step::Deliver | Step::Forward | Step::ForwardUnresolved) {
        return decision;
    }
    if local {
        outcome.manner = Manner::Translate;
        words::copy(&tuple.source, &mut scratch.source);
        scratch.outgoing = 0;
    } else {
        scratch.outgoing = outcome.next_hop.ifindex;
        scratch.source = environment
            .interface(scratch.outgoing)
            .map_or(Address::UNSPECIFIED, |interface| interface.source(packet.family()));
        if scratch.source.is_unspecified() {
            return Decision::drop(Reason::NoSourceAddress);
        }
        if !outcome.manner.hands_over() {
            outcome.translated.source = scratch.source;
        }
    }
    fill(environment, packet, scratch, (frontend.service, id), local, &outcome.translated);
    scratch.forward.set_manner(outcome.manner);
    scratch.reply.set_manner(outcome.manner);
    if packet.is_tunnelled() && matches!(hook, Hook::Xdp) {
        // TC ingress counts it.
        scratch.forward.packets = 0;
        scratch.forward.bytes = 0;
    }
    let keeps_client = local || outcome.manner.hands_over();
    environment.admit(packet, scratch);
    let mut recorded = environment.record(packet, scratch, keeps_client);
    if matches!(recorded, Recorded::Full) && environment.reclaim() {
        recorded = environment.record(packet, scratch, keeps_client);
    }
    match recorded {
        Recorded::New => {
            words::copy(&scratch.forward.translated, &mut outcome.translated);
            outcome.manner = scratch.forward.manner();
            if outcome.manner.hands_over() {
                decision.reason = Reason::DsrNew;
            }
            remember(environment, scratch.affinity_group, &tuple.source, id);
        }
        Recorded::Elsewhere => match environment.flow(&packet.tuple) {
            Some(entry) => {
                decision = established(environment, packet, place, hook, len, entry, outcome);
            }
            None => return Decision::drop(Reason::FlowTableFull),
        },
        Recorded::Full => return Decision::drop(Reason::FlowTableFull),
        Recorded::NoPort => return Decision::drop(Reason::SnatExhausted),
    }
    if packet.is_tunnelled() { decision.unless_xdp(hook) } else { decision }
}

/// How packets of a service's flows are to get to a backend elsewhere, if that can be. As they
/// are only if nobody but this host would take them: a node that has the address itself would not
/// know that another has decided.
#[inline(always)]
fn wanted(service: &Service, frontend: &Frontend, address: &Address) -> Manner {
    if !service.is_dsr() || frontend.is_unlisted() {
        Manner::Translate
    } else if frontend.local_address == *address {
        Manner::Layer2
    } else {
        Manner::Tunnel
    }
}

#[inline(always)]
fn no_backend<E: Environment>(
    environment: &E,
    service: &Service,
    hook: Hook,
    outcome: &mut Outcome,
) -> Decision {
    if service.is_silent() {
        return Decision::drop(Reason::NoLocalBackend);
    }
    let error = IcmpError::PortUnreachable;
    Decision::reject(environment, hook, Reason::NoBackend, error, outcome)
}

/// Puts both halves together.
#[inline(always)]
fn fill<E: Environment>(
    environment: &E,
    packet: &Packet,
    scratch: &mut Scratch,
    (service, backend): (u32, u32),
    local: bool,
    translated: &Tuple,
) {
    let now = environment.now();
    scratch.forward.translated = *translated;
    scratch.forward.start(Direction::Forward, service, backend, local, now);
    scratch.forward.packets = 1;
    scratch.forward.bytes = u64::from(packet.ip_len);
    scratch.reply.translated = packet.tuple.reversed();
    scratch.reply.start(Direction::Reply, service, backend, local, now);
    scratch.reply_key = translated.reversed();
}

/// Adds both halves, the reply half first: its key is free exactly if no other flow would look
/// the same to the backend. Local backends see the client's own port where that is so, and
/// everyone else a port of the translation block.
///
/// Of the addresses that a source may be translated to, the first is used for as long as it has
/// ports; and no port is taken from a flow while another address has a free one.
#[inline(always)]
pub fn record<E: Environment>(
    environment: &E,
    packet: &Packet,
    scratch: &mut Scratch,
    keep_port: bool,
) -> Recorded {
    if packet.is_tunnelled() && environment.node().clamps_mss() {
        scratch.reply.set_clamps_mss();
    }
    if keep_port {
        match environment.insert_flow(&scratch.reply_key, &scratch.reply) {
            Inserted::Done => return record_forward(environment, packet, scratch),
            Inserted::Full => return Recorded::Full,
            Inserted::Exists => {}
        }
        // Another flow of the client's looks the same to the backend; or another CPU is opening
        // this very flow: its half is shared. Or somebody is about to remove what is left of an
        // earlier one, and says of a connection that is over what would be believed of this.
        if let Some(entry) = environment.flow(&scratch.reply_key)
            && *entry.translated() == scratch.reply.translated
        {
            if !is_opening(environment, entry) {
                environment.remove_flow(&scratch.reply_key);
                if matches!(
                    environment.insert_flow(&scratch.reply_key, &scratch.reply),
                    Inserted::Full
                ) {
                    return Recorded::Full;
                }
            }
            return record_forward(environment, packet, scratch);
        }
        scratch.forward.set_manner(Manner::Translate);
        scratch.reply.set_manner(Manner::Translate);
    }
    for takes in [false, true] {
        for position in 0..MAX_SNAT_ADDRESSES {
            let (source, attempts) = if position == 0 {
                (scratch.source, PORT_ATTEMPTS)
            } else {
                let key = SnatAddressKey::new(scratch.outgoing, packet.family(), position);
                match environment.snat_address(&key) {
                    Some(source) => (source, FURTHER_ATTEMPTS),
                    None => break,
                }
            };
            scratch.forward.translated.source = source;
            scratch.reply_key.destination = source;
            let recorded = environment.try_ports(packet, scratch, attempts, takes);
            if !matches!(recorded, Recorded::NoPort) {
                return recorded;
            }
        }
    }
    Recorded::NoPort
}

/// Whether a half is of a flow that is just being opened.
#[inline(always)]
fn is_opening<E: Environment>(environment: &E, entry: FlowEntry) -> bool {
    const SECOND: u64 = 1_000_000_000;
    entry.state().is_half_open() && entry.age(environment.now()) < SECOND
}

/// Adds both halves with the source address that they have and a port of the translation block.
/// `takes`: ports of flows that are finished or half-open are taken from them.
#[inline(always)]
pub fn try_ports<E: Environment>(
    environment: &E,
    packet: &Packet,
    scratch: &mut Scratch,
    attempts: u32,
    takes: bool,
) -> Recorded {
    let node = environment.node();
    let count = u32::from(node.snat_count);
    if count == 0 {
        return Recorded::NoPort;
    }
    let random = environment.random();
    // A small block is walked one by one, so that every port is tried; a large one in strides
    // that differ from flow to flow, so that flows do not queue up behind each other.
    let (stride, attempts) =
        if count <= SMALL_BLOCK { (1, count) } else { ((random >> 16) | 1, attempts) };
    let mut offset = random & 0xffff;
    for attempt in 0..SMALL_BLOCK {
        if attempt >= attempts {
            break;
        }
        offset = (offset + stride) % count;
        let port = Port::new(node.snat_first.wrapping_add(offset as u16));
        scratch.forward.translated.source_port = port;
        scratch.reply_key.destination_port = port;
        let mut inserted = environment.insert_flow(&scratch.reply_key, &scratch.reply);
        if takes && matches!(inserted, Inserted::Exists) && environment.vacate(scratch) {
            inserted = environment.insert_flow(&scratch.reply_key, &scratch.reply);
        }
        match inserted {
            Inserted::Done => return record_forward(environment, packet, scratch),
            Inserted::Full => return Recorded::Full,
            Inserted::Exists => {}
        }
    }
    Recorded::NoPort
}

/// Adds the forward half, or takes the reply half back.
#[inline(always)]
fn record_forward<E: Environment>(environment: &E, packet: &Packet, scratch: &Scratch) -> Recorded {
    match environment.insert_flow(&packet.tuple, &scratch.forward) {
        Inserted::Done => Recorded::New,
        Inserted::Full => {
            environment.remove_flow(&scratch.reply_key);
            Recorded::Full
        }
        Inserted::Exists => {
            let shared = environment
                .flow(&packet.tuple)
                .is_some_and(|entry| *entry.translated() == scratch.forward.translated);
            if !shared {
                environment.remove_flow(&scratch.reply_key);
            }
            Recorded::Elsewhere
        }
    }
}
