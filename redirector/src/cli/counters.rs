//! `redirector counters`: packets and bytes by Reason and interface.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use redirector_common::node::{Counter, CounterBlock};
use redirector_common::{Interface, Reason};
use serde::Serialize;

use super::ReadArgs;
use super::render::{self, Format, Row, count};
use crate::dataplane::pinned::{Pinned, PinnedError};
use crate::dataplane::status::Status;

/// Options of `redirector counters`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  redirector counters
  redirector counters -w 2
  redirector counters -o json | jq '.[] | select(.verdict == \"drop\")'")]
pub struct CountersArgs {
    /// Show every Reason in the table, also those that counted nothing
    #[arg(long)]
    all: bool,
    /// Watch: show again every so many seconds, with rates
    #[arg(
        short,
        long,
        value_name = "SECONDS",
        num_args = 0..=1,
        default_missing_value = "1",
        value_parser = clap::value_parser!(u64).range(1..=3600)
    )]
    watch: Option<u64>,
    #[command(flatten)]
    read: ReadArgs,
}

/// What one Reason counted on one interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct CounterRow {
    #[serde(serialize_with = "reason_name")]
    pub(crate) reason: Reason,
    pub(crate) interface: String,
    pub(crate) verdict: &'static str,
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
}

/// The same with what it counted each second since it was last shown.
struct RateRow {
    row: CounterRow,
    packets_per_second: u64,
    bytes_per_second: u64,
}

/// Runs the command.
///
/// # Errors
///
/// If the maps cannot be read.
pub fn run(args: &CountersArgs) -> Result<()> {
    let maps = args.read.open()?;
    match args.watch {
        None => {
            let rows = load(&maps)?;
            let shown =
                if args.read.output == Format::Table && !args.all { non_zero(rows) } else { rows };
            render::print_rows(args.read.output, &shown, "nothing counted yet")
        }
        Some(seconds) => watch(args, &maps, Duration::from_secs(seconds)),
    }
}

/// Every Reason of every interface, in the order of interfaces, then Reasons.
pub(crate) fn load(maps: &Pinned) -> Result<Vec<CounterRow>, PinnedError> {
    // The agent's own names first: we may be in another network namespace than it is. They name a
    // bond, whose members have its slot, and what is gone for the moment.
    let said = Status::decode(&maps.status_text()?)
        .map(|status| status.interfaces)
        .unwrap_or_default()
        .into_iter()
        .map(|interface| (u32::from(interface.slot), interface.name))
        .filter(|(slot, _)| *slot != 0);
    let mut names = slot_names(&maps.interfaces()?, interface_name);
    names.extend(said);
    Ok(counter_rows(&maps.counters()?, &names))
}

fn watch(args: &CountersArgs, maps: &Pinned, interval: Duration) -> Result<()> {
    let mut before: Option<(Instant, Vec<CounterRow>)> = None;
    loop {
        let (now, rows) = (Instant::now(), load(maps)?);
        match args.read.output {
            Format::Table => {
                let rates = rates(&rows, before.as_ref(), now, args.all);
                // Clears only a screen; a file or pipe gets one table after the other.
                let clear = if std::io::stdout().is_terminal() { "\x1b[H\x1b[2J" } else { "" };
                let age = interval.as_secs();
                let table = render::table(&rates);
                render::print(&format!("{clear}every {age} s, until Ctrl-C\n\n{table}\n"))?;
            }
            // One document a line, and YAML documents apart, so that a reader can tell them.
            Format::Json => render::print(&(serde_json::to_string(&rows)? + "\n"))?,
            Format::Yaml => render::print(&format!("---\n{}", serde_saphyr::to_string(&rows)?))?,
        }
        before = Some((now, rows));
        std::thread::sleep(interval);
    }
}

