//! Three hosts and the links between them.
//!
//! ```text
//! client eth0 ── eth0 node1 eth1 ── eth0 node2
//! ```

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::Result;

use super::host::Host;
use crate::process;

pub(super) const CLIENT: Host = Host { name: "client" };
pub(super) const NODE1: Host = Host { name: "node1" };
pub(super) const NODE2: Host = Host { name: "node2" };
pub(super) const HOSTS: [Host; 3] = [CLIENT, NODE1, NODE2];

/// An end of a link: an interface of a host, with an address of each family.
#[derive(Clone, Copy, Debug)]
pub(super) struct End {
    pub(super) host: Host,
    interface: &'static str,
    pub(super) v4: Ipv4Addr,
    pub(super) v6: Ipv6Addr,
}

/// Addresses for documentation: RFC 5737 and RFC 3849.
const fn outside(host: Host, interface: &'static str, number: u8) -> End {
    let v4 = Ipv4Addr::new(198, 51, 100, number);
    let v6 = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, number as u16);
    End { host, interface, v4, v6 }
}

const fn inside(host: Host, interface: &'static str, number: u8) -> End {
    let v4 = Ipv4Addr::new(192, 0, 2, number);
    let v6 = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, number as u16);
    End { host, interface, v4, v6 }
}

pub(super) const CLIENT_END: End = outside(CLIENT, "eth0", 9);
pub(super) const NODE1_OUTSIDE: End = outside(NODE1, "eth0", 1);
pub(super) const NODE1_INSIDE: End = inside(NODE1, "eth1", 1);
pub(super) const NODE2_END: End = inside(NODE2, "eth0", 2);
pub(super) const ENDS: [End; 4] = [CLIENT_END, NODE1_OUTSIDE, NODE1_INSIDE, NODE2_END];

/// Makes the hosts and the links.
pub(super) fn build() -> Result<()> {
    for Host { name } in HOSTS {
        ip(&format!("netns add {name}"))?;
        ip(&format!("-n {name} link set lo up"))?;
    }
    link(CLIENT_END, NODE1_OUTSIDE)?;
    link(NODE1_INSIDE, NODE2_END)
}

/// Joins two hosts by a pair of veth devices.
fn link(one: End, other: End) -> Result<()> {
    ip(&format!(
        "link add {} netns {} type veth peer name {} netns {}",
        one.interface, one.host.name, other.interface, other.host.name
    ))?;
    [one, other].into_iter().try_for_each(configure)
}

fn configure(End { host, interface, v4, v6 }: End) -> Result<()> {
    let name = host.name;
    // XDP leaves packets to TC whose checksums are left to "hardware". And a veth takes frames from
    // the XDP programs of its peer only with GRO (or XDP) of its own.
    host.run(&["ethtool", "-K", interface, "tx", "off", "gro", "on"])?;
    ip(&format!("-n {name} address add {v4}/24 dev {interface}"))?;
    // Nobody else can have the address: there is no need to wait until that is certain.
    ip(&format!("-n {name} address add {v6}/64 dev {interface} nodad"))?;
    ip(&format!("-n {name} link set {interface} up"))
}

fn ip(arguments: &str) -> Result<()> {
    process::output(std::process::Command::new("ip").args(arguments.split_whitespace())).map(drop)
}
