//! TCP connections of this host's own sockets, as the kernel lists them (`sock_diag`): what it has
//! counted of connections that were steered, which no program of ours sees end.

use std::collections::BTreeMap;
use std::io;
use std::ops::RangeInclusive;

use redirector_common::packet::transport::TCP_HEADER_LEN;
use redirector_common::{Address, Family, Frontend, FrontendKey, Port, PortFlags, Protocol};
use rtnetlink::sys::protocols::NETLINK_SOCK_DIAG;

use super::netlink_raw::{self, DUMP, Question, REQUEST, parse_attributes, push_attribute};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const INET_DIAG_INFO: u16 = 2;
const INET_DIAG_REQ_BYTECODE: u16 = 1;

/// Filter: the socket's own port is at least, or at most, the number that follows.
const PORT_AT_LEAST: u8 = 2;
const PORT_AT_MOST: u8 = 3;

/// Bits of states in which there is a connection: all but handshakes, listeners and what is over.
const CONNECTED: u32 = {
    let [established, fin_wait_1, fin_wait_2, close_wait, last_ack, closing] = [1, 4, 5, 8, 9, 11];
    1 << established
        | 1 << fin_wait_1
        | 1 << fin_wait_2
        | 1 << close_wait
        | 1 << last_ack
        | 1 << closing
};

/// Bytes of `struct inet_diag_msg`, and where in it the socket's own end and number stand.
const MESSAGE: usize = 72;
const OWN_PORT: usize = 4;
const OWN_ADDRESS: usize = 8;
const COOKIE: usize = 44;

/// Where in `struct tcp_info` options, received bytes and received segments stand.
const OPTIONS: usize = 5;
const BYTES_RECEIVED: usize = 128;
const SEGMENTS_IN: usize = 140;

/// Bit of the options: both ends send timestamps, in 12 bytes of each segment.
const TIMESTAMPS: u8 = 1;
const TIMESTAMPS_LEN: u64 = 12;

/// A connection of a socket of this network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The socket's own end, as a frontend's key.
    pub frontend: FrontendKey,
    /// The kernel's number for it; no other socket ever has it.
    pub cookie: u64,
    /// Packets from its peer, the SYN among them.
    pub packets: u64,
    /// Their IP bytes: those of headers are reckoned, and data that came twice counts once.
    pub bytes: u64,
}

/// The connections that sockets of this host have on frontends whose port steers. Those of a program
/// that listens on the frontend's own port are among them.
///
/// # Errors
///
/// If the kernel cannot be asked.
pub fn on_frontends(
    frontends: &BTreeMap<FrontendKey, Frontend>,
    ports: &BTreeMap<(Protocol, u32), PortFlags>,
) -> io::Result<Vec<Connection>> {
    let steers = |key: &FrontendKey| {
        let flags = ports.get(&(key.protocol(), key.port.number().into()));
        flags.is_some_and(|flags| flags.intersects(PortFlags::STEER))
    };
    let steered = || frontends.keys().filter(|key| steers(key)).map(|key| key.port.number());
    let (Some(first), Some(last)) = (steered().min(), steered().max()) else {
        return Ok(Vec::new());
    };
    let mut connections = read(&(first..=last))?;
    connections.retain(|it| frontends.contains_key(&it.frontend) && steers(&it.frontend));
    Ok(connections)
}

/// The connections whose own port is in a range; none where the kernel has no means to list them.
///
/// # Errors
///
/// If the kernel cannot be asked.
fn read(ports: &RangeInclusive<u16>) -> io::Result<Vec<Connection>> {
    let socket = netlink_raw::open(NETLINK_SOCK_DIAG)?;
    let mut connections = Vec::new();
    for family in [Family::V4, Family::V6] {
        let asked = netlink_raw::ask(&socket, &question(family, ports), |body| {
            connections.extend(parse(body));
        });
        match asked {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            asked => asked?,
        }
    }
    Ok(connections)
}

