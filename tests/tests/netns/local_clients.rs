//! Clients on the machine itself, in a control group of the test's own: on node 1, and in another
//! network namespace on the same machine, as a pod is.

mod lifetime;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
};

use anyhow::{Context as _, Result, ensure};
use redirector_common::Family;
use redirector_tests::{
    agent::Lab,
    cgroup::Cgroup,
    namespace::Namespace,
    server::{Server, Service},
    site::{CONFIG, PLACES, Place, serve_names},
    topology::{Addresses, FAMILIES, NODE1, NODE1_INSIDE, add_pod},
};

/// A process that asks: see `src/bin/asker.rs`.
const ASKER: &str = env!("CARGO_BIN_EXE_asker");

/// What it says.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    server: String,
    client: SocketAddr,
    /// What `getpeername` says, where the socket is connected.
    peer: SocketAddr,
    /// What `recvfrom` says.
    from: SocketAddr,
}

fn ask(cgroup: &Cgroup, host: &Namespace, how: &str, server: SocketAddr) -> Result<Answer> {
    let said = cgroup.run(host, Path::new(ASKER), &[how, &server.to_string()])?;
    parse(&said)
}

fn parse(line: &str) -> Result<Answer> {
    let field = |name: &str| {
        let mut words = line.split_whitespace();
        words.find_map(|word| word.strip_prefix(name)?.strip_prefix('=')).context(line.to_owned())
    };
    Ok(Answer {
        server: field("server")?.to_owned(),
        client: field("client")?.parse()?,
        peer: field("peer")?.parse()?,
        from: field("from")?.parse()?,
    })
}

/// A laboratory whose agent serves the clients of a control group.
fn run(config: &str, test: impl FnOnce(&mut Lab, &Cgroup) -> Result<()>) -> Result<()> {
    let cgroup = Cgroup::new()?;
    let dir = cgroup.dir().to_str().context("not UTF-8")?;
    Lab::run_with_options(config, &["--cgroup", dir], |lab| test(lab, &cgroup))
}

fn localhost(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::LOCALHOST.into(),
        Family::V6 => Ipv6Addr::LOCALHOST.into(),
    }
}

/// Ways to ask, and the servers that they reach: of TCP, or of UDP.
fn ways(family: Family) -> &'static [(&'static str, bool)] {
    match family {
        Family::V4 => &[
            ("tcp", true),
            ("udp", false),
            ("sendto", false),
            ("mapped-tcp", true),
            ("mapped-udp", false),
            ("mapped-sendto", false),
        ],
        Family::V6 => &[("tcp", true), ("udp", false), ("sendto", false)],
    }
}

/// What a program is told of `asked` by a socket of this kind.
fn told(how: &str, asked: SocketAddr) -> SocketAddr {
    match asked.ip() {
        IpAddr::V4(v4) if how.starts_with("mapped-") => {
            SocketAddr::new(v4.to_ipv6_mapped().into(), asked.port())
        }
        IpAddr::V4(_) | IpAddr::V6(_) => asked,
    }
}

fn port(place: Place, is_tcp: bool) -> u16 {
    let family = Family::V4;
    if is_tcp { place.tcp(family).port() } else { place.udp(family).port() }
}

/// Every way to ask, of every frontend, from `host`; each answer comes from the right server, and
/// the program sees nothing of it.
fn check(cgroup: &Cgroup, host: &Namespace, addresses: &[fn(Family) -> IpAddr]) -> Result<()> {
    FAMILIES.into_iter().try_for_each(|family| {
        ways(family).iter().try_for_each(|way| check_way(cgroup, host, addresses, family, *way))
    })
}

fn check_way(
    cgroup: &Cgroup,
    host: &Namespace,
    addresses: &[fn(Family) -> IpAddr],
    family: Family,
    (how, is_tcp): (&str, bool),
) -> Result<()> {
    for place in PLACES {
        for address in addresses {
            let asked = SocketAddr::new(address(family), port(place, is_tcp));
            let answer = ask(cgroup, host, how, asked)
                .with_context(|| format!("{how} to {asked}, {place:?}"))?;
            let told = told(how, asked);
            ensure!(
                answer.server == place.name() && answer.peer == told && answer.from == told,
                "{how} to {asked}, {place:?}: {answer:?}"
            );
        }
    }
    Ok(())
}

fn node1(family: Family) -> IpAddr {
    NODE1.of(family)
}

fn node1_inside(family: Family) -> IpAddr {
    NODE1_INSIDE.of(family)
}

