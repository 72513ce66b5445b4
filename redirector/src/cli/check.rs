//! `redirector check`: whether the data path can be had on this host, and how good it will be.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;

use super::BpffsArgs;
use super::render::{self, Format, columns};
use crate::dataplane::attach::{self, check_cgroup, find_interfaces, find_root};
use crate::dataplane::direct::TunnelMtu;
use crate::dataplane::netlink::{self, Host, Interface};
use crate::dataplane::pins::Pins;
use crate::dataplane::prerequisites::{self, KernelVersion, TCX_KERNEL};
use crate::dataplane::{ethtool, netdev};

/// Largest packet that every driver with XDP takes in one buffer.
const ONE_BUFFER: u32 = 3498;

/// Options of `redirector check`.
#[derive(Args, Debug)]
#[command(after_help = "Exit codes: 0 the data path can be had; 1 it cannot.

Examples:
  redirector check
  redirector check --interface eth0 -o json | jq .interfaces")]
pub struct CheckArgs {
    /// Interface to look at; may be given several times [default: every one with a default route]
    #[arg(long, value_name = "INTERFACE")]
    interface: Vec<String>,
    /// Control group for clients on this machine [default: the root of the cgroup2 mount]
    #[arg(long, value_name = "DIR")]
    cgroup: Option<PathBuf>,
    #[command(flatten)]
    bpffs: BpffsArgs,
    /// How to print
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t)]
    output: Format,
}

/// What was found; the JSON of the command.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    ok: bool,
    checks: Vec<Check>,
    interfaces: Vec<InterfaceReport>,
}

#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    state: State,
    detail: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Ok,
    /// The data path works without.
    Missing,
    Failed,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct InterfaceReport {
    name: String,
    driver: String,
    mtu: u32,
    /// What is left of it for packets that are handed over to other nodes by tunnel.
    tunnel_mtu: TunnelMtu,
    receive_queues: Option<u32>,
    send_queues: Option<u32>,
    offloads: Vec<&'static str>,
    /// `native`, `generic`, `off`, or `unknown` where only trying tells.
    xdp: &'static str,
    /// Why, or what to know of it.
    note: String,
    ok: bool,
}

/// Runs the command.
///
/// # Errors
///
/// If the data path cannot be had here.
pub fn run(args: &CheckArgs) -> Result<()> {
    let host = read_host()?;
    let mut checks = check_host(&args.bpffs.pins(), args.cgroup.as_deref());
    let interfaces = check_interfaces(&host, &args.interface, &mut checks)?;
    let ok = checks.iter().all(|check| check.state != State::Failed)
        && interfaces.iter().all(|interface| interface.ok);
    let report = Report { ok, checks, interfaces };
    render::print_document(args.output, &report, || describe(&report))?;
    if ok { Ok(()) } else { bail!("the data path cannot be had here: see above") }
}

fn read_host() -> Result<Host> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("cannot start a thread")?.block_on(async {
        let (connection, netlink, _) = netlink::connect()?;
        let connection = tokio::spawn(connection);
        let host = netlink.read().await;
        connection.abort();
        Ok(host?)
    })
}

fn check_host(pins: &Pins, cgroup: Option<&Path>) -> Vec<Check> {
    let check = |name, outcome: Result<String, String>, otherwise| match outcome {
        Ok(detail) => Check { name, state: State::Ok, detail },
        Err(detail) => Check { name, state: otherwise, detail },
    };
    let kernel = KernelVersion::running().and_then(prerequisites::check_kernel);
    let kernel = kernel.map_err(|error| error.to_string()).map(|kernel| {
        let tc = if kernel >= TCX_KERNEL { "tcx links" } else { "clsact filters" };
        format!("{kernel}; TC programs as {tc}")
    });
    let privileges = prerequisites::check_own_privileges();
    let privileges = privileges.map_err(|error| error.to_string()).map(|()| "enough".to_owned());
    let bpffs = prerequisites::check_bpffs(pins).map_err(|error| error.to_string());
    let dir = cgroup.map_or_else(find_root, |dir| Ok(dir.to_owned()));
    let clients = dir.and_then(|dir| check_cgroup(&dir).map(|()| dir.display().to_string()));
    // What is named must be there; without a default, only clients on this machine go without.
    let otherwise = if cgroup.is_some() { State::Failed } else { State::Missing };
    vec![
        check("kernel", kernel, State::Failed),
        check("privileges", privileges, State::Failed),
        check("bpffs", bpffs.map(|()| pins.dir().display().to_string()), State::Failed),
        check("cgroup2", clients.map_err(|error| error.to_string()), otherwise),
    ]
}

