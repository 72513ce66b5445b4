//! `[sig-network] LoadBalancers`: addresses that a load balancer announces, whose packets reach a
//! node as they are.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use redirector_common::Protocol::Tcp;
use redirector_tests::{
    client,
    cluster::{
        Cluster,
        build::{balance, mk_port, mk_service, spec},
        network::CLIENT,
        pod::{Net, Plan},
        probe::{Outcome, await_outcome, await_servers},
    },
    topology::{Addresses, FAMILIES},
    wait,
};

use crate::{PORTS, own};

const ADDRESSES: [&str; 2] = ["203.0.113.30", "2001:db8:113::30"];

/// The addresses, with the router sending what is for them to a node.
fn announced(cluster: &Cluster, node: u8) -> Result<[IpAddr; 2]> {
    let [v4, v6] = ADDRESSES.map(str::parse::<IpAddr>);
    let addresses = [v4?, v6?];
    for address in addresses {
        cluster.net.route(address, node)?;
    }
    Ok(addresses)
}

/// "should only allow access from service loadbalancer source ranges": of the load balancer's
/// addresses, and not of node ports.
#[test]
fn source_ranges() -> Result<()> {
    Cluster::run(2, |cluster| {
        let _pod = cluster.start_pod(own("pod", "web", 2))?;
        let addresses = announced(cluster, 1)?;
        let mut web = mk_service("web", vec![mk_port(Tcp, 80, 8080, 30080)]);
        balance(&mut web, &addresses);
        cluster.put_service(web)?;
        let client = &cluster.net.client;
        let allow = |ranges: &[&str]| {
            let ranges = ranges.iter().map(|range| (*range).to_owned()).collect();
            cluster.change_service("web", |web| {
                spec(web).load_balancer_source_ranges = Some(ranges);
            })
        };
        for (address, family) in addresses.into_iter().zip(FAMILIES) {
            let to: SocketAddr = (address, 80).into();
            await_servers(client, Tcp, to, &["pod"])?;
            allow(&["192.0.2.0/24", "2001:db8:dead::/48"])?;
            await_outcome(client, Tcp, to, &Outcome::Silence)?;
            await_servers(client, Tcp, cluster.at(1, family, 30080), &["pod"])?;
            // As people write them.
            allow(&[&format!(" {}/24 ", CLIENT.v4), &format!("{}/64 ", CLIENT.v6)])?;
            await_servers(client, Tcp, to, &["pod"])?;
            allow(&["192.0.2.0/24", "0.0.0.0/0", "::/0"])?;
            await_servers(client, Tcp, to, &["pod"])?;
            allow(&[])?;
        }
        Ok(())
    })
}

/// "should be able to create LoadBalancer Service without NodePort and change it".
#[test]
fn without_node_port() -> Result<()> {
    Cluster::run(2, |cluster| {
        let _pod = cluster.start_pod(own("pod", "web", 2))?;
        let addresses = announced(cluster, 1)?;
        let ports = |node_port| vec![mk_port(Tcp, 80, 8080, node_port)];
        let mut web = mk_service("web", ports(0));
        balance(&mut web, &addresses);
        spec(&mut web).allocate_load_balancer_node_ports = Some(false);
        cluster.put_service(web)?;
        let client = &cluster.net.client;
        for address in addresses {
            await_servers(client, Tcp, (address, 80).into(), &["pod"])?;
        }
        cluster.change_service("web", |web| {
            spec(web).allocate_load_balancer_node_ports = Some(true);
            spec(web).ports = Some(ports(30080));
        })?;
        for family in FAMILIES {
            await_servers(client, Tcp, cluster.at(1, family, 30080), &["pod"])?;
        }
        // The address of the load balancer is not ours to serve where it is a proxy's.
        cluster.change_service("web", |web| {
            let status = web.status.get_or_insert_default();
            for ingress in status.load_balancer.iter_mut().flat_map(|it| it.ingress.iter_mut()) {
                ingress.iter_mut().for_each(|one| one.ip_mode = Some("Proxy".into()));
            }
        })?;
        for address in addresses {
            let to = (address, 80).into();
            wait::until_true("the address not to be served", wait::SOON, || {
                let met = redirector_tests::cluster::probe::probe(client, Tcp, to);
                Ok(!matches!(met, Ok(Outcome::Answer(_))))
            })?;
        }
        Ok(())
    })
}

