//! `redirector run` and `redirector publish`: the agent, in the foreground.

use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use clap::error::ErrorKind;
use clap::{Args, CommandFactory};
use ipnet::IpNet;

use super::{BpffsArgs, Cli};
use crate::admin::DEFAULT_ADDRESS;
use crate::agent::{self, Ended, Inheritance, KubernetesOptions, Options, Signals};
use crate::config::publish::parse_spec;
use crate::config::{self, XdpMode};
use crate::dataplane::attach::Clients;
use crate::dataplane::lock::Lock;
use crate::k8s::client::Access;
use crate::k8s::convert::NodePortAddresses;

/// Options of `redirector run`.
#[derive(Args, Debug)]
#[command(after_help = "Signals:
  SIGHUP   reads the file again (as does a change of the file)
  SIGTERM  ends the agent; the data path goes on, and 'redirector detach' removes it

Environment:
  REDIRECTOR_PROC_SYS  where kernel settings are, if not /proc/sys (for 'redirector detach', too)

Examples:
  redirector run --config /etc/redirector.yaml
  redirector run --kubernetes --node-name node1
  redirector run --config redirector.yaml --interface eth0 --interface eth1 --xdp-mode native")]
pub struct RunArgs {
    /// The file that says what to publish
    #[arg(long, value_name = "FILE", required_unless_present = "kubernetes")]
    config: Option<PathBuf>,
    #[command(flatten)]
    kubernetes: KubernetesArgs,
    /// Name of this node [default: the host's name]
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
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

/// What the Kubernetes API is asked for.
#[derive(Args, Debug)]
#[command(next_help_heading = "Kubernetes")]
struct KubernetesArgs {
    /// Serve Services and annotated pods of the Kubernetes API, besides those of the file
    #[arg(long)]
    kubernetes: bool,
    /// Where the API server is and who we are [default: the pod's service account]
    #[arg(long, value_name = "FILE", requires = "kubernetes")]
    kubeconfig: Option<PathBuf>,
    /// Namespace of the Leases by which agents know of each other, the same for all of them
    /// [default: the pod's own, or that of the kubeconfig's context]
    #[arg(long, value_name = "NAME", requires = "kubernetes")]
    namespace: Option<String>,
    /// Serve only objects with this label 'service.kubernetes.io/service-proxy-name'
    /// [default: only those without it]
    #[arg(long, value_name = "NAME", requires = "kubernetes")]
    service_proxy_name: Option<String>,
    /// Node addresses of node ports: networks, or 'primary' for those that the Node object names
    /// first [default: all addresses of the interfaces that clients come in by]
    #[arg(
        long,
        value_name = "NETWORKS",
        value_delimiter = ',',
        requires = "kubernetes",
        value_parser = parse_node_addresses
    )]
    nodeport_addresses: Vec<NodeAddressArg>,
    /// Networks that external IPs of Services must be in [default: anywhere]
    #[arg(long, value_name = "NETWORKS", value_delimiter = ',', requires = "kubernetes")]
    external_ip_cidrs: Vec<IpNet>,
    /// Ports that annotations may publish although they are protected or in use
    #[arg(long, value_name = "PORTS", value_delimiter = ',', requires = "kubernetes")]
    allow_ports: Vec<u16>,
    /// Where /healthz and /livez are served as the node's usual proxy does [default: nowhere]
    #[arg(long, value_name = "ADDRESS:PORT", requires = "kubernetes")]
    healthz_address: Option<SocketAddr>,
}

/// One item of `--nodeport-addresses`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NodeAddressArg {
    Primary,
    In(IpNet),
}

fn parse_node_addresses(text: &str) -> Result<NodeAddressArg, String> {
    if text == "primary" {
        return Ok(NodeAddressArg::Primary);
    }
    text.parse()
        .map(NodeAddressArg::In)
        .map_err(|_| "write networks as in 192.0.2.0/24,2001:db8::/32, or primary".to_owned())
}