fn rates(
    rows: &[CounterRow],
    before: Option<&(Instant, Vec<CounterRow>)>,
    now: Instant,
    all: bool,
) -> Vec<RateRow> {
    let earlier: BTreeMap<_, _> = before
        .into_iter()
        .flat_map(|(_, rows)| rows)
        .map(|row| ((row.interface.as_str(), row.reason), row))
        .collect();
    let passed = before.map_or(0, |(then, _)| millis(now.duration_since(*then)));
    rows.iter()
        .filter(|row| all || row.packets != 0)
        .map(|row| {
            let since = |now: u64, then: fn(&CounterRow) -> u64| {
                let then =
                    earlier.get(&(row.interface.as_str(), row.reason)).map_or(0, |row| then(row));
                (now.saturating_sub(then) * 1000).checked_div(passed).unwrap_or(0)
            };
            RateRow {
                packets_per_second: since(row.packets, |row| row.packets),
                bytes_per_second: since(row.bytes, |row| row.bytes),
                row: row.clone(),
            }
        })
        .collect()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn non_zero(mut rows: Vec<CounterRow>) -> Vec<CounterRow> {
    rows.retain(|row| row.packets != 0);
    rows
}

/// The interfaces that share each slot, by name; slot 0 is every other one.
fn slot_names(
    interfaces: &BTreeMap<u32, Interface>,
    name: impl Fn(u32) -> String,
) -> BTreeMap<u32, String> {
    let mut names: BTreeMap<u32, String> = BTreeMap::from([(0, "other".to_owned())]);
    for (index, interface) in interfaces {
        let slot = u32::from(interface.slot);
        if slot == 0 {
            continue;
        }
        names
            .entry(slot)
            .and_modify(|names| {
                names.push('+');
                names.push_str(&name(*index));
            })
            .or_insert_with(|| name(*index));
    }
    names
}

fn counter_rows(
    counters: &BTreeMap<u32, CounterBlock>,
    names: &BTreeMap<u32, String>,
) -> Vec<CounterRow> {
    // A slot whose interface went keeps what it counted.
    let slots: std::collections::BTreeSet<_> = names.keys().chain(counters.keys()).collect();
    let mut rows = Vec::new();
    for slot in slots {
        let name = names.get(slot).cloned();
        let interface = name.unwrap_or_else(|| format!("slot-{slot}"));
        let block = counters.get(slot);
        for reason in Reason::ALL {
            let counter = block.map_or_else(Counter::default, |block| count_of(block, *reason));
            rows.push(CounterRow {
                reason: *reason,
                interface: interface.clone(),
                verdict: reason.verdict().name(),
                packets: counter.packets,
                bytes: counter.bytes,
            });
        }
    }
    rows.sort_by(|a, b| (&a.interface, a.reason).cmp(&(&b.interface, b.reason)));
    rows
}

fn count_of(block: &CounterBlock, reason: Reason) -> Counter {
    let counter = block.reasons.get(reason as usize);
    counter.copied().unwrap_or_default()
}

/// An interface's name; its number where it is gone, or in another network namespace.
pub(crate) fn interface_name(index: u32) -> String {
    match nix::net::if_::if_indextoname(index) {
        Ok(name) => name.to_string_lossy().into_owned(),
        Err(_) => format!("#{index}"),
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn reason_name<S: serde::Serializer>(reason: &Reason, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(reason.name())
}

impl Row for CounterRow {
    fn headings() -> Vec<&'static str> {
        vec!["INTERFACE", "VERDICT", "REASON", ">PACKETS", ">BYTES", "MEANING"]
    }

    fn cells(&self) -> Vec<String> {
        vec![
            self.interface.clone(),
            self.verdict.to_owned(),
            self.reason.name().to_owned(),
            count(self.packets),
            render::bytes(self.bytes),
            self.reason.description().trim().to_owned(),
        ]
    }
}

impl Serialize for RateRow {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.row.serialize(to)
    }
}

impl Row for RateRow {
    fn headings() -> Vec<&'static str> {
        vec!["INTERFACE", "VERDICT", "REASON", ">PACKETS", ">BYTES", ">PACKETS/S", ">BYTES/S"]
    }

    fn cells(&self) -> Vec<String> {
        let mut cells = self.row.cells();
        cells.truncate(5);
        cells.push(count(self.packets_per_second));
        cells.push(render::bytes(self.bytes_per_second));
        cells
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use redirector_common::Address;
    use redirector_common::reason::REASON_CAPACITY;

    fn block(reason: Reason, packets: u64, bytes: u64) -> CounterBlock {
        let mut reasons = [Counter::default(); REASON_CAPACITY as usize];
        reasons[reason as usize] = Counter { packets, bytes };
        CounterBlock { reasons }
    }

    fn interface(slot: u16) -> Interface {
        Interface::new(slot, Address::UNSPECIFIED, Address::UNSPECIFIED, false)
    }

    #[test]
    fn json_is_as_the_contract_says() {
        let counters = BTreeMap::from([(1, block(Reason::LocalNew, 4, 240))]);
        let names = slot_names(&BTreeMap::from([(2, interface(1))]), |_| "eth0".to_owned());
        let rows = non_zero(counter_rows(&counters, &names));
        let expected = serde_json::json!([{
            "reason": "local-new", "interface": "eth0", "verdict": "deliver",
            "packets": 4, "bytes": 240,
        }]);
        assert_eq!(serde_json::to_value(rows).expect("JSON"), expected);
    }

    #[test]
    fn every_reason_of_every_interface_has_a_row() {
        let interfaces = BTreeMap::from([(2, interface(1)), (3, interface(0))]);
        let names = slot_names(&interfaces, |index| format!("eth{index}"));
        let counters = BTreeMap::from([(7, block(Reason::NotOurs, 1, 60))]);
        let rows = counter_rows(&counters, &names);
        assert_eq!(rows.len(), 3 * Reason::ALL.len());
        let counted = non_zero(rows);
        assert_eq!(counted[0].interface, "slot-7");
        assert_eq!(names[&0], "other");
        assert_eq!(names[&1], "eth2");
    }

    #[test]
    fn rates_are_by_the_second() {
        let names = BTreeMap::from([(1, "eth0".to_owned())]);
        let at = |packets, bytes| {
            let counters = BTreeMap::from([(1, block(Reason::NotOurs, packets, bytes))]);
            counter_rows(&counters, &names)
        };
        let then = Instant::now();
        let before = (then, at(100, 6_000));
        let now = then + Duration::from_secs(2);
        let rates = rates(&at(300, 18_000), Some(&before), now, false);
        assert_eq!(rates.len(), 1);
        assert_eq!(rates[0].packets_per_second, 100);
        assert_eq!(rates[0].bytes_per_second, 6_000);
    }
}
