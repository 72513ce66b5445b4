//! The entries of each map, as records with named fields.

mod watch;

use std::net::{IpAddr, SocketAddr};

use redirector_common::map_name::MapName;
use redirector_common::{
    Address, Backend, CachedFlow, Direction, Endpoint, Family, Flow, Interface, Origin, PortFlags,
    Reason, ServiceId, SlotValue, Tuple,
};
use serde_json::Value;

use super::record::{Record, record};
use crate::cli::counters::interface_name;
use crate::cli::service::backend_address;
use crate::dataplane::gc;
use crate::dataplane::info::{Info, format_frontend, format_range};
use crate::dataplane::pinned::{Pinned, PinnedError};

/// The entries in use.
pub(super) fn load(maps: &Pinned, name: MapName) -> Result<Vec<Record>, PinnedError> {
    Ok(match name {
        MapName::Ports => of(maps.ports()?, |((protocol, port), flags)| {
            record! {"protocol": protocol.name(), "port": port, "flags": flag_names(flags)}
        }),
        MapName::Frontends => of(maps.frontends()?, |(key, frontend)| {
            record! {
                "frontend": format_frontend(&key),
                "service": frontend.service,
                "localAddress": address(frontend.local_address),
                "foreign": frontend.is_foreign(),
                "unlisted": frontend.is_unlisted(),
            }
        }),
        MapName::Services => of(maps.services()?, |(id, service)| {
            record! {
                "service": id,
                "tableOffset": service.table_offset,
                "tableSize": service.table_size,
                "internalOffset": service.internal_offset,
                "internalSize": service.internal_size,
                "peerOffset": service.peer_offset,
                "peerSize": service.peer_size,
                "affinityGroup": service.affinity_group,
                "affinitySeconds": service.affinity_seconds,
                "random": service.is_random(),
                "silent": service.is_silent(),
                "dsr": service.is_dsr(),
                "limitsSources": service.limits_sources(),
            }
        }),
        MapName::Maglev => of(maps.maglev()?, |(line, entries)| {
            record! {"line": line, "backends": entries.entries}
        }),
        MapName::Backends => of(maps.backends()?, |(id, it)| backend(id, &it)),
        MapName::Flows => of(maps.flows()?, |(key, it)| flow(&key, &it)),
        MapName::FlowRing => of(maps.flow_ring()?, |(index, slot)| {
            let (source, destination) = ends(&slot.key);
            record! {
                "slot": index,
                "protocol": slot.key.protocol().name(),
                "source": source,
                "destination": destination,
                "born": slot.born,
            }
        }),
        MapName::FlowCache => of(maps.cached_flows()?, |it| cached(&it)),
        MapName::Epochs => of(maps.epochs()?, |(index, epoch)| {
            record! {"hashBegins": index, "epoch": epoch}
        }),
        MapName::Interfaces => of(maps.interfaces()?, |(index, it)| interface(index, &it)),
        MapName::SnatAddresses => of(maps.snat_addresses()?, |(key, it)| {
            record! {
                "index": key.ifindex,
                "name": interface_name(key.ifindex),
                "position": key.position,
                "address": address(it),
            }
        }),
        MapName::Node => {
            let node = maps.node()?;
            vec![record! {
                "snatFirst": node.snat_first,
                "snatCount": node.snat_count,
                "lookupInterface": interface_name(node.lookup_ifindex),
                "ringSlots": node.ring_slots,
                "netnsCookie": node.netns_cookie,
                "mssClamp": node.clamps_mss(),
            }]
        }
        MapName::Counters => counters(maps)?,
        MapName::Slots => of(maps.slots()?, |(key, slot)| {
            record! {
                "service": key.service,
                "slot": key.slot,
                "backend": slot.backend,
                "weight": slot.weight,
                "state": slot_state(slot),
            }
        }),
        MapName::ServiceInfo => of(maps.infos()?, |(id, it)| info(id, &it)),
        MapName::Status => status(&maps.status_text()?),
        MapName::Sysctls => of(maps.sysctls()?, |(path, before)| {
            record! {"path": path, "before": before}
        }),
        MapName::Sockets => of(maps.sockets()?, |(key, asked)| {
            record! {
                "socket": key.cookie,
                "asked": endpoint(&asked),
                "peer": endpoint(&key.peer),
            }
        }),
        MapName::Steered => of(maps.steered()?, |(key, connections)| {
            record! {
                "service": key.service,
                "frontend": format_frontend(&key.frontend),
                "connections": connections,
            }
        }),
        MapName::Watch => watch::records(&maps.watch()?),
        // Whoever reads them takes them away.
        MapName::Events => Vec::new(),
        MapName::EventsLost => vec![record! {"events": maps.events_lost()?}],
        MapName::Fragments => of(maps.fragments()?, |(key, first)| {
            record! {
                "source": address(key.source),
                "destination": address(key.destination),
                "protocol": key.protocol,
                "identification": key.number(),
                "sourcePort": first.source_port.number(),
                "destinationPort": first.destination_port.number(),
                "seen": first.seen,
            }
        }),
        MapName::SourceRanges => of(maps.source_ranges()?, |range| {
            record! {"service": range.bits.service, "range": format_range(&range)}
        }),
        MapName::Affinity => affinities(maps)?,
        MapName::Takers => of(maps.takers()?, |(key, taker)| {
            record! {
                "service": key.service,
                "backend": key.backend,
                "outside": taker.takes_from(Origin::Outside),
                "node": taker.takes_from(Origin::Node),
                "peer": taker.takes_from(Origin::Peer),
            }
        }),
        MapName::Vips => of(maps.vips()?, |vip| record! {"address": address(vip)}),
        MapName::Peers => of(maps.peers()?, |(at, peer)| {
            record! {"address": address(at), "takesFlows": peer.takes_flows()}
        }),
    })
}

