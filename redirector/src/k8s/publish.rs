//! The annotation `redirector.io/publish`: which ports an object wants to have on the node.

use std::net::IpAddr;

use redirector_common::Protocol;

use super::PUBLISH;
use super::pod::PodRecord;
use super::service::{ServicePort, ServiceRecord};
use crate::config::publish as spec;
use crate::model::{FrontendSpec, Service};

/// One port that an object wants, with what it is to lead to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish<T> {
    /// Where clients are to come.
    pub frontend: FrontendSpec,
    /// What answers.
    pub target: T,
}

/// Entries that can be understood, and what is wrong with the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wishes<T> {
    /// In the order of the annotation.
    pub wishes: Vec<Wish<T>>,
    /// One sentence for each entry that is left out.
    pub problems: Vec<String>,
}

impl<T> Default for Wishes<T> {
    fn default() -> Self {
        Self { wishes: Vec::new(), problems: Vec::new() }
    }
}

/// What a pod wants: ports of the node that lead to ports of its programs.
#[must_use]
pub fn of_pod(pod: &PodRecord) -> Wishes<u16> {
    let mut found = Wishes::default();
    let Some(text) = &pod.publish else {
        return found;
    };
    if !pod.host_network {
        found.problems.push(format!(
            "{PUBLISH} has no effect on a pod with a network of its own: declare a hostPort, or \
             annotate a Service, or set hostNetwork: true"
        ));
        return found;
    }
    for entry in entries(text) {
        match spec::parse_spec(entry) {
            Ok(services) => found.wishes.extend(services.iter().filter_map(wish)),
            Err(error) => found.problems.push(format!("{PUBLISH}: {entry:?}: {}", error.message)),
        }
    }
    found
}

fn wish(service: &Service) -> Option<Wish<u16>> {
    let frontend = *service.frontends.first()?;
    let target = service.backends.first()?.port;
    Some(Wish { frontend, target })
}

/// What a Service wants: ports of every node that lead to ports of the Service.
#[must_use]
pub fn of_service(service: &ServiceRecord) -> Wishes<&ServicePort> {
    let mut found = Wishes::default();
    for entry in service.publish.iter().flat_map(|text| entries(text)) {
        match read_entry(entry, &service.ports) {
            Ok(wish) => found.wishes.push(wish),
            Err(message) => found.problems.push(format!("{PUBLISH}: {entry:?}: {message}")),
        }
    }
    found
}

fn entries(text: &str) -> impl Iterator<Item = &str> {
    text.split([',', '\n']).map(str::trim).filter(|entry| !entry.is_empty())
}

fn read_entry<'s>(entry: &str, ports: &'s [ServicePort]) -> Result<Wish<&'s ServicePort>, String> {
    const GRAMMAR: &str = "write [ADDRESS:]PORT:SERVICEPORT[/tcp|/udp]";
    let (main, protocol) = match entry.rsplit_once('/') {
        Some((main, name)) => (main, Some(read_protocol(name)?)),
        None => (entry, None),
    };
    let (front, target) = main.rsplit_once(':').ok_or(GRAMMAR)?;
    let (address, port) = match front.rsplit_once(':') {
        Some((address, port)) => (Some(read_address(address)?), port),
        None => (None, front),
    };
    let port = match port.parse() {
        Ok(port) if port != 0 => port,
        Ok(_) | Err(_) => return Err(format!("{port:?} is not a port; ports are 1 to 65535")),
    };
    let target = find_port(target, protocol, ports)?;
    Ok(Wish { frontend: FrontendSpec { address, port, protocol: target.protocol }, target })
}

fn read_protocol(name: &str) -> Result<Protocol, String> {
    spec::protocol(name).ok_or_else(|| format!("protocol {name:?} is not known; allowed: tcp, udp"))
}

fn read_address(text: &str) -> Result<IpAddr, String> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    // The entry's other parts are known to be right: only the address can be refused.
    let entry = format!("{text}:1:1");
    spec::parse_spec(&entry).map_err(|error| error.message)?;
    bare.parse().map_err(|_| format!("{text:?} is not an address"))
}

/// The port of the Service with this name or number. Without a protocol, TCP goes first.
fn find_port<'s>(
    target: &str,
    protocol: Option<Protocol>,
    ports: &'s [ServicePort],
) -> Result<&'s ServicePort, String> {
    let number: Option<u16> = target.parse().ok();
    let mut matching: Vec<&ServicePort> = ports
        .iter()
        .filter(|port| port.name == target || number == Some(port.port))
        .filter(|port| protocol.is_none_or(|protocol| protocol == port.protocol))
        .collect();
    matching.sort_by_key(|port| port.protocol != Protocol::Tcp);
    matching.first().copied().ok_or_else(|| {
        let known: Vec<String> = ports
            .iter()
            .map(|port| match port.name.as_str() {
                "" => format!("{}/{}", port.port, port.protocol.name()),
                name => format!("{name} ({}/{})", port.port, port.protocol.name()),
            })
            .collect();
        format!("the Service has no port {target:?}; it has {}", known.join(", "))
    })
}
