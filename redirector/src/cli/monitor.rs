//! `redirector monitor`: packets as the data path decides about them.

use std::fmt::Write as _;
use std::io::{self, BufWriter, Stdout, Write as _};
use std::net::SocketAddr;
use std::os::fd::AsFd;

use anyhow::Result;
use clap::Args;
use redirector_common::event::Phase;
use redirector_common::{Event, Watch};
use serde::Serialize;

use super::ReadArgs;
use super::render::Format;
use super::watch::{Listener, Story, Teller, Usual, WatchArgs, follow};

/// Options of `redirector monitor`.
#[derive(Args, Debug)]
#[command(
    long_about = "Show live what becomes of packets: new flows and packets that are dropped, unless \
        something else is asked for. Ends with Ctrl-C.\n\nPackets that XDP handles are seen by no \
        other tool of this machine. While nobody watches, this costs the data path nothing that can \
        be measured; and whoever watches and is killed is forgotten within seconds. Only one can \
        watch at a time. Connections of programs on this machine are no packets and are not shown. \
        With '-o json' each event is one line.",
    after_help = "Examples:
  redirector monitor
  redirector monitor --drops --service web
  redirector monitor --sample 1000 --duration 10
  redirector monitor --client 198.51.100.7 --verdict forward --verdict deliver
  redirector monitor -o json | jq -r 'select(.newFlow) | .client'"
)]
pub struct MonitorArgs {
    #[command(flatten)]
    watch: WatchArgs,
    #[command(flatten)]
    read: ReadArgs,
}

/// Runs the command.
///
/// # Errors
///
/// If nothing can be watched, or stdout cannot be written.
pub fn run(args: &MonitorArgs) -> Result<()> {
    let maps = args.read.open()?;
    let wish = Watch {
        snap: 0,
        phases: Phase::After.bit() | Phase::Only.bit(),
        ..args.watch.wish(&maps, Usual::Turns)?
    };
    let mut screen = Screen {
        teller: Teller::new(&maps)?,
        format: args.read.output,
        output: BufWriter::new(io::stdout()),
    };
    follow(&maps, wish, args.watch.limits(), Some(io::stdout().as_fd()), &mut screen)
}

/// Where events are shown.
struct Screen {
    teller: Teller,
    format: Format,
    output: BufWriter<Stdout>,
}

impl Listener for Screen {
    fn begin(&mut self) -> Result<()> {
        if self.format == Format::Table {
            self.output.write_all(line(HEADINGS).as_bytes())?;
            self.output.flush()?;
        }
        Ok(())
    }

    fn hear(&mut self, event: &Event, _: &[u8]) -> Result<()> {
        let story = self.teller.tell(event);
        let text = match self.format {
            Format::Table => line(cells(&story).each_ref().map(String::as_str)),
            // One document a line, and YAML documents apart, so that a reader can tell them.
            Format::Json => serde_json::to_string(&Shown::of(&story))? + "\n",
            Format::Yaml => format!("---\n{}", serde_saphyr::to_string(&Shown::of(&story))?),
        };
        self.output.write_all(text.as_bytes())?;
        Ok(())
    }

    fn rest(&mut self) -> Result<()> {
        self.teller.set_clock()?;
        Ok(self.output.flush()?)
    }
}

/// An event as data.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown<'a> {
    /// RFC 3339.
    time: String,
    hook: &'static str,
    interface: &'a str,
    out_interface: Option<&'a str>,
    verdict: &'static str,
    reason: &'static str,
    new_flow: bool,
    direction: Option<&'static str>,
    protocol: Option<&'static str>,
    client: Option<SocketAddr>,
    frontend: Option<SocketAddr>,
    backend: Option<SocketAddr>,
    service: Option<&'a str>,
    source: Option<SocketAddr>,
    destination: Option<SocketAddr>,
    translated_source: Option<SocketAddr>,
    translated_destination: Option<SocketAddr>,
    bytes: u32,
}

impl<'a> Shown<'a> {
    fn of(story: &'a Story) -> Self {
        Self {
            time: story.time.to_string(),
            hook: story.hook,
            interface: &story.interface,
            out_interface: story.out_interface.as_deref(),
            verdict: story.verdict(),
            reason: story.reason(),
            new_flow: story.is_new(),
            direction: story.direction,
            protocol: story.protocol,
            client: story.client,
            frontend: story.frontend,
            backend: story.backend,
            service: story.service.as_deref(),
            source: story.claimed.map(|(source, _)| source),
            destination: story.claimed.map(|(_, destination)| destination),
            translated_source: story.translated.map(|(source, _)| source),
            translated_destination: story.translated.map(|(_, destination)| destination),
            bytes: story.bytes,
        }
    }
}

/// The columns, and how wide each is at least: a line is printed before the next is known.
const HEADINGS: [&str; 11] = [
    "TIME (UTC)",
    "HOOK",
    "INTERFACE",
    "VERDICT",
    "REASON",
    "PROTOCOL",
    "BYTES",
    "CLIENT",
    "FRONTEND",
    "BACKEND",
    "SERVICE",
];
const WIDTHS: [usize; 11] = [15, 7, 9, 7, 18, 8, 5, 21, 21, 21, 0];

fn cells(story: &Story) -> [String; 11] {
    let end = |end: Option<SocketAddr>| end.map(|end| end.to_string()).unwrap_or_default();
    [
        story.time.strftime("%H:%M:%S.%6f").to_string(),
        story.hook.to_owned(),
        story.interface.clone(),
        story.verdict().to_owned(),
        story.reason().to_owned(),
        story.protocol.unwrap_or_default().to_owned(),
        story.bytes.to_string(),
        end(story.client),
        end(story.frontend),
        end(story.backend),
        story.service.clone().unwrap_or_default(),
    ]
}

fn line(cells: [&str; 11]) -> String {
    let mut text = String::new();
    for (cell, width) in cells.iter().zip(WIDTHS) {
        let cell = if cell.is_empty() { "-" } else { cell };
        // Writing to a string does not fail.
        let _ = write!(text, "{cell:width$}  ");
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::watch::story;

    #[test]
    fn an_event_is_a_line() {
        let text = line(cells(&story()).each_ref().map(String::as_str));
        assert_eq!(
            text,
            "00:00:00.000001  xdp      eth0       forward  remote-established  TCP       66     \
             198.51.100.9:4000      192.0.2.1:80           10.0.0.5:8080          default/web\n"
        );
        assert_eq!(line(HEADINGS).find("CLIENT"), text.find("198.51.100.9"));
        assert_eq!(line(HEADINGS).find("SERVICE"), text.find("default/web"));
    }

    #[test]
    fn json_has_both_tuples() {
        let expected = serde_json::json!({
            "time": "2026-01-01T00:00:00.000001Z",
            "hook": "xdp",
            "interface": "eth0",
            "outInterface": "eth1",
            "verdict": "forward",
            "reason": "remote-established",
            "newFlow": false,
            "direction": "request",
            "protocol": "TCP",
            "client": "198.51.100.9:4000",
            "frontend": "192.0.2.1:80",
            "backend": "10.0.0.5:8080",
            "service": "default/web",
            "source": "198.51.100.9:4000",
            "destination": "192.0.2.1:80",
            "translatedSource": "192.0.2.1:50000",
            "translatedDestination": "10.0.0.5:8080",
            "bytes": 66,
        });
        assert_eq!(serde_json::to_value(Shown::of(&story())).expect("JSON"), expected);
    }
}
