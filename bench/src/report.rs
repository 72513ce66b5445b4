//! Results: as a table for people, as JSON for checks.

use std::collections::BTreeMap;

use anyhow::Result;
use clap::ValueEnum;
use redirector_common::{Family, Protocol};
use serde::Serialize;

use crate::floor::Floor;
use crate::harness::Hook;
use crate::packet::{Family4, Subject};
use crate::scene::{Case, Scene};

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Table,
    /// For checks.
    Json,
}

/// Nanoseconds a packet, by sample.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    pub(crate) fn add(&mut self, ns: f64) {
        let at = self.0.partition_point(|sample| *sample < ns);
        self.0.insert(at, ns);
    }

    fn at(&self, quarters: usize) -> f64 {
        let last = self.0.len().saturating_sub(1);
        self.0.get(last * quarters / 4).copied().unwrap_or(f64::NAN)
    }

    pub(crate) fn median(&self) -> f64 {
        self.at(2)
    }

    pub(crate) fn least(&self) -> f64 {
        self.at(0)
    }

    /// Half of the samples lie within this part of the median around it.
    pub(crate) fn spread(&self) -> f64 {
        (self.at(3) - self.at(1)) / self.median() / 2.0
    }
}

/// One row of the results.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    case: &'static str,
    family: &'static str,
    flows: u32,
    services: u32,
    ns: f64,
    floor: &'static str,
    floor_ns: f64,
    ratio: f64,
}

/// Everything that was measured.
#[derive(Default)]
pub(crate) struct Report {
    scenes: Vec<(Scene, BTreeMap<Subject, Samples>)>,
}

/// A scene's samples with the wrapper's part taken off.
struct Measured<'a> {
    scene: &'a Scene,
    samples: &'a BTreeMap<Subject, Samples>,
}

impl Report {
    pub(crate) fn add(&mut self, scene: Scene, samples: BTreeMap<Subject, Samples>) {
        self.scenes.push((scene, samples));
    }

    fn measured(&self) -> impl Iterator<Item = Measured<'_>> {
        self.scenes.iter().map(|(scene, samples)| Measured { scene, samples })
    }

    pub(crate) fn print_json(&self) -> Result<()> {
        let rows: Vec<Row> = self.measured().flat_map(|measured| measured.rows()).collect();
        println!("{}", serde_json::to_string_pretty(&rows)?);
        Ok(())
    }

    pub(crate) fn print_table(&self) -> Result<()> {
        println!("ns per packet, medians; the part of what varies the packets is taken off\n");
        self.print_floors();
        println!();
        println!(
            "{:<22} {:<5} {:>8} {:>8} {:>7} {:>7} {:>7}  {:<38} {:>7} {:>6} {:>7}",
            "CASE",
            "IP",
            "FLOWS",
            "SERVICES",
            "NS",
            "LEAST",
            "SPREAD",
            "FLOOR",
            "NS",
            "RATIO",
            "LEAST"
        );
        for measured in self.measured() {
            for (subject, row) in measured.subjects().zip(measured.rows()) {
                let least = measured.least(subject);
                let floor_least = measured.least(measured.floor(subject));
                println!(
                    "{:<22} {:<5} {:>8} {:>8} {:>7.1} {:>7.1} {:>6.1}%  {:<38} {:>7.1} {:>6.2} {:>7.2}",
                    row.case,
                    row.family,
                    row.flows,
                    row.services,
                    row.ns,
                    least,
                    measured.spread(subject) * 100.0,
                    row.floor,
                    row.floor_ns,
                    row.ratio,
                    least / floor_least
                );
            }
        }
        Ok(())
    }

    /// One line for each floor, one column for each scene of TCP.
    fn print_floors(&self) {
        let scenes: Vec<Measured<'_>> =
            self.measured().filter(|measured| measured.scene.protocol == Protocol::Tcp).collect();
        let print = |name: &str, value: &dyn Fn(&Measured<'_>) -> f64| {
            print!("{name:<44}");
            for measured in &scenes {
                print!(" {:>9.1}", value(measured));
            }
            println!();
        };
        print!("{:<44}", "FLOOR, by flows/services");
        for Measured { scene, .. } in &scenes {
            print!(" {:>9}", format!("{}/{}", short(scene.flows), short(scene.services)));
        }
        println!();
        print("(what varies the packets, XDP)", &|m| m.wrapper(Hook::Xdp, Family4::V4));
        print("(what varies the packets, TC)", &|m| m.wrapper(Hook::Tc, Family4::V4));
        for &floor in Floor::ALL {
            print(floor.name(), &|m| m.median(Subject::Floor(floor, Family4::V4)));
            if floor.takes_ipv6() {
                let name = format!("{}, IPv6", floor.name());
                print(&name, &|m| m.median(Subject::Floor(floor, Family4::V6)));
            }
        }
    }
}

