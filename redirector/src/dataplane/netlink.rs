//! What the kernel says of this host's interfaces, addresses and routes.

mod answers;

use std::collections::BTreeSet;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use ipnet::IpNet;

use futures::channel::mpsc::UnboundedReceiver;
use futures::{StreamExt, TryStreamExt};
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::sys::SocketAddr;
use rtnetlink::{Handle, MulticastGroup, RouteMessageBuilder};

use answers::{Network, default_interfaces, read_address, read_link, read_network};

/// Changes often come in bursts; this long after the first of one, the burst counts as over.
const BURST: Duration = Duration::from_millis(100);

/// How often everything is asked for where something changes meanwhile.
const ATTEMPTS: u32 = 100;

/// How long what changes has to be read before everything is asked for again.
const PAUSE: Duration = Duration::from_millis(10);

/// The kernel could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The socket could not be made.
    #[error("cannot open a netlink socket: {0}")]
    Socket(#[from] io::Error),
    /// A question was refused.
    #[error("cannot read the host's {what}: {source}")]
    Request {
        /// What was asked for.
        what: &'static str,
        /// What the kernel said.
        source: rtnetlink::Error,
    },
    /// It is never told the same twice.
    #[error(
        "the host's interfaces, addresses and routes change all the time: {ATTEMPTS} attempts to \
         read them were in vain"
    )]
    Unsteady,
    /// The connection is gone.
    #[error("the netlink connection ended")]
    Ended,
}

/// Interfaces of this host and what belongs to them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// In the order of their indices.
    pub interfaces: Vec<Interface>,
    /// Indices of interfaces with a default route of either family.
    pub default_routes: BTreeSet<u32>,
    /// Networks that are reached without another router, each with the index of its interface.
    pub direct_routes: BTreeSet<(IpNet, u32)>,
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Index; never 0.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Whether its frames are Ethernet frames.
    pub is_ethernet: bool,
    /// Whether it is the loopback device.
    pub is_loopback: bool,
    /// Whether it is one end of a veth pair.
    pub is_veth: bool,
    /// Index of the bond that it is a member of. XDP on a bond runs on its members, and sees packets
    /// come in by them.
    pub bond: Option<u32>,
    /// Whether what is behind it is usually on this host: a veth, a bridge, a tun or tap device.
    pub leads_inside: bool,
    /// The XDP program on it.
    pub xdp: Option<XdpProgram>,
    /// Addresses, in the kernel's order.
    pub addresses: Vec<InterfaceAddress>,
}

/// An address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterfaceAddress {
    /// The address.
    pub address: IpAddr,
    /// Whether other hosts, beyond the link, can be told of it.
    pub is_global: bool,
    /// Whether it is there to stay: it is in use already (not tentative), still is (not
    /// deprecated), and was not made up for a while (RFC 8981).
    pub is_lasting: bool,
}

/// An XDP program on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XdpProgram {
    /// Id of the program.
    pub id: u32,
    /// Whether it runs in the kernel's generic form, not in the driver or the device.
    pub is_generic: bool,
}

impl Host {
    /// The interface of this name.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&Interface> {
        self.interfaces.iter().find(|interface| interface.name == name)
    }

    /// Interfaces with a default route: those through which others reach this host.
    pub fn external(&self) -> impl Iterator<Item = &Interface> {
        self.interfaces.iter().filter(|interface| {
            self.default_routes.contains(&interface.index) && !interface.is_loopback
        })
    }

    /// Every address of every interface.
    #[must_use]
    pub fn addresses(&self) -> BTreeSet<IpAddr> {
        self.interfaces
            .iter()
            .flat_map(|interface| &interface.addresses)
            .map(|address| address.address)
            .collect()
    }
}

impl Interface {
    /// Whether it is still there, by this name.
    #[must_use]
    pub fn is_here(&self) -> bool {
        // Not from sysfs, which may be another namespace's.
        nix::net::if_::if_nametoindex(self.name.as_str()) == Ok(self.index)
    }

    /// The first global address of a family, `is_v4` or not; the first that lasts, if one does.
    #[must_use]
    pub fn primary(&self, is_v4: bool) -> Option<IpAddr> {
        let all = self.addresses.iter().filter(|it| it.is_global && it.address.is_ipv4() == is_v4);
        all.clone().find(|it| it.is_lasting).or_else(|| all.clone().next()).map(|it| it.address)
    }
}

/// Asks the kernel.
#[derive(Clone)]
pub struct Netlink {
    handle: Handle,
}

/// Hears from the kernel.
pub struct Changes {
    messages: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
}