fn of<T>(entries: impl IntoIterator<Item = T>, record: impl FnMut(T) -> Record) -> Vec<Record> {
    entries.into_iter().map(record).collect()
}

fn endpoint(endpoint: &Endpoint) -> String {
    SocketAddr::new(IpAddr::from(endpoint.address), endpoint.port.number()).to_string()
}

fn backend(id: u32, backend: &Backend) -> Record {
    record! {
        "backend": id,
        "address": address(backend.address),
        "port": backend.port.number(),
        "local": backend.is_local(),
    }
}

fn flow(key: &Tuple, flow: &Flow) -> Record {
    let half = match flow.direction() {
        Direction::Forward => "forward",
        Direction::Reply => "reply",
    };
    let (from, to) = ends(key);
    let (translated_from, translated_to) = ends(&flow.translated);
    record! {
        "protocol": key.protocol().name(),
        "half": half,
        "source": from,
        "destination": to,
        "translatedSource": translated_from,
        "translatedDestination": translated_to,
        "service": flow.service,
        "backend": flow.backend,
        "local": flow.is_local(),
        "state": flow.state().name(),
        "fin": flow.fin_seen(),
        "created": flow.created,
        "lastSeen": flow.last_seen,
        "packets": flow.packets,
        "bytes": flow.bytes,
    }
}

fn cached(entry: &CachedFlow) -> Record {
    let (from, to) = ends(&entry.key);
    let (translated_from, translated_to) = ends(&entry.translated);
    record! {
        "protocol": entry.key.protocol().name(),
        "source": from,
        "destination": to,
        "translatedSource": translated_from,
        "translatedDestination": translated_to,
        "forwarded": entry.is_forwarded(),
        "byXdp": entry.by_xdp(),
        "interface": entry.next_hop.ifindex,
        "mtu": entry.next_hop.mtu,
        "reason": entry.reason().name(),
        "epoch": entry.epoch,
        "filled": entry.filled,
        "packets": entry.packets,
        "bytes": entry.bytes,
    }
}

fn affinities(maps: &Pinned) -> Result<Vec<Record>, PinnedError> {
    let affinities = maps.affinities()?;
    let backends = maps.backends()?;
    let now = gc::now();
    Ok(of(affinities, |(key, affinity)| {
        let backend = backends.get(&affinity.backend).map(|backend| {
            let port = backend.port.number();
            match backend_address(backend) {
                address if address.contains(':') => format!("[{address}]:{port}"),
                address => format!("{address}:{port}"),
            }
        });
        record! {
            "group": key.group,
            "client": address(key.client),
            "backend": affinity.backend,
            "backendAddress": backend,
            "idleSeconds": now.saturating_sub(affinity.last_seen) / 1_000_000_000,
        }
    }))
}

fn info(id: ServiceId, info: &Info) -> Record {
    let family = match info.family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    };
    let conflicts: Vec<_> = info.conflicts.iter().map(format_frontend).collect();
    record! {
        "service": id,
        "family": family,
        "source": info.key.source,
        "namespace": info.key.namespace,
        "name": info.key.name,
        "policy": info.policy,
        "forwarding": info.forwarding,
        "affinitySeconds": info.affinity,
        "affinityGroup": info.group,
        "algorithm": info.algorithm,
        "conflicts": conflicts,
        "conflictsOmitted": info.omitted,
    }
}

