//! What stands between client and server.

/// Where the server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Place {
    /// On the node that clients talk to.
    Local,
    /// On another.
    Remote,
}

impl Place {
    pub(crate) const ALL: [Self; 2] = [Self::Local, Self::Remote];

    /// As results name it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Remote => "remote",
        }
    }

    /// What is measured there; the first is what others are compared with.
    pub(crate) const fn paths(self) -> &'static [Path] {
        match self {
            Self::Local => &[
                Path::Direct,
                Path::Pass,
                Path::Redirector,
                Path::RedirectorDnat,
                Path::Nftables,
                Path::Iptables,
                Path::Haproxy,
                Path::Socat,
            ],
            Self::Remote => &[
                Path::Forward,
                Path::Direct,
                Path::Redirector,
                Path::Nftables,
                Path::Iptables,
                Path::Haproxy,
                Path::Socat,
            ],
        }
    }

    /// What others are compared with.
    pub(crate) const fn floor(self) -> Path {
        match self {
            Self::Local => Path::Direct,
            Self::Remote => Path::Forward,
        }
    }
}

/// How a connection gets from client to server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Path {
    /// To the server's own port; where it is elsewhere, the kernel forwards.
    Direct,
    /// The same, forwarded by an XDP program that looks nothing up.
    Forward,
    /// To the server's own port, past an XDP program that passes everything: with veth, that alone
    /// makes frames of packets and packets of frames again.
    Pass,
    /// Our agent: steered, or translated where the server is elsewhere.
    Redirector,
    /// Our agent with a frontend whose address is none of the host's: translated.
    RedirectorDnat,
    /// The rules of kube-proxy's mode of that name.
    Nftables,
    /// The same.
    Iptables,
    /// HAProxy in TCP mode.
    Haproxy,
    /// socat, a process for each connection.
    Socat,
}

impl Path {
    /// As results name it.
    pub(crate) const fn name(self, place: Place) -> &'static str {
        match (self, place) {
            (Self::Direct, Place::Local) => "direct",
            (Self::Direct, Place::Remote) => "direct, kernel forwarding",
            (Self::Forward, _) => "direct, XDP forwarding",
            (Self::Pass, _) => "direct, past XDP",
            (Self::Redirector, Place::Local) => "redirector, steered",
            (Self::Redirector, Place::Remote) => "redirector, SNAT",
            (Self::RedirectorDnat, _) => "redirector, DNAT",
            (Self::Nftables, _) => "nftables",
            (Self::Iptables, _) => "iptables",
            (Self::Haproxy, _) => "HAProxy",
            (Self::Socat, _) => "socat",
        }
    }

    /// The program that it takes.
    pub(crate) const fn program(self) -> Option<&'static str> {
        match self {
            Self::Direct | Self::Forward | Self::Pass | Self::Redirector | Self::RedirectorDnat => {
                None
            }
            Self::Nftables => Some("nft"),
            Self::Iptables => Some("iptables-restore"),
            Self::Haproxy => Some("haproxy"),
            Self::Socat => Some("socat"),
        }
    }
}
