//! Flows by several addresses, while the agent comes and goes.

use std::{fs, net::TcpStream, time::Duration};

use anyhow::{Result, ensure};
use redirector_common::Family;
use redirector_tests::{
    agent::Lab,
    client,
    site::{CONFIG, Place, serve_echo},
    wait,
};

/// A second address of node 1 towards node 2.
const SECOND: &str = "198.18.2.21";

fn sources(lab: &Lab) -> Result<Vec<String>> {
    let rows = lab.cli().rows(&["flow", "list"])?;
    let mut all: Vec<String> = rows.iter().map(|it| it["translatedSource"].to_string()).collect();
    all.sort_unstable();
    Ok(all)
}

/// With the agent dead the data path has what it needs, and an agent that follows one which knew of no
/// further addresses makes the map for them.
#[test]
fn flows_by_several_addresses() -> Result<()> {
    Lab::run_with(&format!("snatPorts: 50000-50003\nsnatAddresses: all\n{CONFIG}"), |lab| {
        let _servers = serve_echo(lab)?;
        let has_second = |lab: &Lab| {
            let rows = lab.cli().rows(&["map", "dump", "SNAT_ADDRESSES"])?;
            Ok(rows.iter().any(|row| row["address"] == SECOND))
        };
        lab.net.node1.ip(&format!("address add {SECOND}/24 dev eth1"))?;
        wait::until_true("the address to be known", wait::SOON, || has_second(lab))?;
        let frontend = Place::Remote.tcp(Family::V4);
        let connect = |lab: &Lab, number| {
            (0..number).map(|_| client::tcp(&lab.net.client, frontend)).collect::<Result<_>>()
        };
        let mut streams: Vec<TcpStream> = connect(lab, 6)?;
        let before = sources(lab)?;
        lab.kill()?;
        streams.extend(connect(lab, 2)?);
        streams.iter().try_for_each(|stream| client::echo(stream, b"with no agent"))?;
        let all = sources(lab)?;
        ensure!(all.iter().filter(|it| it.contains(SECOND)).count() == 4, "{all:?}");
        ensure!(before.iter().all(|it| all.contains(it)), "{before:?}, then {all:?}");

        fs::remove_file(lab.bpffs.pins().join("maps/SNAT_ADDRESSES_v1"))?;
        lab.start(&[])?;
        wait::until_true("the address to be known again", wait::SOON, || has_second(lab))?;
        ensure!(sources(lab)? == all, "flows have changed");
        let ninth = client::tcp_within(&lab.net.client, frontend, Duration::from_millis(300));
        ensure!(ninth.is_err(), "a ninth came through");
        streams.iter().try_for_each(|stream| client::echo(stream, b"with another agent"))
    })
}
