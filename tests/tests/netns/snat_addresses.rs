//! Translation to several addresses of the interface by which packets leave.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use redirector_common::Family;
use redirector_tests::{
    agent::Lab,
    client,
    namespace::Namespace,
    site::{CONFIG, Place, serve_echo},
    topology::{Addresses, FAMILIES, NODE1_INSIDE},
    wait,
};

/// Further addresses of node 1 towards node 2.
const SECOND: Addresses = Addresses::new(2, 21);
const THIRD: Addresses = Addresses::new(2, 22);
/// One that is not used any more.
const OLD: Addresses = Addresses::new(2, 23);

/// How long a connection is waited for that should not come about.
const BRIEF: Duration = Duration::from_millis(300);

/// Four ports for each address.
fn config(wish: &str) -> String {
    format!("snatPorts: 50000-50003\n{wish}\n{CONFIG}")
}

fn change(host: &Namespace, verb: &str, Addresses { v4, v6 }: Addresses) -> Result<()> {
    let nodad = if verb == "add" { "nodad" } else { "" };
    host.ip(&format!(
        "address {verb} {v4}/24 dev eth1
         address {verb} {v6}/64 dev eth1 {nodad}"
    ))
    .map(drop)
}

fn try_connect(lab: &Lab, family: Family, patience: Duration) -> Option<TcpStream> {
    client::tcp_within(&lab.net.client, Place::Remote.tcp(family), patience).ok()
}

/// Waits until the agent has followed addresses of node 1: so many entries of the map of further
/// ones.
fn follow(lab: &Lab, entries: usize) -> Result<()> {
    wait::until_true("the map to follow", wait::SOON, || {
        Ok(lab.cli().rows(&["map", "dump", "SNAT_ADDRESSES"])?.len() == entries)
    })
}

/// So many connections, each of which works.
fn connect(lab: &Lab, family: Family, number: usize) -> Result<Vec<TcpStream>> {
    let all = (0..number).map(|_| client::tcp(&lab.net.client, Place::Remote.tcp(family)));
    let all: Vec<TcpStream> = all.collect::<Result<_>>()?;
    all.iter().try_for_each(|stream| client::echo(stream, b"hello"))?;
    Ok(all)
}

/// How many flows of a family come from each of the node's addresses.
fn sources(lab: &Lab, family: Family) -> Result<BTreeMap<IpAddr, usize>> {
    let mut seen = BTreeSet::new();
    let mut all = BTreeMap::new();
    for row in lab.cli().rows(&["flow", "list"])? {
        let source = row["translatedSource"].as_str().context("no source")?;
        let source: SocketAddr = source.parse()?;
        if source.is_ipv4() == (family == Family::V4) {
            ensure!(seen.insert((source, row["backend"].to_string())), "twice: {row}");
            *all.entry(source.ip()).or_default() += 1;
        }
    }
    Ok(all)
}

fn expect_sources(lab: &Lab, family: Family, expected: &[(Addresses, usize)]) -> Result<()> {
    let expected = expected.iter().map(|(address, number)| (address.of(family), *number));
    let (found, expected) = (sources(lab, family)?, expected.collect::<BTreeMap<_, _>>());
    ensure!(found == expected, "{found:?}, not {expected:?}");
    Ok(())
}