fn question(family: Family, ports: &RangeInclusive<u16>) -> Question {
    let family = match family {
        Family::V4 => libc::AF_INET,
        Family::V6 => libc::AF_INET6,
    };
    let family = u8::try_from(family).unwrap_or_default();
    let mut body = vec![family, Protocol::Tcp.number(), 1 << (INET_DIAG_INFO - 1), 0];
    body.extend(CONNECTED.to_ne_bytes());
    // Any ends.
    body.extend([0; 48]);
    push_attribute(&mut body, INET_DIAG_REQ_BYTECODE, &filter(ports));
    Question { kind: SOCK_DIAG_BY_FAMILY, flags: REQUEST | DUMP, body }
}

/// Two comparisons of two words each: a code, how far to go on if it holds and if not (past the end:
/// the socket is left out), and then the port.
fn filter(ports: &RangeInclusive<u16>) -> Vec<u8> {
    const STEP: u16 = 8;
    let mut filter = Vec::new();
    for (code, port, left) in
        [(PORT_AT_LEAST, ports.start(), 2 * STEP), (PORT_AT_MOST, ports.end(), STEP)]
    {
        filter.extend([code, 8]);
        filter.extend((left + 4).to_ne_bytes());
        filter.extend([0, 0]);
        filter.extend(port.to_ne_bytes());
    }
    filter
}

/// One socket; `None`: it has no connection any more.
fn parse(message: &[u8]) -> Option<Connection> {
    let attributes = parse_attributes(message.get(MESSAGE..)?);
    let info = attributes.get(&INET_DIAG_INFO)?;
    let address = match i32::from(*message.first()?) {
        libc::AF_INET => Address::from_v4(bytes_at(message, OWN_ADDRESS)?),
        libc::AF_INET6 => Address::from_v6(bytes_at(message, OWN_ADDRESS)?),
        _ => return None,
    };
    let port = Port::from_bytes(bytes_at(message, OWN_PORT)?);
    let packets = u64::from(u32::from_ne_bytes(bytes_at(info, SEGMENTS_IN)?));
    let data = u64::from_ne_bytes(bytes_at(info, BYTES_RECEIVED)?);
    let ip_header = match address.family() {
        Family::V4 => 20,
        Family::V6 => 40,
    };
    let timestamps = if info.get(OPTIONS)? & TIMESTAMPS != 0 { TIMESTAMPS_LEN } else { 0 };
    let headers = packets * (ip_header + u64::from(TCP_HEADER_LEN) + timestamps);
    Some(Connection {
        frontend: FrontendKey::new(address, port, Protocol::Tcp),
        cookie: u64::from_ne_bytes(bytes_at(message, COOKIE)?),
        packets,
        bytes: data.saturating_add(headers),
    })
}

fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// Of a real connection, over either family, and of none in other states or with other ports.
    #[test]
    fn what_a_connection_has_received() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).expect("listening");
            let own = listener.local_addr().expect("an address");
            let mut client = TcpStream::connect(own).expect("connected");
            let (mut server, _) = listener.accept().expect("accepted");
            client.write_all(&[7; 1000]).expect("sent");
            server.read_exact(&mut [0; 1000]).expect("received");
            let own = FrontendKey::new(own.ip().into(), Port::new(own.port()), Protocol::Tcp);
            let port = own.port.number();
            let found = |ports| {
                let all = read(&ports).expect("listed");
                all.into_iter().filter(|it| it.frontend == own).collect::<Vec<_>>()
            };
            let connections = found(port..=port);
            let [connection] = connections.as_slice() else { panic!("{connections:?}") };
            // SYN, ACK, data.
            assert_eq!(connection.packets, 3);
            assert!((1120..1250).contains(&connection.bytes), "{connection:?}");
            assert_eq!(found(0..=u16::MAX).len(), 1);
            assert!(found(0..=port - 1).is_empty() && found(port + 1..=u16::MAX).is_empty());
            drop((client, server));
        }
    }

    #[test]
    fn cut_messages_are_no_connections() {
        for len in [0, 10, MESSAGE, MESSAGE + 20] {
            assert_eq!(parse(&vec![2; len]), None);
        }
    }
}
