//! What most tests publish, and the servers behind it.

use std::net::SocketAddr;

use crate::{
    agent::Lab,
    client,
    server::{Server, Service},
    topology::{Addresses, NODE1, NODE2},
};
use anyhow::{Context as _, Result, ensure};
use redirector_common::Family;

/// The agent's file: ports of node 1's own programs, and ports with a backend on node 2.
pub const CONFIG: &str = "
publish:
  - 80:8080
  - 53:5353/udp
services:
  - name: web
    frontends:
      - {port: 81, protocol: TCP}
    backends:
      - {address: 198.18.2.2, port: 8080}
      - {address: '2001:db8:2::2', port: 8080}
  - name: dns
    frontends:
      - {port: 54, protocol: UDP}
    backends:
      - {address: 198.18.2.2, port: 5353}
      - {address: '2001:db8:2::2', port: 5353}
";

/// Where the backend of a frontend is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On node 1, where the agent is.
    Local,
    /// On node 2.
    Remote,
}

/// Both places.
pub const PLACES: [Place; 2] = [Place::Local, Place::Remote];

impl Place {
    /// The TCP frontend with a backend there.
    pub fn tcp(self, family: Family) -> SocketAddr {
        let port = match self {
            Self::Local => 80,
            Self::Remote => 81,
        };
        SocketAddr::new(NODE1.of(family), port)
    }

    /// The UDP frontend with a backend there.
    pub fn udp(self, family: Family) -> SocketAddr {
        let port = match self {
            Self::Local => 53,
            Self::Remote => 54,
        };
        SocketAddr::new(NODE1.of(family), port)
    }

    /// Starts the TCP server there.
    pub fn serve_tcp(self, lab: &Lab, service: Service) -> Result<Server> {
        match self {
            Self::Local => Server::tcp(&lab.net.node1, 8080, service),
            Self::Remote => Server::tcp(&lab.net.node2, 8080, service),
        }
    }

    /// Starts the UDP server there.
    pub fn serve_udp(self, lab: &Lab, service: Service) -> Result<Server> {
        match self {
            Self::Local => Server::udp(&lab.net.node1, 5353, service),
            Self::Remote => Server::udp(&lab.net.node2, 5353, service),
        }
    }

    /// The name that [`serve_names`]'s servers answer with here.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Local => "node1",
            Self::Remote => "node2",
        }
    }
}

/// Starts a server that says who it is, everywhere.
pub fn serve_names(lab: &Lab) -> Result<Vec<Server>> {
    let mut servers = Vec::new();
    for place in PLACES {
        servers.push(place.serve_tcp(lab, Service::Whoami(place.name()))?);
        servers.push(place.serve_udp(lab, Service::Whoami(place.name()))?);
    }
    Ok(servers)
}

/// Starts an echo server everywhere.
pub fn serve_echo(lab: &Lab) -> Result<Vec<Server>> {
    let mut servers = Vec::new();
    for place in PLACES {
        servers.push(place.serve_tcp(lab, Service::Echo)?);
        servers.push(place.serve_udp(lab, Service::Echo)?);
    }
    Ok(servers)
}

/// Asks every frontend's server who it is, and whom it takes the client for.
pub fn check_answers(lab: &Lab) -> Result<()> {
    check_answers_at(lab, NODE1)
}

/// The same at an address of node 1 of the test's choice. The client is seen by its address in the
/// same network.
pub fn check_answers_at(lab: &Lab, node: Addresses) -> Result<()> {
    let client = node.peer();
    for family in crate::topology::FAMILIES {
        for place in PLACES {
            let at = |frontend: SocketAddr| SocketAddr::new(node.of(family), frontend.port());
            let tcp = client::whoami(&lab.net.client, at(place.tcp(family)))
                .with_context(|| format!("TCP over {family:?} to {place:?}"))?;
            let udp = client::whoami_udp(&lab.net.client, at(place.udp(family)))
                .with_context(|| format!("UDP over {family:?} to {place:?}"))?;
            let seen = match place {
                Place::Local => client.of(family),
                Place::Remote => crate::topology::NODE1_INSIDE.of(family),
            };
            for (protocol, answer) in [("TCP", tcp), ("UDP", udp)] {
                ensure!(
                    answer.server == place.name() && answer.client.ip() == seen,
                    "{protocol} over {family:?} to {place:?}: {answer:?}, expected {seen}"
                );
            }
        }
    }
    Ok(())
}

/// A port of node 2, past redirector.
pub fn node2(family: Family, port: u16) -> SocketAddr {
    SocketAddr::new(NODE2.of(family), port)
}
