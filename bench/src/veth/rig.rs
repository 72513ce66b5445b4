//! Three hosts in a row, and what runs on them.
//!
//! ```text
//! client eth0 ── eth0 node eth1 ── eth0 server
//! ```
//!
//! The client's end generates live frames and counts what comes back, the server's end counts what
//! arrives. Each way of forwarding has three hosts of its own, so that none finds rules or tables of
//! another in its way.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use aya::maps::Array;
use aya::programs::{SchedClassifier, Xdp};
use aya::{Ebpf, Pod};
use redirector_common::{Family, Protocol};
use redirector_tests::namespace::{Namespace, run};
use redirector_tests::test_run;
use redirector_tests::topology::make_router;

use crate::forward;
use crate::frame::{Frame, addressed};
use crate::harness::Packets;
use crate::layout::{CAPTURE, ECHO, End, Plan, Seen, Target};
use crate::node::{
    BACKENDS, CLIENTS, INSIDE_MAC, LOOKUPS, NODE, NODE_INSIDE, NODE_MAC, ROUTER_A, ROUTER_B,
    SETTINGS,
};
use crate::ours::{BACKEND_PORT, FAMILIES, Ours};
use crate::rules::{Mode, Services};
use crate::steer::attach;
use crate::veth::subject::Path;

// SAFETY: `repr(C)`, without padding, valid for every bit pattern.
unsafe impl Pod for End {}
// SAFETY: as above.
unsafe impl Pod for Seen {}

/// How long the last packets may take.
const LATE: Duration = Duration::from_secs(2);
/// Rows of the map of ends.
const SERVER: u32 = 0;
const CLIENT: u32 = 1;

pub(crate) struct Rig {
    path: Path,
    client: Namespace,
    pub(crate) node: Namespace,
    server: Namespace,
    ebpf: Ebpf,
    pub(crate) ours: Option<Ours>,
    ifindex: u32,
}

/// What came of sending packets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    /// Of the processor, for each packet that arrived.
    pub(crate) ns: f64,
    /// Packets that arrived as they should.
    pub(crate) arrived: u64,
    /// Packets that came back as they should.
    pub(crate) returned: u64,
    /// Last bytes of the addresses at which they arrived.
    pub(crate) backends: usize,
}

impl Rig {
    /// Sets it up for so many flows of a family.
    pub(crate) fn new(path: Path, flows: u32, endpoints: u32) -> Result<Self> {
        let client = Namespace::new("client")?;
        let node = Namespace::new("node")?;
        let server = Namespace::new("server")?;
        wire(path, &client, &node, &server)?;
        let mut ebpf = forward::load()?;
        let ifindex = client.ifindex("eth0")?;
        client.enter(|| forward::attach(&mut ebpf, "l_client", "eth0"))?;
        server.enter(|| {
            if path.makes_skbs() {
                attach_tc(&mut ebpf, "l_server_tc", "eth0")
            } else {
                forward::attach(&mut ebpf, "l_server", "eth0")
            }
        })?;
        let mut target: Array<_, Target> =
            ebpf.map_mut("TARGET").context("no TARGET")?.try_into()?;
        target.set(0, Target { source: 0, destination: 0, ports: 0, ifindex }, 0)?;
        let mut rig = Self { path, client, node, server, ebpf, ours: None, ifindex };
        rig.set_path(flows, endpoints)?;
        Ok(rig)
    }

    /// What forwards on the node.
    fn set_path(&mut self, flows: u32, endpoints: u32) -> Result<()> {
        match self.path {
            Path::Ends => Ok(()),
            Path::Redirect => {
                forward::through(&mut self.ebpf, (&self.client, &self.node, &self.server))
            }
            Path::Redirector(services) => {
                for setting in LOOKUPS {
                    self.node.set_sysctl(setting, "1")?;
                }
                // Half of the flows that there is room for may be unanswered.
                let halves = 8 * flows.max(1024);
                let ours = self.node.enter(|| {
                    let mut ours = Ours::load(halves, services)?;
                    ours.attach(&["eth0", "eth1"])?;
                    Ok(ours)
                })?;
                self.ours = Some(ours);
                Ok(())
            }
            Path::Kernel => make_router(&self.node),
            Path::Nftables(services) => self.load_rules(Mode::Nftables, services, endpoints),
            Path::Iptables(services) => self.load_rules(Mode::Iptables, services, endpoints),
        }
    }

    fn load_rules(&self, mode: Mode, services: u32, endpoints: u32) -> Result<()> {
        make_router(&self.node)?;
        for family in FAMILIES {
            let endpoints = (0..services).map(|service| {
                (0..endpoints)
                    .map(|i| {
                        let number = service * endpoints + i;
                        let address = crate::ours::backend_address(family, number);
                        SocketAddr::new(address, BACKEND_PORT)
                    })
                    .collect()
            });
            let services = Services {
                protocol: Protocol::Udp,
                node: NODE.of(family),
                first_port: crate::layout::FIRST_PORT,
                endpoints: endpoints.collect(),
            };
            services.load(mode, &self.node)?;
        }
        Ok(())
    }