/// Three addresses with four ports: a thirteenth flow is dropped, and counted, until one has ended.
#[test]
fn every_port_of_every_address() -> Result<()> {
    Lab::run_with(&config("snatAddresses: all"), |lab| {
        let node1 = &lab.net.node1;
        node1.ip(&format!("address add {}/64 dev eth1 nodad preferred_lft 0", OLD.v6))?;
        change(node1, "add", SECOND)?;
        follow(lab, 2)?;
        change(node1, "add", THIRD)?;
        follow(lab, 4)?;
        let _servers = serve_echo(lab)?;
        for family in FAMILIES {
            let mut streams = connect(lab, family, 12)?;
            expect_sources(lab, family, &[(NODE1_INSIDE, 4), (SECOND, 4), (THIRD, 4)])?;
            let dropped = lab.cli().packets("snat-exhausted")?;
            ensure!(try_connect(lab, family, BRIEF).is_none(), "a thirteenth came through");
            ensure!(lab.cli().packets("snat-exhausted")? > dropped, "it was not counted");

            let gauges = ["redirector_snat_ports", "redirector_snat_ports_used"];
            let [ports, used] = gauges.map(|gauge| lab.metric(gauge));
            ensure!(ports? == Some(12.0) && used? == Some(12.0), "gauges");
            let status = lab.cli().text(&["status"])?;
            ensure!(status.contains("12 of 12 in use for "), "{status}");

            client::reset(streams.remove(5))?;
            let patience = Duration::from_millis(1500);
            let again = wait::until("a port to come free", wait::SOON, || {
                Ok(try_connect(lab, family, patience))
            })?;
            client::echo(&again, b"in its place")?;
            streams.push(again);
            // Another port of the backend has all of them once more; in pieces, too.
            let others = (0..6).map(|_| client::udp(&lab.net.client, Place::Remote.udp(family)));
            for other in others.collect::<Result<Vec<_>>>()? {
                client::round_trip(&other, &[7; 2000])?;
            }
            // The kernel has the newest of IPv6 addresses first.
            let [then, last] = match family {
                Family::V4 => [SECOND, THIRD],
                Family::V6 => [THIRD, SECOND],
            };
            expect_sources(lab, family, &[(NODE1_INSIDE, 8), (then, 6), (last, 4)])?;
            streams.iter().try_for_each(|stream| client::echo(stream, b"still here"))?;
            streams.into_iter().try_for_each(client::reset)?;
        }
        Ok(())
    })
}

/// By default, and what a changed file brings.
#[test]
fn the_first_alone_unless_asked() -> Result<()> {
    Lab::run_with(&config(""), |lab| {
        change(&lab.net.node1, "add", SECOND)?;
        change(&lab.net.node1, "add", THIRD)?;
        let third = THIRD.v6.to_string();
        wait::until_true("the address to be a frontend's", wait::SOON, || {
            let frontends = lab.cli().rows(&["map", "dump", "FRONTENDS"])?;
            Ok(frontends.iter().any(|it| it.to_string().contains(&third)))
        })?;
        let _servers = serve_echo(lab)?;
        let mut streams = Vec::new();
        for family in FAMILIES {
            streams.extend(connect(lab, family, 4)?);
            expect_sources(lab, family, &[(NODE1_INSIDE, 4)])?;
            ensure!(try_connect(lab, family, BRIEF).is_none(), "a fifth came through");
        }
        let Addresses { v4, v6 } = THIRD;
        lab.write_config(&config(&format!("snatAddresses: [{v4}, '{v6}/127', 192.0.2.0/24]")))?;
        follow(lab, 2)?;
        for family in FAMILIES {
            streams.extend(connect(lab, family, 4)?);
            expect_sources(lab, family, &[(NODE1_INSIDE, 4), (THIRD, 4)])?;
            ensure!(try_connect(lab, family, BRIEF).is_none(), "a ninth came through");
        }
        streams.iter().try_for_each(|stream| client::echo(stream, b"still here"))
    })
}

/// An address that comes is used, and one that goes is not any more.
#[test]
fn addresses_come_and_go() -> Result<()> {
    Lab::run_with(&config("snatAddresses: all"), |lab| {
        let _servers = serve_echo(lab)?;
        let mut streams = Vec::new();
        for family in FAMILIES {
            streams.extend(connect(lab, family, 4)?);
            ensure!(try_connect(lab, family, BRIEF).is_none(), "a fifth came through");
        }
        change(&lab.net.node1, "add", SECOND)?;
        follow(lab, 2)?;
        let mut doomed = Vec::new();
        for family in FAMILIES {
            doomed.extend(connect(lab, family, 2)?);
            expect_sources(lab, family, &[(NODE1_INSIDE, 4), (SECOND, 2)])?;
        }
        change(&lab.net.node1, "del", SECOND)?;
        follow(lab, 0)?;
        for family in FAMILIES {
            ensure!(try_connect(lab, family, BRIEF).is_none(), "it is still used");
        }
        let status = lab.cli().text(&["status"])?;
        ensure!(status.contains("4 of 4 in use"), "{status}");
        change(&lab.net.node1, "add", THIRD)?;
        follow(lab, 2)?;
        for family in FAMILIES {
            streams.extend(connect(lab, family, 4)?);
            let expected = [(NODE1_INSIDE, 4), (SECOND, 2), (THIRD, 4)];
            expect_sources(lab, family, &expected)?;
        }
        streams.iter().try_for_each(|stream| client::echo(stream, b"still here"))
    })
}
