//! The host on which everything plays: a network namespace that ends with the process.
//!
//! ```text
//! clients ── router A ── eth0 [node] eth1 ── router B ── backends
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use anyhow::{Context as _, Result};
use nix::sched::{CloneFlags, unshare};
use redirector_common::Family;
use redirector_tests::namespace::run;

/// An address in both families.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Both {
    v4: Ipv4Addr,
    v6: Ipv6Addr,
}

impl Both {
    /// Addresses of RFC 2544 and RFC 3849.
    const fn new(second: u8, third: u8, last: u8) -> Self {
        let net = (second as u16) << 8 | third as u16;
        Self {
            v4: Ipv4Addr::new(198, second, third, last),
            v6: Ipv6Addr::new(0x2001, 0xdb8, net, 0, 0, 0, 0, last as u16),
        }
    }

    pub(crate) const fn of(self, family: Family) -> IpAddr {
        match family {
            Family::V4 => IpAddr::V4(self.v4),
            Family::V6 => IpAddr::V6(self.v6),
        }
    }
}

/// The first client's network; clients differ in the low half of their addresses.
pub(crate) const CLIENTS: Both = Both::new(19, 0, 0);
/// The node, where clients see it.
pub(crate) const NODE: Both = Both::new(18, 1, 1);
/// The node, where backends see it.
pub(crate) const NODE_INSIDE: Both = Both::new(18, 2, 1);
/// The router in front of backends: a node that runs redirector, too.
pub(crate) const NEXT: Both = Both::new(18, 2, 2);
/// The first backend; backends differ in the low half of their addresses.
pub(crate) const BACKENDS: Both = Both::new(20, 0, 0);
/// Hardware addresses: the node's on `eth0`, on `eth1`, router A's, router B's.
pub(crate) const NODE_MAC: [u8; 6] = [2, 0, 0, 0, 1, 1];
pub(crate) const INSIDE_MAC: [u8; 6] = [2, 0, 0, 0, 2, 1];
pub(crate) const ROUTER_A: [u8; 6] = [2, 0, 0, 0, 1, 2];
pub(crate) const ROUTER_B: [u8; 6] = [2, 0, 0, 0, 2, 2];

/// Devices that are not those of a cable to another host.
const DEVICES: &str = "
    link set lo up
    link add eth0 address 02:00:00:00:01:01 type veth peer name peer0
    link add eth1 address 02:00:00:00:02:01 type veth peer name peer1
    link set peer0 up
    link set peer1 up";

/// The node's addresses and routes, once it has its two devices.
pub(crate) const SETTINGS: &str = "
    link set eth0 up
    link set eth1 up
    address add 198.18.1.1/24 dev eth0
    address add 198.18.2.1/24 dev eth1
    address add 2001:db8:1201::1/64 dev eth0 nodad
    address add 2001:db8:1202::1/64 dev eth1 nodad
    neighbour add 198.18.1.2 lladdr 02:00:00:00:01:02 dev eth0 nud permanent
    neighbour add 198.18.2.2 lladdr 02:00:00:00:02:02 dev eth1 nud permanent
    neighbour add 2001:db8:1201::2 lladdr 02:00:00:00:01:02 dev eth0 nud permanent
    neighbour add 2001:db8:1202::2 lladdr 02:00:00:00:02:02 dev eth1 nud permanent
    route add 198.19.0.0/16 via 198.18.1.2
    route add 198.20.0.0/16 via 198.18.2.2
    route add 2001:db8:1300::/48 via 2001:db8:1201::2
    route add 2001:db8:1400::/48 via 2001:db8:1202::2";

/// Route look-ups begin at the loopback device, as the agent sets it up.
pub(crate) const LOOKUPS: [&str; 2] =
    ["net/ipv4/conf/lo/forwarding", "net/ipv6/conf/lo/forwarding"];

/// Moves this thread, and what it starts, onto the node.
pub(crate) fn enter() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
    for line in DEVICES.lines().chain(SETTINGS.lines()).filter(|line| !line.is_empty()) {
        run("ip", line.split_whitespace())?;
    }
    for setting in LOOKUPS {
        let path = Path::new("/proc/sys").join(setting);
        std::fs::write(&path, "1").with_context(|| format!("cannot write {path:?}"))?;
    }
    Ok(())
}

/// Index of an interface of the node.
pub(crate) fn ifindex(name: &str) -> Result<u32> {
    nix::net::if_::if_nametoindex(name).with_context(|| format!("no interface {name}"))
}
