//! Opening a flow: from frontend to backend, and both halves into the table.

use super::decide::{established, way};
use super::environment::InsertError;
use super::select::select;
use super::track::is_over;
use super::{Action, Environment, FlowEntry, Hook, IcmpError, NextHop, Packet, Scratch};
use crate::packet::decide::Translation;
use crate::{
    Address, Backend, Direction, Frontend, FrontendKey, Port, Protocol, Reason, Service, Tuple,
};

/// Ports of the translation block that are tried for one new flow. From a random start, so that a
/// client's retransmission tries others.
const PORT_ATTEMPTS: u32 = 32;

/// Decides about a packet to a possible frontend that belongs to no flow.
#[inline(always)]
pub(super) fn open<E: Environment>(
    environment: &E,
    packet: &Packet,
    hook: Hook,
    len: u16,
) -> Action {
    let tuple = &packet.tuple;
    let key = FrontendKey::new(tuple.destination, tuple.destination_port, tuple.protocol());
    let Some(frontend) = environment.frontend(&key) else {
        return Action::Pass(Reason::NotOurs);
    };
    if matches!(tuple.protocol(), Protocol::Tcp) && !packet.flags.opens() {
        return Action::Pass(Reason::NoFlow);
    }
    let Some(service) = environment.service(frontend.service) else {
        return Action::Drop(Reason::Inconsistent);
    };
    if service.table_size == 0 {
        return no_backend(&service, hook);
    }
    let Some(id) = select(environment, &service, tuple) else {
        return Action::Drop(Reason::Inconsistent);
    };
    let Some(backend) = environment.backend(id).filter(Backend::is_some) else {
        return Action::Drop(Reason::Inconsistent);
    };
    let Some(mut scratch) = environment.scratch() else {
        return Action::Drop(Reason::Inconsistent);
    };
    // SAFETY: the environment gives scratch memory to one packet at a time.
    let scratch = unsafe { scratch.as_mut() };
    let ids = (frontend.service, id);
    if backend.is_local() {
        open_local(environment, packet, hook, len, scratch, ids, &frontend, &backend)
    } else {
        open_remote(environment, packet, hook, len, scratch, ids, &backend)
    }
}

#[inline(always)]
fn no_backend(service: &Service, hook: Hook) -> Action {
    match hook {
        Hook::Xdp => Action::HandOver,
        Hook::Ingress if service.is_silent() => Action::Drop(Reason::NoLocalBackend),
        Hook::Ingress => Action::Reject(Reason::NoBackend, IcmpError::PortUnreachable),
    }
}

/// To a program in this host's own stack: the client's address and, where possible, port stay.
#[expect(clippy::too_many_arguments, reason = "one call site, inlined; a struct would be copied")]
#[inline(always)]
fn open_local<E: Environment>(
    environment: &E,
    packet: &Packet,
    hook: Hook,
    len: u16,
    scratch: &mut Scratch,
    ids: (u32, u32),
    frontend: &Frontend,
    backend: &Backend,
) -> Action {
    if matches!(hook, Hook::Xdp) {
        return Action::HandOver;
    }
    let destination =
        if backend.address.is_unspecified() { frontend.local_address } else { backend.address };
    let source = (packet.tuple.source, packet.tuple.source_port);
    fill(environment, packet, scratch, ids, true, source, (destination, backend.port));
    let inserted = match insert_reply(environment, scratch) {
        Err(Reason::SnatExhausted) => insert_reply_with_port(environment, scratch),
        done => done,
    };
    match inserted.and_then(|()| insert_forward(environment, packet, scratch)) {
        Ok(None) => Action::Deliver(Reason::LocalNew, Translation::of(&scratch.forward.translated)),
        Ok(Some(entry)) => established(environment, packet, hook, len, entry),
        Err(reason) => Action::Drop(reason),
    }
}

/// To a backend elsewhere: the source becomes an address of the outgoing interface and a port of
/// the translation block, so that the answer comes back here.
#[inline(always)]
fn open_remote<E: Environment>(
    environment: &E,
    packet: &Packet,
    hook: Hook,
    len: u16,
    scratch: &mut Scratch,
    ids: (u32, u32),
    backend: &Backend,
) -> Action {
    let client = (packet.tuple.source, packet.tuple.source_port);
    fill(environment, packet, scratch, ids, false, client, (backend.address, backend.port));
    let next_hop: NextHop = match way(environment, packet, hook, len, &scratch.forward.translated) {
        Ok(next_hop) => next_hop,
        Err(action) => return action,
    };
    let address = environment
        .interface(next_hop.ifindex)
        .map_or(Address::UNSPECIFIED, |interface| interface.source(packet.family()));
    if address.is_unspecified() {
        return Action::Drop(Reason::NoSourceAddress);
    }
    scratch.forward.translated.source = address;
    scratch.reply_key.destination = address;
    let inserted = insert_reply_with_port(environment, scratch);
    match inserted.and_then(|()| insert_forward(environment, packet, scratch)) {
        Ok(None) => Action::Forward(
            Reason::RemoteNew,
            Translation::of(&scratch.forward.translated),
            next_hop,
        ),
        Ok(Some(entry)) => established(environment, packet, hook, len, entry),
        Err(reason) => Action::Drop(reason),
    }
}

