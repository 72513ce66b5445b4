//! This host's TCP sockets, as the kernel lists them.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// A TCP socket of this network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpSocket {
    /// Its own end.
    pub local: SocketAddr,
    /// The other end; unspecified of a listening one.
    pub remote: SocketAddr,
    /// What it is.
    pub state: TcpState,
}

/// What a TCP socket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcpState {
    /// It takes connections.
    Listening,
    /// The rest of a connection that is over.
    TimeWait,
    /// A connection, or a handshake.
    Open,
}

/// Lists them, IPv4-mapped addresses as IPv4.
///
/// # Errors
///
/// If the kernel does not say.
pub fn list() -> io::Result<Vec<TcpSocket>> {
    let mut all = Vec::new();
    for path in ["/proc/self/net/tcp", "/proc/self/net/tcp6"] {
        match fs::read_to_string(path) {
            Ok(text) => all.extend(text.lines().skip(1).filter_map(read)),
            // The kernel has no IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}

/// `0: 0100007F:1F90 00000000:0000 0A …`
fn read(line: &str) -> Option<TcpSocket> {
    let mut words = line.split_whitespace().skip(1);
    let (local, remote) = (read_end(words.next()?)?, read_end(words.next()?)?);
    let state = match words.next()? {
        "0A" => TcpState::Listening,
        "06" => TcpState::TimeWait,
        _ => TcpState::Open,
    };
    Some(TcpSocket { local, remote, state })
}

/// Words of the address as this machine reads them from memory, and the port.
fn read_end(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let mut octets = Vec::new();
    for at in (0..address.len()).step_by(8) {
        let word = u32::from_str_radix(address.get(at..at + 8)?, 16).ok()?;
        octets.extend(word.to_ne_bytes());
    }
    let address = match octets.len() {
        4 => IpAddr::from(Ipv4Addr::from(*octets.first_chunk::<4>()?)),
        16 => IpAddr::from(Ipv6Addr::from(*octets.first_chunk::<16>()?)).to_canonical(),
        _ => return None,
    };
    Some(SocketAddr::new(address, u16::from_str_radix(port, 16).ok()?))
}

impl TcpSocket {
    /// Whether a connection to `to` would be its own.
    #[must_use]
    pub fn listens_for(&self, to: SocketAddr) -> bool {
        let takes = match self.local.ip() {
            IpAddr::V4(own) => own.is_unspecified() && to.is_ipv4() || to.ip() == own,
            // Of either family, unless the program wanted otherwise, which is not listed.
            IpAddr::V6(own) => own.is_unspecified() || to.ip() == own,
        };
        self.state == TcpState::Listening && takes && self.local.port() == to.port()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(text: &str) -> SocketAddr {
        text.parse().expect("an address and port")
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn lines_are_read() {
        let rows = [
            (
                "0: 0100007F:1F90 00000000:0000 0A x",
                "127.0.0.1:8080",
                "0.0.0.0:0",
                TcpState::Listening,
            ),
            ("1: 0102A8C0:0050 07336 4C6:9C40 01", "", "", TcpState::Open),
            (
                "2: 0000000000000000FFFF00000102A8C0:0050 0000000000000000FFFF0000076433C6:9C40 06",
                "192.168.2.1:80",
                "198.51.100.7:40000",
                TcpState::TimeWait,
            ),
            (
                "3: B80D0120000000000000000001000000:01BB 00000000000000000000000000000000:0000 01",
                "[2001:db8::1]:443",
                "[::]:0",
                TcpState::Open,
            ),
        ];
        for (line, local, remote, state) in rows {
            let found = read(line);
            if local.is_empty() {
                assert_eq!(found, None, "{line}");
            } else {
                let wanted = TcpSocket { local: end(local), remote: end(remote), state };
                assert_eq!(found, Some(wanted), "{line}");
            }
        }
    }

    #[test]
    fn a_listener_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
        let own = listener.local_addr().expect("its address");
        let all = list().expect("listed");
        assert!(all.iter().any(|socket| socket.listens_for(own)), "{own}");
    }

    #[test]
    fn listeners_take_what_is_theirs() {
        let at = |local: &str| TcpSocket {
            local: end(local),
            remote: end("0.0.0.0:0"),
            state: TcpState::Listening,
        };
        let rows = [
            ("0.0.0.0:80", "192.0.2.1:80", true),
            ("0.0.0.0:80", "[2001:db8::1]:80", false),
            ("[::]:80", "192.0.2.1:80", true),
            ("192.0.2.1:80", "192.0.2.1:80", true),
            ("192.0.2.1:80", "192.0.2.2:80", false),
            ("192.0.2.1:80", "192.0.2.1:81", false),
        ];
        for (local, to, takes) in rows {
            assert_eq!(at(local).listens_for(end(to)), takes, "{local} {to}");
        }
    }
}
