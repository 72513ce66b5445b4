//! `cargo xtask bench connections`: whole connections, with real sockets.

mod load;
mod path;
mod report;
mod site;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use redirector_common::Family;
use redirector_tests::namespace::run as run_program;

use crate::node;
use crate::ours::FAMILIES;
use crate::report::{Output, Samples};
use path::{Path, Place};
use report::{Measured, Metric, PERCENTILES};
use site::Site;

/// Measures connections a second, latency and throughput beside direct access, kube-proxy's rules,
/// HAProxy and socat (needs root).
///
/// Clients, node and servers share one processor, so that what each way costs is what the others
/// lack.
#[derive(Args)]
pub(crate) struct Arguments {
    /// How to print results.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Services of the agent and in kube-proxy's rules.
    #[arg(long, default_value_t = 1)]
    services: u16,
    /// Clients at once, for connections a second.
    #[arg(long, default_value_t = 8)]
    clients: usize,
    /// Milliseconds of a sample of connections.
    #[arg(long, default_value_t = 1000)]
    time: u64,
    /// Requests of a sample of latency.
    #[arg(long, default_value_t = 10_000)]
    requests: usize,
    /// Megabytes of a sample of throughput.
    #[arg(long, default_value_t = 128)]
    bulk: usize,
    /// Samples of each, taken by turns.
    #[arg(long, default_value_t = 7)]
    rounds: u32,
    /// The processor to run on.
    #[arg(long, default_value_t = 1)]
    cpu: usize,
    /// Puts nothing between client and server, to show that the checks notice.
    #[arg(long, hide = true)]
    spoil: bool,
}

impl Arguments {
    fn check(&self) -> Result<()> {
        let Self { services, clients, time, requests, bulk, rounds, .. } = *self;
        ensure!((1..=10_000).contains(&services), "--services {services}: not from 1 to 10000");
        ensure!((1..=256).contains(&clients), "--clients {clients}: not from 1 to 256");
        ensure!(time > 0, "--time 0: nothing would be measured");
        ensure!(requests > 0, "--requests 0: nothing would be measured");
        ensure!(bulk > 0, "--bulk 0: nothing would be measured");
        ensure!(rounds > 0, "--rounds 0: there would be nothing to show");
        ensure!(nix::unistd::geteuid().is_root(), "needs root: run it as root");
        Ok(())
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    arguments.check()?;
    node::pin(arguments.cpu)?;
    let mut all = Vec::new();
    for place in Place::ALL {
        let sites = set_up(place, arguments)?;
        for family in FAMILIES {
            eprintln!("measuring a {} server over {family:?}", place.name());
            let samples = measure(&sites, family, arguments)
                .with_context(|| format!("a {} server over {family:?}", place.name()))?;
            all.push(Measured { place, family, services: arguments.services, samples });
        }
    }
    match arguments.output {
        Output::Table => report::print_table(&all),
        Output::Json => report::print_json(&all)?,
    }
    Ok(())
}

/// Whatever can be had here.
fn set_up(place: Place, arguments: &Arguments) -> Result<Vec<(Path, Site)>> {
    let Arguments { services, clients, spoil, .. } = *arguments;
    let mut sites = Vec::new();
    for &path in place.paths() {
        let name = path.name(place);
        if let Some(program) = path.program().filter(|program| !is_there(program)) {
            eprintln!("left out: {name} for a {} server: there is no `{program}`", place.name());
            continue;
        }
        eprintln!("setting up {name} for a {} server", place.name());
        let site = Site::new(place, path, services, clients, spoil);
        sites.push((path, site.with_context(|| format!("setting up {name}"))?));
    }
    Ok(sites)
}

fn is_there(program: &str) -> bool {
    // Not all of them know the same words for "which version are you".
    run_program("which", [program]).is_ok()
}

/// All ways by turns.
fn measure(
    sites: &[(Path, Site)],
    family: Family,
    arguments: &Arguments,
) -> Result<BTreeMap<(Metric, Path), Samples>> {
    let mut all = BTreeMap::<(Metric, Path), Samples>::new();
    for (path, site) in sites {
        site.check(family).with_context(|| format!("checking {path:?}"))?;
    }
    for _ in 0..arguments.rounds {
        for (path, site) in sites {
            let samples = sample(site, family, arguments);
            for (metric, value) in samples.with_context(|| format!("{path:?}"))? {
                all.entry((metric, *path)).or_default().add(value);
            }
        }
    }
    Ok(all)
}

/// Everything once. Each answer is checked.
fn sample(site: &Site, family: Family, arguments: &Arguments) -> Result<Vec<(Metric, f64)>> {
    let way = site.way(family);
    let Arguments { clients, time, requests, bulk, .. } = *arguments;
    site.lab.net.client.enter(|| {
        let mut samples = vec![
            (Metric::Connections, way.connections(clients, Duration::from_millis(time))?),
            (Metric::Bulk, way.bulk(bulk * 1_000_000)?),
        ];
        let latencies = way.latencies(requests)?;
        for percentile in PERCENTILES {
            let at = (latencies.len() * percentile / 1000).min(latencies.len().saturating_sub(1));
            let latency = latencies.get(at).copied().context("no latencies")?;
            samples.push((Metric::Latency(percentile), latency));
        }
        Ok(samples)
    })
}
