//! `[sig-network] Conntrack`: clients that keep their socket.

use std::{
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use redirector_common::Protocol::{Tcp, Udp};
use redirector_tests::{
    client,
    cluster::{
        Cluster,
        build::{balance, mk_port, mk_service, spec},
    },
    frame,
    namespace::Namespace,
    packet::{Flags, Packet},
    server::Service,
    topology::FAMILIES,
    wait,
};

use crate::{on_host, own};

/// A client that asks again and again through one socket.
struct Asker {
    socket: UdpSocket,
}

impl Asker {
    fn new(host: &Namespace, to: SocketAddr) -> Result<Self> {
        let socket = client::udp(host, to)?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        Ok(Self { socket })
    }

    /// Asks until this server answers.
    fn await_server(&self, server: &str) -> Result<()> {
        let expected = format!("server={server} ");
        let mut last = None;
        let met = wait::until_true("an answer", wait::SOON, || {
            // Refusals are answers to what was sent before.
            let answer = client::round_trip(&self.socket, b"who am I?\n");
            last = Some(answer.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()));
            Ok(matches!(&last, Some(Ok(text)) if text.starts_with(&expected)))
        });
        met.with_context(|| format!("wanted {server}, met {last:?}"))
    }
}

/// "should be able to preserve UDP traffic when server pod cycles for a NodePort service"; from
/// one to another, through none, and for a service that is made again.
#[test]
fn udp_when_the_server_pod_cycles_for_a_node_port() -> Result<()> {
    Cluster::run(2, |cluster| {
        cluster.put_service(mk_service("dns", vec![mk_port(Udp, 53, 8081, 30053)]))?;
        let one = cluster.start_pod(own("one", "dns", 2))?;
        let askers = FAMILIES
            .iter()
            .map(|family| Asker::new(&cluster.net.client, cluster.at(1, *family, 30053)))
            .collect::<Result<Vec<_>>>()?;
        let meet = |server: &str| askers.iter().try_for_each(|asker| asker.await_server(server));
        meet("one")?;
        let two = cluster.start_pod(on_host("two", "dns", 1))?;
        cluster.remove_pod(one)?;
        meet("two")?;
        cluster.remove_pod(two)?;
        let three = cluster.start_pod(own("three", "dns", 2))?;
        meet("three")?;
        // All gone for a while, with the client asking on.
        cluster.remove_pod(three)?;
        for asker in &askers {
            let _ = client::round_trip(&asker.socket, b"anybody?\n");
        }
        let _four = cluster.start_pod(on_host("four", "dns", 2))?;
        meet("four")?;
        cluster.remove_service("dns")?;
        cluster.put_service(mk_service("dns", vec![mk_port(Udp, 53, 8081, 30053)]))?;
        meet("four")
    })
}

/// "should be able to preserve UDP traffic when server pod cycles for a LoadBalancer service".
#[test]
fn udp_when_the_server_pod_cycles_for_a_load_balancer() -> Result<()> {
    Cluster::run(2, |cluster| {
        let addresses = ["203.0.113.20".parse()?, "2001:db8:113::20".parse()?];
        let mut dns = mk_service("dns", vec![mk_port(Udp, 53, 8081, 0)]);
        balance(&mut dns, &addresses);
        spec(&mut dns).allocate_load_balancer_node_ports = Some(false);
        cluster.put_service(dns)?;
        let one = cluster.start_pod(own("one", "dns", 2))?;
        let mut askers = Vec::new();
        for address in addresses {
            cluster.net.route(address, 1)?;
            askers.push(Asker::new(&cluster.net.client, (address, 53).into())?);
        }
        let meet = |server: &str| askers.iter().try_for_each(|asker| asker.await_server(server));
        meet("one")?;
        let _two = cluster.start_pod(on_host("two", "dns", 1))?;
        cluster.remove_pod(one)?;
        meet("two")
    })
}

