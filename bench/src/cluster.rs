//! What following a cluster costs the agent: objects as the API server sends them, to entries of
//! the maps. Nothing is written to the kernel; entries are counted.

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use clap::Args;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use redirector::dataplane::contents::Contents;
use redirector::dataplane::delta::{Delta, delta};
use redirector::dataplane::encode::{Capacity, encode};
use redirector::dataplane::ids::Cursors;
use redirector::dataplane::layout::Layout;
use redirector::k8s::convert::Rules;
use redirector::k8s::index::{Index, Kind, Record};
use redirector::k8s::lenient::Lenient;
use redirector::k8s::object::ObjectName;
use redirector::k8s::service::ServiceRecord;
use redirector::k8s::slice::SliceRecord;
use redirector::model::desired::NodeAddresses;
use redirector::model::state::{Rank, State};
use serde_json::json;

const SNAT: std::ops::RangeInclusive<u16> = 49_152..=57_343;
const CAPACITY: Capacity = Capacity { services: 65_536, backends: 262_144, lines: 262_144 };

/// Options of `bench cluster`.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Services of the cluster, each with a node port
    #[arg(long, default_value_t = 10_000)]
    services: u32,
    /// Endpoints of each Service
    #[arg(long, default_value_t = 10)]
    endpoints: u32,
    /// Changes of one endpoint, one after the other
    #[arg(long, default_value_t = 10_000)]
    changes: u32,
}

/// What an agent keeps.
struct Agent {
    index: Index,
    rules: Rules,
    state: State,
    actual: Contents,
    layout: Layout,
}

/// Runs the benchmark.
///
/// # Errors
///
/// If something is not as it should be, so that numbers would mean nothing.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let Arguments { services, endpoints, changes } = *arguments;
    ensure!(services > 0 && services <= 30_000, "--services: 1 to 30000, one port each");
    ensure!((1..=200).contains(&endpoints), "--endpoints: 1 to 200");
    let began = cpu()?;
    let mut index = Index::default();
    for (kind, records) in [
        (Kind::Service, (0..services).map(read_service).collect::<Result<Vec<_>>>()?),
        (
            Kind::Slice,
            (0..services).map(|name| read_slice(name, endpoints, 0)).collect::<Result<_>>()?,
        ),
    ] {
        index.reset(kind, records, &BTreeSet::new());
    }
    println!("objects read            {:>10.0} ms of CPU", (cpu()? - began) * 1e3);

    let began = cpu()?;
    let mut agent = Agent::start(index)?;
    println!("first sync              {:>10.0} ms of CPU", (cpu()? - began) * 1e3);
    // Two addresses of the node, and localhost.
    let found = agent.actual.frontends.len();
    ensure!(found == 3 * services as usize, "{found} frontends of {services} node ports");
    println!("resident memory         {:>10.0} MiB", resident()?);

    let mut times = Vec::new();
    let mut most = 0;
    for change in 0..changes {
        let name = change.wrapping_mul(7919) % services;
        let record = read_slice(name, endpoints, 1 + change % 200)?;
        let began = Instant::now();
        agent.index.apply(record);
        let writes = agent.follow()?;
        times.push(began.elapsed());
        most = most.max(writes);
    }
    times.sort();
    let at = |part: usize| times.get(times.len() * part / 1000).or(times.last()).copied();
    println!(
        "a change, median        {:>10.3} ms",
        at(500).unwrap_or_default().as_secs_f64() * 1e3
    );
    println!(
        "a change, p99           {:>10.3} ms",
        at(990).unwrap_or_default().as_secs_f64() * 1e3
    );
    println!("entries written at most {most:>10}");

    let began = cpu()?;
    for change in 0..changes {
        agent.index.apply(read_slice(change % services, endpoints, 201 + change % 50)?);
    }
    let writes = agent.follow()?;
    println!(
        "a burst of {changes:<12} {:>10.0} ms of CPU, {writes} entries",
        (cpu()? - began) * 1e3
    );
    println!("resident memory         {:>10.0} MiB", resident()?);
    Ok(())
}

