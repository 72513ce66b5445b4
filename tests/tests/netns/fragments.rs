//! Datagrams that do not fit into one packet: the fragments after the first have no ports.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use redirector_tests::{
    agent::Lab,
    client,
    server::{Server, Service},
    site::{CONFIG, PLACES, serve_echo},
    topology::{FAMILIES, NODE1, NODE1_INSIDE},
};

/// Payloads that take two fragments, three, and as many as there can be.
const SIZES: [u32; 4] = [1473, 2000, 4000, 60_000];

fn datagram(size: u32) -> Vec<u8> {
    (0..size).map(|i| (i % 253) as u8).collect()
}

/// There and back, to backends here and elsewhere.
fn round_trips(mode: &str) -> Result<()> {
    Lab::run_with_options(CONFIG, &["--xdp-mode", mode], |lab| {
        let _servers = serve_echo(lab)?;
        for family in FAMILIES {
            for place in PLACES {
                let socket = client::udp(&lab.net.client, place.udp(family))?;
                for size in SIZES {
                    let datagram = datagram(size);
                    let answer = client::round_trip(&socket, &datagram).with_context(|| {
                        format!("{size} bytes to {place:?} over {family:?}, XDP {mode}")
                    })?;
                    ensure!(answer == datagram, "{size} bytes to {place:?} over {family:?}");
                }
            }
        }
        let dropped = lab.cli().packets("fragment-not-forwarded")?;
        let stray = lab.cli().packets("fragment-without-first")?;
        ensure!((dropped, stray) == (0, 0), "{dropped} fragments dropped, {stray} without a first");
        Ok(())
    })
}

#[test]
fn native() -> Result<()> {
    round_trips("native")
}

#[test]
fn generic() -> Result<()> {
    round_trips("generic")
}

#[test]
fn off() -> Result<()> {
    round_trips("off")
}

/// The backend listens on another address of the node than the one that the client knows, so that
/// every fragment is translated, though none leaves the node.
#[test]
fn another_address_of_the_node() -> Result<()> {
    let config = "
services:
  - name: inside
    frontends:
      - {address: 198.18.1.1, port: 55, protocol: UDP}
      - {address: '2001:db8:1::1', port: 55, protocol: UDP}
    backends:
      - {address: 198.18.2.1, port: 5355}
      - {address: '2001:db8:2::1', port: 5355}
";
    Lab::run_with(config, |lab| {
        // The card's sum of a packet must follow what is changed in it.
        for offloads in ["rx on tx off", "rx off tx off"] {
            lab.net.node1.set_offloads("eth0", offloads)?;
            for family in FAMILIES {
                let inside = SocketAddr::new(NODE1_INSIDE.of(family), 5355);
                let _server = Server::udp_at(&lab.net.node1, inside, Service::Echo)?;
                let frontend = SocketAddr::new(NODE1.of(family), 55);
                let socket = client::udp(&lab.net.client, frontend)?;
                for size in SIZES {
                    let datagram = datagram(size);
                    let answer = client::round_trip(&socket, &datagram)
                        .with_context(|| format!("{size} bytes over {family:?}, {offloads}"))?;
                    ensure!(answer == datagram, "{size} bytes over {family:?}");
                }
            }
        }
        Ok(())
    })
}
