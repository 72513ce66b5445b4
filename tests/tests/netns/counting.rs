//! What is counted of connections that go to sockets of the node as they are.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
};

use anyhow::{Context as _, Result, ensure};
use redirector_common::Family;
use redirector_tests::{
    agent::Lab,
    client,
    server::{Server, Service},
    topology::{FAMILIES, NODE1},
    wait,
};

const CONFIG: &str = "publish: ['80:8080', '81:8080']";
const PACKETS: &str = "redirector_service_packets_total{namespace=\"\",service=\"80:8080/tcp\"}";
const STEERED: &str = "redirector_service_steered_total{namespace=\"\",service=\"80:8080/tcp\"}";

/// A figure of the service's frontend on the node's address.
fn figure(lab: &Lab, family: Family, name: &str) -> Result<u64> {
    let service = lab.cli().json(&["service", "get", "80:8080/tcp"])?;
    let frontends = service["frontends"].as_array().context("frontends")?;
    let address = NODE1.of(family).to_string();
    let frontend = frontends.iter().find(|frontend| frontend["address"] == address.as_str());
    frontend.and_then(|frontend| frontend[name].as_u64()).with_context(|| service.to_string())
}

fn connect(lab: &Lab, family: Family) -> Result<TcpStream> {
    let mut stream = client::tcp(&lab.net.client, SocketAddr::new(NODE1.of(family), 80))?;
    stream.write_all(b"some bytes")?;
    let mut bytes = [0; 10];
    stream.read_exact(&mut bytes)?;
    Ok(stream)
}

/// Packets and IP bytes that were counted on the way to sockets.
fn passed(lab: &Lab) -> Result<[u64; 2]> {
    let rows = lab.cli().rows(&["counters"])?;
    let steered = ["steered-new", "steered-established"];
    let steered = rows.iter().filter(|row| steered.iter().any(|reason| row["reason"] == *reason));
    let mut sum = [0; 2];
    for row in steered {
        let packets = row["packets"].as_u64().context("packets")?;
        sum[0] += packets;
        sum[1] += row["bytes"].as_u64().context("bytes")? - 14 * packets;
    }
    Ok(sum)
}

#[test]
fn connections_to_sockets_count_for_their_frontend() -> Result<()> {
    Lab::run_with(CONFIG, |lab| {
        let _server = Server::tcp(&lab.net.node1, 8080, Service::Echo)?;
        for family in FAMILIES {
            let before = passed(lab)?;
            let mut streams = Vec::new();
            for connections in 1..=3 {
                streams.push(connect(lab, family)?);
                ensure!(figure(lab, family, "steered")? == connections);
            }
            // Acknowledgements may still be on their way.
            wait::until_true("every packet to be counted", wait::SOON, || {
                let after = passed(lab)?;
                let packets = figure(lab, family, "packets")?;
                let bytes = figure(lab, family, "bytes")?;
                // Each SYN has more options than the packets after it.
                let most = bytes + 3 * 20;
                Ok(packets == after[0] - before[0]
                    && (bytes..=most).contains(&(after[1] - before[1])))
            })?;
            drop(streams);
            wait::until_true("the connections to be over", wait::SOON, || {
                Ok(figure(lab, family, "packets")? == 0)
            })?;
            ensure!(figure(lab, family, "steered")? == 3);
        }
        let other = lab.cli().json(&["service", "get", "81:8080/tcp"])?;
        let frontends = other["frontends"].as_array().context("frontends")?;
        ensure!(frontends.iter().all(|it| it["steered"] == 0 && it["packets"] == 0), "{other}");
        Ok(())
    })
}

/// Metrics grow by every SYN, and by what follows on connections that are there when they are asked
/// for; with another agent too.
#[test]
fn metrics_of_connections_to_sockets() -> Result<()> {
    Lab::run_with(CONFIG, |lab| {
        let metric =
            |lab: &Lab, name: &str| lab.metric(name)?.with_context(|| format!("no metric {name}"));
        let _server = Server::tcp(&lab.net.node1, 8080, Service::Echo)?;
        ensure!(metric(lab, STEERED)? == 0.0 && metric(lab, PACKETS)? == 0.0);
        for family in FAMILIES {
            drop(connect(lab, family)?);
        }
        let stream = connect(lab, Family::V4)?;
        ensure!(metric(lab, STEERED)? == 3.0);
        let live = figure(lab, Family::V4, "packets")?;
        ensure!(live >= 3 && metric(lab, PACKETS)? >= live as f64 + 2.0);
        drop(stream);
        lab.kill()?;
        lab.start(&[])?;
        ensure!(metric(lab, STEERED)? == 3.0);
        Ok(())
    })
}