    /// Takes away what forwards, so that checks have something to notice.
    pub(crate) fn spoil(&mut self) -> Result<()> {
        self.node.ip("link set eth1 down").map(drop)
    }

    /// Forgets all flows.
    pub(crate) fn forget(&mut self) -> Result<()> {
        match (&mut self.ours, self.path.tracks()) {
            (Some(ours), _) => ours.clear_flows().map(drop),
            (None, true) => crate::conntrack::flush(&self.node),
            (None, false) => Ok(()),
        }
    }

    /// Sends packets, one of each flow after the other.
    pub(crate) fn send(&mut self, packets: &Packets, count: u32, flags: u32) -> Result<Sent> {
        let family = if packets.first.source.is_ipv4() { Family::V4 } else { Family::V6 };
        self.expect(family, flags)?;
        self.array::<Plan>("PLAN")?.set(0, packets.plan()?, 0)?;
        let data = packets.of_flow(0).bytes()?;
        let late = softirq_daemon_ns()?;
        let program: &Xdp = self.ebpf.program("l_generate").context("no l_generate")?.try_into()?;
        let ifindex = self.ifindex;
        let each = self.client.enter(|| test_run::send_live(program, &data, ifindex, count))?;
        let seen = self.settle(u64::from(count), flags & ECHO != 0)?;
        // What the last packets needed after the generator was done.
        let late = softirq_daemon_ns()? - late;
        let arrived = seen[0].right.iter().sum();
        let total = each.as_secs_f64() * 1e9 * f64::from(count) + late;
        ensure!(seen[0].wrong == 0, "{} packets to a wrong address or port", seen[0].wrong);
        Ok(Sent {
            ns: total / arrived as f64,
            arrived,
            returned: seen[1].right.iter().sum(),
            backends: seen[0].right.iter().filter(|count| **count > 0).count(),
        })
    }

    /// What the ends are to see; nothing has been seen yet.
    fn expect(&mut self, family: Family, flags: u32) -> Result<()> {
        let (address, first_port, ports) = (BACKENDS.of(family), u32::from(BACKEND_PORT), 1);
        let low_half = !u32::from(u16::MAX).to_be();
        let server = End {
            address: address_words(address),
            // Backends differ in the low half.
            mask: [u32::MAX, u32::MAX, u32::MAX, low_half],
            first_port,
            ports,
            at_source: 0,
            flags,
        };
        let client = if self.path.translates() {
            End {
                address: address_words(NODE.of(family)),
                mask: [u32::MAX; 4],
                first_port: crate::layout::FIRST_PORT.into(),
                ports: 10_000,
                at_source: 1,
                flags,
            }
        } else {
            End { at_source: 1, ..server }
        };
        let mut ends = self.array::<End>("ENDS")?;
        ends.set(SERVER, server, 0)?;
        ends.set(CLIENT, client, 0)?;
        let nothing = Seen { right: [0; 256], wrong: 0, len: 0, frame: [0; 10] };
        let mut seen = self.array::<Seen>("SEEN")?;
        seen.set(SERVER, nothing, 0)?;
        Ok(seen.set(CLIENT, nothing, 0)?)
    }

