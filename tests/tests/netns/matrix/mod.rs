//! Every mode with every other: family × protocol × backend × policy × forwarding × hook, with real
//! clients and servers. [`cell`] has the table and says what has to happen in each cell; here is
//! found out what does: who answered, from which address, whom it took the client for, what was
//! counted where, and whether the kernel's stack saw the client's packets, which is what tells the
//! hooks apart.
//!
//! ```text
//!   ┌──── eth1 ──────────────────────── eth1 ┐
//! client eth0 ── eth0 node1 eth1 ── eth0 node2 eth2 ── eth0 pod2
//!                     │ veth1
//!                     └───────── eth0 pod1
//! ```
//!
//! Both nodes run agents with the same file. What node 2 sends to the client of its own goes past
//! node 1.

mod cell;
mod second;

use std::{
    collections::BTreeMap,
    io::ErrorKind,
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use redirector::dataplane::pinned::Pinned;
use redirector_common::{Protocol, Reason};
use redirector_tests::{
    agent::Lab,
    client::{self, Whoami},
    frame::Tap,
    namespace::Namespace,
    server::{Server, Service},
    topology::{Addresses, FAMILIES, NODE1, NODE1_INSIDE, NODE2, add_pod, link},
    wait,
};

use cell::{Cell, Expected, Hook, Kind, POD1, POD2, SERVER_PORT, Way};
use second::Second;

/// How long two agents may take to work by another hook on a busy machine.
const SWITCH: Duration = Duration::from_secs(60);

/// How long nobody has to answer to count as silent.
const SILENCE: Duration = Duration::from_millis(60);

/// Node 2 on its cable to the client.
const DIRECT: Addresses = Addresses::new(8, 1);

/// Reasons of packets that begin something.
const OPENED: [&str; 4] = ["steered-new", "local-new", "remote-new", "dsr-new"];

#[test]
fn every_cell() -> Result<()> {
    Lab::run(|lab| {
        let pods = [
            add_pod(&lab.net.node1, "veth1", Addresses::new(3, 1), POD1)?,
            add_pod(&lab.net.node2, "eth2", Addresses::new(7, 1), POD2)?,
        ];
        let gateways = (NODE2.v4, NODE2.v6);
        lab.net.node1.ip(&format!(
            "route add 198.18.7.0/24 via {}
             route add 2001:db8:7::/64 via {}",
            gateways.0, gateways.1
        ))?;
        build_direct_way(lab)?;
        let hosts = [&lab.net.node1, &pods[0], &lab.net.node2, &pods[1]];
        let _servers = serve(&hosts)?;
        lab.write_config(&config(Hook::Native))?;
        lab.start(&[])?;
        let second = Second::start(lab, &lab.net.node2)?;
        meet_neighbours(lab)?;
        let mut checked = 0;
        let mut wrong = Vec::new();
        for hook in Hook::ALL {
            switch(lab, &second, hook)?;
            let mut bench = Bench::new(lab)?;
            for cell in Cell::all(hook) {
                checked += 1;
                if let Err(error) = bench.check(cell) {
                    wrong.push(format!("{cell}: {error:#}"));
                }
            }
        }
        if !wrong.is_empty() {
            eprintln!("{} of {checked} cells:\n{}", wrong.len(), wrong.join("\n"));
            for command in [["service", "list"].as_slice(), &["flow", "list"], &["counters"]] {
                eprintln!("--- on node 2:\n{}", second.text(&lab.net.node2, command)?);
            }
            eprintln!("--- its log:\n{}", second.log());
        }
        ensure!(wrong.is_empty(), "{} of {checked} cells are wrong", wrong.len());
        Ok(())
    })
}

fn config(hook: Hook) -> String {
    let services: String = Kind::with_ports().map(|(kind, port)| kind.service(port)).collect();
    let nodes = [NODE1, NODE1_INSIDE, NODE2, DIRECT];
    let nodes: Vec<_> = nodes.iter().map(|it| format!("{}, '{}'", it.v4, it.v6)).collect();
    format!("xdpMode: {}\nnodes: [{}]\nservices:{services}\n", hook.mode(), nodes.join(", "))
}

/// The client's way to node 2 that does not lead over node 1.
fn build_direct_way(lab: &Lab) -> Result<()> {
    let (client, node2) = (&lab.net.client, &lab.net.node2);
    link((node2, "eth1", DIRECT), (client, "eth1", DIRECT.peer()))?;
    for host in [client, &lab.net.node1, node2] {
        // Answers come by another way than questions go.
        for name in ["all", "default", "eth0", "eth1"] {
            host.set_sysctl(&format!("net/ipv4/conf/{name}/rp_filter"), "0")?;
        }
    }
    // UDP servers that listen on every address answer from the one that the way says.
    let (by, source) = (DIRECT.peer(), NODE2);
    node2
        .ip(&format!(
            "route add 198.18.1.0/24 via {} src {}
             route add 2001:db8:1::/64 via {} src {}",
            by.v4, source.v4, by.v6, source.v6
        ))
        .map(drop)
}

fn serve(hosts: &[&Namespace; 4]) -> Result<Vec<Server>> {
    use cell::Backend::{OtherHost, OtherPod, OwnHost, OwnPod};
    let mut servers = Vec::new();
    for (host, backend) in hosts.iter().zip([OwnHost, OwnPod, OtherHost, OtherPod]) {
        servers.push(Server::tcp(host, SERVER_PORT, Service::Whoami(backend.server()))?);
        servers.push(Server::udp(host, SERVER_PORT, Service::Whoami(backend.server()))?);
    }
    Ok(servers)
}

/// XDP leaves packets to TC whose next hop's address is not known: here that would be mistaken for
/// the wrong hook.
fn meet_neighbours(lab: &Lab) -> Result<()> {
    for family in FAMILIES {
        let backend = SocketAddr::new(NODE2.of(family), SERVER_PORT);
        client::whoami(&lab.net.node1, backend)?;
        let frontend = SocketAddr::new(NODE1.of(family), SERVER_PORT);
        client::whoami(&lab.net.client, frontend)?;
    }
    Ok(())
}

/// The agents read their file again, and work by another hook.
fn switch(lab: &Lab, second: &Second, hook: Hook) -> Result<()> {
    lab.write_config(&config(hook))?;
    wait::until_true(&format!("XDP {}", hook.mode()), SWITCH, || {
        let status = second.text(&lab.net.node2, &["status", "-o", "json"])?;
        let others: serde_json::Value = serde_json::from_str(&status)?;
        let others = others["interfaces"].as_array().context("no interfaces")?.clone();
        let status = lab.cli().json(&["status"])?;
        let interfaces = status["interfaces"].as_array().context("no interfaces")?;
        Ok(interfaces.iter().chain(&others).all(|interface| interface["xdp"] == hook.mode()))
    })
}

/// Where cells are tried.
struct Bench<'a> {
    lab: &'a Lab,
    maps: Pinned,
    /// Counter slots of node 1's interfaces.
    slots: BTreeMap<&'static str, u32>,
    outside: Tap,
    inside: Tap,
    /// The client's two cables: to node 1, and to node 2.
    asked: Tap,
    direct: Tap,
}

