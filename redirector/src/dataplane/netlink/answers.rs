//! What the kernel's answers say.

use std::net::IpAddr;

use ipnet::IpNet;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressMessage, AddressScope,
};
use rtnetlink::packet_route::link::{
    InfoKind, InfoPortKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
    LinkXdp, XdpAttached,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType,
};

use super::{Interface, InterfaceAddress, XdpProgram};

pub(super) fn read_link(message: &LinkMessage) -> Interface {
    let mut interface = Interface {
        index: message.header.index,
        name: String::new(),
        is_ethernet: message.header.link_layer_type == LinkLayerType::Ether,
        is_loopback: message.header.flags.contains(LinkFlags::Loopback),
        is_veth: false,
        bond: None,
        leads_inside: false,
        xdp: None,
        addresses: Vec::new(),
    };
    let (mut master, mut is_member) = (None, false);
    for attribute in &message.attributes {
        if let LinkAttribute::IfName(name) = attribute {
            interface.name.clone_from(name);
        } else if let LinkAttribute::Controller(index) = attribute {
            master = Some(*index);
        } else if let LinkAttribute::LinkInfo(infos) = attribute {
            interface.is_veth = is_kind(infos, InfoKind::Veth);
            interface.leads_inside = [InfoKind::Veth, InfoKind::Bridge, InfoKind::Tun]
                .into_iter()
                .any(|kind| is_kind(infos, kind));
            is_member = infos.contains(&LinkInfo::PortKind(InfoPortKind::Bond));
        } else if let LinkAttribute::Xdp(xdp) = attribute {
            interface.xdp = read_xdp(xdp);
        }
    }
    interface.bond = master.filter(|_| is_member);
    interface
}

fn is_kind(infos: &[LinkInfo], kind: InfoKind) -> bool {
    infos.contains(&LinkInfo::Kind(kind))
}

fn read_xdp(attributes: &[LinkXdp]) -> Option<XdpProgram> {
    let id = attributes
        .iter()
        .find_map(|attribute| if let LinkXdp::ProgId(id) = attribute { Some(*id) } else { None });
    let is_generic = attributes.contains(&LinkXdp::Attached(XdpAttached::SocketBuffer));
    let id = id.filter(|id| *id != 0)?;
    Some(XdpProgram { id, is_generic })
}

pub(super) fn read_address(message: &AddressMessage) -> Option<InterfaceAddress> {
    let mut address = None;
    let mut local = None;
    let mut flags = AddressFlags::empty();
    for attribute in &message.attributes {
        if let AddressAttribute::Address(found) = attribute {
            address = Some(*found);
        } else if let AddressAttribute::Local(found) = attribute {
            // On a point-to-point interface the other attribute is the other end's.
            local = Some(*found);
        } else if let AddressAttribute::Flags(found) = attribute {
            flags = *found;
        }
    }
    if flags.contains(AddressFlags::Dadfailed) {
        return None;
    }
    let address = local.or(address)?;
    // Of an IPv4 address, the flag of temporary ones says that it is not the first of its network.
    let is_temporary = address.is_ipv6() && flags.contains(AddressFlags::Secondary);
    let passing = AddressFlags::Tentative | AddressFlags::Deprecated;
    Some(InterfaceAddress {
        address,
        is_lasting: !is_temporary && !flags.intersects(passing),
        is_global: matches!(message.header.scope, AddressScope::Universe | AddressScope::Site),
    })
}

/// The interfaces that a default route leaves through; none if it is no default route.
pub(super) fn default_interfaces(route: &RouteMessage) -> Vec<u32> {
    if route.header.destination_prefix_length != 0 || route.header.kind != RouteType::Unicast {
        return Vec::new();
    }
    let mut interfaces = Vec::new();
    for attribute in &route.attributes {
        if let RouteAttribute::Oif(index) = attribute {
            interfaces.push(*index);
        } else if let RouteAttribute::MultiPath(hops) = attribute {
            interfaces.extend(hops.iter().map(|hop| hop.interface_index));
        }
    }
    interfaces
}

/// A network that packets are sent to.
pub(super) struct Network {
    pub(super) network: IpNet,
    pub(super) ifindex: u32,
    pub(super) router: Option<IpAddr>,
}

/// The network of a route of the main table; none if it is a default route, or no way at all.
pub(super) fn read_network(route: &RouteMessage) -> Option<Network> {
    let length = route.header.destination_prefix_length;
    if length == 0
        || route.header.kind != RouteType::Unicast
        || route.header.table != RouteHeader::RT_TABLE_MAIN
    {
        return None;
    }
    let (mut destination, mut ifindex, mut router) = (None, None, None);
    for attribute in &route.attributes {
        if let RouteAttribute::Destination(address) = attribute {
            destination = read_route_address(address);
        } else if let RouteAttribute::Oif(index) = attribute {
            ifindex = Some(*index);
        } else if let RouteAttribute::Gateway(address) = attribute {
            router = Some(read_route_address(address)?);
        } else if let RouteAttribute::Via(_) = attribute {
            return None;
        }
    }
    let network = IpNet::new(destination?, length).ok()?;
    Some(Network { network, ifindex: ifindex?, router })
}

fn read_route_address(address: &RouteAddress) -> Option<IpAddr> {
    if let RouteAddress::Inet(v4) = address {
        Some((*v4).into())
    } else if let RouteAddress::Inet6(v6) = address {
        Some((*v6).into())
    } else {
        None
    }
}
