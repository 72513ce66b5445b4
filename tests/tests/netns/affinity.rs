//! Clients that stay with their backend.

use std::{
    collections::BTreeSet,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use redirector_common::{Family, Protocol};
use redirector_tests::{
    agent::Lab,
    crowd::{TCP, UDP, all, apply, ask, ask_tcp, config, meet_everyone, serve},
    topology::{CLIENT, FAMILIES, NODE1, NODE1_INSIDE},
    wait,
};

const LONG: &str = "sessionAffinitySeconds: 3600\nalgorithm: random\n";

/// Who answers on every frontend of every address over TCP, and of the nearer one over UDP: a
/// server that listens everywhere answers datagrams from there.
fn everyone(lab: &Lab, family: Family) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for address in [NODE1.of(family), NODE1_INSIDE.of(family)] {
        for port in TCP.repeat(4) {
            names.insert(ask(lab, Protocol::Tcp, address, port)?);
        }
    }
    for port in UDP.repeat(4) {
        names.insert(ask(lab, Protocol::Udp, NODE1.of(family), port)?);
    }
    Ok(names)
}

/// The client knows the way to all of node 1's addresses.
fn route(lab: &Lab) -> Result<()> {
    lab.net.client.ip("route add 198.18.2.0/24 via 198.18.1.1
         route add 2001:db8:2::/64 via 2001:db8:1::1")?;
    Ok(())
}

/// One backend, whichever frontend is asked, with the agent alive, dead and back again; chosen at
/// random, a client would be seen everywhere.
#[test]
fn a_client_stays_across_frontends_and_restarts() -> Result<()> {
    Lab::run_with(&config(LONG, all), |lab| {
        route(lab)?;
        let _servers = serve(lab)?;
        for family in FAMILIES {
            let first = BTreeSet::from([ask_tcp(lab, family)?]);
            ensure!(everyone(lab, family)? == first, "{family:?}");
            lab.kill()?;
            ensure!(everyone(lab, family)? == first, "{family:?} without an agent");
            lab.start(&[])?;
            ensure!(everyone(lab, family)? == first, "{family:?} with another agent");
        }
        let rows = lab.cli().rows(&["map", "dump", "AFFINITY"])?;
        let clients: Vec<_> = rows.iter().filter_map(|row| row["client"].as_str()).collect();
        let expected = FAMILIES.map(|family| CLIENT.of(family).to_string());
        ensure!(clients.len() == 2, "{rows:?}");
        ensure!(expected.iter().all(|client| clients.contains(&client.as_str())), "{rows:?}");
        let seconds = &lab.cli().json(&["service", "get", "crowd"])?["affinitySeconds"];
        ensure!(seconds == 3600, "{seconds}");

        apply(lab, &config("algorithm: random\n", all))?;
        for family in FAMILIES {
            meet_everyone(|| ask_tcp(lab, family))
                .with_context(|| format!("without affinity over {family:?}"))?;
        }
        Ok(())
    })
}

/// Each new connection makes the time begin anew; without any, the client is forgotten.
#[test]
fn time() -> Result<()> {
    let settings = "sessionAffinitySeconds: 2\nalgorithm: random\n";
    Lab::run_with(&config(settings, all), |lab| {
        let _servers = serve(lab)?;
        for family in FAMILIES {
            let start = Instant::now();
            let mut last = start;
            let first = ask_tcp(lab, family)?;
            // For twice the time, without a pause of that length.
            while start.elapsed() < Duration::from_secs(4) {
                thread::sleep(Duration::from_millis(300));
                let next = Instant::now();
                let answer = ask_tcp(lab, family)?;
                // A machine that stood still for so long proves nothing.
                if last.elapsed() >= Duration::from_millis(1900) {
                    return Ok(());
                }
                ensure!(answer == first, "{family:?}: {answer} after {first}");
                last = next;
            }
            // One in three stays where it was, each time.
            let mut tries = 15;
            let mut answer = first.clone();
            while answer == first && tries > 0 {
                thread::sleep(Duration::from_millis(2100));
                answer = ask_tcp(lab, family)?;
                tries -= 1;
            }
            ensure!(answer != first, "{first} still answers over {family:?}");
        }
        Ok(())
    })
}

/// A backend that goes, or ends, is forgotten; the client stays with the next.
#[test]
fn a_backend_goes() -> Result<()> {
    Lab::run_with(&config(LONG, all), |lab| {
        let _servers = serve(lab)?;
        for family in FAMILIES {
            for words in [None, Some(", state: terminating"), Some(", weight: 0")] {
                apply(lab, &config(LONG, all))?;
                let first = ask_tcp(lab, family)?;
                let without = |name: &str| if name == first { words } else { Some("") };
                apply(lab, &config(LONG, without))?;
                let second = ask_tcp(lab, family)?;
                ensure!(first != second, "{family:?}: {first} answers although {words:?}");
                apply(lab, &config(LONG, all))?;
                for _ in 0..10 {
                    let answer = ask_tcp(lab, family)?;
                    ensure!(answer == second, "{family:?}: {answer} after {second}");
                }
            }
        }
        Ok(())
    })
}

/// Affinity comes and goes with the file.
#[test]
fn switched_on_and_off() -> Result<()> {
    let plain = config("algorithm: random\n", all);
    Lab::run_with(&plain, |lab| {
        let _servers = serve(lab)?;
        let answers = |lab: &Lab, family| -> Result<BTreeSet<String>> {
            (0..30).map(|_| ask_tcp(lab, family)).collect()
        };
        for _ in 0..2 {
            for family in FAMILIES {
                meet_everyone(|| ask_tcp(lab, family))
                    .with_context(|| format!("without affinity over {family:?}"))?;
            }
            apply(lab, &config(LONG, all))?;
            for family in FAMILIES {
                ensure!(answers(lab, family)?.len() == 1, "with affinity over {family:?}");
            }
            apply(lab, &plain)?;
        }
        wait::until_true("no backend to be listed for it", wait::SOON, || {
            Ok(lab.cli().rows(&["map", "dump", "TAKERS"])?.is_empty())
        })
    })
}