fn check_interfaces(
    host: &Host,
    asked: &[String],
    checks: &mut Vec<Check>,
) -> Result<Vec<InterfaceReport>> {
    let found = if asked.is_empty() {
        host.external().collect()
    } else {
        match find_interfaces(host, asked) {
            Ok(found) => found,
            Err(error) => {
                let detail = error.to_string();
                checks.push(Check { name: "interfaces", state: State::Failed, detail });
                return Ok(Vec::new());
            }
        }
    };
    if found.is_empty() {
        let detail = "none has a default route: name some with --interface".to_owned();
        checks.push(Check { name: "interfaces", state: State::Failed, detail });
    }
    let features = netdev::read_xdp_features().context("cannot ask for XDP features")?;
    let features_of = |interface: &Interface| {
        let features = features.as_ref()?;
        Some(features.get(&interface.index).copied().unwrap_or_default())
    };
    Ok(found.into_iter().map(|interface| look_at(interface, features_of(interface))).collect())
}

fn look_at(interface: &Interface, features: Option<netdev::XdpFeatures>) -> InterfaceReport {
    let driver = ethtool::read(&interface.name).unwrap_or_default();
    let (xdp, mut note) = expect_xdp(features, driver.mtu);
    if let Some(program) = interface.xdp {
        let form = if program.is_generic { "generic" } else { "native" };
        note = format!("{note}; has {form} XDP program {} now", program.id);
    }
    let unsuitable = attach::check(interface).err();
    let ok = unsuitable.is_none();
    InterfaceReport {
        name: interface.name.clone(),
        driver: driver.name,
        mtu: driver.mtu,
        tunnel_mtu: TunnelMtu::of(driver.mtu),
        receive_queues: driver.receive_queues,
        send_queues: driver.send_queues,
        offloads: driver.offloads,
        xdp: if ok { xdp } else { "off" },
        note: unsuitable.map_or(note, |error| error.to_string()),
        ok,
    }
}

/// The mode that `auto` gets, and why.
fn expect_xdp(features: Option<netdev::XdpFeatures>, mtu: u32) -> (&'static str, String) {
    let Some(features) = features else {
        return ("unknown", "kernels before 6.3 don't tell what drivers can: trying tells".into());
    };
    if !features.has_xdp() {
        return ("generic", "the driver has no XDP of its own".to_owned());
    }
    if mtu > ONE_BUFFER && !features.has_fragments() {
        let why = format!("the driver takes no packets in several buffers, and the MTU is {mtu}");
        return ("generic", why);
    }
    let sends = if features.has_transmit() {
        "the driver receives and sends by XDP"
    } else {
        "the driver receives by XDP; what is to leave here is sent by TC"
    };
    ("native", sends.to_owned())
}

fn describe(report: &Report) -> String {
    let mut text = columns(
        &["CHECK", "STATE", "DETAIL"],
        report.checks.iter().map(|check| {
            vec![check.name.to_owned(), render::word(&check.state), check.detail.clone()]
        }),
    );
    if report.interfaces.is_empty() {
        return text;
    }
    let queues = |number: Option<u32>| number.map_or("?".to_owned(), |it| it.to_string());
    text.push('\n');
    text.push_str(&columns(
        &["INTERFACE", "DRIVER", ">MTU", ">TUNNELLED", ">QUEUES", "OFFLOADS", "XDP", "NOTE"],
        report.interfaces.iter().map(|it| {
            vec![
                it.name.clone(),
                it.driver.clone(),
                it.mtu.to_string(),
                format!("{}/{}", it.tunnel_mtu.ipv4, it.tunnel_mtu.ipv6),
                format!("{}/{}", queues(it.receive_queues), queues(it.send_queues)),
                it.offloads.join(","),
                it.xdp.to_owned(),
                it.note.clone(),
            ]
        }),
    ));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::netdev::XdpFeatures;

    #[test]
    fn the_mode_is_what_driver_and_mtu_allow() {
        let cases = [
            (None, 1500, "unknown"),
            (Some(0), 1500, "generic"),
            (Some(1), 1500, "native"),
            (Some(1 | 4), 1500, "native"),
            (Some(1 | 4), 9000, "generic"),
            (Some(1 | 4 | 32), 9000, "native"),
        ];
        for (bits, mtu, mode) in cases {
            let (found, _) = expect_xdp(bits.map(XdpFeatures), mtu);
            assert_eq!(found, mode, "{bits:?} with {mtu}");
        }
    }

    #[test]
    fn a_directory_that_is_no_cgroup_fails_where_it_was_asked_for() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let checks = check_host(&Pins::new(dir.path().join("pins")), Some(dir.path()));
        let state = |name| checks.iter().find(|it| it.name == name).map(|it| it.state);
        assert_eq!(state("cgroup2"), Some(State::Failed));
        assert_eq!(state("bpffs"), Some(State::Failed));
    }
}
