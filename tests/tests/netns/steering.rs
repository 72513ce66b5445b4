//! TCP to programs of the node itself: handed to their listening sockets as it is.

mod mixed;

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use redirector_common::Family;
use redirector_tests::{
    agent::Lab,
    client,
    namespace::Namespace,
    topology::{CLIENT, FAMILIES, NODE1, NODE1_INSIDE},
    wait,
};
use socket2::{Domain, Socket, Type};

const ANY: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
const LOCAL: &str = "publish: ['80:8080']";

/// A listening socket of a host, of which the test itself accepts.
fn listen(host: &Namespace, address: IpAddr, port: u16) -> Result<TcpListener> {
    listen_with(host, address, port, |_| Ok(()))
}

fn listen_with(
    host: &Namespace,
    address: IpAddr,
    port: u16,
    prepare: impl FnOnce(&Socket) -> Result<()>,
) -> Result<TcpListener> {
    let address = SocketAddr::new(address, port);
    let domain = Domain::for_address(address);
    let socket = host.enter(move || Ok(Socket::new(domain, Type::STREAM, None)?))?;
    socket.set_reuse_address(true)?;
    socket.set_read_timeout(Some(client::PATIENCE))?;
    prepare(&socket)?;
    wait::until_free(|| socket.bind(&address.into()))
        .with_context(|| format!("binding {address}"))?;
    wait::until_free(|| socket.listen(64))?;
    Ok(socket.into())
}

fn frontend(family: Family, port: u16) -> SocketAddr {
    SocketAddr::new(NODE1.of(family), port)
}

/// A connection of the client to a frontend of the node, and its other end.
fn connect(lab: &Lab, listener: &TcpListener, to: SocketAddr) -> Result<(TcpStream, TcpStream)> {
    let here = client::tcp(&lab.net.client, to)?;
    let (there, _) = wait::uninterrupted(|| listener.accept())?;
    there.set_read_timeout(Some(client::PATIENCE))?;
    Ok((here, there))
}

