//! `redirector map list` and `dump`: the raw maps, decoded.

mod record;
mod records;

use anyhow::Result;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand};
use redirector_common::map_name::MapName;
use serde::Serialize;

use super::render::{self, Row};
use super::{BpffsArgs, ReadArgs};
use crate::dataplane::pinned::{Pinned, PinnedError};
use crate::dataplane::resize;
pub(super) use records::flag_names;

/// Commands about maps.
#[derive(Debug, Subcommand)]
pub enum MapCommand {
    /// List the maps: kind, entries, capacity, memory, what for
    #[command(after_help = "Example:\n  redirector map list")]
    List(ReadArgs),
    /// Show what is in a map
    #[command(after_help = "Examples:
  redirector map dump FRONTENDS
  redirector map dump flows -o yaml")]
    Dump(DumpArgs),
    /// Make a map larger, while packets flow and without losing a flow
    #[command(after_help = "Examples:
  redirector map resize FLOWS 1048576
  redirector map resize affinity 262144

A size in the agent's file has the same effect. A running agent takes the map over within seconds.")]
    Resize(ResizeArgs),
}

/// Options of `redirector map resize`.
#[derive(Args, Debug)]
pub struct ResizeArgs {
    /// The map
    #[arg(ignore_case = true, hide_possible_values = true, value_parser = names())]
    name: MapName,
    /// How many entries it shall have room for; a flow takes two of FLOWS
    entries: u32,
    #[command(flatten)]
    bpffs: BpffsArgs,
}

/// Options of `redirector map dump`.
#[derive(Args, Debug)]
pub struct DumpArgs {
    /// The map
    #[arg(ignore_case = true, hide_possible_values = false, value_parser = names())]
    name: MapName,
    #[command(flatten)]
    read: ReadArgs,
}

/// What is listed of a map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct MapRow {
    name: &'static str,
    kind: &'static str,
    entries: usize,
    capacity: u32,
    key_size: u32,
    value_size: u32,
    /// Bytes.
    memory: Option<u64>,
    description: &'static str,
}

/// Runs the command.
///
/// # Errors
///
/// If the maps cannot be read.
pub fn run(command: &MapCommand) -> Result<()> {
    match command {
        MapCommand::List(read) => {
            let rows = load(&read.open()?)?;
            render::print_rows(read.output, &rows, "no maps")
        }
        MapCommand::Resize(args) => {
            let pins = args.bpffs.pins();
            // Says it where nothing is installed.
            let before = Pinned::open(pins.clone())?.facts(args.name)?.capacity;
            let held = resize::resize(&pins, args.name, args.entries)?;
            let after = Pinned::open(pins)?.facts(args.name)?.capacity;
            let waited = match held.as_millis() {
                0 => String::new(),
                held => format!("; new flows waited for {held} ms"),
            };
            let name = args.name.name();
            render::say(&format!("{name}: room for {after} entries, {before} before{waited}"));
            Ok(())
        }
        MapCommand::Dump(args) => {
            let records = records::load(&args.read.open()?, args.name)?;
            render::print_document(args.read.output, &records, || record::table(&records))
        }
    }
}

fn load(maps: &Pinned) -> Result<Vec<MapRow>, PinnedError> {
    MapName::ALL.iter().map(|name| map_row(maps, *name)).collect()
}

fn map_row(maps: &Pinned, name: MapName) -> Result<MapRow, PinnedError> {
    let facts = maps.facts(name)?;
    Ok(MapRow {
        name: name.name(),
        kind: facts.kind,
        entries: maps.entries(name)?,
        capacity: facts.capacity,
        key_size: facts.key_size,
        value_size: facts.value_size,
        memory: facts.memory,
        description: name.description().trim(),
    })
}

fn names() -> impl TypedValueParser<Value = MapName> {
    PossibleValuesParser::new(MapName::ALL.iter().map(|name| name.name())).try_map(|word| {
        MapName::ALL
            .iter()
            .copied()
            .find(|name| name.name().eq_ignore_ascii_case(&word))
            .ok_or("no such map")
    })
}

impl Row for MapRow {
    fn headings() -> Vec<&'static str> {
        vec!["NAME", "KIND", ">ENTRIES", ">CAPACITY", ">KEY", ">VALUE", ">MEMORY", "DESCRIPTION"]
    }

    fn cells(&self) -> Vec<String> {
        vec![
            self.name.to_owned(),
            self.kind.to_owned(),
            self.entries.to_string(),
            self.capacity.to_string(),
            render::bytes(u64::from(self.key_size)),
            render::bytes(u64::from(self.value_size)),
            self.memory.map(render::bytes).unwrap_or_default(),
            self.description.to_owned(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_is_listed_with_its_memory_in_units() {
        let row = MapRow {
            name: "FLOWS",
            kind: "hash",
            entries: 12,
            capacity: 131_072,
            key_size: 40,
            value_size: 88,
            memory: Some(20 << 20),
            description: "Both halves of every flow.",
        };
        let expected = "\
NAME   KIND  ENTRIES  CAPACITY  KEY  VALUE  MEMORY  DESCRIPTION
FLOWS  hash       12    131072  40B    88B   20MiB  Both halves of every flow.
";
        assert_eq!(render::table(&[row]), expected);
    }
}