#[test]
fn from_the_node_itself() -> Result<()> {
    run(CONFIG, |lab, cgroup| {
        let _servers = serve_names(lab)?;
        check(cgroup, &lab.net.node1, &[localhost, node1, node1_inside])?;
        // Nothing was rewritten: no packet of it came in by an interface.
        let flows = lab.cli().json(&["flow", "list"])?;
        ensure!(flows.as_array().is_some_and(Vec::is_empty), "{flows}");
        Ok(())
    })
}

#[test]
fn curl_localhost() -> Result<()> {
    run(CONFIG, |lab, cgroup| {
        let _servers = serve_names(lab)?;
        for (url, server) in [
            ("http://localhost:80/", "node1"),
            ("http://127.0.0.1:80/", "node1"),
            ("http://[::1]:80/", "node1"),
            ("http://localhost:81/", "node2"),
            ("http://[::1]:81/", "node2"),
        ] {
            let arguments = ["--silent", "--show-error", "--max-time", "10", url];
            let page = cgroup.run(&lab.net.node1, Path::new("curl"), &arguments)?;
            ensure!(page.starts_with(&format!("server={server} ")), "{url}: {page}");
        }
        Ok(())
    })
}

/// The kernel chooses the source by the backend that it sees: loopback to loopback, and not
/// loopback to another host.
#[test]
fn sources_suit_the_backend() -> Result<()> {
    run(CONFIG, |lab, cgroup| {
        let _servers = serve_names(lab)?;
        for family in FAMILIES {
            let here = SocketAddr::new(localhost(family), 80);
            let answer = ask(cgroup, &lab.net.node1, "tcp", here)?;
            ensure!(answer.client.ip() == localhost(family), "{answer:?}");
            let there = SocketAddr::new(localhost(family), 81);
            let answer = ask(cgroup, &lab.net.node1, "tcp", there)?;
            ensure!(answer.client.ip() == NODE1_INSIDE.of(family), "{answer:?}");
        }
        Ok(())
    })
}

/// Another network namespace of the same machine, joined to node 1 by a cable of its own.
fn pod(lab: &Lab) -> Result<Namespace> {
    const POD: Addresses = Addresses::new(3, 2);
    const GATEWAY: Addresses = Addresses::new(3, 1);
    let pod = add_pod(&lab.net.node1, "pod0", GATEWAY, POD)?;
    // Node 2 knows the way back.
    lab.net.node2.ip(&format!(
        "route add 198.18.3.0/24 via {}\n-6 route add 2001:db8:3::/64 via {}",
        NODE1_INSIDE.v4, NODE1_INSIDE.v6
    ))?;
    Ok(pod)
}

#[test]
fn from_a_pod() -> Result<()> {
    run(CONFIG, |lab, cgroup| {
        let mut servers = Vec::new();
        for place in PLACES {
            servers.push(place.serve_tcp(lab, Service::Whoami(place.name()))?);
        }
        servers.push(Place::Remote.serve_udp(lab, Service::Whoami("node2"))?);
        let pod = pod(lab)?;
        for family in FAMILIES {
            // On every address of the node, it would answer from the one nearest to the pod.
            let at = SocketAddr::new(NODE1.of(family), 5353);
            let _udp = Server::udp_at(&lab.net.node1, at, Service::Whoami("node1"))?;
            for way in ways(family) {
                check_way(cgroup, &pod, &[node1], family, *way)?;
            }
            // Its loopback device is its own, where nobody listens.
            let asked = SocketAddr::new(localhost(family), 80);
            let error = ask(cgroup, &pod, "tcp", asked).err().context("answered")?;
            ensure!(format!("{error:#}").contains("refused"), "{error:#}");
            let _own = Server::tcp(&pod, 80, Service::Whoami("pod"))?;
            let answer = ask(cgroup, &pod, "tcp", asked)?;
            ensure!(answer.server == "pod" && answer.peer == asked, "{answer:?}");
        }
        Ok(())
    })
}

/// Who is not in the control group is none of ours.
#[test]
fn others_are_left_alone() -> Result<()> {
    run(CONFIG, |lab, cgroup| {
        let _servers = serve_names(lab)?;
        let other = Cgroup::new()?;
        let asked = SocketAddr::new(localhost(Family::V4), 80);
        let error = ask(&other, &lab.net.node1, "tcp", asked).err().context("answered")?;
        ensure!(format!("{error:#}").contains("refused"), "{error:#}");
        ask(cgroup, &lab.net.node1, "tcp", asked).map(drop)
    })
}