fn interface(index: u32, interface: &Interface) -> Record {
    record! {
        "index": index,
        "name": interface_name(index),
        "slot": interface.slot,
        "ipv4": address(interface.ipv4),
        "ipv6": address(interface.ipv6),
        "xdpTransmit": interface.xdp_transmit(),
    }
}

fn counters(maps: &Pinned) -> Result<Vec<Record>, PinnedError> {
    let mut records = Vec::new();
    for (slot, block) in maps.counters()? {
        for reason in Reason::ALL {
            let counter = block.reasons.get(*reason as usize).copied();
            if let Some(counter) = counter.filter(|counter| counter.packets != 0) {
                records.push(record! {
                    "slot": slot,
                    "reason": reason.name(),
                    "packets": counter.packets,
                    "bytes": counter.bytes,
                });
            }
        }
    }
    Ok(records)
}

fn status(text: &str) -> Vec<Record> {
    if text.is_empty() {
        return Vec::new();
    }
    match serde_json::from_str::<Value>(text) {
        Ok(Value::Object(fields)) => of(fields, |(name, value)| {
            record! {"field": name, "value": value}
        }),
        // Another version's agent may write something else: it is shown as it is.
        Ok(_) | Err(_) => vec![record! {"field": "text", "value": text}],
    }
}

fn slot_state(slot: SlotValue) -> &'static str {
    if slot.state == SlotValue::TERMINATING { "terminating" } else { "active" }
}

/// What a port is used for, in words.
pub(in crate::cli) fn flag_names(flags: PortFlags) -> Vec<&'static str> {
    [
        (PortFlags::FRONTEND, "frontend"),
        (PortFlags::SNAT, "snat"),
        (PortFlags::LOCAL_BACKEND, "local-backend"),
        (PortFlags::REMOTE, "remote"),
        (PortFlags::STEER, "steer"),
    ]
    .into_iter()
    .filter(|(flag, _)| flags.intersects(*flag))
    .map(|(_, name)| name)
    .collect()
}

fn ends(tuple: &Tuple) -> (String, String) {
    let socket = |address, port: redirector_common::Port| {
        SocketAddr::new(IpAddr::from(address), port.number()).to_string()
    };
    (socket(tuple.source, tuple.source_port), socket(tuple.destination, tuple.destination_port))
}

/// An address; nothing where none is set.
fn address(address: Address) -> Option<String> {
    (!address.is_unspecified()).then(|| address.to_string())
}

#[cfg(test)]
mod tests {
    use redirector_common::{Port, Protocol};

    use super::*;
    use crate::cli::map::record::{table, text};

    fn end(text: &str) -> (Address, Port) {
        let socket: SocketAddr = text.parse().expect("address and port");
        (Address::from(socket.ip()), Port::new(socket.port()))
    }

    #[test]
    fn records_become_columns() {
        let records = [
            backend(1, &Backend::local(Port::new(8080))),
            backend(2, &Backend::remote(end("10.0.0.5:1").0, Port::new(80))),
        ];
        let expected = "\
BACKEND  ADDRESS   PORT  LOCAL
      1  -         8080  yes
      2  10.0.0.5    80  no
";
        assert_eq!(table(&records), expected);
    }

    #[test]
    fn fields_keep_their_order_in_json() {
        let record = backend(1, &Backend::local(Port::new(8080)));
        let json = serde_json::to_string(&record).expect("JSON");
        assert_eq!(json, r#"{"backend":1,"address":null,"port":8080,"local":true}"#);
    }

    #[test]
    fn a_flow_shows_both_tuples() {
        let key = Tuple::new(Protocol::Tcp, end("[::7]:4000"), end("[::1]:80"));
        let translated = Tuple::new(Protocol::Tcp, end("[::1]:50000"), end("[::5]:8080"));
        let half = Flow::new(Direction::Forward, translated, 3, 4, false, 5);
        let Record(fields) = flow(&key, &half);
        let get = |wanted: &str| {
            let field = fields.iter().find(|(name, _)| *name == wanted);
            field.map(|(_, value)| text(value)).unwrap_or_default()
        };
        assert_eq!(get("source"), "[::7]:4000");
        assert_eq!(get("translatedDestination"), "[::5]:8080");
        assert_eq!(get("half"), "forward");
        assert_eq!(get("state"), "syn-sent");
    }

    #[test]
    fn flags_have_names() {
        let flags = PortFlags::FRONTEND.union(PortFlags::REMOTE);
        assert_eq!(flag_names(flags), ["frontend", "remote"]);
    }

    #[test]
    fn status_of_another_shape_is_shown_as_it_is() {
        assert!(status("").is_empty());
        assert_eq!(status("hello").len(), 1);
        assert_eq!(status(r#"{"pid": 7, "source": "file"}"#).len(), 2);
    }
}
