//! What a client meets at a frontend.

use std::{
    collections::BTreeSet,
    io::{self, ErrorKind},
    net::SocketAddr,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use redirector_common::Protocol;

use crate::{
    client::{self, Whoami},
    namespace::Namespace,
    wait,
};

/// How long to wait for a connection before silence counts as silence. Not less than a second: an
/// ICMP error that comes while the client is still within its system call is forgotten, and the
/// next one comes when the SYN is sent again.
const PATIENCE: Duration = Duration::from_millis(1500);

/// How long to wait for an answer to a datagram.
const PATIENCE_UDP: Duration = Duration::from_millis(700);

/// How long the agents may take to follow a change, on a busy machine.
const SOON: Duration = Duration::from_secs(40);

/// What a client meets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A server.
    Answer(Whoami),
    /// "Connection refused": a reset, or an ICMP error.
    Refused,
    /// Nothing.
    Silence,
}

/// Asks a `Whoami` server once, from a new port.
///
/// # Errors
///
/// If something else than an [`Outcome`] comes of it.
pub fn probe(host: &Namespace, protocol: Protocol, to: SocketAddr) -> Result<Outcome> {
    let patience = match protocol {
        Protocol::Tcp => PATIENCE,
        Protocol::Udp => PATIENCE_UDP,
    };
    probe_for(host, protocol, to, patience)
}

fn probe_for(
    host: &Namespace,
    protocol: Protocol,
    to: SocketAddr,
    patience: Duration,
) -> Result<Outcome> {
    let answer = match protocol {
        Protocol::Tcp => client::tcp_within(host, to, patience).and_then(|stream| {
            stream.set_read_timeout(Some(patience))?;
            client::ask(&stream)
        }),
        Protocol::Udp => client::udp(host, to).and_then(|socket| {
            socket.set_read_timeout(Some(patience))?;
            let answer = client::round_trip(&socket, b"who am I?\n")?;
            Whoami::parse(&String::from_utf8(answer)?)
        }),
    };
    let error = match answer {
        Ok(whoami) => return Ok(Outcome::Answer(whoami)),
        Err(error) => error,
    };
    match error.downcast_ref::<io::Error>().map(io::Error::kind) {
        Some(ErrorKind::ConnectionRefused) => Ok(Outcome::Refused),
        Some(ErrorKind::TimedOut | ErrorKind::WouldBlock) => Ok(Outcome::Silence),
        _ => Err(error).with_context(|| format!("asking {to} over {protocol:?}")),
    }
}

/// The names of the servers that a number of new clients meet.
///
/// # Errors
///
/// If one of them meets none.
pub fn servers(
    host: &Namespace,
    protocol: Protocol,
    to: SocketAddr,
    times: usize,
) -> Result<BTreeSet<String>> {
    let mut servers = BTreeSet::new();
    for _ in 0..times {
        match probe(host, protocol, to)? {
            Outcome::Answer(whoami) => servers.insert(whoami.server),
            other @ (Outcome::Refused | Outcome::Silence) => {
                anyhow::bail!("{to} over {protocol:?}: {other:?}")
            }
        };
    }
    Ok(servers)
}

/// Waits until new clients meet these servers, all of them and no others.
///
/// # Errors
///
/// If they do not: says whom they met.
pub fn await_servers(
    host: &Namespace,
    protocol: Protocol,
    to: SocketAddr,
    expected: &[&str],
) -> Result<()> {
    let expected: BTreeSet<String> = expected.iter().map(|name| (*name).to_owned()).collect();
    // Enough for a miss of one of three to be a matter of one in millions.
    let times = if expected.len() == 1 { 4 } else { 40 };
    let mut last = None;
    let met = wait::until_true("the right servers", SOON, || {
        last = Some(servers(host, protocol, to, times).map_err(|error| format!("{error:#}")));
        Ok(matches!(&last, Some(Ok(met)) if *met == expected))
    });
    met.with_context(|| format!("{to} over {protocol:?}: wanted {expected:?}, met {last:?}"))
}

/// Waits until a new client meets this, whichever server it may be.
///
/// # Errors
///
/// If it does not: says what it met.
pub fn await_outcome(
    host: &Namespace,
    protocol: Protocol,
    to: SocketAddr,
    expected: &Outcome,
) -> Result<()> {
    let mut last = None;
    let met = wait::until_true("the right outcome", SOON, || {
        last = Some(probe(host, protocol, to).map_err(|error| format!("{error:#}")));
        Ok(matches!(&last, Some(Ok(met)) if met == expected))
    });
    met.with_context(|| format!("{to} over {protocol:?}: wanted {expected:?}, met {last:?}"))
}

/// Asks once and expects this server, which must take the client for `seen`.
///
/// # Errors
///
/// If it is another, or takes the client for somebody else.
pub fn expect_server(
    host: &Namespace,
    protocol: Protocol,
    to: SocketAddr,
    server: &str,
    seen: std::net::IpAddr,
) -> Result<()> {
    let met = probe_for(host, protocol, to, client::PATIENCE)?;
    ensure!(
        matches!(&met, Outcome::Answer(who) if who.server == server && who.client.ip() == seen),
        "{to} over {protocol:?}: {met:?}, not {server} for a client at {seen}"
    );
    Ok(())
}
