//! Three hosts and the Ethernet between them.

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::Result;

use super::host::Host;
use crate::process;

/// Addresses for documentation: RFC 5737 and RFC 3849.
const fn host(name: &'static str, number: u8) -> Host {
    Host {
        name,
        v4: Ipv4Addr::new(192, 0, 2, number),
        v6: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, number as u16),
    }
}

pub(super) const CLIENT: Host = host("client", 9);
pub(super) const NODE1: Host = host("node1", 1);
pub(super) const NODE2: Host = host("node2", 2);
pub(super) const HOSTS: [Host; 3] = [CLIENT, NODE1, NODE2];

/// The Ethernet switch: a bridge in a namespace of its own, with no address.
const SWITCH: &str = "switch";

/// Makes the switch and the hosts, each with an eth0 on the switch.
pub(super) fn build() -> Result<()> {
    ip(&format!("netns add {SWITCH}"))?;
    ip(&format!("-n {SWITCH} link add br0 type bridge mcast_snooping 0"))?;
    ip(&format!("-n {SWITCH} link set br0 up"))?;
    HOSTS.into_iter().try_for_each(connect)
}

fn connect(host: Host) -> Result<()> {
    let Host { name, v4, v6 } = host;
    ip(&format!("netns add {name}"))?;
    ip(&format!("-n {name} link set lo up"))?;
    ip(&format!("-n {SWITCH} link add {name} type veth peer name eth0 netns {name}"))?;
    ip(&format!("-n {SWITCH} link set {name} master br0 up"))?;
    // A checksum that is left to the "hardware" of a veth is never filled in.
    host.run(&["ethtool", "-K", "eth0", "tx", "off"])?;
    // A veth takes frames from its peer's XDP program only with GRO (or XDP) of its own.
    process::output(
        std::process::Command::new("nsenter")
            .arg(format!("--net=/run/netns/{SWITCH}"))
            .args(["ethtool", "-K", name, "tx", "off", "gro", "on"]),
    )?;
    ip(&format!("-n {name} address add {v4}/24 dev eth0"))?;
    // Nobody else can have the address: there is no need to wait until that is certain.
    ip(&format!("-n {name} address add {v6}/64 dev eth0 nodad"))?;
    ip(&format!("-n {name} link set eth0 up"))
}

fn ip(arguments: &str) -> Result<()> {
    process::output(std::process::Command::new("ip").args(arguments.split_whitespace())).map(drop)
}
