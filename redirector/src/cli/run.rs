//! `redirector run` and `redirector publish`: the agent, in the foreground.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::error::ErrorKind;
use clap::{Args, CommandFactory};

use super::{BpffsArgs, Cli};
use crate::admin::DEFAULT_ADDRESS;
use crate::agent::{self, Options};
use crate::config::publish::parse_spec;
use crate::config::{self, XdpMode};

/// Options of `redirector run`.
#[derive(Args, Debug)]
#[command(after_help = "Signals:
  SIGHUP   reads the file again (as does a change of the file)
  SIGTERM  ends the agent; the data path goes on, and 'redirector detach' removes it

Environment:
  REDIRECTOR_PROC_SYS  where kernel settings are, if not /proc/sys (for 'redirector detach', too)

Examples:
  redirector run --config /etc/redirector.yaml
  redirector run --config redirector.yaml --interface eth0 --interface eth1 --xdp-mode native")]
pub struct RunArgs {
    /// The file that says what to publish
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Name of this node [default: the host's name]
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
    #[command(flatten)]
    attach: AttachArgs,
    /// Where /livez, /readyz and /metrics are served
    #[arg(long, value_name = "ADDRESS:PORT", default_value = DEFAULT_ADDRESS)]
    admin_address: SocketAddr,
    /// Remove the data path when the agent ends
    #[arg(long)]
    detach_on_exit: bool,
}

/// Options of `redirector publish`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  redirector publish 80:8080
  redirector publish 53:5353/udp 192.0.2.10:443:8443 9000-9010:19000-19010")]
pub struct PublishArgs {
    #[arg(
        required = true,
        value_name = "SPEC",
        value_parser = check_spec,
        help = "What to publish, as for 'docker run -p': [ADDRESS:]PORT:LOCALPORT[/PROTOCOL]"
    )]
    specs: Vec<String>,
    #[command(flatten)]
    attach: AttachArgs,
}

/// Where and how programs are attached.
#[derive(Args, Debug)]
struct AttachArgs {
    /// Interface that clients come in by; may be given several times
    /// [default: those of the file, else every one with a default route]
    #[arg(long, value_name = "INTERFACE")]
    interface: Vec<String>,
    /// How XDP is attached [default: as the file says, else auto]
    #[arg(long, value_enum, value_name = "MODE")]
    xdp_mode: Option<XdpMode>,
    #[command(flatten)]
    bpffs: BpffsArgs,
}

/// Runs the agent until a signal ends it.
///
/// # Errors
///
/// Whatever else ended it.
pub fn run(args: RunArgs) -> Result<()> {
    start(Options {
        config: Some(args.config),
        publish: Vec::new(),
        interfaces: args.attach.interface,
        xdp_mode: args.attach.xdp_mode,
        pins: args.attach.bpffs.pins(),
        admin_address: Some(args.admin_address),
        node_name: args.node_name,
        detach_on_exit: args.detach_on_exit,
    })
}

/// Publishes ports until a signal ends it, and then removes everything.
///
/// # Errors
///
/// If ports are claimed twice, or whatever ended it other than a signal.
pub fn publish(args: PublishArgs) -> Result<()> {
    let config = config::from_arguments(&args.specs)
        .map_err(|error| Cli::command().error(ErrorKind::ValueValidation, error))?;
    start(Options {
        config: None,
        publish: config.services,
        interfaces: args.attach.interface,
        xdp_mode: args.attach.xdp_mode,
        pins: args.attach.bpffs.pins(),
        // Nobody scrapes what lasts until Ctrl-C, and the address may be in use.
        admin_address: None,
        node_name: None,
        detach_on_exit: true,
    })
}

fn start(options: Options) -> Result<()> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start threads")?
        .block_on(agent::run(options))
}

fn check_spec(spec: &str) -> Result<String, String> {
    match parse_spec(spec) {
        Ok(_) => Ok(spec.to_owned()),
        Err(error) => Err(error.message),
    }
}
