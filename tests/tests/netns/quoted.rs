//! ICMP errors about packets that were translated: they reach whom they are for, in terms that it
//! knows.

use std::{
    io::{ErrorKind, Read as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
};

use anyhow::{Context as _, Result, ensure};
use redirector_common::Family;
use redirector_tests::{
    agent::Lab,
    client::{self, PATIENCE},
    namespace::Namespace,
    server::{Server, Service},
    site::{CONFIG, PLACES, Place},
    topology::{
        Addresses, CLIENT, FAMILIES, NODE1, NODE1_INSIDE, NODE2, link, make_router, route_default,
    },
    transfer,
    wait::{uninterrupted, until_free},
};
use socket2::{Domain, Protocol, Socket, Type};

/// A host two routers away, behind a link that is narrower than those on either side of it, which
/// none of the end points can see:
///
/// ```text
/// far ── 1500 ── middle ── 1280 ── near ── 1500 ── node1
/// ```
struct Detour {
    far: Namespace,
    _middle: Namespace,
}

const FAR: Addresses = Addresses::new(11, 2);
const FAR_ROUTER: Addresses = Addresses::new(11, 1);
const MIDDLE: Addresses = Addresses::new(12, 2);
const NEAR: Addresses = Addresses::new(12, 1);

impl Detour {
    /// Behind `near`, which is a neighbour of node 1 by its `eth0`.
    fn behind(near: &Namespace, near_address: Addresses, node1: &Namespace) -> Result<Self> {
        let (far, middle) = (Namespace::new("far")?, Namespace::new("middle")?);
        link((&far, "eth0", FAR), (&middle, "eth0", FAR_ROUTER))?;
        link((&middle, "eth1", MIDDLE), (near, "narrow", NEAR))?;
        middle.ip("link set eth1 mtu 1280")?;
        near.ip("link set narrow mtu 1280")?;
        for router in [&middle, near] {
            make_router(router)?;
        }
        route_default(&far, FAR_ROUTER)?;
        route_default(&middle, NEAR)?;
        near.ip(&format!(
            "route add 198.18.11.0/24 via {}
             -6 route add 2001:db8:b::/64 via {}",
            MIDDLE.v4, MIDDLE.v6
        ))?;
        node1.ip(&format!(
            "route add 198.18.11.0/24 via {}
             -6 route add 2001:db8:b::/64 via {}",
            near_address.v4, near_address.v6
        ))?;
        Ok(Self { far, _middle: middle })
    }
}

/// A client behind a narrow link downloads: the router before it tells the frontend's address that
/// packets are too large, and the backend, here or elsewhere, sends smaller ones.
fn download(mode: &str) -> Result<()> {
    Lab::run_with_options(CONFIG, &["--xdp-mode", mode], |lab| {
        let near = &lab.net.client;
        let detour = Detour::behind(near, CLIENT, &lab.net.node1)?;
        // What a local backend learns the node knows: it would tell a backend elsewhere itself.
        for place in [Place::Remote, Place::Local] {
            let server = match place {
                Place::Local => &lab.net.node1,
                Place::Remote => &lab.net.node2,
            };
            // A super-packet is cut on the way, so only single ones can be too large.
            server.set_offloads("eth0", "tso off gso off")?;
            let _server = place.serve_tcp(lab, Service::Bulk)?;
            for family in FAMILIES {
                let stream = client::tcp(&detour.far, place.tcp(family))?;
                transfer::exchange(&stream, 1, 2 << 20)
                    .with_context(|| format!("from {place:?} over {family:?}, XDP {mode}"))?;
                let towards = match place {
                    Place::Local => FAR.of(family),
                    Place::Remote => NODE1_INSIDE.of(family),
                };
                let route = server.ip(&format!("route get {towards}"))?;
                ensure!(route.contains("mtu 1280"), "{place:?} learnt nothing: {route}");
            }
            // The local backend's connection is the kernel's own, and so is the error about it.
            ensure!(lab.cli().packets("icmp-error-forwarded")? >= 2);
        }
        Ok(())
    })
}

#[test]
fn a_client_behind_a_narrow_link_native() -> Result<()> {
    download("native")
}

#[test]
fn a_client_behind_a_narrow_link_generic() -> Result<()> {
    download("generic")
}

#[test]
fn a_client_behind_a_narrow_link_off() -> Result<()> {
    download("off")
}

/// The backend is behind the narrow link: the router before it tells the node's address, as whom
/// the backend knows the client; the client hears of it from the frontend.
#[test]
fn a_backend_behind_a_narrow_link() -> Result<()> {
    let config = "
services:
  - name: far
    frontends:
      - {port: 90, protocol: TCP}
    backends:
      - {address: 198.18.11.2, port: 8080}
      - {address: '2001:db8:b::2', port: 8080}
";
    for mode in ["native", "off"] {
        Lab::run_with_options(config, &["--xdp-mode", mode], |lab| {
            let detour = Detour::behind(&lab.net.node2, NODE2, &lab.net.node1)?;
            lab.net.client.set_offloads("eth0", "tso off gso off")?;
            let _server = Server::tcp(&detour.far, 8080, Service::Bulk)?;
            for family in FAMILIES {
                let frontend = SocketAddr::new(NODE1.of(family), 90);
                let stream = client::tcp(&lab.net.client, frontend)?;
                transfer::exchange(&stream, 2 << 20, 1)
                    .with_context(|| format!("{family:?}, XDP {mode}"))?;
                let route = lab.net.client.ip(&format!("route get {}", NODE1.of(family)))?;
                ensure!(route.contains("mtu 1280"), "the client learnt nothing: {route}");
            }
            ensure!(lab.cli().packets("icmp-error-forwarded")? >= 2);
            Ok(())
        })?;
    }
    Ok(())
}

/// Nobody listens for datagrams where the backend should be: the client hears of it at once, from
/// whom it sent them to.
#[test]
fn nobody_listens() -> Result<()> {
    for mode in ["native", "generic", "off"] {
        Lab::run_with_options(CONFIG, &["--xdp-mode", mode], |lab| {
            for place in PLACES {
                for family in FAMILIES {
                    let socket = client::udp(&lab.net.client, place.udp(family))?;
                    for len in [1, 100, 1400, 4000] {
                        socket.send(&vec![7; len])?;
                        let answer = uninterrupted(|| socket.recv(&mut [0; 16]));
                        let error = answer.err().map(|error| error.kind());
                        ensure!(
                            error == Some(ErrorKind::ConnectionRefused),
                            "{place:?} over {family:?}, {len} bytes, XDP {mode}: {error:?}"
                        );
                    }
                }
            }
            let replies = lab.cli().packets("icmp-error-reply")?;
            let forwarded = lab.cli().packets("icmp-error-forwarded")?;
            ensure!(replies >= 6 && forwarded >= 6, "{replies} replies, {forwarded} forwarded");
            Ok(())
        })?;
    }
    Ok(())
}

/// The client goes away while the backend answers: the backend hears of that.
#[test]
fn the_client_has_gone() -> Result<()> {
    Lab::run_with(CONFIG, |lab| {
        for place in PLACES {
            let host = match place {
                Place::Local => &lab.net.node1,
                Place::Remote => &lab.net.node2,
            };
            for family in FAMILIES {
                let any: IpAddr = match family {
                    Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
                    Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
                };
                let backend = || Ok(until_free(|| UdpSocket::bind((any, 5353)))?);
                let backend = host.enter(backend)?;
                backend.set_read_timeout(Some(PATIENCE))?;
                let socket = client::udp(&lab.net.client, place.udp(family))?;
                socket.send(b"hello")?;
                let (_, peer) = uninterrupted(|| backend.recv_from(&mut [0; 16]))?;
                drop(socket);
                // A connected socket is told of errors.
                backend.connect(peer)?;
                backend.send(b"who is there?")?;
                let answer = uninterrupted(|| backend.recv(&mut [0; 16]));
                let error = answer.err().map(|error| error.kind());
                ensure!(
                    error == Some(ErrorKind::ConnectionRefused),
                    "{place:?} over {family:?}: {error:?}"
                );
            }
        }
        Ok(())
    })
}

/// Echoes are not ours.
#[test]
fn echoes() -> Result<()> {
    Lab::run_with(CONFIG, |lab| {
        lab.net.client.set_sysctl("net/ipv4/ping_group_range", "0 2147483647")?;
        for family in FAMILIES {
            let (domain, protocol, request) = match family {
                Family::V4 => (Domain::IPV4, Protocol::ICMPV4, 8),
                Family::V6 => (Domain::IPV6, Protocol::ICMPV6, 128),
            };
            let socket = lab
                .net
                .client
                .enter(move || Ok(Socket::new(domain, Type::DGRAM, Some(protocol))?))?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.connect(&SocketAddr::new(NODE1.of(family), 0).into())?;
            for len in [8, 1000, 3000] {
                let mut echo = vec![0; 8 + len];
                echo[0] = request;
                socket.send(&echo)?;
                let mut answer = [0; 4096];
                let count = uninterrupted(|| (&socket).read(&mut answer))?;
                ensure!(count == echo.len(), "{count} bytes came back of {}", echo.len());
            }
        }
        ensure!(lab.cli().packets("icmp")? >= 4, "echoes are not counted as ICMP");
        Ok(())
    })
}
