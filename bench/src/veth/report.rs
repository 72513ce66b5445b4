//! Results of live frames.

use std::collections::BTreeMap;

use anyhow::Result;
use redirector_common::Family;
use serde::Serialize;

use super::subject::{Case, Path};
use crate::report::{Samples, family_name, round};

#[derive(Clone, Copy, Debug)]
pub(crate) struct Scene {
    pub(crate) case: Case,
    pub(crate) family: Family,
}

/// The samples of a scene.
pub(crate) struct Measured {
    pub(crate) scene: Scene,
    pub(crate) samples: BTreeMap<Path, Samples>,
}

/// One row of the results.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    case: &'static str,
    path: &'static str,
    family: &'static str,
    flows: u32,
    services: u32,
    /// All that one processor spends on a packet.
    ns: f64,
    /// The same without generator and receiver.
    net_ns: f64,
    least_ns: f64,
    spread: f64,
    packets_per_second: f64,
    floor: &'static str,
    floor_ns: f64,
    /// To the floor.
    ratio: f64,
    /// To our programs with as many services.
    times_redirector: Option<f64>,
}

impl Measured {
    fn ns(&self, path: Path) -> f64 {
        self.samples.get(&path).map_or(f64::NAN, Samples::median)
    }

    fn rows(&self) -> impl Iterator<Item = Row> {
        let Scene { case, family } = self.scene;
        let (ends, floor) = (self.ns(Path::Ends), self.ns(Path::Redirect));
        self.samples.iter().map(move |(path, samples)| {
            let ns = samples.median();
            let ours = match *path {
                Path::Ends | Path::Redirect | Path::Redirector(_) => f64::NAN,
                Path::Kernel => self
                    .samples
                    .keys()
                    .find(|path| matches!(path, Path::Redirector(_)))
                    .map_or(f64::NAN, |path| self.ns(*path)),
                Path::Nftables(services) | Path::Iptables(services) => {
                    self.ns(Path::Redirector(services))
                }
            };
            Row {
                case: case.name(),
                path: path.name(),
                family: family_name(family),
                flows: case.flows(),
                services: path.services(),
                ns: round(ns),
                net_ns: round(ns - ends),
                least_ns: round(samples.least()),
                spread: (samples.spread() * 1000.0).round() / 1000.0,
                packets_per_second: (1e9 / ns).round(),
                floor: Path::Redirect.name(),
                floor_ns: round(floor),
                ratio: (ns / floor * 1000.0).round() / 1000.0,
                times_redirector: (!ours.is_nan()).then(|| (ns / ours * 100.0).round() / 100.0),
            }
        })
    }
}

pub(crate) fn print_json(scenes: &[Measured]) -> Result<()> {
    let rows: Vec<Row> = scenes.iter().flat_map(Measured::rows).collect();
    println!("{}", serde_json::to_string_pretty(&rows)?);
    Ok(())
}

pub(crate) fn print_table(scenes: &[Measured]) {
    println!("ns of one processor per packet: generator, forwarding and receiver; medians");
    println!("NET: without generator and receiver; OF REDIRECT: packets per second beside plain");
    println!("XDP_REDIRECT; TIMES: beside redirector with as many services\n");
    println!(
        "{:<20} {:<5} {:>7} {:<23} {:>8} {:>9} {:>9} {:>9} {:>7} {:>8} {:>11} {:>6}",
        "CASE",
        "IP",
        "FLOWS",
        "PATH",
        "SERVICES",
        "NS",
        "NET",
        "LEAST",
        "SPREAD",
        "KPPS",
        "OF REDIRECT",
        "TIMES"
    );
    for row in scenes.iter().flat_map(Measured::rows) {
        let times = row.times_redirector.map_or(String::new(), |times| format!("{times:.2}"));
        println!(
            "{:<20} {:<5} {:>7} {:<23} {:>8} {:>9.1} {:>9.1} {:>9.1} {:>6.1}% {:>8.0} {:>10.0}% {:>6}",
            row.case,
            row.family,
            row.flows,
            row.path,
            if row.services == 0 { String::new() } else { row.services.to_string() },
            row.ns,
            row.net_ns,
            row.least_ns,
            row.spread * 100.0,
            row.packets_per_second / 1e3,
            100.0 / row.ratio,
            times
        );
    }
}
