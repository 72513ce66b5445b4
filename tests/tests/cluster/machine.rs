//! Clients in pods, on the machine of the agent.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
};

use anyhow::{Context as _, Result, ensure};
use redirector_common::Protocol::{Tcp, Udp};
use redirector_tests::{
    cgroup::Cgroup,
    cluster::{
        Cluster,
        build::{mk_port, mk_service},
        network::node_address,
        pod::Pod,
    },
    topology::FAMILIES,
    wait,
};

use crate::{on_host, own};

/// A process that asks: see `src/bin/asker.rs`.
const ASKER: &str = env!("CARGO_BIN_EXE_asker");

/// A pod that is the only endpoint of a service reaches itself through node ports, its node's and
/// another node's, in the node's network and in one of its own ("hairpin").
#[test]
fn a_pod_reaches_itself() -> Result<()> {
    let cgroup = Cgroup::new()?;
    let dir = cgroup.dir().to_str().context("not UTF-8")?.to_owned();
    Cluster::run_without_agents(2, |cluster| {
        // One agent has the control group: all nodes are on one machine.
        cluster.start_agents_of(&[1], &["--cgroup", &dir])?;
        cluster.start_agents_of(&[2], &[])?;
        for plan in [own("own", "web", 1), on_host("host", "web", 1)] {
            let pod = cluster.start_pod(plan)?;
            let ports = vec![mk_port(Tcp, 80, 8080, 30080), mk_port(Udp, 90, 8081, 30090)];
            cluster.put_service(mk_service("web", ports))?;
            for family in FAMILIES {
                for (how, port) in [("tcp", 30080), ("udp", 30090), ("sendto", 30090)] {
                    for node in [1, 2] {
                        let to = cluster.at(node, family, port);
                        // Its own node hands it to itself as it is; from another it comes back
                        // translated, as it does to all backends elsewhere.
                        let seen = if node == 1 { pod.addresses } else { node_address(2) };
                        await_itself(cluster, &cgroup, &pod, (how, to), seen.of(family))
                            .with_context(|| format!("{}: {how} to {to}", pod.name))?;
                    }
                }
            }
            cluster.remove_service("web")?;
            cluster.remove_pod(pod)?;
        }
        Ok(())
    })
}

/// Waits until the pod's question is answered by the pod.
fn await_itself(
    cluster: &Cluster,
    cgroup: &Cgroup,
    pod: &Pod,
    (how, to): (&str, SocketAddr),
    seen: IpAddr,
) -> Result<()> {
    let mut last = String::new();
    let done = wait::until_true("the pod to reach itself", wait::SOON, || {
        let asked = cgroup.run(pod.host(cluster), Path::new(ASKER), &[how, &to.to_string()]);
        last = asked.unwrap_or_else(|error| format!("{error:#}"));
        Ok(last.contains(&format!("server={} ", pod.name)))
    });
    done.with_context(|| last.clone())?;
    // Nothing of this is to be seen from within.
    ensure!(last.contains(&format!("peer={to}")) || how == "sendto", "{last}");
    let client = last.split("client=").nth(1).context("no client")?;
    let client: SocketAddr = client.split_whitespace().next().context("no client")?.parse()?;
    ensure!(client.ip() == seen, "{last}");
    Ok(())
}
