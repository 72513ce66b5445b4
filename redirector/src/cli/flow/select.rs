//! Which flows a command is about.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use redirector_common::{FlowState, Protocol};

use super::rows::FlowRow;

/// Filters; a flow must match all that are given.
#[derive(Args, Clone, Debug, Default)]
pub(super) struct Selection {
    /// Flows of this client: ADDRESS or ADDRESS:PORT
    #[arg(long, value_name = "ADDRESS[:PORT]")]
    client: Option<End>,
    /// Flows to this frontend
    #[arg(long, value_name = "ADDRESS[:PORT]")]
    frontend: Option<End>,
    /// Flows to this backend
    #[arg(long, value_name = "ADDRESS[:PORT]")]
    backend: Option<End>,
    /// Flows of this service: NAME or NAMESPACE/NAME
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// Flows in this state
    #[arg(long, ignore_case = true, value_parser = states())]
    state: Option<FlowState>,
    /// Flows of this protocol
    #[arg(long, ignore_case = true, value_parser = protocols())]
    protocol: Option<Protocol>,
}

impl Selection {
    /// Whether the flow matches all filters that are given.
    pub(super) fn matches(&self, row: &FlowRow) -> bool {
        let at = |end: &Option<End>, socket| end.is_none_or(|end| end.matches(socket));
        at(&self.client, row.client)
            && at(&self.frontend, row.frontend)
            && at(&self.backend, row.backend)
            && self.service.as_ref().is_none_or(|name| is_named(&row.service, name))
            && self.state.is_none_or(|state| row.state == state)
            && self.protocol.is_none_or(|protocol| row.protocol == protocol)
    }
}

/// Whether a service's full name is `name`, or `name` in some namespace.
pub(in crate::cli) fn is_named(service: &str, name: &str) -> bool {
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
pub(in crate::cli) struct End {
    pub(in crate::cli) address: IpAddr,
    pub(in crate::cli) port: Option<u16>,
}

impl End {
    fn matches(self, socket: SocketAddr) -> bool {
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

fn states() -> impl TypedValueParser<Value = FlowState> {
    PossibleValuesParser::new(FlowState::ALL.map(FlowState::name)).try_map(|word| {
        FlowState::ALL
            .into_iter()
            .find(|state| state.name().eq_ignore_ascii_case(&word))
            .ok_or("no such state")
    })
}

/// The protocols, by their names.
pub(in crate::cli) fn protocols() -> impl TypedValueParser<Value = Protocol> {
    PossibleValuesParser::new(["tcp", "udp"]).try_map(|word| {
        Protocol::ALL
            .into_iter()
            .find(|protocol| protocol.name().eq_ignore_ascii_case(&word))
            .ok_or("no such protocol")
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::rows::{Loaded, flow_rows, tests::flow};
    use super::*;

    fn row() -> FlowRow {
        let halves = flow(Protocol::Tcp, "198.51.100.7:4000", "192.0.2.1:80", "10.0.0.5:8080");
        let loaded = Loaded { flows: BTreeMap::from(halves), infos: BTreeMap::new() };
        flow_rows(&loaded, 0).remove(0)
    }

    fn end(text: &str) -> Option<End> {
        Some(text.parse().expect(text))
    }

    #[test]
    fn without_filters_all_match() {
        assert!(Selection::default().matches(&row()));
    }

    #[test]
    fn every_filter_must_match() {
        let mut selection = Selection {
            client: end("198.51.100.7"),
            backend: end("10.0.0.5:8080"),
            protocol: Some(Protocol::Tcp),
            ..Selection::default()
        };
        assert!(selection.matches(&row()));
        selection.frontend = end("192.0.2.1:81");
        assert!(!selection.matches(&row()));
    }

    #[test]
    fn ends_are_read_with_and_without_ports() {
        for text in ["192.0.2.1", "192.0.2.1:80", "2001:db8::1", "[2001:db8::1]", "[::1]:80"] {
            assert!(text.parse::<End>().is_ok(), "{text}");
        }
        for text in ["", "web", "192.0.2.1:", "192.0.2.1:99999", "192.0.2", ":80"] {
            assert!(text.parse::<End>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_service_matches_with_and_without_its_namespace() {
        let with = |service: &str, filter: &str| {
            let selection = Selection { service: Some(filter.to_owned()), ..Selection::default() };
            let row = FlowRow { service: service.to_owned(), ..row() };
            selection.matches(&row)
        };
        assert!(with("shop/web", "web"));
        assert!(with("shop/web", "shop/web"));
        assert!(!with("shop/web", "eb"));
        assert!(with("80:8080/tcp", "80:8080/tcp"));
        assert!(!with("80:8080/tcp", "tcp"));
    }
}