impl Measured<'_> {
    fn raw(&self, subject: Subject, of: fn(&Samples) -> f64) -> f64 {
        self.samples.get(&subject).map_or(f64::NAN, of)
    }

    /// What the program in front costs, the tail call included.
    fn wrapper(&self, hook: Hook, family: Family4) -> f64 {
        self.wrapper_by(hook, family, Samples::median)
    }

    fn wrapper_by(&self, hook: Hook, family: Family4, of: fn(&Samples) -> f64) -> f64 {
        let stub = match hook {
            Hook::Xdp => Floor::Return,
            Hook::Tc => Floor::ReturnTc,
        };
        self.raw(Subject::Floor(stub, family), of) - self.raw(Subject::Alone(hook), of)
    }

    fn net(&self, subject: Subject, of: fn(&Samples) -> f64) -> f64 {
        let wrapper = match subject {
            Subject::Alone(_) => 0.0,
            Subject::Floor(floor, family) => self.wrapper_by(floor.hook(), family, of),
            Subject::Live(_, family) | Subject::Ours(Case::SteerSyn, family) => {
                self.raw(Subject::Live(Floor::ReturnTc, family), of)
            }
            // A header was put in front, and what varies the packets takes it off again.
            Subject::Ours(Case::DsrTunnel, family) => {
                let [grow, stub] = [Floor::Grow, Floor::Return]
                    .map(|floor| self.raw(Subject::Floor(floor, family), of));
                self.wrapper_by(Hook::Xdp, family, of) + (grow - stub) / 2.0
            }
            Subject::Ours(case, family) => self.wrapper_by(case.hook(), family, of),
        };
        self.raw(subject, of) - wrapper
    }

    fn median(&self, subject: Subject) -> f64 {
        self.net(subject, Samples::median)
    }

    fn least(&self, subject: Subject) -> f64 {
        self.net(subject, Samples::least)
    }

    fn spread(&self, subject: Subject) -> f64 {
        self.raw(subject, Samples::spread)
    }

    fn subjects(&self) -> impl Iterator<Item = Subject> {
        self.samples.keys().copied().filter(|subject| matches!(subject, Subject::Ours(..)))
    }

    /// What a case is compared with: established flows of IPv6 with those of IPv4.
    fn floor(&self, subject: Subject) -> Subject {
        match subject {
            Subject::Ours(Case::Established, Family4::V6) => {
                Subject::Ours(Case::Established, Family4::V4)
            }
            Subject::Ours(Case::DsrLayer2 | Case::DsrTunnel, family) => {
                Subject::Ours(Case::Established, family)
            }
            Subject::Ours(Case::SteerSyn, _) => Subject::Live(Floor::SkcLookup, Family4::V4),
            Subject::Ours(case, family) => {
                let floor = case.floor(self.scene.flows);
                Subject::Floor(floor, if floor.takes_ipv6() { family } else { Family4::V4 })
            }
            Subject::Alone(_) | Subject::Floor(..) | Subject::Live(..) => subject,
        }
    }

    fn name(&self, subject: Subject) -> &'static str {
        match subject {
            Subject::Alone(_) => "return, nothing in front",
            Subject::Floor(floor, _) | Subject::Live(floor, _) => floor.name(),
            Subject::Ours(case, _) => case.name(self.scene.protocol),
        }
    }

    fn rows(&self) -> Vec<Row> {
        let rows = self.subjects().map(|subject| {
            let floor = self.floor(subject);
            let (ns, floor_ns) = (self.median(subject), self.median(floor));
            let family = match subject {
                Subject::Ours(_, Family4::V6)
                | Subject::Floor(_, Family4::V6)
                | Subject::Live(_, Family4::V6) => "ipv6",
                Subject::Ours(_, Family4::V4)
                | Subject::Floor(_, Family4::V4)
                | Subject::Live(_, Family4::V4)
                | Subject::Alone(_) => "ipv4",
            };
            let floor_name = if matches!(subject, Subject::Ours(Case::Established, Family4::V6)) {
                "established, IPv4"
            } else {
                self.name(floor)
            };
            Row {
                case: self.name(subject),
                family,
                flows: self.scene.flows,
                services: self.scene.services,
                ns: round(ns),
                floor: floor_name,
                floor_ns: round(floor_ns),
                ratio: ratio(ns, floor_ns),
            }
        });
        rows.collect()
    }
}

/// To four digits: one packet that is lost makes few connections of many, but not none.
pub(crate) fn ratio(value: f64, floor: f64) -> f64 {
    let ratio = value / floor;
    format!("{ratio:.3e}").parse().unwrap_or(ratio)
}

pub(crate) fn round(ns: f64) -> f64 {
    (ns * 10.0).round() / 10.0
}

fn short(number: u32) -> String {
    match number {
        1_048_576 => "1M".into(),
        10_000.. => format!("{}k", number / 1000),
        _ => number.to_string(),
    }
}

/// As results name it.
pub(crate) const fn family_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    }
}