/// Clients that come one after the other, each with a new connection.
struct Visitors {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicU64>,
    threads: Vec<thread::JoinHandle<Result<()>>>,
}

impl Visitors {
    fn start(cluster: &Cluster, to: &[SocketAddr]) -> Result<Self> {
        let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut threads = Vec::new();
        for &to in to {
            let (stop, served) = (stop.clone(), served.clone());
            threads.push(cluster.net.client.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let stream = std::net::TcpStream::connect_timeout(&to, client::PATIENCE)
                        .with_context(|| format!("visiting {to}"))?;
                    stream.set_read_timeout(Some(client::PATIENCE))?;
                    client::ask(&stream).with_context(|| format!("visiting {to}"))?;
                    served.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            })?);
        }
        Ok(Self { stop, served, threads })
    }

    /// Waits until more have been served.
    fn beat(&self, count: u64) -> Result<()> {
        let goal = self.served.load(Ordering::Relaxed) + count;
        wait::until_true("visitors to be served", wait::SOON, || {
            Ok(self.served.load(Ordering::Relaxed) >= goal
                || self.threads.iter().any(thread::JoinHandle::is_finished))
        })
    }

    fn finish(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().map_err(|_| anyhow!("a visitor panicked"))??;
        }
        ensure!(self.served.load(Ordering::Relaxed) > 0);
        Ok(())
    }
}

/// "should not have connectivity disruption during rolling update with externalTrafficPolicy=
/// Cluster".
#[test]
fn rolling_update_cluster() -> Result<()> {
    rolling_update("Cluster", 2)
}

/// "should not have connectivity disruption during rolling update with externalTrafficPolicy=Local".
#[test]
fn rolling_update_local() -> Result<()> {
    rolling_update("Local", 1)
}

/// Pods on `node` are replaced one by one, while clients come to node 1.
fn rolling_update(policy: &str, node: u8) -> Result<()> {
    Cluster::run(2, |cluster| {
        let addresses = announced(cluster, 1)?;
        let mut web = mk_service("web", vec![mk_port(Tcp, 80, 8080, 0)]);
        balance(&mut web, &addresses);
        spec(&mut web).allocate_load_balancer_node_ports = Some(false);
        spec(&mut web).external_traffic_policy = Some(policy.to_owned());
        cluster.put_service(web)?;
        let generations = [["a1", "a2"], ["b1", "b2"], ["c1", "c2"]];
        let plan = |name| Plan { name, app: "web", node, net: Net::Own, ports: &PORTS };
        let mut pods = Vec::new();
        for name in generations[0] {
            pods.push(cluster.start_pod(plan(name))?);
        }
        let frontends = addresses.map(|address| SocketAddr::new(address, 80));
        for to in frontends {
            await_servers(&cluster.net.client, Tcp, to, &generations[0])?;
        }
        let visitors = Visitors::start(cluster, &frontends)?;
        for generation in &generations[1..] {
            for name in generation {
                // As a deployment does: one more, and when it is ready, one less, which goes on
                // serving until everybody has heard of it.
                pods.push(cluster.start_pod(plan(name))?);
                visitors.beat(20)?;
                let old = pods.remove(0);
                cluster.terminate(old.name)?;
                await_no_new(cluster, old.addresses)?;
                visitors.beat(20)?;
                cluster.remove_pod(old)?;
            }
        }
        visitors.finish()?;
        for to in frontends {
            await_servers(&cluster.net.client, Tcp, to, &generations[2])?;
        }
        Ok(())
    })
}

/// Waits until node 1 sends nobody new to a backend.
fn await_no_new(cluster: &Cluster, backend: Addresses) -> Result<()> {
    let addresses = [backend.v4.to_string(), backend.v6.to_string()];
    wait::until_true("the old pod to get nobody new", wait::SOON, || {
        let rows = cluster.rows(1, &["service", "list"])?;
        let mut backends = rows.iter().filter_map(|row| row["backends"].as_array()).flatten();
        let is_old = |backend: &serde_json::Value| {
            addresses.iter().any(|address| backend["address"] == **address)
        };
        Ok(!backends.any(|backend| is_old(backend) && backend["state"] == "active"))
    })
}
