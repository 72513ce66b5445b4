//! Agents know of each other by Leases: flows are handed over to nodes that take them, and to no
//! others.

use std::{
    net::{IpAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use k8s_openapi::{
    api::{
        coordination::v1::Lease,
        core::v1::{Event, Node, Service},
    },
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::{SignedDuration, Timestamp},
};
use redirector_common::{
    Family,
    Protocol::{Tcp, Udp},
};
use redirector_tests::{
    apiserver::{Failure, Requests},
    cli::Cli,
    client::{self, Whoami},
    cluster::{
        Cluster,
        build::{mk_port, mk_service},
        control,
        network::{CLIENT, node_address},
        pod::Pod,
        probe::{await_servers, expect_server},
    },
    deployed::NAMESPACE,
    server,
    topology::FAMILIES,
    wait,
};
use serde_json::Value;

use crate::{
    direct::{await_forwarding, forward},
    on_host, own,
};

const WHOAMI: u16 = 30080;
const WHOAMI_UDP: u16 = 30090;
const ECHO: u16 = 30070;

/// Of the port that tells who the client is, of one that sends everything back.
fn web() -> Service {
    let ports = vec![
        mk_port(Tcp, 80, 8080, WHOAMI),
        mk_port(Udp, 90, 8081, WHOAMI_UDP),
        mk_port(Tcp, 70, 8070, ECHO),
    ];
    let mut web = mk_service("web", ports);
    forward(&mut web, "dsr");
    web
}

/// A pod behind that service on node 2, in the host's network or in one of its own.
fn start(cluster: &mut Cluster, is_on_host: bool) -> Result<Pod> {
    let plan = if is_on_host { on_host("pod", "web", 2) } else { own("pod", "web", 2) };
    let mut pod = cluster.start_pod(plan)?;
    pod.serve(cluster, Tcp, 8070, server::Service::Echo)?;
    cluster.put_service(web())?;
    Ok(pod)
}

/// What a node says of the others: how many take flows, and what keeps it from knowing.
fn told(cluster: &mut Cluster, number: u8) -> Result<(u64, Value)> {
    let pins = cluster.node(number).pins();
    let nodes = Cli::new(cluster.host(number), &pins).json(&["status"])?["direct"]["nodes"].take();
    let taking = nodes["taking"].as_u64().with_context(|| format!("no number in {nodes}"))?;
    Ok((taking, nodes["error"].clone()))
}

fn await_taking(cluster: &mut Cluster, number: u8, expected: u64) -> Result<()> {
    let mut found = None;
    let known = wait::until_true("the nodes that take flows to be known", wait::SOON, || {
        let (taking, error) = told(cluster, number)?;
        let is_done = taking == expected && error.is_null();
        found = Some((taking, error));
        Ok(is_done)
    });
    known.with_context(|| format!("wanted {expected}, found {found:?}"))
}

/// New clients of node 1 are seen by the server: their packets were handed over. Or they are not,
/// and were translated.
fn expect(cluster: &Cluster, are_seen: bool) -> Result<()> {
    for family in FAMILIES {
        let expected = if are_seen { CLIENT } else { node_address(1) }.of(family);
        for _ in 0..4 {
            let to = cluster.at(1, family, WHOAMI);
            expect_server(&cluster.net.client, Tcp, to, "pod", expected)?;
        }
    }
    Ok(())
}

/// Connections that live for as long as the test.
#[derive(Default)]
struct Connections {
    all: Vec<TcpStream>,
}

impl Connections {
    fn open(&mut self, cluster: &Cluster) -> Result<()> {
        for family in FAMILIES {
            self.all.push(client::tcp(&cluster.net.client, cluster.at(1, family, ECHO))?);
        }
        self.check()
    }

    fn check(&self) -> Result<()> {
        for (number, stream) in self.all.iter().enumerate() {
            client::echo(stream, &[b'x'; 10_000])
                .with_context(|| format!("connection {number}"))?;
        }
        Ok(())
    }
}

fn lease(cluster: &Cluster, number: u8) -> Result<Option<Lease>> {
    cluster.api.store().find::<Lease>(NAMESPACE, &format!("redirector-node{number}"))
}

fn remove_lease(cluster: &Cluster, number: u8) -> Result<()> {
    cluster.api.store().remove::<Lease>(NAMESPACE, &format!("redirector-node{number}"))
}

/// An agent comes to a node, and goes; whose Lease is removed, or runs out. Each time new flows go
/// the right way, and those that are there go on.
#[test]
fn flows_are_handed_over_to_nodes_that_take_them() -> Result<()> {
    for is_on_host in [true, false] {
        Cluster::run_without_agents(2, |cluster| follow(cluster, is_on_host))
            .with_context(|| format!("a pod in the host's network: {is_on_host}"))?;
    }
    Ok(())
}

fn follow(cluster: &mut Cluster, is_on_host: bool) -> Result<()> {
    let mut connections = Connections::default();
    let _pod = start(cluster, is_on_host)?;
    cluster.start_agents_of(&[1], &[])?;
    for family in FAMILIES {
        await_servers(&cluster.net.client, Tcp, cluster.at(1, family, WHOAMI), &["pod"])?;
    }
    await_taking(cluster, 1, 0)?;
    expect(cluster, false)?;
    connections.open(cluster)?;

    cluster.start_agents_of(&[2], &[])?;
    await_taking(cluster, 1, 1)?;
    expect(cluster, true)?;
    connections.check()?;
    connections.open(cluster)?;

    // Its data path is still there, but nobody says so.
    cluster.node(2).kill()?;
    remove_lease(cluster, 2)?;
    await_taking(cluster, 1, 0)?;
    expect(cluster, false)?;
    connections.check()?;
    connections.open(cluster)?;

    cluster.start_agents_of(&[2], &[])?;
    await_taking(cluster, 1, 1)?;
    expect(cluster, true)?;
    connections.check()?;
    connections.open(cluster)?;

    // It is made again where somebody removes it while the agent runs.
    remove_lease(cluster, 2)?;
    wait::until_true(
        "the Lease to be made again",
        wait::SOON,
        || Ok(lease(cluster, 2)?.is_some()),
    )?;
    await_taking(cluster, 1, 1)?;
    expect(cluster, true)?;

    // Two seconds are left, after which nothing happens at the API server.
    let mut old = lease(cluster, 2)?.context("no Lease")?;
    let spec = old.spec.as_mut().context("no spec")?;
    let duration = spec.lease_duration_seconds.context("no duration")?;
    ensure!(duration >= 3600, "{spec:?}: renewed often, by thousands of nodes");
    let left = SignedDuration::from_secs(2 - i64::from(duration));
    spec.renew_time = Some(MicroTime(Timestamp::now().checked_add(left)?));
    cluster.api.store().put(&old)?;
    await_taking(cluster, 1, 0)?;
    expect(cluster, false)?;
    connections.check()
}

/// What a Lease says, who owns it, and that it goes with the Node.
#[test]
fn a_lease_is_its_nodes() -> Result<()> {
    Cluster::run(2, |cluster| {
        for number in [1, 2] {
            wait::until_true("the Lease", wait::SOON, || Ok(lease(cluster, number)?.is_some()))?;
        }
        let lease_2 = lease(cluster, 2)?.context("no Lease")?;
        let spec = lease_2.spec.clone().unwrap_or_default();
        ensure!(spec.holder_identity.as_deref() == Some("node2"), "{spec:?}");
        let node = cluster.api.store().find::<Node>("", "node2")?.context("no Node")?;
        let owners = lease_2.metadata.owner_references.unwrap_or_default();
        ensure!(
            matches!(owners.as_slice(), [owner] if owner.kind == "Node"
                && owner.name == "node2" && Some(&owner.uid) == node.metadata.uid.as_ref()),
            "{owners:?}"
        );
        // An agent that ends leaves it, since the data path stays, and the next one renews it.
        let of = |lease: Option<Lease>| {
            lease.map(|lease| (lease.metadata.uid, lease.spec.and_then(|spec| spec.renew_time)))
        };
        let (uid, renewed) = of(lease(cluster, 2)?).context("no Lease")?;
        cluster.node(2).stop()?;
        cluster.start_agent(2)?;
        wait::until_true("the Lease to be renewed", wait::SOON, || {
            let (now, at) = of(lease(cluster, 2)?).context("it is gone")?;
            ensure!(now == uid, "it was made anew");
            Ok(at != renewed)
        })?;
        // Where no data path was left, as on a machine that was started anew, it was wrong.
        cluster.node(2).kill()?;
        cluster.detach(2)?;
        cluster.start_agent(2)?;
        wait::until_true("the Lease to be made anew", wait::SOON, || {
            Ok(of(lease(cluster, 2)?).is_some_and(|(now, _)| now != uid))
        })?;
        cluster.api.store().remove::<Node>("", "node2")?;
        control::reconcile(cluster.api.store())?;
        ensure!(lease(cluster, 1)?.is_some() && lease(cluster, 2)?.is_none());
        Ok(())
    })
}

/// Where the data path goes with the agent, so does the Lease.
#[test]
fn who_detaches_takes_no_more() -> Result<()> {
    Cluster::run_with_options(2, &["--detach-on-exit"], |cluster| {
        let _pod = start(cluster, true)?;
        await_forwarding(cluster, "dsr")?;
        expect(cluster, true)?;
        cluster.node(2).stop()?;
        ensure!(lease(cluster, 2)?.is_none(), "it is still there");
        await_taking(cluster, 1, 0)?;
        expect(cluster, false)
    })
}

/// Agents that may not use Leases, or whose API server has none, do without, and say so.
#[test]
fn without_leases_packets_are_translated() -> Result<()> {
    for is_served in [true, false] {
        Cluster::run_without_agents(2, |cluster| {
            if is_served {
                cluster.api.access().set_role(NAMESPACE, Vec::new());
            } else {
                let leases = Requests::ALL.of("leases");
                cluster.api.faults().fail_always(leases, Failure::NotServed);
            }
            let _pod = start(cluster, true)?;
            cluster.start_agents(&[])?;
            expect(cluster, false)?;
            let said = "say that they run redirector cannot be read";
            let mut error = Value::Null;
            wait::until_true("the agent to say why", wait::SOON, || {
                error = told(cluster, 1)?.1;
                let error = error.as_str().unwrap_or_default();
                Ok(error.contains(said) && error.contains("cannot be written"))
            })
            .with_context(|| format!("it says {error}"))?;
            wait::until_true("an Event on the node", wait::SOON, || {
                let events = cluster.api.store().all::<Event>()?;
                Ok(events.iter().any(|event| {
                    event.reason.as_deref() == Some("DirectReturnUnavailable")
                        && event.message.as_deref().is_some_and(|it| it.contains(said))
                }))
            })?;
            // More than one look at everything.
            thread::sleep(Duration::from_secs(6));
            let log = cluster.node(1).log();
            ensure!(log.matches(said).count() == 1, "said again and again:\n{log}");
            expect(cluster, false)
        })
        .with_context(|| format!("Leases are served: {is_served}"))?;
    }
    Ok(())
}

/// Whichever agent is started again, no new flow goes another way meanwhile.
#[test]
fn a_restart_changes_nothing() -> Result<()> {
    Cluster::run(2, |cluster| {
        let _pod = start(cluster, true)?;
        await_forwarding(cluster, "dsr")?;
        for number in [2, 1] {
            let asking = Asking::start(cluster)?;
            cluster.node(number).kill()?;
            cluster.start_agent(number)?;
            await_taking(cluster, 1, 1)?;
            let seen = asking.finish().with_context(|| format!("agent {number} started again"))?;
            let expected = CLIENT.of(Family::V4);
            ensure!(seen.len() > 10, "{} new flows", seen.len());
            ensure!(
                seen.iter().all(|seen| *seen == expected),
                "agent {number} started again: seen as {seen:?}"
            );
        }
        Ok(())
    })
}

/// New flows, one after the other.
struct Asking {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<Result<Vec<IpAddr>>>,
}

impl Asking {
    fn start(cluster: &Cluster) -> Result<Self> {
        let to = cluster.at(1, Family::V4, WHOAMI_UDP);
        let sockets: Vec<_> =
            (0..600).map(|_| client::udp(&cluster.net.client, to)).collect::<Result<_>>()?;
        let stop = Arc::new(AtomicBool::new(false));
        let is_over = stop.clone();
        let ask = move || {
            let mut seen = Vec::new();
            for socket in sockets {
                if is_over.load(Ordering::Relaxed) {
                    break;
                }
                let answer = String::from_utf8(client::round_trip(&socket, b"who am I?\n")?)?;
                seen.push(Whoami::parse(&answer)?.client.ip());
                thread::sleep(Duration::from_millis(50));
            }
            Ok(seen)
        };
        Ok(Self { stop, thread: thread::spawn(ask) })
    }

    fn finish(self) -> Result<Vec<IpAddr>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the client panicked"))?
    }
}
