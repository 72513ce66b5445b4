//! What the verifier said when it was last recorded: tests/verifier.json.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::cargo::workspace;

/// How much more than recorded is no growth, in percent.
const TOLERANCE: u64 = 5;

/// Of one program on one kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Figure {
    /// Instructions that the verifier walked, of a million.
    pub(super) verified: u64,
    /// Bytes of stack, of 512.
    pub(super) stack: u64,
}

/// By series of kernels, by program.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Figures(BTreeMap<String, BTreeMap<String, Figure>>);

/// Something that is not as recorded.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Growth {
    /// A figure grew.
    Grown { program: String, what: &'static str, from: u64, to: u64, series: String },
    /// A program has no record, or the record no program.
    Unknown { program: String, series: String },
}

impl fmt::Display for Growth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Grown { program, what, from, to, series } => write!(
                f,
                "{series}: {program}: {what} grew from {from} to {to}, by more than {TOLERANCE} %"
            )?,
            Self::Unknown { program, series } => write!(
                f,
                "{series}: {program} stands only in tests/verifier.json or only in the object"
            )?,
        }
        write!(f, "; if that is meant: cargo xtask kernels --record")
    }
}

impl Figure {
    /// Reads `verifier <program> <instructions> <stack>`; the test's name may stand before it in
    /// the same line.
    pub(super) fn read(line: &str) -> Option<(String, Self)> {
        let (_, rest) = line.split_once("verifier ")?;
        let mut words = rest.split_whitespace();
        let name = words.next()?.to_owned();
        let mut number = || words.next()?.parse().ok();
        Some((name, Self { verified: number()?, stack: number()? }))
    }

    fn named(self) -> [(&'static str, u64); 2] {
        [("verified instructions", self.verified), ("stack", self.stack)]
    }
}

impl Figures {
    pub(super) fn read() -> Result<Self> {
        let path = path();
        if !path.exists() {
            return Ok(Self::default());
        }
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path:?}"))?;
        serde_json::from_str(&text).with_context(|| format!("{path:?} is not as we write it"))
    }

    pub(super) fn write(&self) -> Result<()> {
        let path = path();
        let text = serde_json::to_string_pretty(self)? + "\n";
        fs::write(&path, text).with_context(|| format!("cannot write {path:?}"))?;
        println!("recorded in {}", path.display());
        Ok(())
    }

    pub(super) fn set(&mut self, series: &str, figures: &BTreeMap<String, Figure>) {
        self.0.insert(series.to_owned(), figures.clone());
    }

    /// What has grown by more than the tolerance, is new, or is gone.
    pub(super) fn compare(&self, series: &str, now: &BTreeMap<String, Figure>) -> Vec<Growth> {
        let none = BTreeMap::new();
        let recorded = self.0.get(series).unwrap_or(&none);
        let mut growth = Vec::new();
        for (program, figure) in now {
            let Some(before) = recorded.get(program) else {
                growth.push(Growth::Unknown { program: program.clone(), series: series.into() });
                continue;
            };
            for ((what, from), (_, to)) in before.named().into_iter().zip(figure.named()) {
                if to * 100 > from * (100 + TOLERANCE) {
                    let (program, series) = (program.clone(), series.into());
                    growth.push(Growth::Grown { program, what, from, to, series });
                }
            }
        }
        for program in recorded.keys().filter(|program| !now.contains_key(*program)) {
            growth.push(Growth::Unknown { program: program.clone(), series: series.into() });
        }
        growth
    }
}

fn path() -> PathBuf {
    workspace().join("tests/verifier.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(verified: u64) -> BTreeMap<String, Figure> {
        [("redirector_in".to_owned(), Figure { verified, stack: 200 })].into()
    }

    #[test]
    fn growth_beyond_the_tolerance_is_found() {
        let mut figures = Figures::default();
        figures.set("6.1", &one(1000));
        assert_eq!(figures.compare("6.1", &one(1050)), []);
        assert_eq!(figures.compare("6.1", &one(10)), []);
        let [growth] = &figures.compare("6.1", &one(1051))[..] else {
            panic!("one figure has grown");
        };
        assert_eq!(
            growth.to_string(),
            "6.1: redirector_in: verified instructions grew from 1000 to 1051, by more than 5 %; \
             if that is meant: cargo xtask kernels --record"
        );
    }

    #[test]
    fn programs_without_record_and_records_without_program_are_found() {
        let mut figures = Figures::default();
        assert_eq!(figures.compare("6.1", &one(1)).len(), 1);
        figures.set("6.1", &one(1));
        assert_eq!(figures.compare("6.1", &BTreeMap::new()).len(), 1);
    }
}
