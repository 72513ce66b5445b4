//! `cargo xtask bench connections`: whole connections, with real sockets.

mod load;
mod path;
mod report;
mod site;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use redirector_common::Family;
use redirector_tests::namespace::run as run_program;

use crate::ours::FAMILIES;
use crate::report::{Output, Samples};
use crate::sampling::Sampling;
use path::{Path, Place};
use report::{Measured, Metric, PERCENTILES};
use site::Site;

/// Measures connections a second, latency and throughput beside direct access, kube-proxy's rules,
/// HAProxy and socat (needs root).
///
/// Clients, node and servers share one processor, so that what each way costs is what the others
/// lack.
#[derive(Args)]
#[command(mut_arg("rounds", |rounds| rounds.default_value("7")))]
pub(crate) struct Arguments {
    /// Services of the agent and in kube-proxy's rules.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    services: u16,
    /// Clients at once, for connections a second.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u8).range(1..))]
    clients: u8,
    /// Milliseconds of a sample of connections.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    time: u64,
    /// Requests of a sample of latency.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    requests: u32,
    /// Megabytes of a sample of throughput.
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u16).range(1..))]
    bulk: u16,
    #[command(flatten)]
    sampling: Sampling,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    arguments.sampling.start()?;
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
    match arguments.sampling.output {
        Output::Table => report::print_table(&all),
        Output::Json => report::print_json(&all)?,
    }
    Ok(())
}

/// Whatever can be had here.
fn set_up(place: Place, arguments: &Arguments) -> Result<Vec<(Path, Site)>> {
    let Arguments { services, clients, ref sampling, .. } = *arguments;
    let mut sites = Vec::new();
    for &path in place.paths() {
        let name = path.name(place);
        if let Some(program) = path.program().filter(|program| !is_there(program)) {
            eprintln!("left out: {name} for a {} server: there is no `{program}`", place.name());
            continue;
        }
        eprintln!("setting up {name} for a {} server", place.name());
        let site = Site::new(place, path, services, clients.into(), sampling.spoil);
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
    for _ in 0..arguments.sampling.rounds {
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
            (Metric::Connections, way.connections(clients.into(), Duration::from_millis(time))?),
            (Metric::Bulk, way.bulk(usize::from(bulk) * 1_000_000)?),
        ];
        let latencies = way.latencies(usize::try_from(requests)?)?;
        for percentile in PERCENTILES {
            let at = (latencies.len() * percentile / 1000).min(latencies.len().saturating_sub(1));
            let latency = latencies.get(at).copied().context("no latencies")?;
            samples.push((Metric::Latency(percentile), latency));
        }
        Ok(samples)
    })
}