impl Agent {
    fn start(mut index: Index) -> Result<Self> {
        index.take_dirty();
        let rules = Rules { node_name: "node".to_owned(), ..Rules::default() };
        let names: Vec<ObjectName> = index.services().map(|service| service.name.clone()).collect();
        let node = NodeAddresses {
            chosen: vec!["192.0.2.1".parse()?, "198.51.100.1".parse()?],
            ..NodeAddresses::default()
        };
        let ranked = names.iter().flat_map(|name| {
            let converted = rules.convert_service(&index, name);
            let rank = Rank { source: 1, order: converted.created };
            converted.services.into_iter().map(move |service| (rank, service))
        });
        let state = State::new(node, ranked.collect::<Vec<_>>());
        let mut cursors = Cursors::default();
        let actual = encode(&state.all(), &Contents::default(), SNAT, CAPACITY, &mut cursors)?;
        let layout = Layout::new(&state, &actual, SNAT, CAPACITY, cursors);
        Ok(Self { index, rules, state, actual, layout })
    }

    /// Carries out what changed in the index; returns how many entries had to be written.
    fn follow(&mut self) -> Result<usize> {
        for name in self.index.take_dirty().services {
            let converted = self.rules.convert_service(&self.index, &name);
            let rank = Rank { source: 1, order: converted.created };
            for service in converted.services {
                self.state.put(rank, service);
            }
        }
        let dirty = self.state.take_dirty();
        let step = self.layout.change(&self.state, &dirty, &self.actual)?;
        let (before, after) = (&step.before, &step.after);
        let writes = count(&delta(&before.maglev, &after.maglev))
            + count(&delta(&before.backends, &after.backends))
            + count(&delta(&before.slots, &after.slots))
            + count(&delta(&before.services, &after.services))
            + count(&delta(&before.infos, &after.infos))
            + count(&delta(&before.frontends, &after.frontends))
            + count(&delta(&before.takers, &after.takers));
        let mut written = step.after.clone();
        written.ports = step.before.ports.union(&step.after.ports);
        self.layout.commit(step, written, &mut self.actual);
        Ok(writes)
    }
}

fn count<K, V>(delta: &Delta<K, V>) -> usize {
    delta.set.len() + delta.remove.len()
}

fn read_service(name: u32) -> Result<Record> {
    let text = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": format!("service-{name}"), "namespace": format!("ns-{}", name % 100),
            "uid": format!("{name:08}-0000-0000-0000-000000000000"), "resourceVersion": "1",
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"app": format!("service-{name}")},
            "managedFields": [{"manager": "kubectl", "operation": "Update", "apiVersion": "v1"}],
        },
        "spec": {
            "type": "NodePort", "clusterIP": "10.96.0.1", "selector": {"app": "x"},
            "ports": [{"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP",
                       "nodePort": 2768 + name}],
        },
        "status": {"loadBalancer": {}},
    })
    .to_string();
    let object: Lenient<Service> = serde_json::from_str(&text)?;
    object.object.and_then(ServiceRecord::read).map(Record::Service).map_err(|error| anyhow!(error))
}

/// `turn`: which of several sets of endpoints, all but one of which they share.
fn read_slice(name: u32, endpoints: u32, turn: u32) -> Result<Record> {
    let address = |number: u32| {
        let host = name * 20 + number % 20;
        format!("10.{}.{}.{}", host >> 16, host >> 8 & 255, host & 255)
    };
    let endpoint = |number: u32| {
        // The last one is another each time.
        let last = if number + 1 == endpoints { turn % 10 } else { 0 };
        json!({
            "addresses": [address(number + last)],
            "conditions": {"ready": true, "serving": true, "terminating": false},
            "nodeName": format!("node-{}", number % 50),
            "targetRef": {"kind": "Pod", "namespace": "ns", "name": format!("pod-{number}")},
        })
    };
    let text = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "name": format!("service-{name}-abcde"), "namespace": format!("ns-{}", name % 100),
            "resourceVersion": "1",
            "labels": {"kubernetes.io/service-name": format!("service-{name}")},
        },
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": (0..endpoints).map(endpoint).collect::<Vec<_>>(),
    })
    .to_string();
    let object: Lenient<EndpointSlice> = serde_json::from_str(&text)?;
    object.object.and_then(SliceRecord::read).map(Record::Slice).map_err(|error| anyhow!(error))
}

/// CPU time of this process, in seconds.
#[expect(clippy::cast_precision_loss, reason = "microseconds of a run are far below 2^53")]
fn cpu() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(micros as f64 / 1e6)
}

/// Resident memory of this process, in MiB.
fn resident() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/self/status")?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: f64 =
        line.and_then(|line| line.split_whitespace().next()).context("no VmRSS")?.parse()?;
    Ok(kib / 1024.0)
}