const POLICIES: &str = "
services:
  - name: away
    frontends:
      - {port: 81, protocol: TCP}
      - {port: 54, protocol: UDP}
      - {address: 192.0.2.77, port: 82, protocol: TCP}
    trafficPolicy: Local
    sourceRanges: [203.0.113.0/24]
    backends:
      - {address: 198.18.2.2, port: 8080}
  - name: nobody
    frontends:
      - {port: 90, protocol: TCP}
      - {port: 90, protocol: UDP}
    backends:
      - {address: local, port: 8080, weight: 0}
";

/// Traffic policy Local and source ranges are about clients outside. A frontend with an address
/// has no localhost.
#[test]
fn policies_are_for_others() -> Result<()> {
    run(POLICIES, |lab, cgroup| {
        let _tcp = Server::tcp(&lab.net.node2, 8080, Service::Whoami("node2"))?;
        let _udp = Server::udp(&lab.net.node2, 8080, Service::Whoami("node2"))?;
        let node = &lab.net.node1;
        for (how, server) in [
            ("tcp", "198.18.1.1:81"),
            ("tcp", "127.0.0.1:81"),
            ("sendto", "127.0.0.1:54"),
            ("tcp", "192.0.2.77:82"),
        ] {
            let answer = ask(cgroup, node, how, server.parse()?)?;
            ensure!(answer.server == "node2", "{how} to {server}: {answer:?}");
        }
        let error = ask(cgroup, node, "tcp", "127.0.0.1:82".parse()?).err().context("answered")?;
        ensure!(format!("{error:#}").contains("refused"), "{error:#}");
        Ok(())
    })
}

/// A service without a backend: the call itself says so, whatever may listen there.
#[test]
fn nobody_answers() -> Result<()> {
    run(POLICIES, |lab, cgroup| {
        let _listener = Server::tcp(&lab.net.node1, 90, Service::Whoami("listener"))?;
        for (how, call) in [("tcp", "connect"), ("udp", "connect"), ("sendto", "sendto")] {
            for address in ["127.0.0.1:90", "198.18.1.1:90", "[::1]:90", "[2001:db8:1::1]:90"] {
                let error = ask(cgroup, &lab.net.node1, how, address.parse()?);
                let error = format!("{:#}", error.err().context("answered")?);
                ensure!(
                    error.contains(&format!("{call}: Connection refused")),
                    "{how} to {address}: {error}"
                );
            }
        }
        let counters = lab.cli().json(&["counters"])?;
        let refused = counters.as_array().context("no array")?.iter();
        let refused: u64 = refused
            .filter(|row| row["reason"] == "client-refused")
            .filter_map(|row| row["packets"].as_u64())
            .sum();
        ensure!(refused == 12, "counted {refused} of 12");
        Ok(())
    })
}

const THREE: &str = "
services:
  - name: dns
    frontends: [{port: 54, protocol: UDP}]
    backends:
      - {address: 198.18.2.2, port: 5353}
      - {address: 198.18.2.2, port: 5354}
      - {address: local, port: 5353}
";

/// Servers that forty sockets on node 1 reach, each socket one.
fn servers_of_forty(settings: &str) -> Result<usize> {
    let mut count = 0;
    run(&format!("{THREE}{settings}"), |lab, cgroup| {
        let _servers = [
            Server::udp(&lab.net.node2, 5353, Service::Whoami("a"))?,
            Server::udp(&lab.net.node2, 5354, Service::Whoami("b"))?,
            Server::udp(&lab.net.node1, 5353, Service::Whoami("c"))?,
        ];
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..40 {
            let arguments = ["sendto", "127.0.0.1:54", "10"];
            let said = cgroup.run(&lab.net.node1, Path::new(ASKER), &arguments)?;
            let answers: Vec<Answer> = said.lines().map(parse).collect::<Result<_>>()?;
            ensure!(answers.len() == 10 && answers.iter().all(|it| *it == answers[0]), "{said}");
            seen.insert(answers[0].server.clone());
        }
        count = seen.len();
        Ok(())
    })?;
    Ok(count)
}

/// One socket's datagrams go to one backend, those of many sockets to all.
#[test]
fn sockets_stay_with_their_backend() -> Result<()> {
    for settings in ["", "    algorithm: random\n"] {
        let count = servers_of_forty(settings)?;
        ensure!(count == 3, "{count} of three servers answered forty sockets: {settings:?}");
    }
    Ok(())
}

/// A host's programs are one client.
#[test]
fn hosts_stay_with_their_backend() -> Result<()> {
    let count = servers_of_forty("    sessionAffinitySeconds: 60\n")?;
    ensure!(count == 1, "{count} servers answered one client");
    Ok(())
}