/// What happened besides the answer.
struct Traces {
    counted: Counts,
    /// The client's packets, where the stack of node 1 gets them.
    from_client: usize,
    /// Packets of backends elsewhere, likewise.
    from_backends: usize,
    /// Packets of the frontend, where the client gets them: from node 1, and from node 2.
    asked: usize,
    direct: usize,
}

/// Packets by interface and Reason.
type Counts = BTreeMap<(&'static str, Reason), u64>;

impl<'a> Bench<'a> {
    fn new(lab: &'a Lab) -> Result<Self> {
        let maps = Pinned::open(redirector::dataplane::pins::Pins::new(lab.bpffs.pins()))?;
        let entries = maps.interfaces()?;
        let mut slots = BTreeMap::new();
        for name in ["eth0", "eth1"] {
            let entry = entries.get(&lab.net.node1.ifindex(name)?).context("no such entry")?;
            slots.insert(name, u32::from(entry.slot));
        }
        let outside = Tap::new(&lab.net.node1, "eth0")?;
        let inside = Tap::new(&lab.net.node1, "eth1")?;
        let asked = Tap::new(&lab.net.client, "eth0")?;
        let direct = Tap::new(&lab.net.client, "eth1")?;
        Ok(Self { lab, maps, slots, outside, inside, asked, direct })
    }

    fn check(&mut self, cell: Cell) -> Result<()> {
        match cell.expected() {
            Expected::Answer { server, client, opens, answers, way, is_in_stack } => {
                let (answer, traces) = self.trace(cell, |bench| bench.ask(cell))?;
                ensure!(answer.server == server, "{answer:?} instead of {server}");
                ensure!(answer.client.ip() == client, "{answer:?} instead of {client}");
                traces.check_one(opens, "eth0")?;
                if let Some((reason, interface)) = answers {
                    ensure!(traces.count(reason, interface)? > 0, "{}", traces.missing(reason));
                }
                let replies = ["remote-reply", "local-reply"];
                for reason in replies.iter().filter(|it| answers.is_none_or(|(is, _)| is != **it)) {
                    for interface in ["eth0", "eth1"] {
                        ensure!(
                            traces.count(reason, interface)? == 0,
                            "{}",
                            traces.surplus(reason)
                        );
                    }
                }
                let Traces { asked, direct, .. } = traces;
                let is_right = match way {
                    Way::Asked => asked > 0 && direct == 0,
                    Way::Direct => asked == 0 && direct > 0,
                };
                ensure!(is_right, "{asked} packets from the node asked, {direct} directly");
                traces.check_stack(is_in_stack)
            }
            Expected::Silence { reason } => {
                let dropped = |bench: &Self| -> Result<u64> {
                    let counts = bench.counts()?;
                    let of = |((_, it), packets): (&(_, Reason), &u64)| {
                        (it.name() == reason).then_some(*packets)
                    };
                    Ok(counts.iter().filter_map(of).sum())
                };
                let before = dropped(self)?;
                let ((), traces) =
                    self.trace(cell, |bench| {
                        bench.hear_nothing(cell)?;
                        // The packet may be on its way for longer than anybody waited for it.
                        wait::until_true("it to be counted", wait::SOON, || {
                            Ok(dropped(bench)? > before)
                        })
                    })?;
                ensure!(traces.count(reason, "eth0")? > 0, "{}", traces.missing(reason));
                for opened in OPENED {
                    ensure!(traces.count(opened, "eth0")? == 0, "{}", traces.surplus(opened));
                }
                traces.check_stack(true)
            }
        }
    }

    /// Does something, and sees what it leaves.
    fn trace<T>(
        &mut self,
        cell: Cell,
        act: impl FnOnce(&Self) -> Result<T>,
    ) -> Result<(T, Traces)> {
        self.await_ends()?;
        for tap in [&mut self.outside, &mut self.inside, &mut self.asked, &mut self.direct] {
            tap.heard()?;
        }
        let before = self.counts()?;
        let outcome = act(self)?;
        let mut counted = self.counts()?;
        for (at, packets) in &mut counted {
            *packets -= before.get(at).copied().unwrap_or(0);
        }
        let client = redirector_tests::topology::CLIENT.of(cell.family);
        let (to, own) = (cell.frontend(), NODE1_INSIDE.of(cell.family));
        let outside = self.outside.heard()?;
        let from_client = outside.iter().filter(|it| it.0.ip() == client && it.1 == to).count();
        let inside = self.inside.heard()?;
        let from_backends =
            inside.iter().filter(|it| it.0.port() == SERVER_PORT && it.1.ip() == own).count();
        let answers = |heard: Vec<(SocketAddr, SocketAddr)>| {
            heard.iter().filter(|it| it.0 == to && it.1.ip() == client).count()
        };
        let (asked, direct) = (answers(self.asked.heard()?), answers(self.direct.heard()?));
        Ok((outcome, Traces { counted, from_client, from_backends, asked, direct }))
    }

    /// Waits until earlier connections have said their last: servers close theirs first, so the
    /// client's are gone when its end was acknowledged.
    fn await_ends(&self) -> Result<()> {
        let client = &self.lab.net.client;
        wait::until_true("connections to end", wait::SOON, || {
            let listed = client.enter(|| {
                let [v4, v6] = ["tcp", "tcp6"]
                    .map(|name| std::fs::read_to_string(format!("/proc/thread-self/net/{name}")));
                Ok([v4?, v6?])
            })?;
            Ok(listed.iter().all(|table| table.lines().count() == 1))
        })
    }

    fn counts(&self) -> Result<Counts> {
        let counters = self.maps.counters()?;
        let mut counts = Counts::new();
        for (name, slot) in &self.slots {
            let Some(block) = counters.get(slot) else { continue };
            for reason in Reason::ALL {
                let counter = block.reasons.get(*reason as usize).context("no such counter")?;
                counts.insert((name, *reason), counter.packets);
            }
        }
        Ok(counts)
    }

    fn ask(&self, cell: Cell) -> Result<Whoami> {
        let (client, to) = (&self.lab.net.client, cell.frontend());
        match cell.kind.protocol {
            // What does not come from the frontend is nobody's connection.
            Protocol::Tcp => client::whoami(client, to),
            Protocol::Udp => {
                let socket = self.socket(cell)?;
                socket.send_to(b"who am I?\n", to)?;
                let mut answer = [0; 256];
                let (count, from) =
                    wait::uninterrupted(|| socket.recv_from(&mut answer)).context("no answer")?;
                ensure!(from == to, "{from} answers");
                Whoami::parse(std::str::from_utf8(&answer[..count])?)
            }
        }
    }

    /// Asks, and is neither answered nor refused.
    fn hear_nothing(&self, cell: Cell) -> Result<()> {
        let (client, to) = (&self.lab.net.client, cell.frontend());
        let error = match cell.kind.protocol {
            Protocol::Tcp => match client::tcp_within(client, to, SILENCE) {
                Ok(_) => bail!("someone accepts"),
                Err(error) => error.downcast::<std::io::Error>()?,
            },
            Protocol::Udp => {
                let socket = client::udp(client, to)?;
                socket.set_read_timeout(Some(SILENCE))?;
                socket.send(b"who am I?\n")?;
                match wait::uninterrupted(|| socket.recv(&mut [0; 256])) {
                    Ok(_) => bail!("someone answers"),
                    Err(error) => error,
                }
            }
        };
        let is_silent = matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock);
        ensure!(is_silent, "not silent: {error}");
        Ok(())
    }

    /// The client's, without a peer: it gets whatever anyone answers.
    fn socket(&self, cell: Cell) -> Result<UdpSocket> {
        let any = match cell.frontend() {
            SocketAddr::V4(_) => "0.0.0.0:0",
            SocketAddr::V6(_) => "[::]:0",
        };
        let socket = self.lab.net.client.enter(move || Ok(UdpSocket::bind(any)?))?;
        socket.set_read_timeout(Some(Duration::from_secs(3)))?;
        Ok(socket)
    }
}

