//! Ports of the node that an annotation must not take.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use redirector_common::Protocol;

use crate::dataplane::proc_net::{self, ListedSocket, SocketState};

/// Ports without which a node cannot be reached or kept, and what they are.
const PROTECTED: [(u16, &str); 6] = [
    (22, "of SSH"),
    (2379, "of etcd"),
    (2380, "of etcd"),
    (6443, "of the API server"),
    (10250, "of the kubelet"),
    (10256, "of the health of the node's proxy"),
];

/// What says whether a port may be taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Guard {
    /// Ports that the operator allows whatever they are.
    pub allowed: BTreeSet<u16>,
    /// Ports that the agent itself listens on.
    pub own: BTreeSet<u16>,
    /// Ports for translation.
    pub snat: Option<RangeInclusive<u16>>,
    /// Ports that programs of this host listen on.
    pub listening: BTreeSet<(Protocol, u16)>,
}

impl Guard {
    /// Why a port cannot be taken by anyone: replies come to it.
    #[must_use]
    pub fn translates(&self, port: u16) -> Option<String> {
        let snat = self.snat.as_ref().filter(|snat| snat.contains(&port))?;
        let (first, last) = (snat.start(), snat.end());
        Some(format!("port {port} lies in {first}-{last}, which is reserved for translation"))
    }

    /// Why a port must not be taken; `None`: it may. `is_held`: it was given before, and who has
    /// come to listen on it since came later.
    #[must_use]
    pub fn refusal(&self, protocol: Protocol, port: u16, is_held: bool) -> Option<String> {
        if let Some(problem) = self.translates(port) {
            return Some(problem);
        }
        if self.allowed.contains(&port) {
            return None;
        }
        let allow = format!("the operator can allow it with --allow-ports {port}");
        if let Some((_, whose)) = PROTECTED.iter().find(|(protected, _)| *protected == port) {
            return Some(format!("port {port} is protected: it is that {whose}; {allow}"));
        }
        if self.own.contains(&port) {
            return Some(format!("port {port} is protected: it is redirector's own; {allow}"));
        }
        if !is_held && self.listening.contains(&(protocol, port)) {
            return Some(format!(
                "another program of the node listens on port {port}/{}; {allow}",
                protocol.name().to_ascii_lowercase()
            ));
        }
        None
    }
}

/// Ports that programs of this network namespace listen on, on any address but loopback ones.
#[must_use]
pub fn read_listening() -> BTreeSet<(Protocol, u16)> {
    let listening = |protocol| {
        proc_net::sockets(protocol)
            .filter(is_reachable)
            .map(move |it| (protocol, it.local.1.number()))
    };
    listening(Protocol::Tcp).chain(listening(Protocol::Udp)).collect()
}

fn is_reachable(socket: &ListedSocket) -> bool {
    let (address, _) = socket.local;
    let is_reachable = address.is_unspecified() || !address.is_loopback();
    is_reachable && socket.state == SocketState::Listens
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::net::{SocketAddr, TcpListener, UdpSocket};

    use redirector_common::{Address, Port};

    use super::*;

    #[test]
    fn protected_ports_need_the_operators_word() {
        let guard = Guard {
            allowed: BTreeSet::from([22]),
            own: BTreeSet::from([9961]),
            snat: Some(50_000..=50_010),
            listening: BTreeSet::from([(Protocol::Tcp, 80)]),
        };
        let refused = |port, held| guard.refusal(Protocol::Tcp, port, held).is_some();
        assert!(!refused(22, false) && refused(6443, false) && refused(9961, true));
        assert!(refused(80, false) && !refused(80, true) && !refused(81, false));
        assert!(guard.refusal(Protocol::Udp, 80, false).is_none());
        assert!(refused(50_010, true) && !refused(50_011, true));
    }

    #[test]
    fn sockets_that_listen() {
        let socket = |ip: [u8; 4], state| ListedSocket {
            local: (Address::from_v4(ip), Port::new(80)),
            remote: (Address::UNSPECIFIED, Port::new(0)),
            state,
        };
        assert!(is_reachable(&socket([192, 0, 2, 1], SocketState::Listens)));
        assert!(!is_reachable(&socket([192, 0, 2, 1], SocketState::Connected)));
        assert!(!is_reachable(&socket([127, 0, 0, 1], SocketState::Listens)));

        let listener = TcpListener::bind("0.0.0.0:0").expect("listens");
        let hidden = TcpListener::bind("127.0.0.1:0").expect("listens");
        let answers = UdpSocket::bind("[::]:0").expect("is bound");
        let port = |address: io::Result<SocketAddr>| address.expect("an address").port();
        let found = read_listening();
        assert!(found.contains(&(Protocol::Tcp, port(listener.local_addr()))));
        assert!(!found.contains(&(Protocol::Tcp, port(hidden.local_addr()))));
        assert!(found.contains(&(Protocol::Udp, port(answers.local_addr()))));
    }
}