/// Puts both halves together.
#[inline(always)]
fn fill<E: Environment>(
    environment: &E,
    packet: &Packet,
    scratch: &mut Scratch,
    (service, backend): (u32, u32),
    local: bool,
    source: (Address, Port),
    destination: (Address, Port),
) {
    let now = environment.now();
    let protocol = packet.tuple.protocol();
    let client = (packet.tuple.source, packet.tuple.source_port);
    let frontend = (packet.tuple.destination, packet.tuple.destination_port);
    scratch.forward.translated = Tuple::new(protocol, source, destination);
    scratch.forward.start(Direction::Forward, service, backend, local, now);
    scratch.forward.packets = 1;
    scratch.forward.bytes = u64::from(packet.ip_len);
    scratch.reply.translated = Tuple::new(protocol, frontend, client);
    scratch.reply.start(Direction::Reply, service, backend, local, now);
    scratch.reply_key = Tuple::new(protocol, destination, source);
}

/// Adds the reply half under the key as it stands. `SnatExhausted`: the key is another flow's.
#[inline(always)]
fn insert_reply<E: Environment>(environment: &E, scratch: &Scratch) -> Result<(), Reason> {
    match environment.insert_flow(&scratch.reply_key, &scratch.reply) {
        Ok(()) => Ok(()),
        Err(InsertError::Full) => Err(Reason::FlowTableFull),
        Err(InsertError::Exists) => match environment.flow(&scratch.reply_key) {
            // Another CPU is opening the very same flow, or left it half open: share it.
            Some(entry) if *entry.translated() == scratch.reply.translated => Ok(()),
            Some(entry) if is_over(environment, entry) => {
                environment.remove_flow(&entry.translated().reversed());
                environment.remove_flow(&scratch.reply_key);
                environment
                    .insert_flow(&scratch.reply_key, &scratch.reply)
                    .map_err(|_| Reason::SnatExhausted)
            }
            Some(_) | None => Err(Reason::SnatExhausted),
        },
    }
}

/// Adds the reply half under a key with a free port of the translation block, and notes the port
/// in the forward half.
#[inline(always)]
fn insert_reply_with_port<E: Environment>(
    environment: &E,
    scratch: &mut Scratch,
) -> Result<(), Reason> {
    let node = environment.node();
    let count = u32::from(node.snat_count);
    if count == 0 {
        return Err(Reason::SnatExhausted);
    }
    let random = environment.random();
    // A small block is walked one by one, so that every port is tried; a large one in strides
    // that differ from flow to flow, so that flows do not queue up behind each other.
    let stride = if count <= PORT_ATTEMPTS { 1 } else { (random >> 16) | 1 };
    let mut offset = (random & 0xffff) % count;
    for _ in 0..PORT_ATTEMPTS {
        let port = Port::new(node.snat_first.wrapping_add(offset as u16));
        scratch.forward.translated.source_port = port;
        scratch.reply_key.destination_port = port;
        match environment.insert_flow(&scratch.reply_key, &scratch.reply) {
            Ok(()) => return Ok(()),
            Err(InsertError::Full) => return Err(Reason::FlowTableFull),
            Err(InsertError::Exists) => offset = (offset + stride) % count,
        }
    }
    Err(Reason::SnatExhausted)
}

/// Adds the forward half. `Some`: another CPU was faster; its entry is the flow.
#[inline(always)]
fn insert_forward<E: Environment>(
    environment: &E,
    packet: &Packet,
    scratch: &Scratch,
) -> Result<Option<FlowEntry>, Reason> {
    match environment.insert_flow(&packet.tuple, &scratch.forward) {
        Ok(()) => Ok(None),
        Err(InsertError::Full) => {
            environment.remove_flow(&scratch.reply_key);
            Err(Reason::FlowTableFull)
        }
        Err(InsertError::Exists) => {
            let Some(entry) = environment.flow(&packet.tuple) else {
                return Err(Reason::FlowTableFull);
            };
            if *entry.translated() != scratch.forward.translated {
                environment.remove_flow(&scratch.reply_key);
            }
            Ok(Some(entry))
        }
    }
}
