//! What is said to become of a packet is what becomes of it.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use redirector_common::Family;
use redirector_tests::{
    agent::Lab,
    client,
    site::{CONFIG, PLACES, Place, serve_echo},
    topology::{CLIENT, FAMILIES, NODE1, NODE1_INSIDE, NODE2},
};
use serde_json::Value;

const PORT: u16 = 40_000;

fn explain(
    lab: &Lab,
    protocol: &str,
    from: SocketAddr,
    to: SocketAddr,
    more: &str,
) -> Result<Value> {
    let (from, to) = (from.to_string(), to.to_string());
    let words = ["explain", protocol, &from, &to];
    let more = more.split_whitespace();
    lab.cli().json(&words.into_iter().chain(more).collect::<Vec<_>>())
}

/// What a place's packets are said to become: reasons of the first and of later ones, and the
/// address and port that they go on to; `None`: they stay as they are.
fn expected(
    place: Place,
    family: Family,
    udp: bool,
) -> (&'static str, &'static str, Option<SocketAddr>) {
    match (place, udp) {
        (Place::Local, false) => ("steered-new", "steered-established", None),
        (Place::Local, true) => {
            ("local-new", "local-established", Some(SocketAddr::new(NODE1.of(family), 5353)))
        }
        (Place::Remote, _) => {
            let port = if udp { 5353 } else { 8080 };
            let backend = SocketAddr::new(NODE2.of(family), port);
            ("remote-new", "remote-established", Some(backend))
        }
    }
}

#[test]
fn before_and_after() -> Result<()> {
    Lab::run_with(CONFIG, |lab| {
        let _servers = serve_echo(lab)?;
        for family in FAMILIES {
            for place in PLACES {
                // Neighbours are known from here on.
                client::echo(&client::tcp(&lab.net.client, place.tcp(family))?, b"first")?;
                for udp in [false, true] {
                    let protocol = if udp { "udp" } else { "tcp" };
                    let frontend = if udp { place.udp(family) } else { place.tcp(family) };
                    let from = SocketAddr::new(CLIENT.of(family), PORT);
                    let (new, later, backend) = expected(place, family, udp);
                    let flows = lab.cli().rows(&["flow", "list"])?.len();
                    let said = explain(lab, protocol, from, frontend, "")?;
                    ensure!(said["reason"] == new, "{said}");
                    let goes_to = said["translated"]["destination"].as_str();
                    let backend = backend.map(|backend| backend.to_string());
                    ensure!(goes_to == backend.as_deref(), "{said}");
                    ensure!(lab.cli().rows(&["flow", "list"])?.len() == flows, "it opened a flow");

                    let before = lab.cli().packets(new)?;
                    if udp {
                        let socket = client::udp_from(&lab.net.client, PORT, frontend)?;
                        client::round_trip(&socket, b"as said")?;
                    } else {
                        let stream = client::tcp_from(&lab.net.client, PORT, frontend)?;
                        client::echo(&stream, b"as said")?;
                        let said = explain(lab, protocol, from, frontend, "--established")?;
                        ensure!(said["reason"] == later, "{said}");
                    }
                    ensure!(lab.cli().packets(new)? == before + 1, "{place:?} {protocol}");
                    let Some(backend) = backend else {
                        continue;
                    };
                    let said = explain(lab, protocol, from, frontend, "--established")?;
                    ensure!(said["reason"] == later, "{said}");
                    let seen = said["translated"]["source"].as_str().unwrap_or_default();
                    let seen: SocketAddr = seen.parse()?;
                    let address = match place {
                        Place::Local => CLIENT.of(family),
                        Place::Remote => NODE1_INSIDE.of(family),
                    };
                    ensure!(seen.ip() == address, "{said}");
                    // The answer of a program here, as it leaves.
                    if place == Place::Local {
                        let more = "--leaving --established";
                        let said = explain(lab, protocol, backend.parse()?, from, more)?;
                        let source = &said["translated"]["source"];
                        ensure!(source == &frontend.to_string(), "{said}");
                    }
                }
            }
            let nobody = SocketAddr::new(NODE1.of(family), 9);
            let from = SocketAddr::new(CLIENT.of(family), PORT);
            let said = explain(lab, "tcp", from, nobody, "")?;
            ensure!(said["reason"] == "not-ours" && said["verdict"] == "pass", "{said}");
            lab.net.node1.ip(&format!("neighbour del {} dev eth1", NODE2.of(family)))?;
            let said = explain(lab, "tcp", from, Place::Remote.tcp(family), "")?;
            ensure!(said["hook"] == "tc-ingress" && said["reason"] == "remote-new", "{said}");
            let said = explain(lab, "tcp", from, Place::Remote.tcp(family), "--ttl 1")?;
            ensure!(said["reason"] == "ttl-exceeded", "{said}");
            let said = explain(lab, "tcp", from, Place::Remote.tcp(family), "--length 1501")?;
            ensure!(said["reason"] == "too-big", "{said}");
        }
        let text = lab.cli().text(&["explain", "tcp", "198.18.1.2:1", "198.18.1.1:81"])?;
        ensure!(text.contains("STEP") && text.contains("service web"), "{text}");
        let mixed = lab.cli().refusal(&["explain", "tcp", "198.18.1.2:1", "[2001:db8::1]:81"])?;
        ensure!(mixed.contains("family"), "{mixed}");
        // Also with nobody to ask but the maps.
        lab.kill()?;
        lab.cli().text(&["explain", "udp", "198.18.1.2:1", "198.18.1.1:53"])?;
        Ok(())
    })
}
