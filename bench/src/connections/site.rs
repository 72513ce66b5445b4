//! Hosts, a server on one of them, and what leads to it.
//!
//! ```text
//! client eth0 ── eth0 node1 eth1 ── eth0 node2
//! ```

use std::fmt::Write as _;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use aya::Ebpf;
use redirector_common::{Family, Protocol};
use redirector_tests::agent::Lab;
use redirector_tests::namespace::Namespace;
use redirector_tests::topology::{Addresses, CLIENT, FAMILIES, NODE1, NODE1_INSIDE, make_router};

use super::load::{Expected, Server, Way};
use super::path::{Path, Place};
use crate::forward;
use crate::rules::{Mode, Services};

/// What clients connect to.
const FRONTEND: u16 = 10_000;
/// Where the server listens.
const SERVER: u16 = 8080;
/// Its name.
const NAME: &str = "server";
/// Addresses of a server elsewhere: a client's ports are few for connections that come and go.
const ADDRESSES: std::ops::RangeInclusive<u8> = 10..=17;
/// A frontend's address that is none of the host's.
const VIP: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 10)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 10)),
];
/// How long a proxy may take to listen.
const START: Duration = Duration::from_secs(10);

/// One way to a server, ready to be used.
pub(crate) struct Site {
    place: Place,
    path: Path,
    _server: Server,
    /// An XDP program, as long as it is to be attached.
    attached: Option<Ebpf>,
    proxies: Vec<Proxy>,
    files: tempfile::TempDir,
    pub(crate) lab: Lab,
}

/// A process that is ended when dropped, with its children.
struct Proxy(Child);

