//! Results of whole connections.

use std::collections::BTreeMap;

use anyhow::Result;
use redirector_common::Family;
use serde::Serialize;

use super::path::{Path, Place};
use crate::report::{Samples, family_name, ratio, round};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Metric {
    /// Connections opened, used once and closed, each second.
    Connections,
    /// Microseconds from request to answer, at so many of a thousand.
    Latency(usize),
    /// Megabytes each second.
    Bulk,
}

/// Those of latency.
pub(crate) const PERCENTILES: [usize; 4] = [500, 900, 990, 999];

impl Metric {
    const fn case(self) -> &'static str {
        match self {
            Self::Connections => "connections-per-second",
            Self::Latency(500) => "latency-p50-us",
            Self::Latency(900) => "latency-p90-us",
            Self::Latency(990) => "latency-p99-us",
            Self::Latency(_) => "latency-p99.9-us",
            Self::Bulk => "bulk-megabytes-per-second",
        }
    }
}

/// The samples of one place and family.
pub(crate) struct Measured {
    pub(crate) place: Place,
    pub(crate) family: Family,
    pub(crate) services: u16,
    pub(crate) samples: BTreeMap<(Metric, Path), Samples>,
}

/// One row of the results.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    case: &'static str,
    backend: &'static str,
    path: &'static str,
    family: &'static str,
    services: u16,
    value: f64,
    spread: f64,
    floor: &'static str,
    floor_value: f64,
    /// To the floor.
    ratio: f64,
}

impl Measured {
    fn rows(&self) -> impl Iterator<Item = Row> {
        self.samples.iter().map(|((metric, path), samples)| {
            let floor = self.place.floor();
            let floor_value = self.samples.get(&(*metric, floor)).map_or(f64::NAN, Samples::median);
            let value = samples.median();
            Row {
                case: metric.case(),
                backend: self.place.name(),
                path: path.name(self.place),
                family: family_name(self.family),
                services: self.services,
                value: round(value),
                spread: (samples.spread() * 1000.0).round() / 1000.0,
                floor: floor.name(self.place),
                floor_value: round(floor_value),
                ratio: ratio(value, floor_value),
            }
        })
    }
}

pub(crate) fn print_json(all: &[Measured]) -> Result<()> {
    let rows: Vec<Row> = all.iter().flat_map(Measured::rows).collect();
    println!("{}", serde_json::to_string_pretty(&rows)?);
    Ok(())
}

pub(crate) fn print_table(all: &[Measured]) {
    println!("medians; all on one processor\n");
    println!(
        "{:<26} {:<8} {:<5} {:<27} {:>9} {:>7} {:>7}  FLOOR",
        "CASE", "BACKEND", "IP", "PATH", "VALUE", "SPREAD", "RATIO"
    );
    for row in all.iter().flat_map(Measured::rows) {
        println!(
            "{:<26} {:<8} {:<5} {:<27} {:>9.1} {:>6.1}% {:>7.2}  {}",
            row.case,
            row.backend,
            row.family,
            row.path,
            row.value,
            row.spread * 100.0,
            row.ratio,
            row.floor
        );
    }
}
