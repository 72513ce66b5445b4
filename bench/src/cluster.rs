//! What following a cluster costs the agent: from objects as the API server sends them to entries
//! of the kernel's maps.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};
use std::{fs, mem};

use anyhow::{Context, Result, anyhow, ensure};
use clap::Args;
use k8s_openapi::api::core::v1;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use nix::mount::{self, MsFlags};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use redirector::dataplane::contents::Contents;
use redirector::dataplane::encode::encode;
use redirector::dataplane::ids::Cursors;
use redirector::dataplane::layout::Layout;
use redirector::dataplane::loader::Programs;
use redirector::dataplane::maps::Maps;
use redirector::dataplane::memory;
use redirector::dataplane::pins::Pins;
use redirector::dataplane::sizes::Sizes;
use redirector::dataplane::sync::Writes;
use redirector::k8s::convert::{Converted, Rules};
use redirector::k8s::index::Index;
use redirector::k8s::lenient::Lenient;
use redirector::k8s::object::ObjectName;
use redirector::k8s::record::{Kind, Record};
use redirector::k8s::service::ServiceRecord;
use redirector::k8s::slice::SliceRecord;
use redirector::model::desired::NodeAddresses;
use redirector::model::state::{Rank, Ranked, State};
use serde::Serialize;
use serde_json::json;

use crate::report::Output;

const SNAT: std::ops::RangeInclusive<u16> = 49_152..=57_343;

/// Options of `bench cluster`.
#[derive(Args)]
pub(crate) struct Arguments {
    /// How to print results.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Services of the cluster, each with a node port
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=30_000))]
    services: u32,
    /// Endpoints of each Service
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=200))]
    endpoints: u32,
    /// Changes of one endpoint, one after the other
    #[arg(long, default_value_t = 10_000)]
    changes: u32,
}

/// One of the results.
#[derive(Serialize)]
struct Row {
    case: &'static str,
    value: f64,
    unit: &'static str,
}

/// All of them.
#[derive(Default)]
struct Rows(Vec<Row>);

impl Rows {
    fn add(&mut self, case: &'static str, value: f64, unit: &'static str) {
        let value = (value * 1000.0).round() / 1000.0;
        self.0.push(Row { case, value, unit });
    }

    fn print(&self, output: Output) -> Result<()> {
        match output {
            Output::Json => println!("{}", serde_json::to_string_pretty(&self.0)?),
            Output::Table => {
                println!("{:<34} {:>12}  UNIT", "CASE", "VALUE");
                for Row { case, value, unit } in &self.0 {
                    println!("{case:<34} {value:>12.3}  {unit}");
                }
            }
        }
        Ok(())
    }
}

/// What an agent keeps.
struct Agent {
    index: Index,
    rules: Rules,
    converted: BTreeMap<ObjectName, Converted>,
    state: State,
    maps: Maps,
    actual: Contents,
    layout: Layout,
}

/// Runs the benchmark.
///
/// # Errors
///
/// If something is not as it should be, so that numbers would mean nothing.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let Arguments { output, services, endpoints, changes } = *arguments;
    let mut rows = Rows::default();
    let pins = mount_bpffs()?;
    let programs = Programs::load(&pins, &Sizes::of_machine())?;
    drop(programs);
    let before = resident()?;
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
    rows.add("objects-read", (cpu()? - began) * 1e3, "ms of CPU");

    let began = cpu()?;
    let mut agent = Agent::start(index, Maps::open(&pins)?)?;
    rows.add("first-sync", (cpu()? - began) * 1e3, "ms of CPU");
    // Two addresses of the node, and localhost.
    let found = agent.actual.frontends.len();
    ensure!(found == 3 * services as usize, "{found} frontends of {services} node ports");
    rows.add("resident-before", before, "MiB");
    rows.add("resident-after-sync", resident()?, "MiB");

    // New ways are complete before the agent waits for packets that are still on the old ones.
    let (completed, completion) = mpsc::channel();
    let mut wait = mem::replace(&mut agent.maps.services.wait_for_packets, Box::new(|| ()));
    agent.maps.services.wait_for_packets = Box::new(move || {
        // The receiver outlives the agent.
        let _ = completed.send(Instant::now());
        wait();
    });
    let (mut complete, mut done) = (Vec::new(), Vec::new());
    let mut most = Writes::default();
    let mut calls = Vec::new();
    for change in 0..changes {
        let name = change.wrapping_mul(7919) % services;
        let record = read_slice(name, endpoints, 1 + change % 200)?;
        let began = Instant::now();
        agent.index.apply(record);
        let writes = agent.follow()?;
        done.push(began.elapsed());
        let moment = completion.try_iter().last();
        ensure!(moment.is_some() || writes.is_none(), "an endpoint went, and nobody waited");
        complete.extend(moment.map(|moment| moment.duration_since(began)));
        calls.push(writes.calls);
        most = if writes.calls > most.calls { writes } else { most };
    }
    rows.add("change-in-maps-p50", quantile(&complete, 500) * 1e3, "ms");
    rows.add("change-in-maps-p99", quantile(&complete, 990) * 1e3, "ms");
    rows.add("change-tidied-up-p50", quantile(&done, 500) * 1e3, "ms");
    rows.add("change-tidied-up-p99", quantile(&done, 990) * 1e3, "ms");
    calls.sort_unstable();
    let middle = calls.get(calls.len() / 2).copied().unwrap_or_default();
    rows.add("change-writes-p50", middle as f64, "map writes");
    rows.add("change-writes-most", most.calls as f64, "map writes");
    rows.add("change-entries-most", (most.set + most.removed) as f64, "entries");

    let began = cpu()?;
    for change in 0..changes {
        agent.index.apply(read_slice(change % services, endpoints, 201 + change % 50)?);
    }
    let writes = agent.follow()?;
    rows.add("burst", (cpu()? - began) * 1e3, "ms of CPU");
    rows.add("burst-writes", writes.calls as f64, "map writes");
    rows.add("burst-entries", (writes.set + writes.removed) as f64, "entries");
    rows.add("resident-after-changes", resident()?, "MiB");
    rows.print(output)
}

