//! Traffic policies, and what goes to nobody.

use std::{io::ErrorKind, net::SocketAddr, time::Duration};

use anyhow::{Result, ensure};
use redirector_tests::{
    agent::Lab,
    client::{self, PATIENCE},
    crowd::{self, all, apply, config},
    server::{Server, Service},
    topology::{CLIENT, FAMILIES, NODE1, make_router},
};

const LOCAL: &str = "trafficPolicy: Local\n";

fn kind(error: &anyhow::Error) -> Option<ErrorKind> {
    error.downcast_ref::<std::io::Error>().map(std::io::Error::kind)
}

/// How a connection attempt ends.
fn attempt(lab: &Lab, frontend: SocketAddr) -> Option<ErrorKind> {
    attempt_for(lab, frontend, Duration::from_millis(1500))
}

fn attempt_for(lab: &Lab, frontend: SocketAddr, patience: Duration) -> Option<ErrorKind> {
    client::tcp_within(&lab.net.client, frontend, patience).err().as_ref().and_then(kind)
}

/// Somebody says that nobody listens: perhaps only to a later SYN, since an error that comes while
/// the client is still busy sending is forgotten.
fn is_refused(lab: &Lab, frontend: SocketAddr) -> bool {
    attempt_for(lab, frontend, PATIENCE) == Some(ErrorKind::ConnectionRefused)
}

/// Local: only backends here, whom the client comes to as itself; with none here but some
/// elsewhere, silence; with none anywhere, an error.
#[test]
fn local() -> Result<()> {
    Lab::run_with(&config(LOCAL, all), |lab| {
        let _servers = crowd::serve(lab)?;
        for family in FAMILIES {
            let [tcp, udp] =
                [crowd::TCP[0], crowd::UDP[0]].map(|port| SocketAddr::new(NODE1.of(family), port));
            apply(lab, &config(LOCAL, all))?;
            for _ in 0..20 {
                let answer = client::whoami(&lab.net.client, tcp)?;
                ensure!(answer.server == "here" && answer.client.ip() == CLIENT.of(family));
            }
            apply(lab, &config(LOCAL, |name| (name != "here").then_some("")))?;
            let before = lab.cli().packets("no-local-backend")?;
            ensure!(attempt(lab, tcp) == Some(ErrorKind::TimedOut), "over {family:?}");
            let socket = client::udp(&lab.net.client, udp)?;
            socket.set_read_timeout(Some(Duration::from_millis(300)))?;
            let error = client::round_trip(&socket, b"anybody?").err();
            ensure!(error.as_ref().and_then(kind) == Some(ErrorKind::WouldBlock), "{error:?}");
            ensure!(lab.cli().packets("no-local-backend")? >= before + 2);

            apply(lab, &config(LOCAL, |_| None))?;
            ensure!(is_refused(lab, tcp), "over {family:?}");
            socket.set_read_timeout(Some(PATIENCE))?;
            let error = client::round_trip(&socket, b"anybody?").err();
            let refused = error.as_ref().and_then(kind) == Some(ErrorKind::ConnectionRefused);
            ensure!(refused, "{error:?}");
        }
        Ok(())
    })
}

/// A flood to a service without a backend is not answered datagram by datagram.
#[test]
fn errors_are_limited() -> Result<()> {
    Lab::run_with(&config("", |_| None), |lab| {
        const SENT: u64 = 5000;
        for (round, family) in (1..).zip(FAMILIES) {
            let socket = client::udp(&lab.net.client, SocketAddr::new(NODE1.of(family), 53))?;
            redirector_tests::wait::until_true(
                "all to be counted",
                redirector_tests::wait::SOON,
                || {
                    let counted = || -> Result<[u64; 2]> {
                        Ok([lab.cli().packets("no-backend")?, lab.cli().packets("error-limited")?])
                    };
                    // More again, if a queue on the way was full, or if an error of an earlier one
                    // interrupted the call.
                    let mut missing = (SENT * round).saturating_sub(counted()?.iter().sum());
                    while missing > 0 {
                        missing -= u64::from(socket.send(b"flood").is_ok());
                    }
                    let [told, untold] = counted()?;
                    Ok(told + untold >= SENT * round && told >= 100 && untold > 0)
                },
            )?;
        }
        Ok(())
    })
}

/// An address that only frontends have: a port that none of them has goes nowhere, although the
/// node's routes lead back to where it came from.
#[test]
fn undefined_ports_of_owned_addresses() -> Result<()> {
    let with_vips = "
publish: ['80:8080']
services:
  - name: vip
    frontends:
      - {address: 203.0.113.80, port: 443}
      - {address: '2001:db8:113::80', port: 443}
    backends: [{address: local, port: 8080}]
";
    Lab::run_with_options(with_vips, &["--xdp-mode", "native"], |lab| {
        let _server = Server::tcp(&lab.net.node1, 8080, Service::Whoami("here"))?;
        make_router(&lab.net.node1)?;
        lab.net.node1.ip("route add default via 198.18.1.2
             route add default via 2001:db8:1::2")?;
        lab.net.client.ip("route add 203.0.113.0/24 via 198.18.1.1
             route add 2001:db8:113::/64 via 2001:db8:1::1")?;
        let vips = ["203.0.113.80".parse()?, "2001:db8:113::80".parse()?];
        let dumped = lab.cli().rows(&["map", "dump", "VIPS"])?;
        ensure!(dumped.len() == 2, "{dumped:?}");
        // One bit at every port is not what people ask for.
        let ports = lab.cli().rows(&["map", "dump", "PORTS"])?;
        ensure!(ports.len() < 20_000, "{} ports", ports.len());
        for (vip, family) in vips.into_iter().zip(FAMILIES) {
            let defined = SocketAddr::new(vip, 443);
            ensure!(client::whoami(&lab.net.client, defined)?.server == "here");
            for port in [22, 80, 444, 50_000] {
                let undefined = SocketAddr::new(vip, port);
                let before = lab.cli().packets("undefined-port")?;
                let end = attempt(lab, undefined);
                ensure!(end == Some(ErrorKind::TimedOut), "{undefined}: {end:?}");
                let socket = client::udp(&lab.net.client, undefined)?;
                socket.send(b"nobody")?;
                let dropped = lab.cli().packets("undefined-port")? - before;
                // Two attempts over TCP, and one datagram; packets in a circle would be many.
                ensure!((2..=4).contains(&dropped), "{undefined}: {dropped}");
            }
            // Of the node itself: the kernel says that nobody listens.
            let own = SocketAddr::new(NODE1.of(family), 444);
            ensure!(is_refused(lab, own), "{own}");
        }
        lab.kill()?;
        ensure!(attempt(lab, SocketAddr::new(vips[0], 22)) == Some(ErrorKind::TimedOut));
        lab.start(&["--xdp-mode", "native"])?;
        // Now its own: all that is sent there is for programs here.
        lab.net.node1.ip("address add 203.0.113.80/32 dev eth1
             address add 2001:db8:113::80/128 dev eth1 nodad")?;
        for vip in vips {
            redirector_tests::wait::until_true(
                "the kernel to answer",
                redirector_tests::wait::SOON,
                || Ok(attempt(lab, SocketAddr::new(vip, 22)) == Some(ErrorKind::ConnectionRefused)),
            )?;
        }
        ensure!(lab.cli().rows(&["map", "dump", "VIPS"])?.is_empty());
        Ok(())
    })
}
