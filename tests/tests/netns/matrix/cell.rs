//! The cells, and what has to happen in each: a model that knows no packet.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use redirector_common::{Family, Protocol};
use redirector_tests::topology::{Addresses, CLIENT, FAMILIES, NODE1, NODE1_INSIDE, NODE2};

use Backend::{OtherHost, OtherPod, OwnHost, OwnPod};

/// A pod of node 1.
pub(super) const POD1: Addresses = Addresses::new(3, 2);
/// A pod of node 2.
pub(super) const POD2: Addresses = Addresses::new(7, 2);

/// The port that every server has, TCP and UDP.
pub(super) const SERVER_PORT: u16 = 8080;

/// The first service's port; each has its own.
const FIRST_PORT: u16 = 100;

/// Whose network the backend is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Backend {
    OwnHost,
    OwnPod,
    OtherHost,
    OtherPod,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Policy {
    Cluster,
    Local,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Forwarding {
    Snat,
    Dsr,
}

/// Where packets are to be forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hook {
    Native,
    Generic,
    Tc,
}

/// How an answer gets to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// From node 1, which was asked.
    Asked,
    /// From node 2, past node 1.
    Direct,
}

/// What a service is made of: a cell without family and hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kind {
    pub(super) protocol: Protocol,
    pub(super) backend: Backend,
    pub(super) policy: Policy,
    pub(super) forwarding: Forwarding,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cell {
    pub(super) family: Family,
    pub(super) kind: Kind,
    pub(super) hook: Hook,
    /// The service's port.
    pub(super) port: u16,
}

/// What has to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expected {
    /// The backend answers.
    Answer {
        server: &'static str,
        /// The client's address, as the server sees it.
        client: IpAddr,
        /// The Reason of the first packet, on the interface that faces the client.
        opens: &'static str,
        /// The Reason of the answer, and the interface that counts it; none: it does not come by.
        answers: Option<(&'static str, &'static str)>,
        /// How the answer gets to the client.
        way: Way,
        /// Whether the kernel's stack of node 1 has packets of the client's.
        is_in_stack: bool,
    },
    /// Nobody answers, and nobody says so. TC ingress sees to it: XDP does not look at ports of which
    /// nothing goes elsewhere.
    Silence { reason: &'static str },
}

impl Kind {
    /// All, in the order of their ports.
    pub(super) fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            for backend in [OwnHost, OwnPod, OtherHost, OtherPod] {
                for policy in [Policy::Cluster, Policy::Local] {
                    for forwarding in [Forwarding::Snat, Forwarding::Dsr] {
                        all.push(Self { protocol, backend, policy, forwarding });
                    }
                }
            }
        }
        all
    }

    /// With the port of each.
    pub(super) fn with_ports() -> impl Iterator<Item = (Self, u16)> {
        Self::all().into_iter().zip(FIRST_PORT..)
    }

    /// A service of the agent's file.
    pub(super) fn service(self, port: u16) -> String {
        let protocol = self.protocol.name();
        let addresses = self.backend.addresses();
        let forwarding = match self.forwarding {
            // What is left out.
            Forwarding::Snat => "",
            Forwarding::Dsr => "\n    forwarding: dsr",
        };
        format!(
            "
  - name: {self}
    frontends: [{{port: {port}, protocol: {protocol}}}]
    trafficPolicy: {:?}{forwarding}
    backends:
      - {{address: {}, port: {SERVER_PORT}}}
      - {{address: '{}', port: {SERVER_PORT}}}",
            self.policy, addresses.v4, addresses.v6
        )
        .to_owned()
    }

    /// What makes no sense about it, and what it is therefore to be like.
    pub(super) const fn oddity(self) -> Option<&'static str> {
        match (self.backend, self.policy, self.forwarding) {
            (OwnHost | OwnPod, _, Forwarding::Dsr) => {
                Some("a backend of this node answers directly in any case: like SNAT")
            }
            (OtherHost | OtherPod, Policy::Local, _) => {
                Some("policy Local never chooses a backend elsewhere: nothing is forwarded")
            }
            (OwnHost | OwnPod, _, Forwarding::Snat)
            | (OtherHost | OtherPod, Policy::Cluster, _) => None,
        }
    }
}

