//! Frames on the wire, past every socket.

use std::{
    io::Read as _,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Result, ensure};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

use crate::namespace::Namespace;

/// Puts a frame on the wire as it is.
///
/// # Errors
///
/// If the interface does not take it.
pub fn inject(host: &Namespace, interface: &str, frame: &[u8]) -> Result<()> {
    let (interface, frame) = (interface.to_owned(), frame.to_vec());
    host.enter(move || {
        let index = nix::net::if_::if_nametoindex(interface.as_str())?;
        let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
        let sent = socket.send_to(&frame, &link_address(index)?)?;
        ensure!(sent == frame.len(), "sent {sent} of {} bytes", frame.len());
        Ok(())
    })
}

/// `struct sockaddr_ll`, of which sending raw frames needs only the interface.
pub(crate) fn link_address(ifindex: u32) -> Result<SockAddr> {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: a storage is large enough and aligned for every kind of address, and all zeroes is
    // a valid `sockaddr_ll`.
    let link = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    link.sll_family = u16::try_from(libc::AF_PACKET)?;
    link.sll_ifindex = i32::try_from(ifindex)?;
    let len = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>())?;
    // SAFETY: the storage holds a `sockaddr_ll` of this length.
    Ok(unsafe { SockAddr::new(storage, len) })
}

/// Sees what the host's stack receives by an interface: what XDP has taken is not among it.
#[derive(Debug)]
pub struct Tap {
    socket: Socket,
}

impl Tap {
    /// Sees everything from now on.
    ///
    /// # Errors
    ///
    /// If the interface can't be listened to.
    pub fn new(host: &Namespace, interface: &str) -> Result<Self> {
        let interface = interface.to_owned();
        let socket = host.enter(move || {
            let index = nix::net::if_::if_nametoindex(interface.as_str())?;
            let everything = i32::from(u16::try_from(libc::ETH_P_ALL)?.to_be());
            let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(everything)))?;
            socket.bind(&link_address(index)?)?;
            Ok(socket)
        })?;
        socket.set_recv_buffer_size(8 << 20)?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket })
    }

    /// How many frames to this port it has seen since it was last asked.
    ///
    /// # Errors
    ///
    /// If they can't be read.
    pub fn seen(&mut self, to: SocketAddr) -> Result<usize> {
        Ok(self.heard()?.iter().filter(|(_, dest)| dest.port() == to.port()).count())
    }

    /// Source and destination of the TCP and UDP packets that it has seen since it was last asked.
    ///
    /// # Errors
    ///
    /// If they can't be read.
    pub fn heard(&mut self) -> Result<Vec<(SocketAddr, SocketAddr)>> {
        let mut frame = vec![0; 1 << 16];
        let mut heard = Vec::new();
        loop {
            match (&self.socket).read(&mut frame) {
                Ok(len) => heard.extend(ends(&frame[..len])),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(heard),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn ends(frame: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let (source, destination): (IpAddr, IpAddr) = match packet.net? {
        NetSlice::Ipv4(ip) => {
            (ip.header().source_addr().into(), ip.header().destination_addr().into())
        }
        NetSlice::Ipv6(ip) => {
            (ip.header().source_addr().into(), ip.header().destination_addr().into())
        }
        NetSlice::Arp(_) => return None,
    };
    let (from, to) = match packet.transport? {
        TransportSlice::Tcp(tcp) => (tcp.source_port(), tcp.destination_port()),
        TransportSlice::Udp(udp) => (udp.source_port(), udp.destination_port()),
        TransportSlice::Icmpv4(_) | TransportSlice::Icmpv6(_) | TransportSlice::Igmp(_) => {
            return None;
        }
    };
    Some((SocketAddr::new(source, from), SocketAddr::new(destination, to)))
}
