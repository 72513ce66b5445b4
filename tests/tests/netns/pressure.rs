//! More flows than tables have room for.

use std::net::{SocketAddr, TcpStream};

use anyhow::{Context as _, Result, ensure};
use redirector_common::Family;
use redirector_tests::{
    agent::Lab,
    client, flood,
    site::{CONFIG, Place, serve_echo},
    topology::FAMILIES,
};

/// SYNs of the flood, each from another address.
const FLOOD: u32 = 1_000_000;

/// Half-open flows that the flow table of these tests allows: a quarter of its entries.
const BUDGET: u64 = 32768;

/// More ports than half-open flows, so that it is the budget that holds the flood back.
fn config() -> String {
    format!("snatPorts: 10000-59999\ntables: {{flows: {}}}\n{CONFIG}", 4 * BUDGET)
}

/// Connections to a backend elsewhere, some in each family.
fn connect(lab: &Lab, count: usize) -> Result<Vec<TcpStream>> {
    let frontends = FAMILIES.map(|family| Place::Remote.tcp(family));
    let frontends = frontends.iter().cycle().take(count);
    frontends.map(|frontend| client::tcp(&lab.net.client, *frontend)).collect()
}

fn check(streams: &[TcpStream], when: &str) -> Result<()> {
    streams.iter().try_for_each(|stream| client::echo(stream, &[42; 3000])).context(when.to_owned())
}

/// Established connections stay, and new ones are made, while a million addresses send SYNs.
fn withstand(lab: &Lab, to: SocketAddr) -> Result<()> {
    let mut streams = connect(lab, 20)?;
    check(&streams, "before the flood")?;
    let next_hop = lab.net.node1.mac("eth0")?;
    let (mut opened, mut failed) = (0, 0);
    std::thread::scope(|scope| -> Result<()> {
        let host = &lab.net.client;
        let flood = scope.spawn(move || flood::syns(host, "eth0", next_hop, to, (0, FLOOD)));
        while !flood.is_finished() {
            // On a machine that is busy, a handshake may take longer than the flood leaves it.
            match connect(lab, 1).and_then(|new| check(&new, "a new one").map(|()| new)) {
                Ok(new) => streams.extend(new),
                Err(_) => failed += 1,
            }
            opened += 1;
            check(&streams, "during the flood")?;
        }
        flood.join().map_err(|_| anyhow::anyhow!("the flood panicked"))?
    })?;
    ensure!(opened >= 10, "only {opened} connections were made during the flood");
    ensure!(failed * 20 <= opened, "{failed} of {opened} new connections failed");
    streams.extend(connect(lab, 20).context("after the flood")?);
    check(&streams, "after the flood")?;
    let status = lab.cli().json(&["status"])?;
    ensure!(status["halfOpen"]["budget"] == BUDGET, "{}", status["halfOpen"]);
    let waiting = status["halfOpen"]["flows"].as_u64().context("no gauge")?;
    ensure!((BUDGET / 2..=BUDGET).contains(&waiting), "{waiting} are half-open");
    let dropped = lab.cli().packets("half-open-dropped")?;
    ensure!(dropped > u64::from(FLOOD) * 9 / 10, "only {dropped} made room");
    for reason in ["flow-table-full", "snat-exhausted"] {
        ensure!(lab.cli().packets(reason)? == 0, "{reason}");
    }
    streams.iter().try_for_each(client::finish)
}

#[test]
fn a_flood_of_syns() -> Result<()> {
    for mode in ["native", "off"] {
        Lab::run_with_options(&config(), &["--xdp-mode", mode], |lab| {
            let _servers = serve_echo(lab)?;
            withstand(lab, Place::Remote.tcp(Family::V4))?;
            let gauge = lab.metric("redirector_half_open_flows")?.context("no gauge")?;
            ensure!(gauge > 0.0 && gauge <= BUDGET as f64, "{gauge}");
            let budget = lab.metric("redirector_half_open_budget")?;
            ensure!(budget == Some(BUDGET as f64), "{budget:?}");
            Ok(())
        })
        .with_context(|| format!("XDP {mode}"))?;
    }
    Ok(())
}

#[test]
fn a_flood_of_syns_without_an_agent() -> Result<()> {
    Lab::run_with(&config(), |lab| {
        let _servers = serve_echo(lab)?;
        lab.kill()?;
        withstand(lab, Place::Remote.tcp(Family::V4))
    })
}

/// With nobody to collect what is finished, a full table makes room for what is new.
#[test]
fn a_full_table_without_an_agent() -> Result<()> {
    Lab::run_with(&format!("tables: {{flows: 1024}}\n{CONFIG}"), |lab| {
        let _servers = serve_echo(lab)?;
        let streams = connect(lab, 20)?;
        lab.kill()?;
        for number in 0..1200 {
            let stream = connect(lab, 1).with_context(|| format!("connection {number}"))?;
            check(&stream, "a new connection")?;
            stream.iter().try_for_each(client::finish)?;
        }
        check(&streams, "an old connection")?;
        ensure!(lab.cli().packets("flow-reclaimed")? > 600, "nothing made room");
        let flows = lab.cli().rows(&["flow", "list"])?;
        ensure!(flows.len() <= 512, "{} flows", flows.len());
        streams.iter().try_for_each(client::finish)
    })
}
