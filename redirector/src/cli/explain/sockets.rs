//! TCP sockets of this network namespace, as the kernel lists them.

use std::fs;

use redirector_common::packet::{Packet, Socket};
use redirector_common::{Address, Port, Tuple};

/// States, by their numbers in the kernel's tables.
const TIME_WAIT: u8 = 6;
const LISTENS: u8 = 10;

/// One socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TcpSocket {
    local: (Address, Port),
    remote: (Address, Port),
    state: u8,
}

/// All of them; none where the tables cannot be read.
pub(super) fn read() -> Vec<TcpSocket> {
    let tables = ["/proc/self/net/tcp", "/proc/self/net/tcp6"];
    let texts = tables.map(|table| fs::read_to_string(table).unwrap_or_default());
    texts.iter().flat_map(|text| parse(text)).collect()
}

fn parse(table: &str) -> impl Iterator<Item = TcpSocket> {
    table.lines().skip(1).filter_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        Some(TcpSocket {
            local: parse_end(fields.next()?)?,
            remote: parse_end(fields.next()?)?,
            state: u8::from_str_radix(fields.next()?, 16).ok()?,
        })
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

/// What the stack has for a packet.
pub(super) fn owner(sockets: &[TcpSocket], packet: &Packet) -> Socket {
    let tuple = &packet.tuple;
    let remote = (tuple.source, tuple.source_port);
    let local = (tuple.destination, tuple.destination_port);
    match sockets.iter().find(|socket| socket.local == local && socket.remote == remote) {
        None => Socket::None,
        Some(socket) if socket.state == TIME_WAIT => Socket::TimeWait,
        Some(_) => Socket::Open,
    }
}

/// Whether some socket listens where `to` leads.
pub(super) fn listens(sockets: &[TcpSocket], to: &Tuple) -> bool {
    sockets.iter().any(|socket| {
        let (address, port) = socket.local;
        socket.state == LISTENS
            && port == to.destination_port
            && (address.is_unspecified() || address == to.destination)
    })
}

#[cfg(test)]
mod tests {
    use redirector_common::Protocol;

    use super::*;

    #[test]
    fn sockets_of_both_families() {
        let v4 = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1
   1: 010200C0:0050 096433C6:C350 01 00000000:00000000 00:00000000 00000000     0        0 2
   2: 010200C0:0050 096433C6:C351 06 00000000:00000000 00:00000000 00000000     0        0 3
";
        let sockets: Vec<_> = parse(v4).collect();
        let node = (Address::from_v4([192, 0, 2, 1]), Port::new(80));
        let packet = |port| Packet {
            tuple: Tuple::new(
                Protocol::Tcp,
                (Address::from_v4([198, 51, 100, 9]), Port::new(port)),
                node,
            ),
            ..Packet::EMPTY
        };
        assert_eq!(owner(&sockets, &packet(50000)), Socket::Open);
        assert_eq!(owner(&sockets, &packet(50001)), Socket::TimeWait);
        assert_eq!(owner(&sockets, &packet(50002)), Socket::None);
        let to = |port| {
            let source = (Address::from_v4([198, 51, 100, 9]), Port::new(50002));
            Tuple::new(Protocol::Tcp, source, (node.0, Port::new(port)))
        };
        assert!(listens(&sockets, &to(8080)) && !listens(&sockets, &to(80)));

        let v6 = "\
  sl  local_address                         remote_address                        st tx_queue
   0: 00000000000000000000000000000000:1F91 00000000000000000000000000000000:0000 0A 0:0
";
        let sockets: Vec<_> = parse(v6).collect();
        assert!(listens(&sockets, &to(8081)), "a dual-stack socket listens for IPv4 too");
    }
}
