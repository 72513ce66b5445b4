//! Sockets of this network namespace, as the kernel lists them under `/proc`.

use std::fs::File;
use std::io::{BufRead, BufReader};

use redirector_common::{Address, Port, Protocol};

/// States, by their numbers in the kernel's tables.
const TIME_WAIT: u8 = 6;
/// That of a UDP socket without a peer.
const CLOSE: u8 = 7;
const LISTEN: u8 = 10;

/// One socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListedSocket {
    /// Its own end; the unspecified address: every one.
    pub local: (Address, Port),
    /// The other end.
    pub remote: (Address, Port),
    /// How it stands with it.
    pub state: SocketState,
}

/// How a socket stands with the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketState {
    /// It takes what anybody sends to its own end.
    Listens,
    /// It has one peer.
    Connected,
    /// It is closed; what the peer still sends belongs to it.
    TimeWait,
}

/// All of a protocol; none of a family that this host has not.
pub fn sockets(protocol: Protocol) -> impl Iterator<Item = ListedSocket> {
    let tables = match protocol {
        Protocol::Tcp => ["/proc/self/net/tcp", "/proc/self/net/tcp6"],
        Protocol::Udp => ["/proc/self/net/udp", "/proc/self/net/udp6"],
    };
    tables
        .into_iter()
        .filter_map(|table| File::open(table).ok())
        .flat_map(|table| BufReader::new(table).lines().map_while(Result::ok))
        .filter_map(move |line| parse(protocol, &line))
}

/// A line of a table; `None` for its heading.
fn parse(protocol: Protocol, line: &str) -> Option<ListedSocket> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    Some(ListedSocket {
        local: parse_end(fields.next()?)?,
        remote: parse_end(fields.next()?)?,
        state: match (protocol, u8::from_str_radix(fields.next()?, 16).ok()?) {
            (Protocol::Tcp, LISTEN) | (Protocol::Udp, CLOSE) => SocketState::Listens,
            (Protocol::Tcp, TIME_WAIT) => SocketState::TimeWait,
            _ => SocketState::Connected,
        },
    })
}

/// Words as they stand in memory, each printed as a number; the port in host byte order.
fn parse_end(text: &str) -> Option<(Address, Port)> {
    let (address, port) = text.split_once(':')?;
    let word = |at: usize| u32::from_str_radix(address.get(at..at + 8)?, 16).ok();
    let address = match address.len() {
        8 => match word(0)? {
            0 => Address::UNSPECIFIED,
            word => Address::from_v4_word(word),
        },
        32 => Address::from_words([word(0)?, word(8)?, word(16)?, word(24)?]),
        _ => return None,
    };
    Some((address, Port::new(u16::from_str_radix(port, 16).ok()?)))
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv6Addr};

    use super::*;

    #[test]
    fn sockets_of_both_families() {
        let read_of = |protocol, line: &str| {
            parse(protocol, line).map(|it| (it.local, it.remote.1.number(), it.state))
        };
        let read = |line: &str| read_of(Protocol::Tcp, line);
        assert_eq!(read("  sl  local_address rem_address   st tx_queue rx_queue"), None);
        assert_eq!(
            read("   0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000"),
            Some(((Address::UNSPECIFIED, Port::new(8080)), 0, SocketState::Listens))
        );
        let node = (Address::from_v4([192, 0, 2, 1]), Port::new(80));
        assert_eq!(
            read("   1: 010200C0:0050 096433C6:C350 01 00000000:00000000 00:00000000 00000000"),
            Some((node, 50_000, SocketState::Connected))
        );
        assert_eq!(
            read("   2: 010200C0:0050 096433C6:C351 06 00000000:00000000 00:00000000 00000000"),
            Some((node, 50_001, SocketState::TimeWait))
        );
        let all = "00000000000000000000000000000000";
        assert_eq!(
            read(&format!("   0: {all}:1F91 {all}:0000 0A 0:0")),
            Some(((Address::UNSPECIFIED, Port::new(8081)), 0, SocketState::Listens))
        );
        let localhost = Address::from(IpAddr::V6(Ipv6Addr::LOCALHOST));
        assert_eq!(
            read_of(
                Protocol::Udp,
                &format!("   1: 00000000000000000000000001000000:1F91 {all}:0000 07 0:0")
            ),
            Some(((localhost, Port::new(8081)), 0, SocketState::Listens))
        );
    }
}
