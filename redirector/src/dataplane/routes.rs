//! The way to a destination, as the kernel's routing table has it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::netlink_raw::{ACK, Question, REQUEST, ask, open};

const NETLINK_ROUTE: isize = 0;
const RTM_GETLINK: u16 = 18;
const RTM_GETROUTE: u16 = 26;
const RTM_GETNEIGH: u16 = 30;

/// Where packets to a destination go next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// Outgoing interface.
    pub ifindex: u32,
    /// Largest IP packet that fits, in bytes.
    pub mtu: u32,
    /// The router, where there is one.
    pub gateway: Option<IpAddr>,
    /// Whether the hardware address of the next host is known.
    pub is_resolved: bool,
}

/// Asks the kernel for the way to `to`; `None`: there is none, or it ends in this host.
///
/// # Errors
///
/// If the kernel cannot be asked.
pub fn find(to: IpAddr) -> io::Result<Option<Way>> {
    let socket = open(NETLINK_ROUTE)?;
    let mut route = None;
    let asked = ask(&socket, &route_question(to), |body| route = read_route(body));
    match asked {
        Ok(()) => {}
        Err(error) if is_absence(&error) => return Ok(None),
        Err(error) => return Err(error),
    }
    let Some((ifindex, gateway)) = route else {
        return Ok(None);
    };
    let mut mtu = 0;
    ask(&socket, &link_question(ifindex), |body| {
        mtu = attribute(body, 16, 4).and_then(word).unwrap_or(mtu);
    })?;
    let mut is_resolved = false;
    let asked = ask(&socket, &neighbour_question(ifindex, gateway.unwrap_or(to)), |body| {
        is_resolved = is_valid(body);
    });
    if let Err(error) = asked
        && error.raw_os_error() != Some(libc::ENOENT)
    {
        return Err(error);
    }
    Ok(Some(Way { ifindex, mtu, gateway, is_resolved }))
}

fn is_absence(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES | libc::EINVAL)
    )
}

const fn family(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 2,
        IpAddr::V6(_) => 10,
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// `struct rtattr` with an address.
fn with_address(mut body: Vec<u8>, kind: u16, address: IpAddr) -> Vec<u8> {
    let octets = octets(address);
    // 8 or 20.
    let len = u16::try_from(octets.len() + 4).unwrap_or(u16::MAX);
    body.extend(len.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(octets);
    body
}

/// `struct rtmsg`, and the destination.
fn route_question(to: IpAddr) -> Question {
    let bits = if to.is_ipv4() { 32 } else { 128 };
    let body = with_address(vec![family(to), bits, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 1, to);
    Question { kind: RTM_GETROUTE, flags: REQUEST | ACK, body }
}

/// `struct ifinfomsg`.
fn link_question(ifindex: u32) -> Question {
    let mut body = vec![0; 16];
    body[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    Question { kind: RTM_GETLINK, flags: REQUEST | ACK, body }
}

/// `struct ndmsg`, and the neighbour.
fn neighbour_question(ifindex: u32, address: IpAddr) -> Question {
    let mut body = vec![family(address), 0, 0, 0];
    body.extend(ifindex.to_ne_bytes());
    body.extend([0; 4]);
    let body = with_address(body, 1, address);
    Question { kind: RTM_GETNEIGH, flags: REQUEST | ACK, body }
}

/// Interface and router of a way that leaves this host.
fn read_route(body: &[u8]) -> Option<(u32, Option<IpAddr>)> {
    const UNICAST: u8 = 1;
    if body.get(7) != Some(&UNICAST) {
        return None;
    }
    let ifindex = attribute(body, 12, 4).and_then(word)?;
    let gateway = attribute(body, 12, 5).and_then(|octets| match octets.len() {
        4 => Some(IpAddr::from(Ipv4Addr::from(*octets.first_chunk::<4>()?))),
        16 => Some(IpAddr::from(Ipv6Addr::from(*octets.first_chunk::<16>()?))),
        _ => None,
    });
    Some((ifindex, gateway))
}

/// Whether a `struct ndmsg` says that the neighbour's hardware address is known (`NUD_VALID`).
fn is_valid(body: &[u8]) -> bool {
    const VALID: u16 = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80;
    body.get(8..)
        .and_then(|rest| rest.first_chunk::<2>())
        .is_some_and(|state| u16::from_ne_bytes(*state) & VALID != 0)
}

fn word(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.first_chunk::<4>()?))
}

/// The first attribute of a kind, after a header of so many bytes.
fn attribute(body: &[u8], header: usize, wanted: u16) -> Option<&[u8]> {
    const KIND: u16 = 0x3fff;
    let mut rest = body.get(header..)?;
    loop {
        let len = usize::from(u16::from_ne_bytes(*rest.first_chunk::<2>()?));
        let kind = u16::from_ne_bytes(*rest.get(2..)?.first_chunk::<2>()?) & KIND;
        let value = rest.get(4..len)?;
        if kind == wanted {
            return Some(value);
        }
        rest = rest.get(len.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_found() {
        let body = [9, 9, 5, 0, 1, 0, 7, 0, 0, 0, 8, 0, 4, 0, 1, 2, 3, 4];
        assert_eq!(attribute(&body, 2, 1), Some([7].as_slice()));
        assert_eq!(attribute(&body, 2, 4), Some([1, 2, 3, 4].as_slice()));
        assert_eq!(attribute(&body, 2, 5), None);
        assert_eq!(attribute(&[1, 0], 0, 5), None);
    }

    #[test]
    fn the_way_to_ourselves_does_not_leave() {
        assert_eq!(find(Ipv4Addr::LOCALHOST.into()).expect("asked"), None);
    }
}
