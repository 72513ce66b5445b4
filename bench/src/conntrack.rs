//! The kernel's own table of connections.

use anyhow::{Context as _, Result, ensure};
use redirector_tests::namespace::Namespace;
use socket2::{Domain, Protocol, Socket, Type};

const AF_NETLINK: i32 = 16;
const NETLINK_NETFILTER: i32 = 12;
/// Of the subsystem for connections: delete, and without saying which, all.
const DELETE: u16 = 1 << 8 | 2;
/// A request that is to be acknowledged.
const FLAGS: u16 = 1 | 4;

/// Forgets all connections of a host.
pub(crate) fn flush(host: &Namespace) -> Result<()> {
    host.enter(|| {
        let socket = Socket::new(
            Domain::from(AF_NETLINK),
            Type::RAW,
            Some(Protocol::from(NETLINK_NETFILTER)),
        )
        .context("no netlink socket")?;
        const LEN: u32 = 20;
        let mut message = Vec::with_capacity(LEN as usize);
        message.extend(LEN.to_ne_bytes());
        message.extend(DELETE.to_ne_bytes());
        message.extend(FLAGS.to_ne_bytes());
        // Number and sender, then family, version and a number of the request.
        message.extend([0; 12]);
        socket.send(&message).context("asking for connections to be forgotten")?;
        let mut answer = [0; 64];
        let len = std::io::Read::read(&mut &socket, &mut answer)?;
        let code =
            answer.get(16..20).filter(|_| len >= 20).context("the kernel's answer is short")?;
        let mut bytes = [0; 4];
        bytes.copy_from_slice(code);
        let code = i32::from_ne_bytes(bytes);
        ensure!(code == 0, "forgetting connections: {}", std::io::Error::from_raw_os_error(-code));
        Ok(())
    })
}
