//! What is owed to flows when backends change.

use std::{
    io::ErrorKind,
    net::{TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Service as ServiceObject;
use redirector_common::Protocol::{Tcp, Udp};
use redirector_tests::{
    client::{self, Pulse},
    cluster::{
        Cluster,
        build::{mk_port, mk_service, spec},
        pod::Pod,
        probe::{Outcome, await_outcome, await_servers},
    },
    server::Service,
    topology::FAMILIES,
    wait,
};

use crate::{PORTS, on_host, own};

/// How soon UDP flows of what has gone have to be gone, too.
const SOON: Duration = Duration::from_secs(1);

/// How often it is tried: one that the machine had no time for says nothing.
const ROUNDS: usize = 4;

/// "web" over TCP, "dns" over UDP, in one Service.
fn web() -> ServiceObject {
    let ports = vec![mk_port(Tcp, 80, 8080, 30080), mk_port(Udp, 90, 8081, 30090)];
    mk_service("web", ports)
}

/// Clients of each family at each node, that a server has answered.
fn open_udp(cluster: &Cluster, nodes: &[u8]) -> Result<Vec<UdpSocket>> {
    let mut sockets = Vec::new();
    for node in nodes {
        for family in FAMILIES {
            let socket = client::udp(&cluster.net.client, cluster.at(*node, family, 30090))?;
            socket.set_read_timeout(Some(Duration::from_millis(20)))?;
            wait::until_true("an answer", wait::SOON, || {
                Ok(client::round_trip(&socket, b"who am I?\n").is_ok())
            })?;
            sockets.push(socket);
        }
    }
    Ok(sockets)
}

/// Waits until clients that ask on and on are refused: they were answered for as long as they had
/// flows to a server that is still there.
fn await_refusals(mut sockets: Vec<UdpSocket>) -> Result<()> {
    wait::until_true("all clients to be refused", wait::SOON, || {
        sockets.retain(|socket| {
            let sent = socket.send(b"who am I?\n");
            let answer = sent.and_then(|_| wait::uninterrupted(|| socket.recv(&mut [0; 100])));
            !answer.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
        });
        Ok(sockets.is_empty())
    })
}

/// How a service's flows come to their end.
type End = (&'static str, fn(&Cluster) -> Result<()>);

/// No backend is left, the target port becomes another, the Service goes: on every node, flows to
/// what was there go within a second, although somebody still answers there.
#[test]
fn udp_flows_end_within_a_second_on_every_node() -> Result<()> {
    const NODES: [u8; 2] = [1, 2];
    Cluster::run(2, |cluster| {
        let ends: [End; 3] = [
            ("no backend is left", |cluster| {
                cluster.change_service("web", |web| spec(web).selector = other("nobody"))
            }),
            ("the target port is another", |cluster| {
                cluster.change_service("web", |web| {
                    spec(web).ports =
                        Some(vec![mk_port(Tcp, 80, 8080, 30080), mk_port(Udp, 90, 9999, 30090)]);
                })
            }),
            ("the service is gone", |cluster| cluster.remove_service("web")),
        ];
        let _pod = cluster.start_pod(own("pod", "web", 2))?;
        for (what, end) in ends {
            let mut took = Vec::new();
            while took.len() < ROUNDS && took.last().is_none_or(|last| *last > SOON) {
                cluster.put_service(web())?;
                let sockets = open_udp(cluster, &NODES)?;
                let start = Instant::now();
                end(cluster)?;
                await_refusals(sockets).with_context(|| what.to_owned())?;
                took.push(start.elapsed());
            }
            ensure!(took.last().is_some_and(|last| *last <= SOON), "{what}: {took:?}");
        }
        Ok(())
    })
}

fn other(app: &str) -> Option<std::collections::BTreeMap<String, String>> {
    Some([("app".to_owned(), app.to_owned())].into())
}

/// Connections and datagrams to one pod, from outside.
struct Traffic {
    streams: Vec<TcpStream>,
    pulses: Vec<Pulse>,
}

impl Traffic {
    fn start(cluster: &Cluster) -> Result<Self> {
        let (mut streams, mut pulses) = (Vec::new(), Vec::new());
        for family in FAMILIES {
            let to = cluster.at(1, family, 30080);
            streams.push(wait::until("a connection", wait::SOON, || {
                Ok(client::tcp_within(&cluster.net.client, to, Duration::from_secs(1)).ok())
            })?);
            let to = cluster.at(1, family, 30090);
            let socket = client::udp_once_served(&cluster.net.client, to)?;
            pulses.push(Pulse::start(socket, Duration::from_millis(10))?);
        }
        Ok(Self { streams, pulses })
    }

    fn goes_on(&self) -> Result<()> {
        self.streams_go_on()?;
        self.pulses.iter().try_for_each(|pulse| pulse.beat(10))
    }

    fn streams_go_on(&self) -> Result<()> {
        self.streams.iter().try_for_each(|stream| client::echo(stream, &[7; 5000]))
    }
}

/// A pod that ends keeps what it has, TCP and UDP, and gets nothing new while another is ready; it
/// keeps its connections even when nothing speaks of it any more.
#[test]
fn what_a_pod_has_when_it_ends() -> Result<()> {
    Cluster::run(2, |cluster| {
        for plan in [own("elsewhere", "web", 2), on_host("there", "web", 2), own("here", "web", 1)]
        {
            let pod = cluster.start_pod_with(plan, &Service::Echo)?;
            cluster.put_service(web())?;
            let traffic = Traffic::start(cluster)?;
            traffic.goes_on()?;
            let newer = own("newer", "web", 2);
            let newer = cluster.start_pod(newer)?;
            cluster.terminate(pod.name)?;
            for family in FAMILIES {
                let to = cluster.at(1, family, 30080);
                await_servers(&cluster.net.client, Tcp, to, &["newer"])?;
            }
            traffic.goes_on().with_context(|| format!("{} ends", pod.name))?;
            let Traffic { streams, pulses } = traffic;
            for pulse in pulses {
                pulse.finish().with_context(|| format!("{} ends", pod.name))?;
            }
            // Its object goes; its programs are still there.
            forget(cluster, &pod)?;
            let traffic = Traffic { streams, pulses: Vec::new() };
            traffic.streams_go_on().with_context(|| format!("{} is gone", pod.name))?;
            traffic.streams.iter().try_for_each(client::finish)?;
            cluster.remove_service("web")?;
            cluster.remove_pod(newer)?;
        }
        Ok(())
    })
}

/// Takes a pod's object away, and waits until node 1 has heard of it.
fn forget(cluster: &Cluster, pod: &Pod) -> Result<()> {
    use k8s_openapi::api::core::v1::Pod as PodObject;
    cluster.api.store().remove::<PodObject>("default", pod.name)?;
    redirector_tests::cluster::control::reconcile(cluster.api.store())?;
    let [v4, v6] = FAMILIES.map(|family| pod.addresses.of(family).to_string());
    wait::until_true("the pod to be forgotten", wait::SOON, || {
        let rows = cluster.rows(1, &["service", "list"])?;
        let mut backends = rows.iter().filter_map(|row| row["backends"].as_array()).flatten();
        Ok(!backends.any(|backend| backend["address"] == *v4 || backend["address"] == *v6))
    })
}

/// How a backend is chosen changes on a living Service, by annotation, and which port pods have:
/// what is open goes on.
#[test]
fn connections_outlive_what_the_service_says() -> Result<()> {
    Cluster::run(2, |cluster| {
        let _pods = [
            cluster.start_pod_with(own("one", "web", 2), &Service::Echo)?,
            cluster.start_pod_with(on_host("two", "web", 2), &Service::Echo)?,
        ];
        cluster.put_service(web())?;
        let traffic = Traffic::start(cluster)?;
        traffic.goes_on()?;
        for algorithm in ["random", "maglev", "random"] {
            cluster.change_service("web", |web| {
                let annotations = web.metadata.annotations.get_or_insert_default();
                annotations.insert("redirector.io/algorithm".to_owned(), algorithm.to_owned());
            })?;
            wait::until_true("the agent to follow", wait::SOON, || {
                let shown = cluster.show(1, &["service", "get", "web:tcp80"])?;
                Ok(shown["algorithm"] == algorithm)
            })?;
            traffic.goes_on().with_context(|| algorithm.to_owned())?;
        }
        let Traffic { streams, pulses } = traffic;
        for pulse in pulses {
            pulse.finish()?;
        }
        let ports = vec![mk_port(Tcp, 80, 9999, 30080), mk_port(Udp, 90, 9999, 30090)];
        cluster.change_service("web", |web| spec(web).ports = Some(ports))?;
        for family in FAMILIES {
            // Nobody listens there.
            let to = cluster.at(1, family, 30080);
            await_outcome(&cluster.net.client, Tcp, to, &Outcome::Refused)?;
        }
        for stream in streams {
            client::echo(&stream, b"still there?").context("another target port")?;
            client::finish(&stream)?;
        }
        ensure!(PORTS.iter().all(|(_, _, port)| *port != 9999));
        Ok(())
    })
}