/// Bytes go both ways.
fn exchange(here: &TcpStream, there: &TcpStream) -> Result<()> {
    for (mut from, mut to) in [(here, there), (there, here)] {
        from.write_all(b"some bytes")?;
        let mut bytes = [0; 10];
        to.read_exact(&mut bytes).context("waiting for bytes from the other end")?;
        ensure!(&bytes == b"some bytes");
    }
    Ok(())
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn is_refused(result: &Result<TcpStream>) -> bool {
    let error = result.as_ref().err().and_then(|error| error.downcast_ref::<std::io::Error>());
    error.is_some_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
}

fn counted(lab: &Lab, reasons: [&str; 4]) -> Result<[u64; 4]> {
    let mut counts = [0; 4];
    for (count, reason) in counts.iter_mut().zip(reasons) {
        *count = lab.cli().packets(reason)?;
    }
    Ok(counts)
}

/// A listener on every address of both families accepts connections that have the frontend's
/// address and port, and the client's; nothing stands in the flow table, and no reply is touched.
#[test]
fn the_program_sees_the_frontend() -> Result<()> {
    Lab::run_with(LOCAL, |lab| {
        let listener = listen(&lab.net.node1, ANY, 8080)?;
        for family in FAMILIES {
            let (here, there) = connect(lab, &listener, frontend(family, 80))?;
            exchange(&here, &there)?;
            let (own, peer) = (canonical(there.local_addr()?), canonical(there.peer_addr()?));
            ensure!(own == frontend(family, 80), "the connection's own address is {own}");
            ensure!(peer == here.local_addr()? && peer.ip() == CLIENT.of(family), "peer {peer}");

            let shown = lab.net.node1.run("ss", ["-tnH", "sport = :80"])?;
            ensure!(shown.contains(":80 ") && shown.contains(&peer.port().to_string()), "{shown}");
            let shown = lab.net.node1.run("ss", ["-tnH", "sport = :8080"])?;
            ensure!(shown.trim().is_empty(), "{shown}");
        }
        ensure!(lab.cli().rows(&["flow", "list"])?.is_empty(), "there are flows");
        let reasons = ["steered-new", "local-new", "local-established", "local-reply"];
        let counts = counted(lab, reasons)?;
        ensure!(counts == [2, 0, 0, 0], "{reasons:?}: {counts:?}");
        // The handshake's end, data, its acknowledgement.
        ensure!(lab.cli().packets("steered-established")? >= 6);
        Ok(())
    })
}

/// A listener on one address is found by that address alone: the frontend's, or the one that the
/// service names, which may be another of the host's.
#[test]
fn listeners_on_one_address() -> Result<()> {
    let config = "
publish: ['80:8080']
services:
  - name: inside
    frontends: [{port: 81, protocol: TCP}]
    backends:
      - {address: 198.18.2.1, port: 8081}
      - {address: '2001:db8:2::1', port: 8081}
";
    Lab::run_with(config, |lab| {
        for family in FAMILIES {
            let (outside, inside) = (NODE1.of(family), NODE1_INSIDE.of(family));
            let named = listen(&lab.net.node1, outside, 8080)?;
            let other = listen(&lab.net.node1, inside, 8081)?;
            for (listener, port) in [(&named, 80), (&other, 81)] {
                let (here, there) = connect(lab, listener, frontend(family, port))?;
                exchange(&here, &there)?;
                ensure!(there.local_addr()? == frontend(family, port));
            }
            drop(named);
            for address in [inside, IpAddr::from([127, 0, 0, 1])] {
                let _hidden = listen(&lab.net.node1, address, 8080)?;
                let result = client::tcp(&lab.net.client, frontend(family, 80));
                ensure!(is_refused(&result), "{address}: {result:?}");
            }
        }
        Ok(())
    })
}

/// Every SYN is answered with a cookie: the kernel keeps nothing until the handshake's end, which
/// is handed to the listener too.
#[test]
fn syn_cookies() -> Result<()> {
    Lab::run_with(LOCAL, |lab| {
        lab.net.node1.set_sysctl("net/ipv4/tcp_syncookies", "2")?;
        let listener = listen(&lab.net.node1, ANY, 8080)?;
        for family in FAMILIES {
            for _ in 0..5 {
                let (here, there) = connect(lab, &listener, frontend(family, 80))?;
                exchange(&here, &there)?;
                ensure!(canonical(there.local_addr()?) == frontend(family, 80));
            }
        }
        let told = lab
            .net
            .node1
            .enter(|| Ok(std::fs::read_to_string("/proc/thread-self/net/netstat")?))?;
        let cookies = netstat(&told, "SyncookiesRecv").context("no such counter")?;
        ensure!(cookies == 10, "{cookies} cookies came back");
        ensure!(lab.cli().rows(&["flow", "list"])?.is_empty(), "there are flows");
        Ok(())
    })
}

/// A counter of `/proc/net/netstat`: a line of names, then one of values.
fn netstat(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines();
    while let (Some(names), Some(values)) = (lines.next(), lines.next()) {
        if let Some(place) = names.split_whitespace().position(|word| word == name) {
            return values.split_whitespace().nth(place)?.parse().ok();
        }
    }
    None
}

/// Several listeners on one port share the connections (steered from Linux 6.6 on).
#[test]
fn listeners_that_share_a_port() -> Result<()> {
    const CONNECTIONS: usize = 64;
    Lab::run_with(LOCAL, |lab| {
        let listeners = (0..4)
            .map(|_| {
                let listener = listen_with(&lab.net.node1, ANY, 8080, |socket| {
                    Ok(socket.set_reuse_port(true)?)
                })?;
                listener.set_nonblocking(true)?;
                Ok(listener)
            })
            .collect::<Result<Vec<_>>>()?;
        for family in FAMILIES {
            let _clients = (0..CONNECTIONS)
                .map(|_| client::tcp(&lab.net.client, frontend(family, 80)))
                .collect::<Result<Vec<_>>>()?;
            let mut accepted = [0; 4];
            wait::until_true("every connection to be accepted", wait::SOON, || {
                for (count, listener) in accepted.iter_mut().zip(&listeners) {
                    while wait::uninterrupted(|| listener.accept()).is_ok() {
                        *count += 1;
                    }
                }
                Ok(accepted.iter().sum::<usize>() == CONNECTIONS)
            })?;
            ensure!(accepted.iter().all(|count| *count > 0), "{family:?}: {accepted:?}");
        }
        Ok(())
    })
}

/// A program that listens on the frontend's own port keeps the connections that it has; new ones
/// go where the frontend says.
#[test]
fn the_frontend_has_precedence() -> Result<()> {
    Lab::run(|lab| {
        let before = listen(&lab.net.node1, ANY, 80)?;
        let behind = listen(&lab.net.node1, ANY, 8080)?;
        let mut earlier = Vec::new();
        for family in FAMILIES {
            earlier.push(connect(lab, &before, frontend(family, 80))?);
        }
        lab.write_config(LOCAL)?;
        lab.start(&[])?;
        for (family, (here, there)) in FAMILIES.into_iter().zip(&earlier) {
            exchange(here, there)?;
            let (here, there) = connect(lab, &behind, frontend(family, 80))?;
            exchange(&here, &there)?;
        }
        Ok(())
    })
}

/// Connections are ordinary sockets: they outlive the agent, and its programs too.
#[test]
fn connections_outlive_everything() -> Result<()> {
    Lab::run_with(LOCAL, |lab| {
        let listener = listen(&lab.net.node1, ANY, 8080)?;
        let mut connections = Vec::new();
        for family in FAMILIES {
            connections.push(connect(lab, &listener, frontend(family, 80))?);
        }
        let check = || connections.iter().try_for_each(|(here, there)| exchange(here, there));
        check()?;
        lab.kill()?;
        check()?;
        for family in FAMILIES {
            let (here, there) = connect(lab, &listener, frontend(family, 80))?;
            exchange(&here, &there)?;
        }
        lab.cli().text(&["detach"])?;
        check()?;
        for family in FAMILIES {
            let result = client::tcp(&lab.net.client, frontend(family, 80));
            ensure!(is_refused(&result), "{result:?}");
        }
        check()
    })
}

/// The server closed first, and its end waits for stray packets: the same client port connects
/// again at once.
#[test]
fn a_port_used_again_while_the_server_waits() -> Result<()> {
    Lab::run_with(LOCAL, |lab| {
        let listener = listen(&lab.net.node1, ANY, 8080)?;
        for family in FAMILIES {
            for round in 0..5 {
                let here = client::tcp_from(&lab.net.client, 45010, frontend(family, 80))?;
                let (there, _) = wait::uninterrupted(|| listener.accept())?;
                exchange(&here, &there)?;
                drop(there);
                let mut rest = Vec::new();
                (&here).read_to_end(&mut rest)?;
                drop(here);
                wait::until_true("the server's end to wait", wait::SOON, || {
                    let shown = lab.net.node1.run("ss", ["-tanH", "state", "time-wait"])?;
                    Ok(shown.contains(":45010"))
                })
                .with_context(|| format!("round {round}"))?;
            }
        }
        let told = lab
            .net
            .client
            .enter(|| Ok(std::fs::read_to_string("/proc/thread-self/net/netstat")?))?;
        let retransmitted = netstat(&told, "TCPSynRetrans").context("no such counter")?;
        ensure!(retransmitted == 0, "{retransmitted} SYNs were sent again");
        Ok(())
    })
}

/// One port of the client to the frontend and to the program's own port: two connections that are
/// told apart, as ever.
#[test]
fn one_port_to_the_frontend_and_past_it() -> Result<()> {
    Lab::run_with(LOCAL, |lab| {
        let listener = listen(&lab.net.node1, ANY, 8080)?;
        for family in FAMILIES {
            let mut connections = Vec::new();
            for port in [8080, 80] {
                let to = frontend(family, port);
                let here = client::tcp_from(&lab.net.client, 45011, to)?;
                let (there, _) = wait::uninterrupted(|| listener.accept())?;
                there.set_read_timeout(Some(client::PATIENCE))?;
                ensure!(canonical(there.local_addr()?) == to);
                ensure!(there.peer_addr()?.port() == 45011);
                connections.push((here, there));
            }
            for (here, there) in &connections {
                exchange(here, there)?;
            }
        }
        ensure!(lab.cli().rows(&["flow", "list"])?.is_empty(), "there are flows");
        Ok(())
    })
}

/// More connections than the listener's queue has room for: none is lost once it accepts.
#[test]
fn a_full_queue() -> Result<()> {
    Lab::run_with(LOCAL, |lab| {
        let listener = listen_with(&lab.net.node1, ANY, 8080, |_| Ok(()))?;
        listener.set_nonblocking(true)?;
        let client = &lab.net.client;
        let clients = (0..100)
            .map(|_| {
                let socket = client.enter(|| Ok(Socket::new(Domain::IPV4, Type::STREAM, None)?))?;
                socket.set_nonblocking(true)?;
                // In progress.
                let _ = socket.connect(&frontend(Family::V4, 80).into());
                Ok(socket)
            })
            .collect::<Result<Vec<_>>>()?;
        let mut accepted = Vec::new();
        wait::until_true("every connection to be accepted", Duration::from_secs(30), || {
            while let Ok((stream, _)) = wait::uninterrupted(|| listener.accept()) {
                accepted.push(stream);
            }
            Ok(accepted.len() == clients.len())
        })
    })
}
