//! A client for tests that need a process of its own: a socket belongs to the control group and
//! the network namespace of the process that makes it.
//!
//! `asker [mapped-]tcp|[mapped-]udp|[mapped-]sendto ADDRESS:PORT [TIMES]` asks a `Whoami` server and
//! prints what the server said, and by what address the kernel calls it.

use std::env;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use redirector_tests::wait::uninterrupted;
use socket2::{Domain, Socket, Type};

const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    match run(&env::args().skip(1).collect::<Vec<_>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<()> {
    let [how, server, rest @ ..] = arguments else {
        bail!("usage: asker HOW ADDRESS:PORT [HOW-OFTEN]");
    };
    let server: SocketAddr = server.parse().with_context(|| server.clone())?;
    let times: u32 = rest.first().map_or(Ok(1), |text| text.parse())?;
    let (how, server) = match (how.strip_prefix("mapped-"), server.ip()) {
        (Some(how), IpAddr::V4(v4)) => {
            (how, SocketAddr::new(v4.to_ipv6_mapped().into(), server.port()))
        }
        (Some(_), IpAddr::V6(_)) => bail!("{server} is no IPv4 address"),
        (None, _) => (how.as_str(), server),
    };
    match how {
        "tcp" => over_tcp(server, times),
        "udp" => over_udp(server, times),
        "sendto" => unconnected(server, times),
        other => bail!("no such way to ask: {other}"),
    }
}

fn over_tcp(server: SocketAddr, times: u32) -> Result<()> {
    for _ in 0..times {
        let mut stream = TcpStream::connect(server).context("connect")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let peer = stream.peer_addr().context("getpeername")?;
        stream.write_all(b"who am I?\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        tell(&answer, peer, peer);
    }
    Ok(())
}

fn over_udp(server: SocketAddr, times: u32) -> Result<()> {
    let socket = udp(server)?;
    socket.connect(server).context("connect")?;
    let peer = socket.peer_addr().context("getpeername")?;
    for _ in 0..times {
        socket.send(b"who am I?\n").context("send")?;
        let (answer, from) = receive(&socket)?;
        tell(&answer, peer, from);
    }
    Ok(())
}

fn unconnected(server: SocketAddr, times: u32) -> Result<()> {
    let socket = udp(server)?;
    for _ in 0..times {
        socket.send_to(b"who am I?\n", server).context("sendto")?;
        let (answer, from) = receive(&socket)?;
        tell(&answer, from, from);
    }
    Ok(())
}

/// A socket of the server's family, bound to no address. Of an IPv6 one, the standard library
/// would make one that knows no IPv4.
fn udp(server: SocketAddr) -> Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(server), Type::DGRAM, None)?;
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => {
            socket.set_only_v6(false)?;
            Ipv6Addr::UNSPECIFIED.into()
        }
    };
    socket.bind(&SocketAddr::new(any, 0).into())?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket.into())
}

fn receive(socket: &UdpSocket) -> Result<(String, SocketAddr)> {
    let mut buffer = [0; 2048];
    let (count, from) = uninterrupted(|| socket.recv_from(&mut buffer)).context("recvfrom")?;
    Ok((String::from_utf8(buffer[..count].to_vec())?, from))
}

fn tell(answer: &str, peer: SocketAddr, from: SocketAddr) {
    println!("{} peer={peer} from={from}", answer.trim());
}
