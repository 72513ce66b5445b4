//! The agent ends, in whatever way, and starts again: no packet and no connection is lost, flows
//! and ids stay.

use anyhow::{Context as _, Result, ensure};
use redirector_tests::{
    agent::Lab,
    client,
    site::{CONFIG, PLACES, serve_echo},
    topology::FAMILIES,
};

use crate::load::{Load, flows, service_ids};

/// Runs `disturb` in the middle of traffic.
fn check(modes: &[&str], disturb: impl Fn(&mut Lab) -> Result<()>) -> Result<()> {
    for mode in modes {
        Lab::run_with_options(CONFIG, &["--xdp-mode", mode], |lab| {
            let load = Load::start(lab)?;
            let (flows_before, ids_before) = (flows(lab)?, service_ids(lab)?);
            for _ in 0..2 {
                disturb(lab)?;
                load.beat()?;
                lab.start(&["--xdp-mode", mode])?;
                load.beat()?;
            }
            let (flows_after, ids_after) = (flows(lab)?, service_ids(lab)?);
            ensure!(flows_before == flows_after, "flows: {flows_before:?}, then {flows_after:?}");
            ensure!(ids_before == ids_after, "services: {ids_before:?}, then {ids_after:?}");
            load.finish()
        })
        .with_context(|| format!("XDP {mode}"))?;
    }
    Ok(())
}

#[test]
fn killed() -> Result<()> {
    check(&["native", "generic", "off"], Lab::kill)
}

#[test]
fn stopped() -> Result<()> {
    check(&["native"], |lab| {
        let status = lab.stop()?;
        ensure!(status.success(), "the agent ended with {status}");
        Ok(())
    })
}

/// Killed while it is starting: what it leaves half done, the next one finishes.
#[test]
fn killed_while_starting() -> Result<()> {
    check(&["native"], |lab| {
        lab.kill()?;
        for delay in [5, 20, 50, 100, 200] {
            lab.start_without_waiting(&["--xdp-mode", "native"])?;
            // Not for a condition: to end it at different points of its start.
            std::thread::sleep(std::time::Duration::from_millis(delay));
            lab.kill()?;
        }
        Ok(())
    })
}

/// The commands show the same with the agent dead.
#[test]
fn commands_without_an_agent() -> Result<()> {
    Lab::run_with(CONFIG, |lab| {
        let load = Load::start(lab)?;
        let services = |lab: &Lab| {
            let mut rows = lab.cli().rows(&["service", "list"])?;
            for frontend in
                rows.iter_mut().filter_map(|row| row["frontends"].as_array_mut()).flatten()
            {
                // These go on counting.
                frontend["packets"].take();
                frontend["bytes"].take();
            }
            Ok::<_, anyhow::Error>(rows)
        };
        let (before, flows_before) = (services(lab)?, flows(lab)?);
        lab.kill()?;
        ensure!(before == services(lab)?, "service list differs without an agent");
        ensure!(flows_before == flows(lab)?, "flow list differs without an agent");
        for command in [["status"].as_slice(), &["counters"], &["map", "list"]] {
            lab.cli().json(command)?;
        }
        load.finish()
    })
}

/// XDP comes and goes with the agent's options; connections stay.
#[test]
fn in_another_mode() -> Result<()> {
    Lab::run_with_options(CONFIG, &["--xdp-mode", "native"], |lab| {
        let _servers = serve_echo(lab)?;
        let mut streams = Vec::new();
        for family in FAMILIES {
            for place in PLACES {
                streams.push(client::tcp(&lab.net.client, place.tcp(family))?);
            }
        }
        for mode in ["off", "native", "generic", "native", "off", "auto"] {
            lab.kill()?;
            lab.start(&["--xdp-mode", mode])?;
            for stream in &streams {
                client::echo(stream, &[42; 50_000]).with_context(|| format!("XDP {mode}"))?;
            }
        }
        streams.iter().try_for_each(client::finish)
    })
}
