//! What the sockets of this network namespace have to do with a packet.

use redirector_common::packet::{Packet, Socket};
use redirector_common::{Protocol, Tuple};

use crate::dataplane::proc_net::{self, ListedSocket, SocketState};

/// All TCP sockets; none where the tables cannot be read.
pub(super) fn read() -> Vec<ListedSocket> {
    proc_net::sockets(Protocol::Tcp).collect()
}

/// What the stack has for a packet.
pub(super) fn owner(sockets: &[ListedSocket], packet: &Packet) -> Socket {
    let tuple = &packet.tuple;
    let remote = (tuple.source, tuple.source_port);
    let local = (tuple.destination, tuple.destination_port);
    match sockets.iter().find(|socket| socket.local == local && socket.remote == remote) {
        None => Socket::None,
        Some(socket) if socket.state == SocketState::TimeWait => Socket::TimeWait,
        Some(_) => Socket::Open,
    }
}

/// Whether some socket listens where `to` leads.
pub(super) fn listens(sockets: &[ListedSocket], to: &Tuple) -> bool {
    sockets.iter().any(|socket| {
        let (address, port) = socket.local;
        socket.state == SocketState::Listens
            && port == to.destination_port
            && (address.is_unspecified() || address == to.destination)
    })
}

#[cfg(test)]
mod tests {
    use redirector_common::{Address, Port};

    use super::*;

    #[test]
    fn whose_a_packet_is() {
        let client = |port| (Address::from_v4([198, 51, 100, 9]), Port::new(port));
        let node = (Address::from_v4([192, 0, 2, 1]), Port::new(80));
        let anyone = (Address::UNSPECIFIED, Port::new(0));
        let every = (Address::UNSPECIFIED, Port::new(8080));
        let sockets = [
            ListedSocket { local: every, remote: anyone, state: SocketState::Listens },
            ListedSocket { local: node, remote: client(50000), state: SocketState::Connected },
            ListedSocket { local: node, remote: client(50001), state: SocketState::TimeWait },
        ];
        let packet =
            |port| Packet { tuple: Tuple::new(Protocol::Tcp, client(port), node), ..Packet::EMPTY };
        assert_eq!(owner(&sockets, &packet(50000)), Socket::Open);
        assert_eq!(owner(&sockets, &packet(50001)), Socket::TimeWait);
        assert_eq!(owner(&sockets, &packet(50002)), Socket::None);
        let to = |port| Tuple::new(Protocol::Tcp, client(50002), (node.0, Port::new(port)));
        assert!(listens(&sockets, &to(8080)) && !listens(&sockets, &to(80)));
    }
}
