//! What people are told of direct server return: whom it works with, and what it costs.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use redirector_common::{Frontend, FrontendKey, Service};
use serde::Serialize;

use super::status::PeersStatus;

/// Bytes of the header that a tunnel puts in front of an IPv4 packet.
const HEADER_V4: u32 = 20;
/// The same of IPv6.
const HEADER_V6: u32 = 40;

/// Largest packets that an interface takes by tunnel, in bytes. Larger ones are answered with
/// "fragmentation needed" or "packet too big"; on a common segment there is no tunnel, and nothing
/// is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct TunnelMtu {
    /// Of IPv4.
    pub ipv4: u32,
    /// Of IPv6.
    pub ipv6: u32,
}

impl TunnelMtu {
    /// For an interface that takes packets of `mtu` bytes.
    #[must_use]
    pub const fn of(mtu: u32) -> Self {
        Self { ipv4: mtu.saturating_sub(HEADER_V4), ipv6: mtu.saturating_sub(HEADER_V6) }
    }
}

/// An interface and what fits through it, for people.
#[must_use]
pub fn describe_mtu(name: &str, mtu: u32) -> String {
    let TunnelMtu { ipv4, ipv6 } = TunnelMtu::of(mtu);
    format!("{name} (MTU {mtu}; by tunnel {ipv4}, IPv6 {ipv6})")
}

/// Direct server return on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Direct {
    /// Services whose backends answer clients themselves, one for each address family.
    pub services: usize,
    /// Addresses of the other nodes.
    pub peers: usize,
    /// The other nodes themselves, where Kubernetes tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodes: Option<PeersStatus>,
    /// Addresses of frontends on this host that other nodes do not know as its: what comes to them
    /// is translated.
    pub unlisted: BTreeSet<IpAddr>,
    /// Interfaces, by name.
    pub tunnel_mtu: BTreeMap<String, TunnelMtu>,
    /// Whether clients are told of TCP segments that fit into tunnels which end here.
    pub mss_clamp: bool,
}

impl Direct {
    /// From what the maps hold; `mtus` of the interfaces that packets come in by.
    #[must_use]
    pub fn of<'a>(
        services: impl Iterator<Item = &'a Service>,
        frontends: impl Iterator<Item = (&'a FrontendKey, &'a Frontend)>,
        peers: usize,
        nodes: Option<PeersStatus>,
        mtus: BTreeMap<String, u32>,
        mss_clamp: bool,
    ) -> Self {
        let unlisted = frontends.filter(|(_, frontend)| frontend.is_unlisted());
        Self {
            services: services.filter(|service| service.is_dsr()).count(),
            peers,
            nodes,
            unlisted: unlisted.map(|(key, _)| key.address.into()).collect(),
            tunnel_mtu: mtus.into_iter().map(|(name, mtu)| (name, TunnelMtu::of(mtu))).collect(),
            mss_clamp,
        }
    }

    /// One line for people.
    #[must_use]
    pub fn describe(&self) -> String {
        if self.services == 0 {
            return match self.peers {
                0 => "not used".to_owned(),
                _ => format!("no service; {}", self.others()),
            };
        }
        let mut parts = vec![self.others()];
        parts.extend(self.tunnel_mtu.iter().map(|(name, mtu)| {
            format!("by tunnel from {name} packets of up to {} bytes (IPv6 {})", mtu.ipv4, mtu.ipv6)
        }));
        if !self.mss_clamp {
            parts.push("TCP segments are not clamped to that".to_owned());
        }
        if !self.unlisted.is_empty() {
            let all: Vec<String> = self.unlisted.iter().map(ToString::to_string).collect();
            parts.push(format!(
                "what comes to {} is translated, because that is no address of `nodes`",
                all.join(", ")
            ));
        }
        parts.extend(self.nodes.iter().filter_map(|nodes| nodes.error.clone()));
        let services = if self.services == 1 { "service" } else { "services" };
        format!("{} {services}; {}", self.services, parts.join("; "))
    }

    fn others(&self) -> String {
        match (&self.nodes, self.peers) {
            (_, 0) => "no other node is known".to_owned(),
            (Some(PeersStatus { known, taking, .. }), _) => {
                format!("{taking} of {known} other nodes take flows")
            }
            (None, 1) => "1 address of other nodes".to_owned(),
            (None, peers) => format!("{peers} addresses of other nodes"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use redirector_common::{Address, Port, Protocol};

    #[test]
    fn what_fits() {
        assert_eq!(describe_mtu("eth0", 1500), "eth0 (MTU 1500; by tunnel 1480, IPv6 1460)");
    }

    #[test]
    fn what_is_told_of_it() {
        let direct = Service { flags: Service::FLAG_DSR, ..Service::default() };
        let own = Address::from_v4([192, 0, 2, 10]);
        let key = FrontendKey::new(own, Port::new(80), Protocol::Tcp);
        let mtus = || BTreeMap::from([("eth0".to_owned(), 1500)]);
        let told = |services: &[Service], frontend: Frontend, peers, nodes, clamps| {
            let frontends = [(&key, &frontend)].into_iter();
            Direct::of(services.iter(), frontends, peers, nodes, mtus(), clamps).describe()
        };
        let describe =
            |services: &[Service], frontend, peers| told(services, frontend, peers, None, true);
        let frontend = Frontend::new(1, own);
        assert_eq!(describe(&[Service::default()], frontend, 0), "not used");
        assert_eq!(describe(&[], frontend, 2), "no service; 2 addresses of other nodes");
        assert_eq!(
            describe(&[direct, Service::default()], frontend, 2),
            "1 service; 2 addresses of other nodes; by tunnel from eth0 packets of up to 1480 \
             bytes (IPv6 1460)"
        );
        assert_eq!(
            describe(&[direct, direct], frontend.unlisted(), 0),
            "2 services; no other node is known; by tunnel from eth0 packets of up to 1480 bytes \
             (IPv6 1460); what comes to 192.0.2.10 is translated, because that is no address of \
             `nodes`"
        );
        assert_eq!(
            told(&[direct], frontend, 1, None, false),
            "1 service; 1 address of other nodes; by tunnel from eth0 packets of up to 1480 bytes \
             (IPv6 1460); TCP segments are not clamped to that"
        );
        let nodes = PeersStatus { known: 3, taking: 2, error: Some("some cannot".to_owned()) };
        assert_eq!(
            told(&[direct], frontend, 6, Some(nodes), true),
            "1 service; 2 of 3 other nodes take flows; by tunnel from eth0 packets of up to 1480 \
             bytes (IPv6 1460); some cannot"
        );
    }
}