    /// Waits for the last packets.
    fn settle(&mut self, count: u64, both: bool) -> Result<[Seen; 2]> {
        let began = Instant::now();
        loop {
            let map = self.array::<Seen>("SEEN")?;
            let seen = [map.get(&SERVER, 0)?, map.get(&CLIENT, 0)?];
            let there = |end: &Seen| end.right.iter().sum::<u64>() + end.wrong >= count;
            if there(&seen[0]) && (!both || there(&seen[1])) || began.elapsed() > LATE {
                return Ok(seen);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Sends one packet there and back and looks at its bytes at both ends.
    pub(crate) fn check(&mut self, packets: &Packets) -> Result<()> {
        let packets = Packets { flows: 1, ..*packets };
        let sent = packets.of_flow(0);
        let result = self.send(&packets, 1, ECHO | CAPTURE)?;
        ensure!(result.arrived == 1, "the packet did not arrive: {sent:?}");
        ensure!(result.returned == 1, "the answer did not arrive: {sent:?}");
        let seen = self.array::<Seen>("SEEN")?;
        let frames = [seen.get(&SERVER, 0)?, seen.get(&CLIENT, 0)?].map(captured);
        let family = if sent.source.is_ipv4() { Family::V4 } else { Family::V6 };
        let hops = self.path.hops();
        // Which backend, and which port of the node: as found, if they can be right.
        let (source, destination) = addressed(&frames[0])?;
        let translated = self.path.translates();
        let from = if translated { NODE_INSIDE.of(family) } else { sent.source.ip() };
        ensure!(source.ip() == from, "comes from {source}, not from {from}");
        ensure!(translated || source == sent.source, "comes from {source}, not {}", sent.source);
        let link = if self.path == Path::Ends { sent.link } else { [ROUTER_B, INSIDE_MAC] };
        let arrived = Frame { link, source, destination, ttl: sent.ttl - hops, ..sent };
        arrived.check(&frames[0]).context("at the server")?;
        let answer = Frame {
            link: [ROUTER_A, NODE_MAC],
            source: sent.destination,
            destination: sent.source,
            ttl: sent.ttl - 2 * hops,
            ..sent
        };
        answer.check(&frames[1]).context("at the client")
    }

    fn array<V: Pod>(&mut self, name: &str) -> Result<Array<&mut aya::maps::MapData, V>> {
        Ok(self.ebpf.map_mut(name).with_context(|| format!("no map {name}"))?.try_into()?)
    }
}

/// Cables, addresses and routes.
fn wire(path: Path, client: &Namespace, node: &Namespace, server: &Namespace) -> Result<()> {
    let cable = |(host, name, mac): (&Namespace, &str, [u8; 6]),
                 (peer, peer_mac): (&Namespace, _)| {
        let (mac, peer_mac) = (colons(mac), colons(peer_mac));
        let command = format!(
            "link add {name} netns {} address {mac} type veth peer name eth0 netns {} address {peer_mac}",
            host.name(),
            peer.name()
        );
        run("ip", command.split_whitespace())?;
        host.set_offloads(name, "tx off gro on")?;
        peer.set_offloads("eth0", "tx off")
    };
    if path == Path::Ends {
        // The server's end answers to the node's hardware address.
        cable((client, "eth0", ROUTER_A), (server, NODE_MAC))?;
    } else {
        cable((node, "eth0", NODE_MAC), (client, ROUTER_A))?;
        cable((node, "eth1", INSIDE_MAC), (server, ROUTER_B))?;
        node.ip(SETTINGS)?;
    }
    client.ip("link set eth0 up")?;
    server.ip("link set eth0 up").map(drop)
}

fn attach_tc(ebpf: &mut Ebpf, name: &str, interface: &str) -> Result<()> {
    let program: &mut SchedClassifier = ebpf.program_mut(name).context("no program")?.try_into()?;
    attach(program, interface).map(drop)
}

/// Nanoseconds that the daemon of this processor's softirqs has run: what it does is no part of the
/// generator's time.
fn softirq_daemon_ns() -> Result<f64> {
    let cpu = nix::sched::sched_getcpu()?;
    let wanted = format!("ksoftirqd/{cpu}");
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let path = entry.path();
        if std::fs::read_to_string(path.join("comm")).is_ok_and(|name| name.trim_end() == wanted) {
            let path = path.join("schedstat");
            let text = std::fs::read_to_string(&path).with_context(|| format!("{path:?}"))?;
            let run = text.split_whitespace().next().context("an empty schedstat")?;
            return Ok(run.parse()?);
        }
    }
    Err(anyhow!("no process {wanted}"))
}

fn captured(seen: Seen) -> Vec<u8> {
    let mut bytes: Vec<u8> = seen.frame.iter().flat_map(|word| word.to_ne_bytes()).collect();
    bytes.truncate(usize::try_from(seen.len).unwrap_or(usize::MAX));
    bytes
}

/// As it stands in a packet, IPv4's in the last word.
fn address_words(address: IpAddr) -> [u32; 4] {
    match address {
        IpAddr::V4(v4) => [0, 0, 0, u32::from_ne_bytes(v4.octets())],
        IpAddr::V6(v6) => {
            let octets = v6.octets();
            let words = octets.as_chunks::<4>().0;
            std::array::from_fn(|i| u32::from_ne_bytes(words[i]))
        }
    }
}

fn colons(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// The packets of a case.
pub(crate) fn packets(path: Path, family: Family, flows: u32, first_flow: u32) -> Packets {
    let at = SocketAddr::new;
    let (destination, services) = if path.translates() {
        (at(NODE.of(family), crate::layout::FIRST_PORT), path.services())
    } else {
        (at(BACKENDS.of(family), BACKEND_PORT), 1)
    };
    let port = 1024 + (first_flow & 0x3fff) as u16;
    Packets {
        hook: crate::harness::Hook::Xdp,
        ifindex: 0,
        first: Frame {
            link: [NODE_MAC, ROUTER_A],
            protocol: Protocol::Udp,
            source: at(CLIENTS.of(family), port),
            destination,
            ttl: 64,
            syn: false,
            identification: 0,
            balance: 0,
        },
        flows,
        services,
        source_mask: 0xffff,
        source_port_shift: 16,
        destination_port_shift: crate::harness::CONSTANT,
    }
}
