//! Entries under `services`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use redirector_common::{Family, Protocol};

use super::address::{self, Role};
use super::document::Placed;
use super::error::Place;
use super::fields::{Fields, Reader};
use super::node::{Node, Value};
use super::{keys, publish};
use crate::model::{
    Algorithm, BackendAddress, BackendSpec, BackendState, Forwarding, FrontendSpec, Service,
    ServiceKey, Source, TrafficPolicy,
};

/// Longest name of a service.
const MAX_NAME: usize = 63;
/// Longest session affinity: a day, as in Kubernetes.
const MAX_AFFINITY: u32 = 86400;

pub(super) fn read(file: &Fields<'_>, reader: &mut Reader<'_>, services: &mut Vec<Placed>) {
    let Some(node) = file.get_filled("services") else {
        return;
    };
    let Some(list) = reader.list(node, "services", "services") else {
        return;
    };
    let mut names = BTreeMap::new();
    for item in list {
        if let Some(fields) = reader.fields(item, "services", keys::SERVICE) {
            services.push(read_service(&fields, &mut names, reader));
        }
    }
}

fn read_service(
    fields: &Fields<'_>,
    names: &mut BTreeMap<String, Place>,
    reader: &mut Reader<'_>,
) -> Placed {
    let name = read_name(fields, names, reader).unwrap_or_default();
    let frontends = read_frontends(fields, reader);
    let all_known = frontends.iter().all(Option::is_some);
    let (frontends, frontend_places): (Vec<_>, Vec<_>) = frontends.into_iter().flatten().unzip();
    // A frontend that could not be read might be of the family that the others are not.
    let families = if all_known { &*frontends } else { &[] };
    let (backends, backend_places) = read_backends(fields, families, reader).into_iter().unzip();
    let source_ranges = read_source_ranges(fields, reader);
    let forwarding = fields.get("forwarding").and_then(|node| {
        let words = [("snat", Forwarding::Snat), ("dsr", Forwarding::Dsr)];
        let forwarding = reader.word(node, "services.forwarding", &words)?;
        Some((forwarding, reader.place(node.position)))
    });
    let algorithm = fields
        .get("algorithm")
        .and_then(|node| {
            let words = [("maglev", Algorithm::Maglev), ("random", Algorithm::Random)];
            reader.word(node, "services.algorithm", &words)
        })
        .unwrap_or_default();
    let affinity_seconds = fields
        .get("sessionAffinitySeconds")
        .and_then(|node| reader.integer(node, "services.sessionAffinitySeconds", 1..=MAX_AFFINITY));
    let policy = fields
        .get("trafficPolicy")
        .and_then(|node| {
            let words = [("Cluster", TrafficPolicy::Cluster), ("Local", TrafficPolicy::Local)];
            reader.word(node, "services.trafficPolicy", &words)
        })
        .unwrap_or_default();
    Placed {
        service: Service {
            frontends,
            backends,
            policy,
            forwarding: forwarding.as_ref().map(|(it, _)| *it).unwrap_or_default(),
            algorithm,
            affinity_seconds,
            source_ranges,
            ..Service::new(ServiceKey { source: Source::Static, namespace: None, name })
        },
        path: "services",
        frontends: frontend_places,
        backends: backend_places,
        direct: forwarding.filter(|(it, _)| *it == Forwarding::Dsr).map(|(_, place)| place),
    }
}

fn read_name(
    fields: &Fields<'_>,
    names: &mut BTreeMap<String, Place>,
    reader: &mut Reader<'_>,
) -> Option<String> {
    let allowed = "1 to 63 letters, digits, \"-\", \"_\" and \".\", the first a letter or digit";
    let node = fields.required("name", "services", reader)?;
    let name = reader.text(node, "services.name", allowed)?;
    let usual = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !name.starts_with(|c: char| c.is_ascii_alphanumeric())
        || name.len() > MAX_NAME
        || !name.chars().all(usual)
    {
        reader.mismatch(node, "services.name", allowed);
        return None;
    }
    let place = reader.place(node.position);
    if let Some(first) = names.get(name) {
        let message = format!(
            "services.name: {name:?} is the name of the service at {first} already; choose another"
        );
        reader.report(node.position, &message);
        return None;
    }
    names.insert(name.to_owned(), place);
    Some(name.to_owned())
}

/// The frontends, `None` for those that are wrong.
fn read_frontends(
    fields: &Fields<'_>,
    reader: &mut Reader<'_>,
) -> Vec<Option<(FrontendSpec, Place)>> {
    let Some(node) = fields.required("frontends", "services", reader) else {
        return Vec::new();
    };
    let Some(list) = reader.list(node, "services.frontends", "frontends, at least one") else {
        return Vec::new();
    };
    if list.is_empty() {
        reader.report(
            node.position,
            "services.frontends: the list is empty; a service needs at least one frontend",
        );
    }
    list.iter()
        .map(|item| Some((read_frontend(item, reader)?, reader.place(item.position))))
        .collect()
}

fn read_frontend(item: &Node, reader: &mut Reader<'_>) -> Option<FrontendSpec> {
    const PATH: &str = "services.frontends";
    let fields = reader.fields(item, PATH, keys::FRONTEND)?;
    let address = fields.get("address").map(|node| {
        let path = "services.frontends.address";
        read_address(node, path, Role::Frontend, reader)
    });
    let port = fields
        .required("port", PATH, reader)
        .map(|node| reader.port(node, "services.frontends.port"));
    let protocol = match fields.get("protocol") {
        Some(node) => read_protocol(node, reader),
        None => Some(Protocol::Tcp),
    };
    Some(FrontendSpec {
        address: match address {
            None => None,
            Some(address) => Some(address?),
        },
        port: port??,
        protocol: protocol?,
    })
}

