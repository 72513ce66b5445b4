//! What whoever watches is told, and what not. That a packet's bytes and Reason are right, and that
//! nothing is different for being watched, every row of every table shows; see `case`.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};
use redirector::dataplane::pins::Hook;
use redirector_common::{
    Address, Direction, Event, Family, Port, Protocol, Reason, Watch,
    event::{Phase, bit},
    map_name::MapName,
    watch::End,
};
use redirector_tests::{
    packet::{Flags, Packet, Transport},
    program::{Programs, functions},
    topology::FAMILIES,
};

use crate::{
    given::{CLIENT_PORT, Given, from_local, monotonic_now, to_frontend},
    world::{self, BACKEND, CLIENT, NODE, NODE_INSIDE, OTHER_CLIENT, at},
};

fn on_a_node(test: impl FnOnce(&mut Programs) -> Result<()> + Send + 'static) -> Result<()> {
    world::build_node()?.enter(move || {
        let mut programs = Programs::load()?;
        world::fill_maps(&mut programs)?;
        test(&mut programs)
    })
}

fn everything() -> Watch {
    Watch { until: u64::MAX, ..Watch::NONE }
}

/// What is told of the packet by a watcher who asks so.
fn told(
    programs: &mut Programs,
    watch: Watch,
    hook: Hook,
    packet: &Packet,
) -> Result<Vec<(Event, Vec<u8>)>> {
    programs.set(MapName::Watch, 0, watch)?;
    programs.run((hook, functions(hook)[0]), world::ifindex("eth0")?, &packet.bytes(), 0)?;
    programs.events()
}

const SYN: Transport = Transport::Tcp(Flags::SYN);
const ACK: Transport = Transport::Tcp(Flags::ACK);

fn end((address, port): (Address, Port)) -> SocketAddr {
    SocketAddr::new(address.into(), port.number())
}

/// Client, frontend and backend are the same for a request and for its reply.
#[test]
fn both_directions_name_the_same_ends() -> Result<()> {
    on_a_node(|programs| {
        for family in FAMILIES {
            let flow = Given::local(Protocol::Tcp, family);
            flow.insert(programs)?;
            let request = to_frontend(ACK, family, world::LOCAL);
            let rows = [
                (Hook::Ingress, request, Reason::LocalEstablished, Direction::Forward),
                (Hook::Egress, from_local(ACK, family), Reason::LocalReply, Direction::Reply),
            ];
            for (hook, packet, reason, direction) in rows {
                let events = told(programs, everything(), hook, &packet)?;
                ensure!(events.len() == 2, "{events:?}");
                for (event, _) in events {
                    ensure!(
                        event.reason() == Some(reason) && event.direction() == Some(direction),
                        "{event:?}"
                    );
                    ensure!(
                        event.client().map(end) == Some(at(CLIENT, family, CLIENT_PORT))
                            && event.frontend().map(end) == Some(at(NODE, family, world::LOCAL))
                            && event.backend().map(end)
                                == Some(at(NODE, family, world::LOCAL_PORT)),
                        "{event:?}"
                    );
                    ensure!(event.ifindex == world::ifindex("eth0")?, "{event:?}");
                    ensure!(event.out_ifindex == 0, "{event:?}");
                }
            }
        }
        Ok(())
    })
}

/// A packet that is forwarded: the service, both tuples, both interfaces, from either hook.
#[test]
fn a_new_flow_is_told_in_full() -> Result<()> {
    on_a_node(|programs| {
        for family in FAMILIES {
            for hook in [Hook::Xdp, Hook::Ingress] {
                programs.clear_flows()?;
                let packet = to_frontend(SYN, family, world::REMOTE);
                let events = told(programs, everything(), hook, &packet)?;
                let flows = programs.flows()?;
                let flow = flows.values().find(|flow| flow.direction() == Direction::Forward);
                let service = flow.map(|flow| flow.service);
                ensure!(events.len() == 2, "{events:?}");
                for (event, _) in events {
                    let ends = event.translated().map(|it| {
                        (
                            end((it.source, it.source_port)),
                            end((it.destination, it.destination_port)),
                        )
                    });
                    let source = at(NODE_INSIDE, family, world::SNAT);
                    let backend = at(BACKEND, family, world::REMOTE_PORT);
                    ensure!(
                        event.reason() == Some(Reason::RemoteNew)
                            && Some(event.service) == service
                            && ends == Some((source, backend))
                            && event.ifindex == world::ifindex("eth0")?
                            && event.out_ifindex == world::ifindex("eth1")?,
                        "{event:?}"
                    );
                    ensure!(event.time <= monotonic_now()?, "{event:?}");
                }
            }
        }
        Ok(())
    })
}

/// A packet that goes nowhere has no backend, but a service and a frontend.
#[test]
fn a_drop_names_its_service() -> Result<()> {
    on_a_node(|programs| {
        for family in FAMILIES {
            let packet = to_frontend(SYN, family, world::REMOTE_CLOSED);
            for hook in [Hook::Xdp, Hook::Ingress] {
                let events = told(programs, everything(), hook, &packet)?;
                let [(event, bytes)] = events.as_slice() else {
                    anyhow::bail!("{events:?}");
                };
                ensure!(
                    event.reason() == Some(Reason::SourceDenied)
                        && event.phase() == Phase::Only
                        && event.service != 0
                        && event.backend().is_none()
                        && event.frontend().map(end)
                            == Some(at(NODE, family, world::REMOTE_CLOSED)),
                    "{event:?}"
                );
                ensure!(*bytes == packet.bytes(), "other bytes");
            }
        }
        Ok(())
    })
}

