//! `redirector capture`: packets into a file, before and after translation.

mod comment;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, BufWriter, ErrorKind, IsTerminal, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::pcapng::blocks::section_header::{SectionHeaderBlock, SectionHeaderOption};
use pcap_file::{DataLink, Endianness, PcapError};
use redirector_common::event::{MAX_SNAP, Phase};
use redirector_common::{Event, Watch};

use super::BpffsArgs;
use super::render;
use super::watch::{Listener, Story, Teller, Usual, WatchArgs, follow};
use crate::dataplane::pinned::Pinned;
use comment::comment;

/// Options of `redirector capture`.
#[derive(Args, Debug)]
#[command(
    long_about = "Write packets into a pcapng file, before and after they are translated, each with \
        the verdict on it as a comment: everything of flows and frontends, unless something else is \
        asked for. Ends with Ctrl-C.\n\nPackets that XDP handles are seen by no other tool of this \
        machine. As with tcpdump, checksums that a network card is to fill in are not there yet. A \
        packet that came in a tunnel of another node is written without it; at most 9216 bytes of \
        each packet are. Only one can watch at a time.",
    after_help = "Examples:
  redirector capture web.pcapng --service web --duration 10
  redirector capture drops.pcapng --drops
  redirector capture - --client 198.51.100.7 | tcpdump -n -r -
  redirector capture - | wireshark -k -i -"
)]
pub struct CaptureArgs {
    /// The file; '-' is stdout
    file: PathBuf,
    /// Overwrite the file if it is there
    #[arg(long)]
    force: bool,
    /// Bytes of each packet to keep
    #[arg(
        long,
        value_name = "BYTES",
        default_value_t = MAX_SNAP,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_SNAP))
    )]
    snaplen: u32,
    #[command(flatten)]
    watch: WatchArgs,
    #[command(flatten)]
    bpffs: BpffsArgs,
}

impl CaptureArgs {
    fn to_stdout(&self) -> bool {
        self.file == Path::new("-")
    }
}

/// Runs the command.
///
/// # Errors
///
/// If nothing can be watched, or the file cannot be written.
pub fn run(args: &CaptureArgs) -> Result<()> {
    let stdout = io::stdout();
    if args.to_stdout() && stdout.is_terminal() {
        bail!("a capture is no text for a terminal: name a file, or pipe it: … | tcpdump -r -");
    }
    let maps = Pinned::open(args.bpffs.pins())?;
    let wish = Watch { snap: args.snaplen, ..args.watch.wish(&maps, Usual::Ours)? };
    let mut capture = Capture::new(args, Teller::new(&maps)?);
    let reader = args.to_stdout().then(|| stdout.as_fd());
    follow(&maps, wish, args.watch.limits(), reader, &mut capture)?;
    let plural = if capture.packets == 1 { "" } else { "s" };
    render::say(&format!("{} packet{plural} captured", capture.packets));
    Ok(())
}

/// What is being written.
struct Capture<'a> {
    args: &'a CaptureArgs,
    teller: Teller,
    output: Option<Output>,
    /// Their numbers in the file.
    interfaces: BTreeMap<String, u32>,
    packets: u64,
}

type Output = PcapNgWriter<BufWriter<Box<dyn Write>>>;

impl<'a> Capture<'a> {
    fn new(args: &'a CaptureArgs, teller: Teller) -> Self {
        Self { args, teller, output: None, interfaces: BTreeMap::new(), packets: 0 }
    }

    fn output(&mut self) -> Result<&mut Output> {
        self.output.as_mut().ok_or_else(|| anyhow!("the capture has not begun"))
    }

    /// The number of the interface that the packet is on at this moment.
    fn interface(&mut self, story: &Story) -> Result<u32> {
        let name = match (&story.phase, &story.out_interface) {
            (Phase::After, Some(name)) => name,
            (Phase::After | Phase::Before | Phase::Only, _) => &story.interface,
        };
        if let Some(number) = self.interfaces.get(name) {
            return Ok(*number);
        }
        let number = u32::try_from(self.interfaces.len())?;
        let block = InterfaceDescriptionBlock {
            linktype: DataLink::ETHERNET,
            snaplen: self.args.snaplen,
            options: vec![
                InterfaceDescriptionOption::IfName(Cow::Borrowed(name)),
                InterfaceDescriptionOption::IfTsResol(NANOSECONDS),
            ],
        };
        self.interfaces.insert(name.clone(), number);
        written(self.output()?.write_pcapng_block(block))?;
        Ok(number)
    }
}

/// Of times in the file: a power of ten.
const NANOSECONDS: u8 = 9;

impl Listener for Capture<'_> {
    fn begin(&mut self) -> Result<()> {
        let file = open(self.args)?;
        let section = SectionHeaderBlock {
            endianness: Endianness::native(),
            options: vec![SectionHeaderOption::UserApplication(Cow::Borrowed(concat!(
                "redirector ",
                env!("CARGO_PKG_VERSION")
            )))],
            ..SectionHeaderBlock::default()
        };
        let output = PcapNgWriter::with_section_header(BufWriter::new(file), section);
        self.output = Some(written(output)?);
        self.rest()
    }

    fn hear(&mut self, event: &Event, bytes: &[u8]) -> Result<()> {
        let story = self.teller.tell(event);
        let interface_id = self.interface(&story)?;
        let block = EnhancedPacketBlock {
            interface_id,
            timestamp: Duration::from_nanos(u64::try_from(story.time.as_nanosecond())?),
            original_len: event.len,
            data: Cow::Borrowed(bytes),
            options: vec![
                EnhancedPacketOption::Comment(Cow::Owned(comment(&story))),
                EnhancedPacketOption::Flags(direction(&story)),
            ],
        };
        written(self.output()?.write_pcapng_block(block))?;
        self.packets += u64::from(story.phase != Phase::Before);
        Ok(())
    }

    fn rest(&mut self) -> Result<()> {
        self.teller.set_clock()?;
        self.output()?.get_mut().flush().context("cannot write the capture")
    }
}

/// Whether the packet comes in or goes out, as an Enhanced Packet Block has it.
fn direction(story: &Story) -> u32 {
    const INBOUND: u32 = 1;
    const OUTBOUND: u32 = 2;
    let leaves = story.phase == Phase::After && story.out_interface.is_some();
    if leaves || story.hook == "egress" { OUTBOUND } else { INBOUND }
}

/// As those make it who capture with Wireshark: for its owner alone.
fn open(args: &CaptureArgs) -> Result<Box<dyn Write>> {
    if args.to_stdout() {
        return Ok(Box::new(io::stdout()));
    }
    let mut options = OpenOptions::new();
    options.write(true).mode(0o600);
    if args.force {
        options.create(true).truncate(true);
    } else {
        options.create_new(true);
    }
    let name = args.file.display();
    match options.open(&args.file) {
        Ok(file) => Ok(Box::new(file)),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            bail!("{name} is there already: name another file, or give --force to overwrite it")
        }
        Err(error) => Err(error).with_context(|| format!("cannot make {name}")),
    }
}

/// A reader that went away is to be found among the causes.
fn written<T>(result: Result<T, PcapError>) -> Result<T> {
    match result {
        Err(PcapError::IoError(error)) => Err(error).context("cannot write the capture"),
        other => Ok(other?),
    }
}