impl Drop for Proxy {
    fn drop(&mut self) {
        // The namespace's end takes its children along.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Site {
    /// Sets everything up, but what leads to the server if it is to be spoilt.
    pub(crate) fn new(
        place: Place,
        path: Path,
        services: u16,
        clients: usize,
        spoil: bool,
    ) -> Result<Self> {
        let lab = Lab::new()?;
        let host = match place {
            Place::Local => &lab.net.node1,
            Place::Remote => &lab.net.node2,
        };
        for address in ADDRESSES {
            let Addresses { v4, v6 } = Addresses::new(2, address);
            lab.net.node2.ip(&format!(
                "address add {v4}/24 dev eth0
                 address add {v6}/64 dev eth0 nodad"
            ))?;
        }
        for host in [&lab.net.client, &lab.net.node1] {
            // Connections come and go faster than their ports get free otherwise.
            host.set_sysctl("net/ipv4/ip_local_port_range", "20000 39999")?;
            host.set_sysctl("net/ipv4/tcp_tw_reuse", "1")?;
        }
        let server = Server::start(host, NAME, SERVER, 2 * clients)?;
        let mut site = Self {
            place,
            path,
            _server: server,
            attached: None,
            proxies: Vec::new(),
            files: tempfile::tempdir()?,
            lab,
        };
        if !spoil {
            site.lead(services)?;
        }
        Ok(site)
    }

    /// Puts what is measured in place.
    fn lead(&mut self, services: u16) -> Result<()> {
        let (client, node, server) =
            (&self.lab.net.client, &self.lab.net.node1, &self.lab.net.node2);
        match self.path {
            Path::Direct | Path::Forward => {
                make_router(node)?;
                if self.place == Place::Remote {
                    route_both(client, server)?;
                }
                if self.path == Path::Forward {
                    self.attached = Some(forward::between((client, node, server))?);
                }
                Ok(())
            }
            Path::Pass => {
                let mut ebpf = forward::load()?;
                node.enter(|| forward::attach(&mut ebpf, forward::PASS, "eth0"))?;
                self.attached = Some(ebpf);
                Ok(())
            }
            Path::Redirector | Path::RedirectorDnat => {
                for address in VIP {
                    let family = if address.is_ipv4() { Family::V4 } else { Family::V6 };
                    client.ip(&format!("route add {address} via {}", NODE1.of(family)))?;
                }
                self.lab.write_config(&self.config(services))?;
                self.lab.start(&["--xdp-mode", "native"])
            }
            Path::Nftables => self.load_rules(Mode::Nftables, services),
            Path::Iptables => self.load_rules(Mode::Iptables, services),
            Path::Haproxy => {
                let file = self.files.path().join("haproxy.cfg");
                std::fs::write(&file, self.haproxy())?;
                let mut command = node.command("haproxy");
                command.arg("-db").arg("-f").arg(file);
                self.start(command)
            }
            Path::Socat => {
                let commands = FAMILIES.map(|family| {
                    let (version, only) = match family {
                        Family::V4 => (4, ""),
                        Family::V6 => (6, ",ipv6only=1"),
                    };
                    let to = self.server_addresses(family).first().copied();
                    let to = SocketAddr::new(to.unwrap_or(NODE1.of(family)), SERVER);
                    let mut command = node.command("socat");
                    command
                        .arg(format!(
                            "TCP{version}-LISTEN:{FRONTEND},reuseaddr,fork,backlog=1024{only}"
                        ))
                        .arg(format!("TCP{version}:{to},nodelay"));
                    command
                });
                commands.into_iter().try_for_each(|command| self.start(command))
            }
        }
    }

    fn start(&mut self, mut command: std::process::Command) -> Result<()> {
        let said = File::create(self.files.path().join(format!("proxy-{}", self.proxies.len())))?;
        command.stdout(Stdio::null()).stderr(said);
        let child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        self.proxies.push(Proxy(child));
        Ok(())
    }

    fn load_rules(&self, mode: Mode, services: u16) -> Result<()> {
        let node = &self.lab.net.node1;
        make_router(node)?;
        for family in FAMILIES {
            let endpoints: Vec<SocketAddr> = self
                .server_addresses(family)
                .into_iter()
                .map(|address| SocketAddr::new(address, SERVER))
                .collect();
            let services = Services {
                protocol: Protocol::Tcp,
                node: NODE1.of(family),
                first_port: FRONTEND,
                endpoints: vec![endpoints; services.into()],
            };
            services.load(mode, node)?;
        }
        Ok(())
    }

    /// What proxies printed, if there are any.
    fn proxies_said(&self) -> String {
        let files = (0..self.proxies.len()).map(|i| self.files.path().join(format!("proxy-{i}")));
        let said: Vec<String> =
            files.filter_map(|file| std::fs::read_to_string(file).ok()).collect();
        format!("what stands between printed: {:?}", said.concat())
    }

    /// The agent's file.
    fn config(&self, services: u16) -> String {
        let mut config = "snatPorts: 40000-59999\nservices:\n".to_owned();
        for number in 0..services {
            let port = FRONTEND + number;
            let frontends = match self.path {
                Path::RedirectorDnat => {
                    VIP.map(|address| format!("{{address: '{address}', port: {port}}}")).join(", ")
                }
                Path::Direct
                | Path::Forward
                | Path::Pass
                | Path::Redirector
                | Path::Nftables
                | Path::Iptables
                | Path::Haproxy
                | Path::Socat => format!("{{port: {port}}}"),
            };
            let backends = match self.place {
                Place::Local => format!("{{address: local, port: {SERVER}}}"),
                Place::Remote => FAMILIES
                    .into_iter()
                    .flat_map(|family| self.server_addresses(family))
                    .map(|address| format!("{{address: '{address}', port: {SERVER}}}"))
                    .collect::<Vec<_>>()
                    .join(", "),
            };
            let _ = writeln!(
                config,
                "  - {{name: web-{number}, frontends: [{frontends}], backends: [{backends}]}}"
            );
        }
        config
    }

    fn haproxy(&self) -> String {
        let mut config = "global
    maxconn 4000
    nbthread 1
defaults
    mode tcp
    timeout connect 5s
    timeout client 60s
    timeout server 60s
"
        .to_owned();
        for (family, bind) in [
            (Family::V4, format!("0.0.0.0:{FRONTEND}")),
            (Family::V6, format!("[::]:{FRONTEND} v6only")),
        ] {
            let _ = writeln!(config, "listen {family:?}\n    bind {bind}");
            for (i, address) in self.server_addresses(family).into_iter().enumerate() {
                let to = SocketAddr::new(address, SERVER);
                let _ = writeln!(config, "    server s{i} {to}");
            }
        }
        config
    }

    /// Where the server can be reached.
    fn server_addresses(&self, family: Family) -> Vec<IpAddr> {
        match self.place {
            Place::Local => vec![NODE1.of(family)],
            Place::Remote => ADDRESSES.map(|host| Addresses::new(2, host).of(family)).collect(),
        }
    }

    /// How a client of a family gets there, and what the server is to see of it.
    pub(crate) fn way(&self, family: Family) -> Way {
        let at = |address, port| vec![SocketAddr::new(address, port)];
        let to = match self.path {
            Path::Direct | Path::Forward | Path::Pass => {
                let addresses = self.server_addresses(family).into_iter();
                addresses.map(|address| SocketAddr::new(address, SERVER)).collect()
            }
            Path::RedirectorDnat => match family {
                Family::V4 => at(VIP[0], FRONTEND),
                Family::V6 => at(VIP[1], FRONTEND),
            },
            Path::Redirector | Path::Nftables | Path::Iptables | Path::Haproxy | Path::Socat => {
                at(NODE1.of(family), FRONTEND)
            }
        };
        let peer = match (self.path, self.place) {
            (Path::Direct | Path::Forward | Path::Pass | Path::RedirectorDnat, _) => CLIENT,
            (Path::Redirector | Path::Nftables | Path::Iptables, Place::Local) => CLIENT,
            (Path::Haproxy | Path::Socat, Place::Local) => NODE1,
            (_, Place::Remote) => NODE1_INSIDE,
        };
        let steered = (self.path, self.place) == (Path::Redirector, Place::Local);
        let port = if steered { FRONTEND } else { SERVER };
        Way { to, expected: Expected { server: NAME, peer: peer.of(family), port } }
    }

    /// Waits until the way can be used, and checks that it is the right one.
    pub(crate) fn check(&self, family: Family) -> Result<()> {
        let way = self.way(family);
        let began = Instant::now();
        loop {
            let checked = self.lab.net.client.enter(|| way.check());
            match checked {
                Ok(()) => break,
                // A proxy that has just been started.
                Err(_) if !self.proxies.is_empty() && began.elapsed() < START => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(error) => return Err(error.context(self.proxies_said())),
            }
        }
        let reason = match (self.path, self.place) {
            (Path::Redirector, Place::Local) => "steered-new",
            (Path::Redirector, Place::Remote) => "remote-new",
            (Path::RedirectorDnat, _) => "local-new",
            (
                Path::Direct
                | Path::Forward
                | Path::Pass
                | Path::Nftables
                | Path::Iptables
                | Path::Haproxy
                | Path::Socat,
                _,
            ) => return Ok(()),
        };
        ensure!(self.lab.cli().packets(reason)? > 0, "nothing was counted as {reason}");
        Ok(())
    }
}

/// Routes between the two ends, through the node.
fn route_both(client: &Namespace, server: &Namespace) -> Result<()> {
    for family in FAMILIES {
        client.ip(&format!("route add {} via {}", network(2, family)?, NODE1.of(family)))?;
        server.ip(&format!("route add {} via {}", network(1, family)?, NODE1_INSIDE.of(family)))?;
    }
    Ok(())
}

fn network(number: u8, family: Family) -> Result<String> {
    match (Addresses::new(number, 0).of(family), family) {
        (address @ IpAddr::V4(_), Family::V4) => Ok(format!("{address}/24")),
        (address @ IpAddr::V6(_), Family::V6) => Ok(format!("{address}/64")),
        (address, family) => bail!("{address} is not of {family:?}"),
    }
}