/// Nobody is told when nobody asks, or when who asked has not said so again in time; from then on the
/// data path knows that nobody does.
#[test]
fn a_lease_runs_out() -> Result<()> {
    on_a_node(|programs| {
        let packet = to_frontend(SYN, Family::V4, world::REMOTE_CLOSED);
        let over = Watch { until: monotonic_now()?, ..everything() };
        for watch in [Watch::NONE, over] {
            for hook in [Hook::Xdp, Hook::Ingress] {
                let events = told(programs, watch, hook, &packet)?;
                ensure!(events.is_empty(), "{events:?}");
                programs.change(MapName::Watch, 0, |watch: &mut Watch| {
                    assert_eq!(watch.until, 0, "it still costs");
                })?;
            }
        }
        let lasts = Watch { until: monotonic_now()? + 60_000_000_000, ..everything() };
        ensure!(told(programs, lasts, Hook::Xdp, &packet)?.len() == 1, "nothing was told");
        Ok(())
    })
}

fn at_end(socket: SocketAddr, with_port: bool) -> End {
    let port = if with_port { Port::new(socket.port()) } else { Port::ZERO };
    End { address: socket.ip().into(), port, reserved: 0 }
}

/// Each filter lets through what it names, and nothing else.
#[test]
fn filters() -> Result<()> {
    on_a_node(|programs| {
        for family in FAMILIES {
            let client = at(CLIENT, family, CLIENT_PORT);
            let frontend = at(NODE, family, world::REMOTE);
            let backend = at(BACKEND, family, world::REMOTE_PORT);
            Given::remote(Protocol::Tcp, family).insert(programs)?;
            let packet = to_frontend(ACK, family, world::REMOTE);
            let of_other = packet.clone().coming_from(at(OTHER_CLIENT, family, CLIENT_PORT));
            let mut rows = Vec::new();
            for with_port in [false, true] {
                let part = |socket| at_end(socket, with_port);
                rows.push((Watch { client: part(client), ..everything() }, true));
                rows.push((Watch { client: part(frontend), ..everything() }, false));
                rows.push((Watch { frontend: part(frontend), ..everything() }, true));
                rows.push((Watch { frontend: part(backend), ..everything() }, false));
                rows.push((Watch { backend: part(backend), ..everything() }, true));
                rows.push((Watch { backend: part(client), ..everything() }, false));
            }
            let port = |port| End { port: Port::new(port), ..End::ANY };
            rows.push((Watch { client: port(CLIENT_PORT), ..everything() }, true));
            rows.push((Watch { client: port(CLIENT_PORT + 1), ..everything() }, false));
            rows.push((Watch { protocol: 6, ..everything() }, true));
            rows.push((Watch { protocol: 17, ..everything() }, false));
            let reasons = bit(Reason::RemoteEstablished);
            rows.push((Watch { reasons, ..everything() }, true));
            rows.push((Watch { reasons: !reasons, ..everything() }, false));
            for hook in [Hook::Xdp, Hook::Ingress] {
                let (event, _) = told(programs, everything(), hook, &packet)?[0].clone();
                let mut services = [0; 16];
                services[15] = event.service;
                services[0] = event.service + 1;
                let named = Watch { services, ..everything() };
                services[15] = 0;
                let others = Watch { services, ..everything() };
                for (watch, is_told) in rows.iter().copied().chain([(named, true), (others, false)])
                {
                    let events = told(programs, watch, hook, &packet)?;
                    ensure!(events.len() == if is_told { 2 } else { 0 }, "{watch:?}: {events:?}");
                }
                let events = told(
                    programs,
                    Watch { client: at_end(client, false), ..everything() },
                    hook,
                    &of_other,
                )?;
                ensure!(events.is_empty(), "{events:?}");
            }
        }
        Ok(())
    })
}

/// Each processor counts its own packets.
fn stay_on_one_processor() -> Result<()> {
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this)?;
    let first = (0..CpuSet::count()).find(|cpu| allowed.is_set(*cpu).unwrap_or(false));
    let mut one = CpuSet::new();
    one.set(first.context("no processor")?)?;
    Ok(sched_setaffinity(this, &one)?)
}

/// Of many packets a few are told, of some Reasons every one; and as much of each as is wanted.
#[test]
fn samples_and_lengths() -> Result<()> {
    on_a_node(|programs| {
        Given::remote(Protocol::Tcp, Family::V4).insert(programs)?;
        let packet = to_frontend(ACK, Family::V4, world::REMOTE).payload(1000);
        let phases = Phase::After.bit() | Phase::Only.bit();
        let sampled = Watch { sample: 10, phases, ..everything() };
        let whole = Watch { unsampled: bit(Reason::RemoteEstablished), ..sampled };
        stay_on_one_processor()?;
        for (watch, expected) in [(sampled, 10), (whole, 100)] {
            let mut count = 0;
            for _ in 0..100 {
                count += told(programs, watch, Hook::Xdp, &packet)?.len();
            }
            ensure!(count == expected, "{count} of 100 were told, expected {expected}");
        }
        for (snap, expected) in [(0, 0), (1, 1), (64, 64), (9000, packet.bytes().len())] {
            for hook in [Hook::Xdp, Hook::Ingress] {
                let events = told(programs, Watch { snap, ..everything() }, hook, &packet)?;
                for (event, bytes) in &events {
                    ensure!(bytes.len() == expected, "{} of {snap} bytes", bytes.len());
                    ensure!(event.len as usize == packet.bytes().len(), "{event:?}");
                }
                ensure!(events.len() == 2, "{events:?}");
            }
        }
        Ok(())
    })
}
