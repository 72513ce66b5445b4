//! Ports of the node that an annotation must not take.

use std::collections::BTreeSet;
use std::fs;
use std::ops::RangeInclusive;

use redirector_common::Protocol;

/// Ports without which a node cannot be reached or kept, and what they are.
const PROTECTED: [(u16, &str); 6] = [
    (22, "of SSH"),
    (2379, "of etcd"),
    (2380, "of etcd"),
    (6443, "of the API server"),
    (10250, "of the kubelet"),
    (10256, "of the health of the node's proxy"),
];

/// State of a TCP socket that listens, in `/proc/net/tcp`.
const LISTENS: &str = "0A";
/// State of a UDP socket without a peer, in `/proc/net/udp`.
const UNCONNECTED: &str = "07";

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
    let mut ports = BTreeSet::new();
    for (protocol, state, tables) in [
        (Protocol::Tcp, LISTENS, ["/proc/self/net/tcp", "/proc/self/net/tcp6"]),
        (Protocol::Udp, UNCONNECTED, ["/proc/self/net/udp", "/proc/self/net/udp6"]),
    ] {
        for table in tables {
            // Without IPv6 there is no table of it.
            let text = fs::read_to_string(table).unwrap_or_default();
            ports.extend(parse(&text, state).map(|port| (protocol, port)));
        }
    }
    ports
}

fn parse(table: &str, state: &str) -> impl Iterator<Item = u16> {
    table.lines().skip(1).filter_map(move |line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (local, _, found) = (fields.next()?, fields.next()?, fields.next()?);
        let (address, port) = local.split_once(':')?;
        // Loopback addresses, as the kernel prints their words.
        let is_loopback = (address.len() == 8 && address.ends_with("7F"))
            || address == "00000000000000000000000001000000"
            || (address.len() == 32
                && address.starts_with("0000000000000000FFFF0000")
                && address.ends_with("7F"));
        (found == state && !is_loopback).then(|| u16::from_str_radix(port, 16).ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
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
        let table = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1
   1: 0100007F:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 2
   2: 0200000A:0051 0100000A:C350 01 00000000:00000000 00:00000000 00000000     0        0 3
";
        assert_eq!(parse(table, LISTENS).collect::<Vec<_>>(), [8080]);
        let listener = std::net::TcpListener::bind("0.0.0.0:0").expect("listens");
        let port = listener.local_addr().expect("an address").port();
        assert!(read_listening().contains(&(Protocol::Tcp, port)));
    }
}
