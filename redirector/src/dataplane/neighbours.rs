//! Changes of routes and neighbours, which void what is remembered of next hops.

use std::collections::HashMap;
use std::net::IpAddr;

use futures::StreamExt;
use futures::channel::mpsc::UnboundedReceiver;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};
use rtnetlink::sys::SocketAddr;
use rtnetlink::{MulticastGroup, new_multicast_connection};

use super::netlink::NetlinkError;

/// Hears from the kernel.
pub struct Ways {
    messages: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
    /// Link addresses as last heard: the kernel also tells of every time that it has asked a
    /// neighbour whether it is still there.
    known: HashMap<(u32, IpAddr), Vec<u8>>,
}

/// Neighbours remembered at most; beyond it all are forgotten, and each heard of anew counts as
/// changed.
const MAX_KNOWN: usize = 65536;

impl Ways {
    /// Opens a connection. The future carries it and has to be run for as long as it is used.
    ///
    /// # Errors
    ///
    /// If there can be no socket.
    pub fn open() -> Result<(impl Future<Output = ()> + Send + use<>, Self), NetlinkError> {
        let (connection, _, messages) = new_multicast_connection(&[
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
            MulticastGroup::Ipv4Rule,
            MulticastGroup::Ipv6Rule,
            MulticastGroup::Neigh,
        ])?;
        Ok((connection, Self { messages, known: HashMap::new() }))
    }

    /// Waits until what a flow's next hop was found from has changed.
    ///
    /// # Errors
    ///
    /// If the connection is gone.
    pub async fn changed(&mut self) -> Result<(), NetlinkError> {
        loop {
            let (message, _) = self.messages.next().await.ok_or(NetlinkError::Ended)?;
            let mut changed = self.matters(&message);
            // A burst of changes is one.
            while let Ok((message, _)) = self.messages.try_recv() {
                changed |= self.matters(&message);
            }
            if changed {
                return Ok(());
            }
        }
    }

    fn matters(&mut self, message: &NetlinkMessage<RouteNetlinkMessage>) -> bool {
        // Anything else, an overrun above all, may hide a change, and another back.
        let NetlinkPayload::InnerMessage(inner) = &message.payload else {
            self.known.clear();
            return true;
        };
        if let RouteNetlinkMessage::NewNeighbour(neighbour) = inner {
            return self.learns(neighbour);
        }
        if let RouteNetlinkMessage::DelNeighbour(neighbour) = inner {
            let (key, _) = read(neighbour);
            if let Some(key) = key {
                self.known.remove(&key);
            }
            return true;
        }
        true
    }

    fn learns(&mut self, neighbour: &NeighbourMessage) -> bool {
        let (Some(key), Some(link)) = read(neighbour) else {
            return false;
        };
        if self.known.len() >= MAX_KNOWN {
            self.known.clear();
        }
        // One that was not known may have been there before us, with another address.
        let before = self.known.insert(key, link.clone());
        before.is_none_or(|before| before != link)
    }
}

fn read(neighbour: &NeighbourMessage) -> (Option<(u32, IpAddr)>, Option<Vec<u8>>) {
    let (mut address, mut link) = (None, None);
    for attribute in &neighbour.attributes {
        if let NeighbourAttribute::Destination(found) = attribute {
            address = match found {
                NeighbourAddress::Inet(address) => Some(IpAddr::from(*address)),
                NeighbourAddress::Inet6(address) => Some(IpAddr::from(*address)),
                NeighbourAddress::Other(_) | _ => None,
            };
        } else if let NeighbourAttribute::LinkLayerAddress(found) = attribute {
            link = Some(found.clone());
        }
    }
    (address.map(|address| (neighbour.header.ifindex, address)), link)
}
