//! What `/metrics` says, read from the maps and the agent's account when it is asked for.

mod traffic;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::Registry;
use redirector_common::map_name::MapName;
use redirector_common::{Direction, Flow, ring};

use crate::agent::{Programming, Shared, Snapshot, Syncs};
use crate::cli::counters::{self, CounterRow};
use crate::dataplane::connections;
use crate::dataplane::pinned::{Pinned, PinnedError};
use crate::dataplane::pins::Pins;
use crate::dataplane::translation::{PortUse, Sources};
use traffic::{Seen, ServiceName, Total, Traffic};

/// The content type of what [`Metrics::scrape`] returns.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Why there are no metrics.
#[derive(Debug, thiserror::Error)]
pub enum ScrapeError {
    /// The maps cannot be read.
    #[error(transparent)]
    Maps(#[from] PinnedError),
    /// The text cannot be made.
    #[error("cannot write the metrics: {0}")]
    Text(#[from] fmt::Error),
}

/// Where metrics come from.
#[derive(Debug)]
pub struct Metrics {
    pins: Pins,
    shared: Shared,
    traffic: Mutex<Traffic>,
}

impl Metrics {
    /// Metrics of the maps under `pins` and the agent's account.
    #[must_use]
    pub fn new(pins: Pins, shared: Shared) -> Self {
        Self { pins, shared, traffic: Mutex::default() }
    }

    /// The metrics now, in the OpenMetrics text format. Reads whole maps: it blocks for
    /// milliseconds.
    ///
    /// # Errors
    ///
    /// If the maps cannot be read.
    pub fn scrape(&self) -> Result<String, ScrapeError> {
        let maps = Pinned::open(self.pins.clone())?;
        let flows = maps.flows()?;
        let infos = maps.infos()?;
        let frontends = maps.frontends()?;
        let steered = maps.steered()?;
        let connections =
            connections::on_frontends(&frontends, &maps.ports()?).unwrap_or_else(|error| {
                tracing::debug!(%error, "connections of this host's sockets are not counted");
                Vec::new()
            });
        let services = {
            // A panic while it was held left at worst an old total.
            let mut traffic = self.traffic.lock().unwrap_or_else(PoisonError::into_inner);
            traffic.observe(&Seen {
                infos: &infos,
                frontends: &frontends,
                flows: &flows,
                steered: &steered,
                connections: &connections,
            });
            traffic.totals().clone()
        };
        let waiting =
            |flow: &&Flow| flow.direction() == Direction::Forward && flow.state().is_half_open();
        let half_open = HalfOpen {
            flows: flows.values().filter(waiting).count(),
            budget: ring::half_open_budget(maps.node()?.ring_slots),
        };
        let translation = PortUse::of(&flows, &maps.node()?, &Sources::read(&maps)?);
        let mut fill = Vec::new();
        for name in MapName::ALL {
            let entries = match name {
                MapName::Flows => flows.len(),
                MapName::ServiceInfo => infos.len(),
                MapName::Frontends => frontends.len(),
                MapName::Steered => steered.len(),
                MapName::Ports
                | MapName::FlowRing
                | MapName::FlowCache
                | MapName::Epochs
                | MapName::Services
                | MapName::Maglev
                | MapName::Backends
                | MapName::Interfaces
                | MapName::SnatAddresses
                | MapName::Node
                | MapName::Counters
                | MapName::Slots
                | MapName::Status
                | MapName::Sysctls
                | MapName::SourceRanges
                | MapName::Affinity
                | MapName::Takers
                | MapName::Vips
                | MapName::Peers
                | MapName::Fragments
                | MapName::Sockets
                | MapName::Watch
                | MapName::Events
                | MapName::EventsLost => maps.entries(*name)?,
            };
            fill.push(MapFill { map: name.name(), entries, capacity: maps.facts(*name)?.capacity });
        }
        let scrape = Scrape {
            counters: counters::load(&maps)?,
            services,
            flows: flows.len() / 2,
            half_open,
            translation,
            fill,
            agent: self.shared.snapshot(),
        };
        Ok(encode(scrape)?)
    }
}

/// Everything that the metrics say, at one moment.
#[derive(Debug)]
struct Scrape {
    counters: Vec<CounterRow>,
    services: BTreeMap<ServiceName, Total>,
    flows: usize,
    half_open: HalfOpen,
    translation: PortUse,
    fill: Vec<MapFill>,
    agent: Snapshot,
}

/// Flows that are not established yet.
#[derive(Debug)]
struct HalfOpen {
    flows: usize,
    /// How many there may be.
    budget: u32,
}

/// How full a map is.
#[derive(Debug)]
struct MapFill {
    map: &'static str,
    entries: usize,
    capacity: u32,
}

fn encode(scrape: Scrape) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("redirector");
    registry.register_collector(Box::new(scrape));
    let mut text = String::new();
    text::encode(&mut text, &registry)?;
    Ok(text)
}

// The encoder appends `_total` to counters and `_info` to infos by itself.
impl Collector for Scrape {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> fmt::Result {
        self.encode_counters(&mut to)?;
        self.encode_maps(&mut to)?;
        self.encode_agent(&mut to)
    }
}

impl Scrape {
    fn encode_counters(&self, to: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let labels = |row: &CounterRow| {
            [
                ("reason", row.reason.name().to_owned()),
                ("verdict", row.verdict.to_owned()),
                ("interface", row.interface.clone()),
            ]
        };
        let packets = self.counters.iter().map(|row| (labels(row), row.packets));
        counter(to, "packets", "Packets by what became of them and why", packets)?;
        let bytes = self.counters.iter().map(|row| (labels(row), row.bytes));
        counter(to, "bytes", "Bytes of frames by what became of them and why", bytes)?;
        let services = |count: fn(&Total) -> u64| {
            self.services.iter().map(move |(name, total)| {
                let namespace = ("namespace", name.namespace.clone());
                ([namespace, ("service", name.name.clone())], count(total))
            })
        };
        let help =
            "Packets from clients by service, of the flows and connections seen when scraped";
        counter(to, "service_packets", help, services(|total| total.packets))?;
        let help = "Connections by service that were handed to listening sockets of this host";
        counter(to, "service_steered", help, services(|total| total.steered))
    }