impl KubernetesArgs {
    fn into_options(self) -> Result<Option<KubernetesOptions>> {
        if !self.kubernetes {
            return Ok(None);
        }
        let networks: Vec<IpNet> = self
            .nodeport_addresses
            .iter()
            .filter_map(|item| match item {
                NodeAddressArg::Primary => None,
                NodeAddressArg::In(network) => Some(*network),
            })
            .collect();
        let node_port_addresses = match self.nodeport_addresses.as_slice() {
            [] => NodePortAddresses::Chosen,
            [NodeAddressArg::Primary] => NodePortAddresses::Primary,
            items if items.len() == networks.len() => NodePortAddresses::In(networks.into()),
            _ => {
                let message = "--nodeport-addresses: write either networks or primary";
                return Err(Cli::command().error(ErrorKind::ValueValidation, message).into());
            }
        };
        Ok(Some(KubernetesOptions {
            access: Access::new(self.kubeconfig).in_namespace(self.namespace),
            service_proxy_name: self.service_proxy_name,
            node_port_addresses,
            external_ip_networks: self.external_ip_cidrs,
            allowed_ports: self.allow_ports.into_iter().collect(),
            healthz_address: self.healthz_address,
        }))
    }
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
    /// Control group whose sockets reach published ports too: a directory on a cgroup2 file system
    /// [default: the root of the one that is mounted, which is every program on this machine]
    #[arg(long, value_name = "DIR", conflicts_with = "no_local_clients")]
    cgroup: Option<PathBuf>,
    /// Do not serve clients on this machine itself, such as 'curl localhost:80'
    #[arg(long, env = "REDIRECTOR_NO_LOCAL_CLIENTS")]
    no_local_clients: bool,
    #[command(flatten)]
    bpffs: BpffsArgs,
}

impl AttachArgs {
    fn clients(&self) -> Clients {
        match &self.cgroup {
            _ if self.no_local_clients => Clients::Nobody,
            Some(dir) => Clients::Within(dir.clone()),
            None => Clients::Everybody,
        }
    }
}

/// Runs the agent until a signal ends it.
///
/// # Errors
///
/// Whatever else ended it.
pub fn run(args: RunArgs) -> Result<()> {
    let kubernetes = args.kubernetes.into_options()?;
    start(Options {
        config: args.config,
        publish: Vec::new(),
        clients: args.attach.clients(),
        interfaces: args.attach.interface,
        xdp_mode: args.attach.xdp_mode,
        pins: args.attach.bpffs.pins(),
        admin_address: Some(args.admin_address),
        node_name: args.node_name,
        detach_on_exit: args.detach_on_exit,
        kubernetes,
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
        clients: args.attach.clients(),
        interfaces: args.attach.interface,
        xdp_mode: args.attach.xdp_mode,
        pins: args.attach.bpffs.pins(),
        // Nobody scrapes what lasts until Ctrl-C, and the address may be in use.
        admin_address: None,
        node_name: None,
        detach_on_exit: true,
        kubernetes: None,
    })
}

fn start(options: Options) -> Result<()> {
    let signals = Signals::hold().context("cannot listen for signals")?;
    let inheritance = Inheritance { signals, lock: Lock::inherited() };
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start threads")?
        .block_on(agent::run(options, inheritance))
        .and_then(|ended| match ended {
            Ended::Stopped => Ok(()),
            Ended::ToBeginAnew(lock) => Err(begin_anew(&lock)),
        })
}

/// The same program with the same arguments, as the same process. Returns only if that fails.
fn begin_anew(lock: &Lock) -> anyhow::Error {
    let mut arguments = std::env::args_os();
    let mut command = Command::new("/proc/self/exe");
    if let Err(error) = lock.bequeath(&mut command) {
        return anyhow::Error::new(error).context("cannot begin anew");
    }
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    anyhow::Error::new(command.args(arguments).exec()).context("cannot begin anew")
}

fn check_spec(spec: &str) -> Result<String, String> {
    match parse_spec(spec) {
        Ok(_) => Ok(spec.to_owned()),
        Err(error) => Err(error.message),
    }
}