impl Traces {
    fn count(&self, reason: &str, interface: &'static str) -> Result<u64> {
        let found = Reason::ALL.iter().find(|it| it.name() == reason);
        let reason = found.with_context(|| format!("there is no Reason {reason}"))?;
        Ok(self.counted.get(&(interface, *reason)).copied().unwrap_or(0))
    }

    /// It opened one flow, and by no other Reason.
    fn check_one(&self, reason: &str, interface: &'static str) -> Result<()> {
        ensure!(self.count(reason, interface)? == 1, "{}", self.missing(reason));
        for other in OPENED {
            if other != reason {
                ensure!(self.count(other, interface)? == 0, "{}", self.surplus(other));
            }
        }
        Ok(())
    }

    /// XDP took what it could, or TC all.
    fn check_stack(&self, is_in_stack: bool) -> Result<()> {
        let Self { from_client, from_backends, .. } = self;
        ensure!(
            (*from_client > 0) == is_in_stack,
            "{from_client} packets of the client's in the stack"
        );
        ensure!(is_in_stack || *from_backends == 0, "{from_backends} answers in the stack");
        Ok(())
    }

    fn missing(&self, reason: &str) -> String {
        format!("not as much {reason} as should be: {}", self.shown())
    }

    fn surplus(&self, reason: &str) -> String {
        format!("{reason}, which should not be: {}", self.shown())
    }

    fn shown(&self) -> String {
        let counted = self.counted.iter().filter(|(_, packets)| **packets > 0);
        let counted: Vec<_> = counted
            .map(|((interface, reason), packets)| {
                format!("{packets} {} {interface}", reason.name())
            })
            .collect();
        counted.join(", ")
    }
}