    fn encode_maps(&self, to: &mut DescriptorEncoder<'_>) -> fmt::Result {
        gauge(to, "flows", "Flows in the flow table", [([], whole(self.flows))])?;
        let help = "Flows that are not established yet";
        gauge(to, "half_open_flows", help, [([], whole(self.half_open.flows))])?;
        let help = "Flows that may be half-open at once; one more takes the oldest one's place";
        gauge(to, "half_open_budget", help, [([], i64::from(self.half_open.budget))])?;
        let help = "Ports for translation, towards the backend that has the fewest left";
        gauge(to, "snat_ports", help, [([], whole(self.translation.ports))])?;
        let help = "Those in use, towards that backend";
        gauge(to, "snat_ports_used", help, [([], whole(self.translation.used))])?;
        let entries =
            self.fill.iter().map(|fill| ([("map", fill.map.to_owned())], whole(fill.entries)));
        gauge(to, "map_entries", "Entries in use", entries)?;
        let capacity =
            self.fill.iter().map(|fill| ([("map", fill.map.to_owned())], i64::from(fill.capacity)));
        gauge(to, "map_capacity", "Entries that there is room for", capacity)
    }

    fn encode_agent(&self, to: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let Snapshot { status, syncs, programming, .. } = &self.agent;
        histogram(
            to,
            ("sync_duration_seconds", "How long it took to bring the maps in line"),
            (&Syncs::BOUNDS, &syncs.buckets),
            (syncs.count, syncs.total),
        )?;
        if status.kubernetes {
            let help = "How long endpoints took from their change in the cluster to the maps";
            histogram(
                to,
                ("network_programming_duration_seconds", help),
                (&Programming::BOUNDS, &programming.buckets),
                (programming.count, programming.total),
            )?;
        }
        let errors = [([], syncs.errors)];
        counter(to, "sync_errors", "Times that the maps could not be brought in line", errors)?;
        let stale = i64::from(status.config_error.is_some());
        let help = "1 while the file is wrong and the state before it is kept";
        gauge(to, "config_stale", help, [([], stale)])?;
        let help = "Frontends that more than one service claims";
        gauge(to, "frontend_conflicts", help, [([], whole(status.conflicts))])?;
        let modes = status.interfaces.iter().map(|interface| {
            let labels =
                [("interface", interface.name.clone()), ("mode", interface.xdp.name().to_owned())];
            (labels, 1)
        });
        gauge(to, "xdp_mode", "How XDP runs on each interface", modes)?;
        to.encode_descriptor("build", "What runs", None, MetricType::Info)?
            .encode_info(&[("version", env!("CARGO_PKG_VERSION"))])
    }
}

type Labels<const N: usize> = [(&'static str, String); N];

fn counter<const N: usize>(
    to: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    samples: impl IntoIterator<Item = (Labels<N>, u64)>,
) -> fmt::Result
where
    Labels<N>: EncodeLabelSet,
{
    let mut metric = to.encode_descriptor(name, help, None, MetricType::Counter)?;
    let exemplar: Option<&Exemplar<NoLabelSet, u64>> = None;
    for (labels, value) in samples {
        if N == 0 {
            metric.encode_counter(&value, exemplar)?;
        } else {
            metric.encode_family(&labels)?.encode_counter(&value, exemplar)?;
        }
    }
    Ok(())
}

fn gauge<const N: usize>(
    to: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    samples: impl IntoIterator<Item = (Labels<N>, i64)>,
) -> fmt::Result
where
    Labels<N>: EncodeLabelSet,
{
    let mut metric = to.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in samples {
        if N == 0 {
            metric.encode_gauge(&value)?;
        } else {
            metric.encode_family(&labels)?.encode_gauge(&value)?;
        }
    }
    Ok(())
}

fn histogram(
    to: &mut DescriptorEncoder<'_>,
    (name, help): (&str, &str),
    (bounds, buckets): (&[f64], &[u64]),
    (count, total): (u64, Duration),
) -> fmt::Result {
    let bounds = bounds.iter().copied().chain([f64::INFINITY]);
    let buckets: Vec<_> = bounds.zip(buckets.iter().copied()).collect();
    to.encode_descriptor(name, help, None, MetricType::Histogram)?.encode_histogram::<NoLabelSet>(
        total.as_secs_f64(),
        count,
        &buckets,
        None,
    )
}

/// A number of things as a gauge's value.
fn whole(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
