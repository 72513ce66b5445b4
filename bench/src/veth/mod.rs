//! `cargo xtask bench veth`: packets through a node, by live frames.

mod report;
mod rig;
mod subject;

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use redirector_common::Family;

use crate::layout::ECHO;
use crate::ours::FAMILIES;
use crate::report::{Output, Samples};
use crate::sampling::{Sampling, flows, uninterrupted};
use report::{Measured, Scene};
use rig::{Rig, packets};
use subject::{Case, Path};

/// Measures packets through veth beside plain XDP forwarding, the kernel, and kube-proxy's rules
/// (needs root).
///
/// Generator, forwarding and reception share one processor: NS is all of its time for each packet.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Numbers of established flows: powers of two.
    #[arg(long, value_delimiter = ',', default_value = "1024,65536", value_parser = flows)]
    flows: Vec<u32>,
    /// New flows of a sample: a power of two; 0 leaves new flows out.
    #[arg(long, default_value_t = 16384, value_parser = new_flows)]
    new: u32,
    /// Numbers of services.
    #[arg(long, value_delimiter = ',', default_value = "1,100,1000,10000",
          value_parser = clap::value_parser!(u32).range(1..=10_000))]
    services: Vec<u32>,
    /// Endpoints of each service in kube-proxy's rules.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=256))]
    endpoints: u32,
    /// Packets of a sample of established flows, at least.
    #[arg(long, default_value_t = 1 << 18, value_parser = clap::value_parser!(u32).range(1..))]
    packets: u32,
    #[command(flatten)]
    sampling: Sampling,
}

/// Reads a number of new flows, or that there are none.
fn new_flows(text: &str) -> Result<u32, String> {
    if text == "0" { Ok(0) } else { flows(text) }
}

impl Arguments {
    fn cases(&self) -> Vec<Case> {
        let mut cases: Vec<Case> =
            self.flows.iter().map(|&flows| Case::Established(flows)).collect();
        cases.extend((self.new > 0).then_some(Case::New(self.new)));
        cases
    }

    fn paths(&self) -> Vec<Path> {
        let mut paths = vec![Path::Ends, Path::Redirect, Path::Kernel];
        for &services in &self.services {
            paths.extend([
                Path::Redirector(services),
                Path::Nftables(services),
                Path::Iptables(services),
            ]);
        }
        paths
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    arguments.sampling.start()?;
    let most = arguments.cases().into_iter().map(Case::flows).max().unwrap_or(1);
    let mut rigs = Vec::new();
    for path in arguments.paths() {
        eprintln!("setting up {} ({} services)", path.name(), path.services());
        let rig = Rig::new(path, most, arguments.endpoints);
        rigs.push((path, rig.with_context(|| format!("setting up {path:?}"))?));
    }
    let mut scenes = Vec::new();
    for case in arguments.cases() {
        for family in FAMILIES {
            let scene = Scene { case, family };
            eprintln!("measuring {} flows, {}, {family:?}", case.flows(), case.name());
            let samples = measure(&mut rigs, scene, arguments);
            let samples = samples.with_context(|| format!("{case:?}, {family:?}"))?;
            scenes.push(Measured { scene, samples });
        }
    }
    match arguments.sampling.output {
        Output::Table => report::print_table(&scenes),
        Output::Json => report::print_json(&scenes)?,
    }
    Ok(())
}

/// All ways of forwarding by turns.
fn measure(
    rigs: &mut [(Path, Rig)],
    scene: Scene,
    arguments: &Arguments,
) -> Result<BTreeMap<Path, Samples>> {
    let Scene { case, family } = scene;
    let mut all = BTreeMap::<Path, Samples>::new();
    for (path, rig) in rigs.iter_mut() {
        if arguments.sampling.spoil && *path != Path::Ends {
            rig.spoil()?;
        }
        let checked = rig.forget().and_then(|()| rig.check(&packets(*path, family, 1, 0)));
        checked.with_context(|| format!("checking {path:?}"))?;
    }
    for _ in 0..arguments.sampling.rounds {
        for (path, rig) in rigs.iter_mut() {
            let sample = |rig: &mut Rig| match case {
                Case::Established(flows) => {
                    sample_established(*path, rig, family, flows, arguments)
                }
                Case::New(flows) => sample_new(*path, rig, family, flows),
            };
            let sample = uninterrupted(rig, sample, |_| Ok(()));
            all.entry(*path).or_default().add(sample.with_context(|| format!("{path:?}"))?);
        }
    }
    Ok(all)
}

/// Of flows that have been answered, just now.
fn sample_established(
    path: Path,
    rig: &mut Rig,
    family: Family,
    flows: u32,
    arguments: &Arguments,
) -> Result<f64> {
    let packets = packets(path, family, flows, 0);
    let warm = rig.send(&packets, flows, ECHO)?;
    ensure!(
        enough(warm.arrived, flows) && enough(warm.returned, flows),
        "of {flows} packets {} arrived, and {} answers",
        warm.arrived,
        warm.returned
    );
    // Once more, so that what is kept once a flow is answered is kept.
    rig.send(&packets, flows, 0)?;
    let count = arguments.packets.max(flows);
    let sent = rig.send(&packets, count, 0)?;
    ensure!(enough(sent.arrived, count), "of {count} packets {} arrived", sent.arrived);
    check_backends(path, flows, sent.backends, arguments.endpoints)?;
    Ok(sent.ns)
}

/// Each packet opens a flow.
fn sample_new(path: Path, rig: &mut Rig, family: Family, flows: u32) -> Result<f64> {
    rig.forget()?;
    let packets = packets(path, family, flows, 0);
    let sent = rig.send(&packets, flows, 0)?;
    ensure!(enough(sent.arrived, flows), "of {flows} packets {} arrived", sent.arrived);
    if let Some(ours) = &mut rig.ours {
        let halves = ours.clear_flows()?;
        ensure!(halves as u64 >= 2 * sent.arrived, "{halves} halves of {} flows", sent.arrived);
    }
    Ok(sent.ns)
}

/// A cable's queue may overflow now and then.
fn enough(arrived: u64, sent: u32) -> bool {
    arrived <= u64::from(sent) && arrived as f64 >= 0.99 * f64::from(sent)
}

/// Whether flows are spread over backends.
fn check_backends(path: Path, flows: u32, found: usize, endpoints: u32) -> Result<()> {
    if !path.translates() || flows < 1024 {
        return Ok(());
    }
    let expected = match path {
        Path::Nftables(services) | Path::Iptables(services) => {
            (services * endpoints).min(256).min(flows / 16)
        }
        Path::Redirector(_) => (flows / 16).min(200),
        Path::Ends | Path::Redirect | Path::Kernel => 1,
    };
    ensure!(found >= expected as usize, "only {found} of {expected} backends had packets");
    Ok(())
}