impl fmt::Display for Kind {
    /// As a service's name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { protocol, backend, policy, forwarding } = self;
        let text = format!("{}-{backend:?}-{policy:?}-{forwarding:?}", protocol.name());
        f.write_str(&text.to_ascii_lowercase())
    }
}

impl Backend {
    const fn addresses(self) -> Addresses {
        match self {
            OwnHost => NODE1,
            OwnPod => POD1,
            OtherHost => NODE2,
            OtherPod => POD2,
        }
    }

    pub(super) const fn server(self) -> &'static str {
        match self {
            OwnHost => "node1",
            OwnPod => "pod1",
            OtherHost => "node2",
            OtherPod => "pod2",
        }
    }
}

impl Hook {
    pub(super) const ALL: [Self; 3] = [Self::Native, Self::Generic, Self::Tc];

    /// The word in the file and in `status`.
    pub(super) const fn mode(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Tc => "off",
        }
    }
}

impl Cell {
    /// All of a hook.
    pub(super) fn all(hook: Hook) -> impl Iterator<Item = Self> {
        Kind::with_ports()
            .flat_map(move |(kind, port)| FAMILIES.map(|family| Self { family, kind, hook, port }))
    }

    pub(super) fn frontend(self) -> SocketAddr {
        SocketAddr::new(NODE1.of(self.family), self.port)
    }

    pub(super) fn expected(self) -> Expected {
        let Self { family, kind, hook, .. } = self;
        let server = kind.backend.server();
        // XDP ends what it can finish.
        let is_past_xdp = matches!(hook, Hook::Tc);
        match (kind.backend, kind.policy, kind.forwarding, kind.protocol) {
            (OtherHost | OtherPod, Policy::Local, _, _) => {
                Expected::Silence { reason: "no-local-backend" }
            }
            (OwnHost, _, _, Protocol::Tcp) => Expected::Answer {
                server,
                client: CLIENT.of(family),
                opens: "steered-new",
                // An ordinary socket's, with the frontend's own address: nobody looks at it.
                answers: None,
                way: Way::Asked,
                is_in_stack: true,
            },
            (OwnHost, _, _, Protocol::Udp) | (OwnPod, _, _, _) => Expected::Answer {
                server,
                client: CLIENT.of(family),
                opens: "local-new",
                answers: Some(("local-reply", "eth0")),
                way: Way::Asked,
                is_in_stack: true,
            },
            (OtherHost | OtherPod, Policy::Cluster, Forwarding::Snat, _) => Expected::Answer {
                server,
                client: NODE1_INSIDE.of(family),
                opens: "remote-new",
                answers: Some(("remote-reply", "eth1")),
                way: Way::Asked,
                is_in_stack: is_past_xdp,
            },
            (OtherHost | OtherPod, Policy::Cluster, Forwarding::Dsr, _) => Expected::Answer {
                server,
                client: CLIENT.of(family),
                opens: "dsr-new",
                answers: None,
                way: Way::Direct,
                is_in_stack: is_past_xdp,
            },
        }
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {} {:?} (port {})", self.family, self.kind, self.hook, self.port)
    }
}

/// What the table is: its size, and which cells are like others.
#[test]
fn the_table_is_complete() {
    let cells: Vec<Cell> = Hook::ALL.into_iter().flat_map(Cell::all).collect();
    assert_eq!(cells.len(), 2 * 2 * 4 * 2 * 2 * 3);
    for (at, cell) in cells.iter().enumerate() {
        assert!(!cells[..at].contains(cell), "{cell} stands twice");
        let like = |change: &dyn Fn(&mut Cell)| {
            let mut other = *cell;
            change(&mut other);
            other.expected() == cell.expected()
        };
        let is_odd = cell.kind.oddity().is_some();
        let is_like_snat = like(&|it| it.kind.forwarding = Forwarding::Snat);
        let is_silent = matches!(cell.expected(), Expected::Silence { .. });
        assert_eq!(is_silent, is_odd && !matches!(cell.kind.backend, OwnHost | OwnPod), "{cell}");
        assert!(!is_odd || is_like_snat, "{cell} is odd and like nothing else");
        // Native or generic is a matter of speed alone.
        assert!(cell.hook == Hook::Tc || like(&|it| it.hook = Hook::Generic), "{cell}");
    }
}
