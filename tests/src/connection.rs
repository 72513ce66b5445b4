//! Connections of which only one end is there.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;

use anyhow::{Context as _, Result, ensure};
use socket2::{Domain, Socket, Type};

/// A socket with an established connection that nobody has to answer for.
///
/// # Errors
///
/// If the kernel refuses. This needs root.
pub fn one_sided(from: SocketAddr, to: SocketAddr) -> Result<Socket> {
    let socket = Socket::new(Domain::for_address(from), Type::STREAM, None)?;
    let on: libc::c_int = 1;
    // SAFETY: the option is an integer, of the length that is given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_REPAIR,
            (&raw const on).cast(),
            size_of_val(&on).try_into()?,
        )
    };
    ensure!(result == 0, "TCP_REPAIR: {}", io::Error::last_os_error());
    socket.bind(&from.into()).with_context(|| format!("cannot bind to {from}"))?;
    socket.connect(&to.into()).with_context(|| format!("{from} to {to}"))?;
    Ok(socket)
}
