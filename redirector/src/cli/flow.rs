//! `redirector flow list` and `flush`: flows, both halves of each together.

mod rows;
mod select;

use anyhow::Result;
use clap::{Args, Subcommand};
use nix::time::{ClockId, clock_gettime};

use super::render::{self, Row, age, count};
use super::{BpffsArgs, ReadArgs};
use crate::dataplane::pinned::{Pinned, PinnedError};
use crate::dataplane::resize::Turn;
use rows::{FlowRow, Loaded, flow_rows};
pub(super) use rows::{service_name, socket};
use select::Selection;

/// Commands about flows.
#[derive(Debug, Subcommand)]
pub enum FlowCommand {
    /// List flows
    #[command(after_help = "Examples:
  redirector flow list
  redirector flow list --service web --state established
  redirector flow list --client 198.51.100.7 -o json")]
    List(ListArgs),
    /// Remove flows: their connections stop, or begin anew with the next packet that may begin one
    #[command(after_help = "Examples:
  redirector flow flush --backend 10.0.0.5:8080
  redirector flow flush --all")]
    Flush(FlushArgs),
}

/// Options of `redirector flow list`.
#[derive(Args, Debug)]
pub struct ListArgs {
    #[command(flatten)]
    selection: Selection,
    /// Show at most so many
    #[arg(long, value_name = "NUMBER")]
    limit: Option<usize>,
    #[command(flatten)]
    read: ReadArgs,
}

/// Options of `redirector flow flush`.
#[derive(Args, Debug)]
#[command(group(
    clap::ArgGroup::new("which")
        .required(true)
        .multiple(true)
        .args(["client", "frontend", "backend", "service", "state", "protocol", "all"])
))]
pub struct FlushArgs {
    #[command(flatten)]
    selection: Selection,
    /// Remove every flow
    #[arg(
        long,
        conflicts_with_all = ["client", "frontend", "backend", "service", "state", "protocol"]
    )]
    all: bool,
    #[command(flatten)]
    bpffs: BpffsArgs,
}

/// Runs the command.
///
/// # Errors
///
/// If the maps cannot be read or written.
pub fn run(command: &FlowCommand) -> Result<()> {
    match command {
        FlowCommand::List(args) => list(args),
        FlowCommand::Flush(args) => flush(args),
    }
}

fn list(args: &ListArgs) -> Result<()> {
    let mut rows = flow_rows(&load(&args.read.open()?)?, now()?);
    rows.retain(|row| args.selection.matches(row));
    if let Some(limit) = args.limit {
        if rows.len() > limit {
            render::say(&format!("showing {limit} of {} flows", rows.len()));
        }
        rows.truncate(limit);
    }
    render::print_rows(args.read.output, &rows, "no flows")
}

fn flush(args: &FlushArgs) -> Result<()> {
    let pins = args.bpffs.pins();
    // Or what is removed comes back from a copy. Where there are no maps, opening them says so.
    let _turn = Turn::take(&pins).ok();
    let maps = Pinned::open(pins)?;
    let mut rows = flow_rows(&load(&maps)?, now()?);
    rows.retain(|row| args.selection.matches(row));
    let gone = maps.remove_flows(rows.iter().flat_map(|row| row.halves.iter().copied()))?;
    // A half that the data path or the agent took away meanwhile is gone all the same.
    tracing::debug!(halves = gone, "removed");
    let plural = if rows.len() == 1 { "" } else { "s" };
    render::print(&format!("removed {} flow{plural}\n", rows.len()))
}

fn load(maps: &Pinned) -> Result<Loaded, PinnedError> {
    Ok(Loaded { flows: maps.flows()?, infos: maps.infos()? })
}

/// The clock of the flow table, in nanoseconds.
pub(super) fn now() -> Result<u64> {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    let time = std::time::Duration::from(time);
    Ok(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}

impl Row for FlowRow {
    fn headings() -> Vec<&'static str> {
        vec![
            "PROTOCOL", "CLIENT", "FRONTEND", "SOURCE", "BACKEND", "SERVICE", "STATE", ">AGE",
            ">IDLE", ">PACKETS", ">BYTES",
        ]
    }

    fn cells(&self) -> Vec<String> {
        vec![
            self.protocol.name().to_owned(),
            self.client.to_string(),
            self.frontend.to_string(),
            self.translated_source.to_string(),
            self.backend.to_string(),
            self.service.clone(),
            self.state.name().to_owned(),
            age(self.age_seconds),
            age(self.idle_seconds),
            count(self.packets),
            render::bytes(self.bytes),
        ]
    }
}
