//! `cargo xtask bench packet`: what one packet costs, by BPF_PROG_TEST_RUN.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use redirector_common::{Family, Protocol};

use crate::floor::Floor;
use crate::harness::Hook;
use crate::node;
use crate::report::{Output, Report, Samples};
use crate::sampling::{Sampling, flows};
use crate::scene::{Case, Scene};
use crate::stage::Stage;

/// Measures what one packet costs in each program, beside programs that do less (needs root).
#[derive(Args)]
#[command(mut_arg("rounds", |rounds| rounds.default_value("15")))]
pub(crate) struct Arguments {
    /// Numbers of flows: powers of two.
    #[arg(long, value_delimiter = ',', default_value = "1,1024,65536,1048576",
          value_parser = flows)]
    flows: Vec<u32>,
    /// Numbers of services; all but the first are measured with 65536 flows of TCP only.
    #[arg(long, value_delimiter = ',', default_value = "1,100,10000",
          value_parser = clap::value_parser!(u32).range(1..=10_000))]
    services: Vec<u32>,
    /// Only these cases, such as established,reply-udp; floors always run [default: all].
    #[arg(long, value_delimiter = ',', hide_default_value = true)]
    cases: Vec<String>,
    #[command(flatten)]
    sampling: Sampling,
}

/// Flows with which other numbers of services are measured.
const MANY: u32 = 65536;

impl Arguments {
    fn wants(&self, case: Case, protocol: Protocol) -> bool {
        self.cases.is_empty() || self.cases.iter().any(|name| name == case.name(protocol))
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    for name in &arguments.cases {
        let known = Case::ALL
            .iter()
            .any(|case| Protocol::ALL.iter().any(|protocol| case.name(*protocol) == name));
        ensure!(known, "--cases {name}: there is no such case");
    }
    arguments.sampling.start()?;
    node::enter()?;
    let first = arguments.services.first().copied().unwrap_or(1);
    let mut scenes: Vec<(u32, u32)> = arguments.flows.iter().map(|&flows| (flows, first)).collect();
    scenes.extend(arguments.services.iter().skip(1).map(|&services| (MANY, services)));
    let mut report = Report::default();
    for (flows, services) in scenes {
        for protocol in Protocol::ALL {
            if protocol == Protocol::Udp && services != first {
                continue;
            }
            let scene = Scene { protocol, flows, services };
            eprintln!("measuring {flows} flows, {services} services, {protocol}");
            let samples = measure(&scene, arguments)
                .with_context(|| format!("{flows} flows, {services} services, {protocol}"))?;
            report.add(scene, samples);
        }
    }
    match arguments.sampling.output {
        Output::Table => report.print_table(),
        Output::Json => report.print_json(),
    }
}

/// What is run by turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Subject {
    /// A program that only returns, with nothing in front of it.
    Alone(Hook),
    /// A floor, with packets of this family.
    Floor(Floor, Family4),
    /// A floor, with packets that come in by an interface and open connections.
    Live(Floor, Family4),
    /// One of our cases.
    Ours(Case, Family4),
}

/// A family, with an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Family4 {
    V4,
    V6,
}

impl From<Family> for Family4 {
    fn from(family: Family) -> Self {
        match family {
            Family::V4 => Self::V4,
            Family::V6 => Self::V6,
        }
    }
}

/// Runs everything in one scene.
fn measure(scene: &Scene, arguments: &Arguments) -> Result<BTreeMap<Subject, Samples>> {
    let mut stage = Stage::set(scene)?;
    if arguments.sampling.spoil {
        stage.spoil()?;
    }
    let mut all = BTreeMap::<Subject, Samples>::new();
    let wanted = |subject: &Subject| match subject {
        Subject::Alone(_) | Subject::Floor(..) | Subject::Live(..) => true,
        Subject::Ours(case, _) => arguments.wants(*case, scene.protocol),
    };
    let subjects: Vec<Subject> = stage.subjects().into_iter().filter(wanted).collect();
    for &subject in &subjects {
        stage.check(subject).with_context(|| format!("checking {subject:?}"))?;
    }
    stage.start()?;
    for _ in 0..arguments.sampling.rounds {
        for &subject in &subjects {
            let ns = stage.sample(subject).with_context(|| format!("running {subject:?}"))?;
            all.entry(subject).or_default().add(ns);
        }
    }
    Ok(all)
}

impl Scene {
    /// Whether a case is measured here.
    pub(crate) fn has(&self, case: Case) -> bool {
        match case {
            Case::Established | Case::Reply | Case::DsrLayer2 | Case::DsrTunnel => true,
            // One flow opens in no time that could be measured.
            Case::New => self.flows > 1,
            Case::NotOurs => self.protocol == Protocol::Tcp,
            Case::LocalEstablished | Case::SteerEstablished | Case::SteerSyn => {
                self.protocol == Protocol::Tcp && self.flows <= MANY
            }
        }
    }
}

impl From<Family4> for Family {
    fn from(family: Family4) -> Self {
        match family {
            Family4::V4 => Self::V4,
            Family4::V6 => Self::V6,
        }
    }
}
