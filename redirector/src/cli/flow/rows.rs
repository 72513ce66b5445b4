//! What is listed of flows, made from the contents of the maps.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use redirector_common::{Address, Direction, Flow, FlowState, Port, Protocol, ServiceId, Tuple};
use serde::{Serialize, Serializer};

use crate::dataplane::info::Info;

/// The maps that flows stand in.
#[derive(Clone, Debug, Default)]
pub(super) struct Loaded {
    pub(super) flows: BTreeMap<Tuple, Flow>,
    pub(super) infos: BTreeMap<ServiceId, Info>,
}

/// A flow, both halves together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct FlowRow {
    #[serde(serialize_with = "protocol_name")]
    pub(super) protocol: Protocol,
    pub(super) client: SocketAddr,
    pub(super) frontend: SocketAddr,
    /// Where its packets come from for the backend.
    pub(super) translated_source: SocketAddr,
    pub(super) backend: SocketAddr,
    /// `namespace/name`, or the name alone; the number where the service is gone.
    pub(super) service: String,
    #[serde(serialize_with = "state_name")]
    pub(super) state: FlowState,
    pub(super) age_seconds: u64,
    pub(super) idle_seconds: u64,
    pub(super) packets: u64,
    pub(super) bytes: u64,
    /// Keys of the halves that are there, the forward one first: once it is gone nothing more is
    /// sent whose answer would find no way back.
    #[serde(skip)]
    pub(super) halves: Vec<Tuple>,
}

/// Flows in the order of their frontends, then clients. `now` is `CLOCK_MONOTONIC` nanoseconds.
pub(super) fn flow_rows(maps: &Loaded, now: u64) -> Vec<FlowRow> {
    let mut rows: Vec<_> = maps
        .flows
        .iter()
        .filter(|(_, flow)| flow.direction() == Direction::Forward)
        .map(|(key, flow)| flow_row(maps, key, flow, now))
        .collect();
    rows.sort_by_key(|row| (row.frontend, row.protocol, row.client));
    rows
}

fn flow_row(maps: &Loaded, key: &Tuple, flow: &Flow, now: u64) -> FlowRow {
    let reply_key = flow.translated.reversed();
    // What stands in its place may be half of another flow.
    let reply = maps.flows.get(&reply_key).filter(|reply| reply.translated.reversed() == *key);
    let mut halves = vec![*key];
    halves.extend(reply.map(|_| reply_key));
    let last_seen = reply.map_or(flow.last_seen, |reply| flow.last_seen.max(reply.last_seen));
    FlowRow {
        protocol: key.protocol(),
        client: socket(key.source, key.source_port),
        frontend: socket(key.destination, key.destination_port),
        translated_source: socket(flow.translated.source, flow.translated.source_port),
        backend: socket(flow.translated.destination, flow.translated.destination_port),
        service: service_name(&maps.infos, flow.service),
        state: flow.state(),
        age_seconds: seconds(now.saturating_sub(flow.created)),
        idle_seconds: seconds(now.saturating_sub(last_seen)),
        packets: flow.packets.saturating_add(reply.map_or(0, |it| it.packets)),
        bytes: flow.bytes.saturating_add(reply.map_or(0, |it| it.bytes)),
        halves,
    }
}

/// An address and a port.
pub(in crate::cli) fn socket(address: Address, port: Port) -> SocketAddr {
    SocketAddr::new(IpAddr::from(address), port.number())
}

const fn seconds(nanoseconds: u64) -> u64 {
    nanoseconds / 1_000_000_000
}

/// `namespace/name`, or the name alone; the number where the service is gone.
pub(in crate::cli) fn service_name(infos: &BTreeMap<ServiceId, Info>, id: ServiceId) -> String {
    match infos.get(&id).map(|info| &info.key) {
        Some(key) => match &key.namespace {
            Some(namespace) => format!("{namespace}/{}", key.name),
            None => key.name.clone(),
        },
        None => format!("#{id}"),
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn protocol_name<S: Serializer>(protocol: &Protocol, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(protocol.name())
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn state_name<S: Serializer>(state: &FlowState, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(state.name())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn end(text: &str) -> (Address, Port) {
        let socket: SocketAddr = text.parse().expect("address and port");
        (Address::from(socket.ip()), Port::new(socket.port()))
    }

    /// Both halves of a flow that began at second 10: the client was last heard at 20, the
    /// backend at 30.
    pub(in crate::cli::flow) fn flow(
        protocol: Protocol,
        client: &str,
        frontend: &str,
        backend: &str,
    ) -> [(Tuple, Flow); 2] {
        let key = Tuple::new(protocol, end(client), end(frontend));
        let translated = Tuple::new(protocol, end("192.0.2.1:50000"), end(backend));
        let mut forward = Flow::new(Direction::Forward, translated, 1, 1, false, 10 * SECOND);
        forward.last_seen = 20 * SECOND;
        (forward.packets, forward.bytes) = (3, 300);
        let back = key.reversed();
        let mut reply = Flow::new(Direction::Reply, back, 1, 1, false, 10 * SECOND);
        reply.last_seen = 30 * SECOND;
        (reply.packets, reply.bytes) = (2, 2000);
        [(key, forward), (translated.reversed(), reply)]
    }

    #[test]
    fn json_is_as_the_contract_says() {
        let loaded = Loaded {
            flows: BTreeMap::from(flow(
                Protocol::Udp,
                "[2001:db8:1::7]:4000",
                "[2001:db8::1]:53",
                "[2001:db8::5]:5353",
            )),
            infos: BTreeMap::new(),
        };
        let rows = flow_rows(&loaded, 42 * SECOND + 999);
        let expected = serde_json::json!([{
            "protocol": "UDP",
            "client": "[2001:db8:1::7]:4000",
            "frontend": "[2001:db8::1]:53",
            "translatedSource": "192.0.2.1:50000",
            "backend": "[2001:db8::5]:5353",
            "service": "#1",
            "state": "unreplied",
            "ageSeconds": 32,
            "idleSeconds": 12,
            "packets": 5,
            "bytes": 2300,
        }]);
        assert_eq!(serde_json::to_value(rows).expect("JSON"), expected);
    }

    #[test]
    fn a_half_alone_is_shown_with_what_is_known() {
        let [forward, reply] =
            flow(Protocol::Tcp, "198.51.100.7:4000", "192.0.2.1:80", "10.0.0.5:8080");
        let only = |half| Loaded { flows: BTreeMap::from([half]), infos: BTreeMap::new() };
        let rows = flow_rows(&only(forward), 42 * SECOND);
        assert_eq!(rows.len(), 1);
        assert_eq!((rows[0].idle_seconds, rows[0].packets), (22, 3));
        assert_eq!(rows[0].halves, [forward.0]);
        assert!(flow_rows(&only(reply), 42 * SECOND).is_empty());
    }
}