fn read_protocol(node: &Node, reader: &mut Reader<'_>) -> Option<Protocol> {
    let path = "services.frontends.protocol";
    let text = reader.text(node, path, "TCP, UDP")?;
    let protocol = publish::protocol(text);
    if protocol.is_none() {
        reader.mismatch(node, path, "TCP, UDP");
    }
    protocol
}

fn read_backends(
    fields: &Fields<'_>,
    frontends: &[FrontendSpec],
    reader: &mut Reader<'_>,
) -> Vec<(BackendSpec, Place)> {
    let Some(node) = fields.get_filled("backends") else {
        return Vec::new();
    };
    let Some(list) = reader.list(node, "services.backends", "backends") else {
        return Vec::new();
    };
    let mut backends = Vec::new();
    let mut places: BTreeMap<(BackendAddress, u16), Place> = BTreeMap::new();
    for item in list {
        let Some(backend) = read_backend(item, frontends, reader) else {
            continue;
        };
        let place = reader.place(item.position);
        if let Some(first) = places.get(&(backend.address, backend.port)) {
            let message = format!(
                "services.backends: {} is listed at {first} already; remove one of them, and use \
                 weight for its share",
                show(&backend)
            );
            reader.report(item.position, &message);
            continue;
        }
        places.insert((backend.address, backend.port), place.clone());
        backends.push((backend, place));
    }
    backends
}

fn show(backend: &BackendSpec) -> String {
    match backend.address {
        BackendAddress::Local => format!("local:{}", backend.port),
        BackendAddress::At(IpAddr::V4(v4)) => format!("{v4}:{}", backend.port),
        BackendAddress::At(IpAddr::V6(v6)) => format!("[{v6}]:{}", backend.port),
    }
}

fn read_backend(
    item: &Node,
    frontends: &[FrontendSpec],
    reader: &mut Reader<'_>,
) -> Option<BackendSpec> {
    const PATH: &str = "services.backends";
    let fields = reader.fields(item, PATH, keys::BACKEND)?;
    let address = fields
        .required("address", PATH, reader)
        .map(|node| read_backend_address(node, frontends, reader));
    let port = fields
        .required("port", PATH, reader)
        .map(|node| reader.port(node, "services.backends.port"));
    let weight = match fields.get("weight") {
        Some(node) => reader.integer(node, "services.backends.weight", 0..=u16::MAX.into()),
        None => Some(1),
    };
    let state = match fields.get("state") {
        Some(node) => {
            let words =
                [("active", BackendState::Active), ("terminating", BackendState::Terminating)];
            reader.word(node, "services.backends.state", &words)
        }
        None => Some(BackendState::Active),
    };
    Some(BackendSpec {
        weight: u16::try_from(weight?).ok()?,
        state: state?,
        ..BackendSpec::new(address??, port??)
    })
}

fn read_backend_address(
    node: &Node,
    frontends: &[FrontendSpec],
    reader: &mut Reader<'_>,
) -> Option<BackendAddress> {
    let path = "services.backends.address";
    let allowed = "\"local\", or an IPv4 or IPv6 address";
    if reader.text(node, path, allowed)? == "local" {
        return Some(BackendAddress::Local);
    }
    let address = read_address(node, path, Role::Backend, reader)?;
    let family = Family::of(address);
    let reachable =
        frontends.iter().any(|frontend| frontend.address.is_none_or(|a| Family::of(a) == family));
    if !reachable && !frontends.is_empty() {
        let (found, others) = match family {
            Family::V4 => ("IPv4", "IPv6"),
            Family::V6 => ("IPv6", "IPv4"),
        };
        let message = format!(
            "{path}: {address} is {found}, and every frontend of the service is {others}; add an \
             {found} frontend or remove the backend"
        );
        reader.report(node.position, &message);
        return None;
    }
    Some(BackendAddress::At(address))
}

fn read_address(node: &Node, path: &str, role: Role, reader: &mut Reader<'_>) -> Option<IpAddr> {
    let text = reader.text(node, path, "an IPv4 or IPv6 address")?;
    match address::parse(text, role) {
        Ok(address) => Some(address),
        Err(message) => {
            reader.report(node.position, &format!("{path}: {message}"));
            None
        }
    }
}

/// Networks that clients may come from; none without the key.
fn read_source_ranges(fields: &Fields<'_>, reader: &mut Reader<'_>) -> Vec<IpNet> {
    const PATH: &str = "services.sourceRanges";
    let Some(node) = fields.get("sourceRanges") else {
        return Vec::new();
    };
    // Items that are all commented out count as an empty list, and never as a key left out: that
    // would open the service to everyone when its last range is removed.
    let list = if matches!(node.value, Value::Empty) {
        &[]
    } else {
        reader.list(node, PATH, NETWORKS).unwrap_or(&[])
    };
    if list.is_empty() && matches!(node.value, Value::Empty | Value::List(_)) {
        let message = format!(
            "{PATH}: the list is empty; name the networks that clients may come from, or remove \
             the key if they may come from everywhere"
        );
        reader.report(node.position, &message);
    }
    list.iter().filter_map(|item| read_network(item, PATH, reader)).collect()
}

const NETWORKS: &str = "networks as in 198.51.100.0/24 or 2001:db8::/32";

fn read_network(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<IpNet> {
    let text = reader.text(node, path, NETWORKS)?;
    // As Kubernetes takes them, with spaces around.
    let Ok(network) = text.trim().parse::<IpNet>() else {
        reader.mismatch(node, path, NETWORKS);
        return None;
    };
    if let Err(message) = address::check_network(network) {
        reader.report(node.position, &format!("{path}: {message}"));
        return None;
    }
    Some(network)
}