/// Opens a connection. The future carries it and has to be run for as long as it is used.
///
/// # Errors
///
/// If there can be no socket.
pub fn connect() -> Result<(impl Future<Output = ()> + Send + use<>, Netlink, Changes), NetlinkError>
{
    let (connection, handle, messages) = rtnetlink::new_multicast_connection(&[
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
    ])?;
    Ok((connection, Netlink { handle }, Changes { messages }))
}

impl NetlinkError {
    /// Whether so much changed meanwhile that there was no room for an answer.
    fn is_passing(&self) -> bool {
        matches!(
            self,
            Self::Request { source: rtnetlink::Error::NetlinkError(message), .. }
                if message.to_io().raw_os_error() == Some(libc::ENOBUFS)
        )
    }
}

impl Netlink {
    /// Asks for everything.
    ///
    /// The kernel tells it in pieces: where something goes between two of them, or while it looks
    /// for where it was, others are left out, and it does not always say so. What it tells twice is
    /// believed.
    ///
    /// # Errors
    ///
    /// If the kernel refuses, or there is always something that changes.
    pub async fn read(&self) -> Result<Host, NetlinkError> {
        let mut before = None;
        for _ in 0..ATTEMPTS {
            match self.read_once().await {
                Ok(host) if before.as_ref() == Some(&host) => return Ok(host),
                Ok(host) => before = Some(host),
                Err(error) if error.is_passing() => tokio::time::sleep(PAUSE).await,
                Err(error) => return Err(error),
            }
        }
        Err(NetlinkError::Unsteady)
    }

    async fn read_once(&self) -> Result<Host, NetlinkError> {
        let request = |what| move |source| NetlinkError::Request { what, source };
        let links = self.handle.link().get().execute();
        let links: Vec<LinkMessage> = links.try_collect().await.map_err(request("interfaces"))?;
        let addresses = self.handle.address().get().execute();
        let addresses: Vec<AddressMessage> =
            addresses.try_collect().await.map_err(request("addresses"))?;
        let mut default_routes = BTreeSet::new();
        let mut networks = Vec::new();
        for question in [
            RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
            RouteMessageBuilder::<Ipv6Addr>::new().build(),
        ] {
            let mut routes = Box::pin(self.handle.route().get(question).execute());
            while let Some(route) = routes.next().await {
                let route = match route {
                    Ok(route) => route,
                    // The kernel has no IPv6.
                    Err(rtnetlink::Error::NetlinkError(error))
                        if error.raw_code() == -libc::EOPNOTSUPP =>
                    {
                        break;
                    }
                    Err(error) => return Err(request("routes")(error)),
                };
                default_routes.extend(default_interfaces(&route));
                networks.extend(read_network(&route));
            }
        }
        let mut interfaces: Vec<Interface> = links.iter().map(read_link).collect();
        interfaces.sort_by_key(|interface| interface.index);
        for address in &addresses {
            let owner =
                interfaces.iter_mut().find(|interface| interface.index == address.header.index);
            if let (Some(owner), Some(address)) = (owner, read_address(address)) {
                owner.addresses.push(address);
            }
        }
        let mut host = Host { interfaces, default_routes, direct_routes: BTreeSet::new() };
        let own = host.addresses();
        // A router that is this host itself (Cilium) is none.
        let direct = |network: &Network| network.router.is_none_or(|router| own.contains(&router));
        host.direct_routes =
            networks.iter().filter(|n| direct(n)).map(|n| (n.network, n.ifindex)).collect();
        Ok(host)
    }
}

impl Changes {
    /// Waits for a change of interfaces, addresses or routes, and for the end of the
    /// burst that it begins.
    ///
    /// # Errors
    ///
    /// If the connection is gone.
    pub async fn changed(&mut self) -> Result<(), NetlinkError> {
        loop {
            let (message, _) = self.messages.next().await.ok_or(NetlinkError::Ended)?;
            if matters(&message) {
                break;
            }
        }
        tokio::time::sleep(BURST).await;
        while self.messages.try_recv().is_ok() {}
        Ok(())
    }
}

fn matters(message: &NetlinkMessage<RouteNetlinkMessage>) -> bool {
    // Anything else, an overrun above all, may hide a change.
    let NetlinkPayload::InnerMessage(inner) = &message.payload else {
        return true;
    };
    if let RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) = inner {
        return route.header.destination_prefix_length == 0 || read_network(route).is_some();
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_host_has_a_loopback_device() {
        let (connection, netlink, _) = connect().expect("connected");
        tokio::spawn(connection);
        let host = netlink.read().await.expect("read");
        let loopback = host.find("lo").expect("there is one");
        assert_eq!(loopback.index, 1);
        assert!(loopback.is_loopback && loopback.xdp.is_none());
        assert!(host.external().all(|interface| interface.name != "lo"));
    }
}
