//! What is measured: ways of forwarding, and cases.

/// What forwards on the node, with how many services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Path {
    /// Nothing: the ends, joined by one cable.
    Ends,
    /// An XDP program that sends everything on.
    Redirect,
    /// Our programs.
    Redirector(u32),
    /// The kernel, without any rule.
    Kernel,
    /// The kernel, with the rules of kube-proxy's mode of that name.
    Nftables(u32),
    /// The same.
    Iptables(u32),
}

impl Path {
    /// What it is called in results.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Ends => "generator and receiver",
            Self::Redirect => "plain XDP_REDIRECT",
            Self::Redirector(_) => "redirector",
            Self::Kernel => "kernel forwarding",
            Self::Nftables(_) => "nftables",
            Self::Iptables(_) => "iptables",
        }
    }

    /// How many services it knows; 0 if it knows nothing of services.
    pub(crate) const fn services(self) -> u32 {
        match self {
            Self::Ends | Self::Redirect | Self::Kernel => 0,
            Self::Redirector(services) | Self::Nftables(services) | Self::Iptables(services) => {
                services
            }
        }
    }

    /// Whether clients talk to the node's address and servers see the node's.
    pub(crate) const fn translates(self) -> bool {
        self.services() > 0
    }

    /// Whether what leaves the node is an skb.
    pub(crate) const fn makes_skbs(self) -> bool {
        matches!(self, Self::Kernel | Self::Nftables(_) | Self::Iptables(_))
    }

    /// Whether the kernel keeps a table of connections.
    pub(crate) const fn tracks(self) -> bool {
        matches!(self, Self::Nftables(_) | Self::Iptables(_))
    }

    /// By how much it lowers a packet's TTL.
    pub(crate) const fn hops(self) -> u8 {
        match self {
            Self::Ends | Self::Redirect => 0,
            Self::Redirector(_) | Self::Kernel | Self::Nftables(_) | Self::Iptables(_) => 1,
        }
    }
}

/// What packets meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Case {
    /// Flows that have been answered.
    Established(u32),
    /// Each packet opens one.
    New(u32),
}

impl Case {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Established(_) => "veth-established-udp",
            Self::New(_) => "veth-new-udp",
        }
    }

    pub(crate) const fn flows(self) -> u32 {
        match self {
            Self::Established(flows) | Self::New(flows) => flows,
        }
    }
}
