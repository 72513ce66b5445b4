//! Whose flows or packets a command is about.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use redirector_common::Protocol;

/// Filters that flows and packets have in common; all that are given must match.
#[derive(Args, Clone, Debug, Default)]
pub(super) struct Parties {
    /// Only of this client: ADDRESS or ADDRESS:PORT
    #[arg(long, value_name = "ADDRESS[:PORT]")]
    pub(super) client: Option<End>,
    /// Only to this frontend
    #[arg(long, value_name = "ADDRESS[:PORT]")]
    pub(super) frontend: Option<End>,
    /// Only to this backend
    #[arg(long, value_name = "ADDRESS[:PORT]")]
    pub(super) backend: Option<End>,
    /// Only of this service: NAME or NAMESPACE/NAME
    #[arg(long, value_name = "NAME")]
    pub(super) service: Option<String>,
    /// Only of this protocol
    #[arg(long, ignore_case = true, value_parser = protocols())]
    pub(super) protocol: Option<Protocol>,
}

/// Whether a service's full name is `name`, or `name` in some namespace.
pub(super) fn is_named(service: &str, name: &str) -> bool {
    service == name || service.strip_suffix(name).is_some_and(is_namespace)
}

/// Whether what stands before a service's name is a namespace and its slash.
fn is_namespace(before: &str) -> bool {
    before
        .strip_suffix('/')
        // A publish entry is named `80:8080/tcp`, and `tcp` alone does not name it.
        .is_some_and(|namespace| !namespace.contains([':', '/']))
}

/// One end of a flow, with or without its port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct End {
    pub(super) address: IpAddr,
    pub(super) port: Option<u16>,
}

impl End {
    pub(super) fn matches(self, socket: SocketAddr) -> bool {
        self.address == socket.ip() && self.port.is_none_or(|port| port == socket.port())
    }
}

impl FromStr for End {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(socket) = text.parse::<SocketAddr>() {
            return Ok(Self { address: socket.ip(), port: Some(socket.port()) });
        }
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        match bare.parse() {
            Ok(address) => Ok(Self { address, port: None }),
            Err(_) => Err("give an address, 192.0.2.1 or 2001:db8::1, or an address and a port, \
                           192.0.2.1:80 or [2001:db8::1]:80"
                .to_owned()),
        }
    }
}

fn protocols() -> impl TypedValueParser<Value = Protocol> {
    PossibleValuesParser::new(["tcp", "udp"]).try_map(|word| {
        Protocol::ALL
            .into_iter()
            .find(|protocol| protocol.name().eq_ignore_ascii_case(&word))
            .ok_or("no such protocol")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_read_with_and_without_ports() {
        for text in ["192.0.2.1", "192.0.2.1:80", "2001:db8::1", "[2001:db8::1]", "[::1]:80"] {
            assert!(text.parse::<End>().is_ok(), "{text}");
        }
        for text in ["", "web", "192.0.2.1:", "192.0.2.1:99999", "192.0.2", ":80"] {
            assert!(text.parse::<End>().is_err(), "{text}");
        }
    }
}
