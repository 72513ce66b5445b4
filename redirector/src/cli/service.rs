//! `redirector service list` and `get`: services as people know them.

mod rows;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};

use super::ReadArgs;
use super::render::{self, Row, age, columns, count, fields};
use crate::dataplane::connections;
use crate::dataplane::pinned::{Pinned, PinnedError};
pub(super) use rows::backend_address;
use rows::{Loaded, ServiceRow, service_rows};

/// Commands about services.
#[derive(Debug, Subcommand)]
pub enum ServiceCommand {
    /// List services with their frontends and backends
    #[command(after_help = "Examples:
  redirector service list
  redirector service list -o json | jq '.[].frontends[] | select(.state != \"active\")'")]
    List(ReadArgs),
    /// Show one service in full
    #[command(after_help = "Examples:
  redirector service get web
  redirector service get shop/web
  redirector service get 80:8080/tcp -o yaml")]
    Get(GetArgs),
}

/// Options of `redirector service get`.
#[derive(Args, Debug)]
pub struct GetArgs {
    /// Its name, or NAMESPACE/NAME where several have that name
    name: String,
    #[command(flatten)]
    read: ReadArgs,
}

/// Runs the command.
///
/// # Errors
///
/// If the maps cannot be read, or no service or several have the name.
pub fn run(command: &ServiceCommand) -> Result<()> {
    match command {
        ServiceCommand::List(read) => {
            let rows = service_rows(&load(&read.open()?)?);
            render::print_rows(read.output, &rows, "no services")
        }
        ServiceCommand::Get(args) => {
            let rows = service_rows(&load(&args.read.open()?)?);
            let row = find(&rows, &args.name)?;
            render::print_document(args.read.output, row, || describe(row))
        }
    }
}

fn load(maps: &Pinned) -> Result<Loaded, PinnedError> {
    let mut frontends = maps.frontends()?;
    // They say again, for the node's own programs and for what other nodes hand over, what the
    // others say.
    frontends.retain(|key, frontend| !key.is_localhost() && !frontend.is_foreign());
    let connections =
        connections::on_frontends(&frontends, &maps.ports()?).unwrap_or_else(|error| {
            eprintln!("connections of this host's sockets are not counted: {error}");
            Vec::new()
        });
    Ok(Loaded {
        infos: maps.infos()?,
        services: maps.services()?,
        ranges: maps.source_ranges()?,
        frontends,
        slots: maps.slots()?,
        backends: maps.backends()?,
        flows: maps.flows()?,
        steered: maps.steered()?,
        connections,
    })
}

/// The one service that `name` names.
fn find<'a>(rows: &'a [ServiceRow], name: &str) -> Result<&'a ServiceRow> {
    let named: Vec<_> =
        rows.iter().filter(|row| row.name == name || row.full_name() == name).collect();
    match named.as_slice() {
        [row] => Ok(row),
        [] => bail!("no service is named {name}: 'redirector service list' shows those there are"),
        several => {
            // The full name may itself be that of exactly one.
            let full: Vec<_> = several.iter().filter(|row| row.full_name() == name).collect();
            if let [row] = full.as_slice() {
                return Ok(row);
            }
            let candidates: Vec<_> = several
                .iter()
                .map(|row| format!("{} ({})", row.full_name(), render::word(&row.source)))
                .collect();
            bail!(
                "{} services are named {name}: name one of {}",
                several.len(),
                candidates.join(", ")
            )
        }
    }
}

impl Row for ServiceRow {
    fn headings() -> Vec<&'static str> {
        vec!["NAMESPACE", "NAME", "SOURCE", "FRONTENDS", "BACKENDS", "STATE", ">PACKETS", ">BYTES"]
    }

    fn cells(&self) -> Vec<String> {
        let frontends: Vec<_> = self.frontends.iter().map(|it| it.text()).collect();
        let backends: Vec<_> = self.backends.iter().map(|it| it.label()).collect();
        let packets = self.frontends.iter().map(|it| it.packets).sum();
        let bytes = self.frontends.iter().map(|it| it.bytes).sum();
        vec![
            self.namespace.clone().unwrap_or_default(),
            self.name.clone(),
            render::word(&self.source),
            render::some_of(&frontends, 2),
            render::some_of(&backends, 2),
            self.state(),
            count(packets),
            render::bytes(bytes),
        ]
    }
}

/// A service in full, for people.
fn describe(row: &ServiceRow) -> String {
    let affinity =
        row.affinity_seconds.map_or_else(|| "none".to_owned(), |seconds| age(u64::from(seconds)));
    let mut text = fields(&[
        ("Name", row.name.clone()),
        ("Namespace", row.namespace.clone().unwrap_or_default()),
        ("Source", render::word(&row.source)),
        ("Traffic policy", render::word(&row.policy)),
        ("Algorithm", render::word(&row.algorithm)),
        ("Session affinity", affinity),
        ("Forwarding", render::word(&row.forwarding)),
        ("Source ranges", source_ranges(row)),
    ]);
    text.push_str("\nFrontends:\n");
    text.push_str(&indented(&columns(
        &["ADDRESS", ">PORT", "PROTOCOL", "STATE", ">PACKETS", ">BYTES", ">STEERED"],
        row.frontends.iter().map(|frontend| {
            vec![
                frontend.address.to_string(),
                frontend.port.to_string(),
                frontend.protocol.to_owned(),
                frontend.state.name().to_owned(),
                count(frontend.packets),
                render::bytes(frontend.bytes),
                count(frontend.steered),
            ]
        }),
    )));
    if row.conflicts_not_shown > 0 {
        text += &format!("  and {} more in conflict\n", row.conflicts_not_shown);
    }
    text.push_str("\nBackends:\n");
    text.push_str(&indented(&columns(
        &["ADDRESS", ">PORT", "PLACE", "STATE", ">WEIGHT"],
        row.backends.iter().map(|backend| {
            let place = if backend.local { "this host" } else { "elsewhere" };
            vec![
                backend.address.clone(),
                backend.port.to_string(),
                place.to_owned(),
                backend.state_word().to_owned(),
                backend.weight.to_string(),
            ]
        }),
    )));
    text
}

/// Both families together: of one that has no range, nobody is admitted.
fn source_ranges(row: &ServiceRow) -> String {
    row.source_ranges.as_ref().map_or_else(|| "everywhere".to_owned(), |ranges| ranges.join(", "))
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}