/// "should be able to preserve UDP traffic when initial unready endpoints get ready".
#[test]
fn udp_when_unready_endpoints_get_ready() -> Result<()> {
    Cluster::run(2, |cluster| {
        let _pod = cluster.start_pod(own("pod", "dns", 2))?;
        cluster.set_ready("pod", false)?;
        cluster.put_service(mk_service("dns", vec![mk_port(Udp, 53, 8081, 30053)]))?;
        let mut askers = Vec::new();
        for family in FAMILIES {
            let asker = Asker::new(&cluster.net.client, cluster.at(1, family, 30053))?;
            for _ in 0..3 {
                let _ = client::round_trip(&asker.socket, b"anybody?\n");
            }
            askers.push(asker);
        }
        cluster.set_ready("pod", true)?;
        askers.iter().try_for_each(|asker| asker.await_server("pod"))
    })
}

/// "should be able to cleanup conntrack entries when UDP service target port changes for a NodePort
/// service".
#[test]
fn udp_when_the_target_port_changes() -> Result<()> {
    Cluster::run(2, |cluster| {
        let mut pod = cluster.start_pod(own("old", "dns", 2))?;
        pod.serve(cluster, Udp, 9091, Service::Whoami("new"))?;
        cluster.put_service(mk_service("dns", vec![mk_port(Udp, 53, 8081, 30053)]))?;
        let askers = FAMILIES
            .iter()
            .map(|family| Asker::new(&cluster.net.client, cluster.at(1, *family, 30053)))
            .collect::<Result<Vec<_>>>()?;
        askers.iter().try_for_each(|asker| asker.await_server("old"))?;
        cluster.change_service("dns", |dns| {
            spec(dns).ports = Some(vec![mk_port(Udp, 53, 9091, 30053)]);
        })?;
        askers.iter().try_for_each(|asker| asker.await_server("new"))
    })
}

/// "proxy implementation should not be vulnerable to the invalid conntrack state bug": segments of
/// the backend that are outside all windows reach the client as what they are, from the frontend;
/// from anybody else they would make it reset the connection.
#[test]
fn invalid_segments() -> Result<()> {
    Cluster::run(1, |cluster| {
        // On the node that is asked: the backend sees the client's own address.
        let pod = cluster.start_pod_with(own("pod", "web", 1), &Service::Echo)?;
        cluster.put_service(mk_service("web", vec![mk_port(Tcp, 80, 8080, 30080)]))?;
        let host = &cluster.net.client;
        for family in FAMILIES {
            let to = cluster.at(1, family, 30080);
            let stream = wait::until("a connection", wait::SOON, || {
                Ok(client::tcp_within(host, to, Duration::from_secs(2)).ok())
            })?;
            stream.set_read_timeout(Some(client::PATIENCE))?;
            client::echo(&stream, b"before")?;
            let resets = sent_resets(host)?;
            let backend = SocketAddr::new(pod.addresses.of(family), 8080);
            let (node, pod_mac) = (cluster.host(1).mac("pod1")?, pod.host(cluster).mac("eth0")?);
            let mut wire = frame::Tap::new(host, "eth0")?;
            for flags in [Flags::ACK, Flags::NONE, Flags::FIN_ACK] {
                let packet = Packet::tcp(flags, backend, stream.local_addr()?);
                let bytes = packet.macs(node, pod_mac).bytes();
                frame::inject(pod.host(cluster), "eth0", &bytes)?;
            }
            let mut seen = 0;
            wait::until_true("the segments", wait::SOON, || {
                seen += wire.seen(stream.local_addr()?)?;
                Ok(seen >= 3)
            })?;
            client::echo(&stream, b"after")?;
            ensure!(sent_resets(host)? == resets, "the client reset the connection");
            client::finish(&stream)?;
        }
        Ok(())
    })
}

/// Segments with RST that a host has sent.
fn sent_resets(host: &Namespace) -> Result<u64> {
    host.enter(|| {
        let text = std::fs::read_to_string("/proc/thread-self/net/snmp")?;
        let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
        let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
        let mut pairs = names.split(' ').zip(values.split(' '));
        let (_, value) = pairs.find(|(name, _)| *name == "OutRsts").context("no OutRsts")?;
        Ok(value.parse()?)
    })
}
