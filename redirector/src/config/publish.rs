//! Publish entries: `[ADDRESS:]PORT[-PORT]:LOCALPORT[-LOCALPORT][/tcp|/udp]`.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use redirector_common::Protocol;

use super::address::{self, Role};
use crate::model::{BackendAddress, BackendSpec, FrontendSpec, Service, ServiceKey, Source};

/// The grammar, for messages.
pub const GRAMMAR: &str = "[ADDRESS:]PORT[-PORT]:LOCALPORT[-LOCALPORT][/tcp|/udp]";

/// What is wrong with a publish entry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SpecError {
    /// Byte of the entry at which the wrong part starts.
    pub offset: usize,
    /// What was found and what is allowed.
    pub message: String,
}

/// Parses a publish entry: one service for each of its ports.
///
/// # Errors
///
/// The first thing that is wrong with the entry.
pub fn parse_spec(spec: &str) -> Result<Vec<Service>, SpecError> {
    let whole = Part { text: spec, offset: 0 };
    let (main, protocol) = match whole.split_last('/') {
        Some((main, protocol)) => (main, parse_protocol(protocol)?),
        None => (whole, Protocol::Tcp),
    };
    let (address, ports, local_ports) = split_fields(main)?;
    let address = address.map(parse_address).transpose()?;
    let range = parse_range(ports)?;
    let local_range = parse_range(local_ports)?;
    if range.len() != local_range.len() {
        return Err(local_ports.error(format!(
            "{} {} and {} {} differ in length; give both sides equally many ports",
            ports.text,
            count(range.len()),
            local_ports.text,
            count(local_range.len()),
        )));
    }
    Ok(range
        .zip(local_range)
        .map(|(port, local_port)| service(address, port, local_port, protocol))
        .collect())
}

fn service(address: Option<IpAddr>, port: u16, local_port: u16, protocol: Protocol) -> Service {
    let suffix = match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    };
    let prefix = match address {
        None => String::new(),
        Some(IpAddr::V4(v4)) => format!("{v4}:"),
        Some(IpAddr::V6(v6)) => format!("[{v6}]:"),
    };
    Service {
        frontends: vec![FrontendSpec { address, port, protocol }],
        backends: vec![BackendSpec::new(BackendAddress::Local, local_port)],
        ..Service::new(ServiceKey {
            source: Source::Publish,
            namespace: None,
            name: format!("{prefix}{port}:{local_port}/{suffix}"),
        })
    }
}

/// Address, ports and local ports of an entry without its protocol.
fn split_fields(main: Part<'_>) -> Result<(Option<Part<'_>>, Part<'_>, Part<'_>), SpecError> {
    if main.text.starts_with('[') {
        let Some((address, rest)) = main.skip(1).split_first(']') else {
            return Err(main.error(format!("\"[\" has no \"]\"; write {GRAMMAR}")));
        };
        let fields = rest
            .split_first(':')
            .filter(|(between, _)| between.text.is_empty())
            .and_then(|(_, ports)| ports.split_first(':'));
        let Some((ports, local_ports)) = fields else {
            return Err(rest.error(format!("{:?} follows the address; write {GRAMMAR}", rest.text)));
        };
        if address.text.contains('.') && !address.text.contains(':') {
            return Err(address.error(format!(
                "{:?} is not an IPv6 address; only those stand in brackets",
                address.text
            )));
        }
        return Ok((Some(address), ports, local_ports));
    }
    let Some((front, local_ports)) = main.split_last(':') else {
        return Err(main.error(format!("{:?} names no local port; write {GRAMMAR}", main.text)));
    };
    match front.split_last(':') {
        None => Ok((None, front, local_ports)),
        Some((address, ports)) if !address.text.contains(':') => {
            Ok((Some(address), ports, local_ports))
        }
        Some(_) => Err(main.error(format!(
            "{:?} has too many colons; put an IPv6 address in brackets, as in \
             [2001:db8::1]:443:8443",
            main.text
        ))),
    }
}

fn parse_address(part: Part<'_>) -> Result<IpAddr, SpecError> {
    address::parse(part.text, Role::Frontend).map_err(|message| part.error(message))
}

fn parse_protocol(part: Part<'_>) -> Result<Protocol, SpecError> {
    protocol(part.text).ok_or_else(|| {
        part.error(format!("protocol {:?} is not known; allowed: tcp, udp", part.text))
    })
}

/// A protocol by its name, in upper or lower case.
pub(crate) fn protocol(name: &str) -> Option<Protocol> {
    Protocol::ALL.into_iter().find(|protocol| protocol.name().eq_ignore_ascii_case(name))
}

fn parse_range(part: Part<'_>) -> Result<RangeInclusive<u16>, SpecError> {
    let Some((first, last)) = part.split_first('-') else {
        let port = parse_port(part)?;
        return Ok(port..=port);
    };
    let range = parse_port(first)?..=parse_port(last)?;
    if range.is_empty() {
        return Err(part.error(format!(
            "range {} is reversed; write {}-{}",
            part.text, last.text, first.text
        )));
    }
    Ok(range)
}

fn parse_port(part: Part<'_>) -> Result<u16, SpecError> {
    let digits = !part.text.is_empty() && part.text.bytes().all(|byte| byte.is_ascii_digit());
    match part.text.parse() {
        Ok(port) if digits && port != 0 => Ok(port),
        Ok(_) | Err(_) => {
            let found = if digits { part.text.to_owned() } else { format!("{:?}", part.text) };
            Err(part.error(format!("port {found} is not a port; ports are 1 to 65535")))
        }
    }
}

fn count(ports: usize) -> String {
    match ports {
        1 => "(1 port)".to_owned(),
        more => format!("({more} ports)"),
    }
}

/// A part of the entry, with where it starts.
#[derive(Clone, Copy)]
struct Part<'s> {
    text: &'s str,
    offset: usize,
}

impl<'s> Part<'s> {
    fn split_first(self, separator: char) -> Option<(Self, Self)> {
        self.split(self.text.find(separator)?, separator)
    }

    fn split_last(self, separator: char) -> Option<(Self, Self)> {
        self.split(self.text.rfind(separator)?, separator)
    }

    fn split(self, at: usize, separator: char) -> Option<(Self, Self)> {
        let before = Self { text: self.text.get(..at)?, offset: self.offset };
        Some((before, self.skip(at + separator.len_utf8())))
    }

    fn skip(self, bytes: usize) -> Self {
        Self { text: self.text.get(bytes..).unwrap_or(""), offset: self.offset + bytes }
    }

    fn error(self, message: String) -> SpecError {
        SpecError { offset: self.offset, message }
    }
}

#[cfg(test)]
mod tests;
