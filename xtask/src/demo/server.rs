//! The servers of the demo: real ones, that tell the client what they see.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv6Addr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;

/// Longest time that a client may be silent.
const PATIENCE: Duration = Duration::from_secs(5);

/// A server of the demo, on this host's addresses of both families.
#[derive(Args)]
pub(crate) struct Arguments {
    /// What it calls itself.
    name: String,
    /// Port of HTTP.
    #[arg(long, value_name = "PORT")]
    http: Option<u16>,
    /// Port of the UDP echo.
    #[arg(long, value_name = "PORT")]
    udp: Option<u16>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    std::thread::scope(|scope| {
        let http =
            arguments.http.map(|port| scope.spawn(move || serve_http(&arguments.name, port)));
        let udp = arguments.udp.map(|port| scope.spawn(move || serve_udp(&arguments.name, port)));
        for thread in [http, udp].into_iter().flatten() {
            thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("the server panicked")))?;
        }
        Ok(())
    })
}

/// Answers every request with the server's name and the client's address.
fn serve_http(name: &str, port: u16) -> Result<()> {
    // The unspecified IPv6 address takes IPv4 as well.
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
        .with_context(|| format!("cannot listen on TCP port {port}"))?;
    for connection in listener.incoming() {
        // A client that goes away is no reason to stop serving the others.
        if let Err(error) = connection.and_then(|client| answer(&client, name)) {
            eprintln!("{name}: {error}");
        }
    }
    Ok(())
}

fn answer(client: &TcpStream, name: &str) -> std::io::Result<()> {
    client.set_read_timeout(Some(PATIENCE))?;
    let body = greet(name, client.local_addr()?.port(), client.peer_addr()?.ip());
    let mut request = BufReader::new(client);
    let mut line = String::new();
    // The head of a request ends with an empty line.
    while request.read_line(&mut line)? > 0 && !line.trim_end().is_empty() {
        line.clear();
    }
    let mut answer = client;
    write!(
        answer,
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    )
}

/// Sends every datagram back, with the server's name and the client's address before it.
fn serve_udp(name: &str, port: u16) -> Result<()> {
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))
        .with_context(|| format!("cannot listen on UDP port {port}"))?;
    let mut datagram = [0; 1500];
    loop {
        let answered = socket.recv_from(&mut datagram).and_then(|(len, client)| {
            let mut answer = greet(name, port, client.ip()).into_bytes();
            answer.extend_from_slice(datagram.get(..len).unwrap_or_default());
            socket.send_to(&answer, client)
        });
        // An ICMP error of an earlier answer shows up here; the next client is served all the same.
        if let Err(error) = answered {
            eprintln!("{name}: {error}");
        }
    }
}

/// What a server says: its name, its own port, and the client's address as it sees it.
pub(super) fn greet(name: &str, port: u16, client: IpAddr) -> String {
    format!("I am {name}, on port {port}. You are {}.\n", client.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv4_client_is_shown_as_one() {
        let client = "::ffff:192.0.2.9".parse().unwrap();
        assert_eq!(greet("web", 80, client), "I am web, on port 80. You are 192.0.2.9.\n");
    }
}
