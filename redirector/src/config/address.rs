//! Addresses that a frontend, a backend or a node may have.

use std::fmt;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};

/// Whose address it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Frontend,
    Backend,
    Node,
}

/// Parses and checks an address; the error says what is wrong and what is allowed.
pub(super) fn parse(text: &str, role: Role) -> Result<IpAddr, String> {
    let Ok(address) = text.parse::<IpAddr>() else {
        let allowed = match role {
            Role::Frontend | Role::Node => {
                "an IPv4 or IPv6 address, without a port or prefix length"
            }
            Role::Backend => {
                "\"local\", or an IPv4 or IPv6 address without a port or prefix length"
            }
        };
        return Err(format!("{text:?} is not an address; allowed: {allowed}"));
    };
    check(address, role)?;
    Ok(address)
}

/// Parses and checks an address of this node, or a network that some of its addresses are in; the
/// error says what is wrong and what is allowed.
pub(super) fn parse_own(text: &str) -> Result<IpNet, String> {
    if let Ok(network) = text.parse::<IpNet>() {
        check_network(network)?;
        // Every address is in a network without a prefix.
        if network.prefix_len() > 0 {
            check(network.addr(), Role::Node)?;
        }
        return Ok(network);
    }
    let Ok(address) = text.parse::<IpAddr>() else {
        return Err(format!(
            "{text:?} is no address and no network; allowed: as in \"192.0.2.10\" or \"192.0.2.0/24\""
        ));
    };
    check(address, Role::Node)?;
    Ok(address.into())
}

/// Checks a network that clients may come from; the error says what was meant.
pub(super) fn check_network(network: IpNet) -> Result<(), String> {
    let whole = network.trunc();
    if network != whole {
        return Err(format!("{network} has bits set behind its prefix; write {whole}"));
    }
    // No IPv6 client has such an address, and IPv4 clients are not looked up among IPv6 networks.
    if let IpNet::V6(v6) = network
        && let Some(v4) = v6.addr().to_ipv4_mapped()
        && let Some(prefix) = v6.prefix_len().checked_sub(96)
        && let Ok(v4) = Ipv4Net::new(v4, prefix)
    {
        return Err(format!("{network} is an IPv4 network in IPv6 form; write {v4}"));
    }
    Ok(())
}

fn check(address: IpAddr, role: Role) -> Result<(), String> {
    if let IpAddr::V6(v6) = address
        && let Some(v4) = v6.to_ipv4_mapped()
    {
        return Err(format!("{address} is an IPv4 address in IPv6 form; write {v4}"));
    }
    let Some(kind) = Kind::of(address) else {
        return Ok(());
    };
    let advice = match (kind, role) {
        (Kind::Unspecified, Role::Frontend) => {
            "clients cannot send to it; leave the address out for every node address"
        }
        (Kind::Unspecified | Kind::Multicast | Kind::Broadcast, Role::Node) => {
            "no node has it; name an address that other nodes reach the node at"
        }
        (Kind::Loopback, Role::Node) => {
            "every node has it; name an address that other nodes reach the node at"
        }
        (Kind::Unspecified | Kind::Multicast | Kind::Broadcast, Role::Backend) => {
            "no single program answers at it; name the backend's own address"
        }
        (Kind::Multicast | Kind::Broadcast, Role::Frontend) => {
            "no single host owns it; name an address that one host owns"
        }
        (Kind::Loopback, Role::Frontend) => {
            "packets from outside never carry it; name an address that clients send to"
        }
        (Kind::Loopback, Role::Backend) => {
            "packets from outside cannot be sent to it; write \"local\" for a program of this host"
        }
        (Kind::LinkLocal, _) => {
            "it means nothing without an interface; name a global or unique local address"
        }
    };
    Err(format!("{address} is {kind}: {advice}"))
}

/// Kinds of addresses that neither a frontend, nor a backend, nor a node can have.
#[derive(Clone, Copy)]
enum Kind {
    Unspecified,
    Multicast,
    Broadcast,
    Loopback,
    LinkLocal,
}

impl Kind {
    fn of(address: IpAddr) -> Option<Self> {
        if address.is_unspecified() {
            return Some(Self::Unspecified);
        }
        if address.is_multicast() {
            return Some(Self::Multicast);
        }
        if address.is_loopback() {
            return Some(Self::Loopback);
        }
        match address {
            IpAddr::V4(v4) if v4.is_broadcast() => Some(Self::Broadcast),
            IpAddr::V6(v6) if v6.is_unicast_link_local() => Some(Self::LinkLocal),
            IpAddr::V4(_) | IpAddr::V6(_) => None,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unspecified => "the unspecified address",
            Self::Multicast => "a multicast address",
            Self::Broadcast => "the broadcast address",
            Self::Loopback => "a loopback address",
            Self::LinkLocal => "a link-local address",
        })
    }
}
