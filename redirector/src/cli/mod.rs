//! The commands, one file for each.
//!
//! Reading commands load the pinned maps, make typed rows of them, sort them and print them;
//! only the loading touches the kernel. Data goes to stdout and everything else to stderr.

pub mod audit;
pub mod capture;
pub mod check;
pub mod completions;
pub mod config;
pub mod counters;
pub mod detach;
pub mod explain;
pub mod flow;
pub mod map;
pub mod monitor;
mod parties;
pub mod render;
pub mod run;
pub mod service;
pub mod status;
mod watch;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::dataplane::pinned::{Pinned, PinnedError};
use crate::dataplane::pins::{DEFAULT_DIR, Pins};
use render::Format;

/// Makes published ports of host-network programs real: redirects outside traffic for node:port
/// to local programs and other backends, with XDP and TC programs.
#[derive(Debug, Parser)]
#[command(
    name = "redirector",
    version,
    max_term_width = 100,
    after_help = "Exit codes: 0 done; 1 it failed, with one line that says what and what to do; \
                  2 wrong usage."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent, in the foreground
    Run(Box<run::RunArgs>),
    /// Publish ports until Ctrl-C
    Publish(run::PublishArgs),
    /// Check before installing: kernel, privileges, file systems, interfaces
    Check(check::CheckArgs),
    /// Show whether all is well: agent, interfaces, sync, conflicts, map fill
    Status(status::StatusArgs),
    /// Show services, their frontends and backends
    #[command(subcommand)]
    Service(service::ServiceCommand),
    /// Show and remove flows
    #[command(subcommand)]
    Flow(flow::FlowCommand),
    /// Show packets and bytes by Reason and interface
    Counters(counters::CountersArgs),
    /// Show live what becomes of packets: new flows, drops
    Monitor(Box<monitor::MonitorArgs>),
    /// Write packets into a file, before and after they are translated
    Capture(Box<capture::CaptureArgs>),
    /// Show the raw maps, decoded
    #[command(subcommand)]
    Map(map::MapCommand),
    /// Show ports that pods of a cluster ask for and silently do not get
    Audit(audit::AuditArgs),
    /// Show what would become of a packet, step by step, and why
    Explain(explain::ExplainArgs),
    /// Check configuration files
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Remove programs, pins and changes of kernel settings; leaves nothing
    Detach(detach::DetachArgs),
    /// Print a completion script for a shell
    Completions(completions::CompletionsArgs),
    /// Print the manual page
    Man,
}

/// Where the maps are: options of every command that touches them.
#[derive(Args, Clone, Debug)]
pub struct BpffsArgs {
    /// Directory of the pinned maps and links
    #[arg(
        long,
        value_name = "DIR",
        env = "REDIRECTOR_BPFFS",
        default_value = DEFAULT_DIR
    )]
    pub bpffs: PathBuf,
}

impl BpffsArgs {
    /// The layout under the directory.
    #[must_use]
    pub fn pins(&self) -> Pins {
        Pins::new(&self.bpffs)
    }
}

/// Options of every reading command.
#[derive(Args, Clone, Debug)]
pub struct ReadArgs {
    #[command(flatten)]
    bpffs: BpffsArgs,
    /// How to print
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t)]
    output: Format,
}

impl ReadArgs {
    /// The maps to read.
    ///
    /// # Errors
    ///
    /// If nothing is installed there, or it may not be read.
    pub fn open(&self) -> Result<Pinned, PinnedError> {
        Pinned::open(self.bpffs.pins())
    }
}

/// Runs the program: reads the command line, does what it says, reports what failed.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report(&error),
    }
}

/// Says what failed, and what that means for whoever called us.
fn report(error: &anyhow::Error) -> ExitCode {
    if let Some(usage) = error.downcast_ref::<clap::Error>() {
        usage.exit();
    }
    // Whoever read our output has seen enough of it.
    if is_broken_pipe(error) {
        return ExitCode::SUCCESS;
    }
    render::say(&failure(error));
    ExitCode::FAILURE
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Run(args) => run::run(*args),
        Command::Publish(args) => run::publish(args),
        Command::Check(args) => check::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Service(command) => service::run(&command),
        Command::Flow(command) => flow::run(&command),
        Command::Counters(args) => counters::run(&args),
        Command::Monitor(args) => monitor::run(&args),
        Command::Capture(args) => capture::run(&args),
        Command::Map(command) => map::run(&command),
        Command::Audit(args) => audit::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Config(command) => config::run(&command),
        Command::Detach(args) => detach::run(&args),
        Command::Completions(args) => completions::print_completions(&args),
        Command::Man => completions::print_manual(),
    }
}

/// What failed, in one line: the error and its causes, each said once.
fn failure(error: &anyhow::Error) -> String {
    let mut text = String::from("error");
    for cause in error.chain().map(ToString::to_string) {
        let lines = cause.lines().map(str::trim).filter(|line| !line.is_empty());
        let cause = lines.collect::<Vec<_>>().join("; ");
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_failure_is_one_line() {
        let error = anyhow::anyhow!("line 3\n  found: x\n\n").context("cannot read a.yaml");
        assert_eq!(failure(&error), "error: cannot read a.yaml: line 3; found: x");
    }

    #[test]
    fn a_cause_that_the_error_names_is_not_repeated() {
        let error = anyhow::anyhow!("no such device").context("eth7: no such device");
        assert_eq!(failure(&error), "error: eth7: no such device");
    }

    #[test]
    fn a_reader_that_went_away_is_no_failure() {
        let error = anyhow::Error::new(io::Error::from(io::ErrorKind::BrokenPipe));
        assert!(is_broken_pipe(&error.context("printing")));
    }

    #[test]
    fn wrong_usage_is_code_2() {
        for line in [
            "redirector",
            "redirector nonsense",
            "redirector flow flush",
            "redirector flow flush --all --client 192.0.2.1",
            "redirector flow list --state sleeping",
            "redirector map dump NOTHING",
            "redirector service list -o xml",
            "redirector monitor --reason because",
            "redirector monitor --reason client-local",
            "redirector monitor --sample 0",
            "redirector capture",
            "redirector capture x.pcapng --snaplen 9217",
            "redirector explain icmp 192.0.2.1:1 192.0.2.2:2",
            "redirector explain tcp 192.0.2.1 192.0.2.2:80",
        ] {
            let error = Cli::try_parse_from(line.split(' ')).expect_err(line);
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }
}