impl Agent {
    fn start(mut index: Index, mut maps: Maps) -> Result<Self> {
        index.take_dirty();
        let rules = Rules { node_name: "node".to_owned(), ..Rules::default() };
        let names: Vec<ObjectName> = index.services().map(|service| service.name.clone()).collect();
        let node = NodeAddresses {
            chosen: vec!["192.0.2.1".parse()?, "198.51.100.1".parse()?],
            ..NodeAddresses::default()
        };
        let converted: BTreeMap<ObjectName, Converted> = names
            .into_iter()
            .map(|name| {
                let converted = rules.convert_service(&index, &name);
                (name, converted)
            })
            .collect();
        let state = State::new(node, converted.values().flat_map(ranked));
        let mut cursors = Cursors::default();
        let mut actual = maps.services.read()?;
        let tables = &mut maps.services;
        let (desired, capacity) = (state.all(), maps.capacity);
        let wanted = encode(&desired, &actual, &*tables.maglev, SNAT, capacity, &mut cursors)?;
        tables.sync(&mut actual, wanted)?;
        let layout = Layout::new(&state, &desired, &actual, SNAT, capacity, cursors);
        drop(desired);
        memory::release();
        Ok(Self { index, rules, converted, state, maps, actual, layout })
    }

    /// Carries out what changed in the index.
    fn follow(&mut self) -> Result<Writes> {
        for name in self.index.take_dirty().services {
            let converted = self.rules.convert_service(&self.index, &name);
            for (rank, service) in ranked(&converted) {
                self.state.put(rank, service);
            }
            self.converted.insert(name, converted);
        }
        let dirty = self.state.take_dirty();
        let tables = &mut self.maps.services;
        let step = self.layout.change(&self.state, &dirty, &self.actual, &*tables.maglev)?;
        let writes = tables.sync_step(&step, self.layout.has_vips())?;
        self.layout.commit(step, &mut self.actual);
        Ok(writes)
    }
}

/// What an object asks for, as the agent ranks it.
fn ranked(converted: &Converted) -> impl Iterator<Item = Ranked> + '_ {
    let rank = Rank { source: 1, order: converted.created };
    converted.services.iter().map(move |service| (rank, Arc::clone(service)))
}

/// A bpffs that goes with this process.
fn mount_bpffs() -> Result<Pins> {
    unshare(CloneFlags::CLONE_NEWNS).context("a mount namespace of its own")?;
    let none = None::<&str>;
    mount::mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .context("keeping mounts to this process")?;
    mount::mount(Some("bpffs"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), none)
        .context("mounting a bpffs")?;
    let pins = Pins::new("/sys/fs/bpf/bench");
    fs::create_dir_all(pins.maps())?;
    Ok(pins)
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
    let object: Lenient<v1::Service> = serde_json::from_str(&text)?;
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
        let is_last = number + 1 == endpoints && turn > 0;
        let last = if is_last { 1 + turn % 9 } else { 0 };
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

/// So many thousandths of the times are no longer, in seconds.
fn quantile(times: &[Duration], part: usize) -> f64 {
    let mut times = times.to_vec();
    times.sort();
    times.get(times.len() * part / 1000).or(times.last()).map_or(0.0, Duration::as_secs_f64)
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
    let text = fs::read_to_string("/proc/self/status")?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: f64 =
        line.and_then(|line| line.split_whitespace().next()).context("no VmRSS")?.parse()?;
    Ok(kib / 1024.0)
}
