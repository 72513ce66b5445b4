//! The agent and the API server on its bad days: see "Watches" in Kubernetes' own proxy.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use redirector_common::Protocol::Tcp;
use redirector_tests::{
    apiserver::{Failure, Order, Pace, Requests, Resource, TOKEN},
    cluster::{
        Cluster,
        build::{mk_port, mk_service},
        probe::{Outcome, await_outcome, await_servers},
    },
    topology::FAMILIES,
};
use serde_json::json;

use crate::own;

/// A service whose pods are there already.
fn put(cluster: &Cluster, name: &str, port: u16) -> Result<()> {
    cluster.put_service(mk_service(name, vec![mk_port(Tcp, 80, 8080, port)]))
}

fn serves(cluster: &Cluster, port: u16, server: &str) -> Result<()> {
    FAMILIES.iter().try_for_each(|family| {
        await_servers(&cluster.net.client, Tcp, cluster.at(1, *family, port), &[server])
    })
}

/// Whatever happens to watches and lists, a change comes through in the end, and nothing that is
/// still there goes in between.
#[test]
fn interrupted_watches() -> Result<()> {
    Cluster::run(2, |cluster| {
        let _pods = [
            cluster.start_pod(own("stays", "stays", 2))?,
            cluster.start_pod(own("web", "web", 2))?,
        ];
        put(cluster, "stays", 30001)?;
        serves(cluster, 30001, "stays")?;
        let mut port = 30010;
        for disturb in [
            |cluster: &mut Cluster| {
                cluster.api.faults().order(Order::Cut, None);
                Ok(())
            },
            |cluster: &mut Cluster| {
                cluster.api.faults().order(Order::Expire, None);
                Ok(())
            },
            |cluster: &mut Cluster| {
                cluster.api.faults().fail(Requests::WATCHES, Failure::Gone, 4);
                cluster.api.store().compact();
                cluster.api.faults().order(Order::End, None);
                Ok(())
            },
            |cluster: &mut Cluster| {
                cluster.api.faults().fail(Requests::ALL, Failure::Cut, 4);
                cluster.api.faults().fail(Requests::LISTS, Failure::Unavailable, 2);
                cluster.api.faults().order(Order::Cut, Some("services"));
                Ok(())
            },
            |cluster: &mut Cluster| {
                let pause = Duration::from_millis(1);
                cluster.api.faults().slow(Pace { bytes: 64, pause });
                cluster.api.faults().order(Order::Expire, None);
                Ok(())
            },
            |cluster: &mut Cluster| {
                cluster.api.faults().heal();
                cluster.api.stop();
                cluster.api.start(Some(&cluster.net.router))
            },
        ] {
            disturb(cluster)?;
            port += 1;
            put(cluster, "web", port)?;
            serves(cluster, port, "web")?;
            serves(cluster, 30001, "stays")?;
        }
        Ok(())
    })
}

/// The server is away: what there was is served on. It comes back: what has changed meanwhile is
/// caught up with, and only what is gone goes.
#[test]
fn the_server_is_away() -> Result<()> {
    Cluster::run(2, |cluster| {
        let _pods = [
            cluster.start_pod(own("stays", "stays", 2))?,
            cluster.start_pod(own("goes", "goes", 2))?,
            cluster.start_pod(own("comes", "comes", 2))?,
        ];
        put(cluster, "stays", 30001)?;
        put(cluster, "goes", 30002)?;
        serves(cluster, 30001, "stays")?;
        serves(cluster, 30002, "goes")?;
        cluster.api.stop();
        cluster.remove_service("goes")?;
        put(cluster, "comes", 30003)?;
        cluster.api.store().compact();
        serves(cluster, 30001, "stays")?;
        serves(cluster, 30002, "goes")?;
        cluster.api.start(Some(&cluster.net.router))?;
        serves(cluster, 30003, "comes")?;
        serves(cluster, 30001, "stays")?;
        for family in FAMILIES {
            let to = cluster.at(1, family, 30002);
            await_outcome(&cluster.net.client, Tcp, to, &Outcome::Refused)?;
        }
        Ok(())
    })
}

/// A malformed object is passed over: in the first list, in a watch and in a later list.
#[test]
fn malformed_objects() -> Result<()> {
    Cluster::run_without_agents(2, |cluster| {
        let _pod = cluster.start_pod(own("web", "web", 2))?;
        spoil(cluster, "a-first")?;
        cluster.start_agents(&[])?;
        put(cluster, "web", 30001)?;
        serves(cluster, 30001, "web")?;
        spoil(cluster, "b-watched")?;
        put(cluster, "web", 30002)?;
        serves(cluster, 30002, "web")?;
        cluster.api.faults().order(Order::Expire, None);
        put(cluster, "web", 30003)?;
        serves(cluster, 30003, "web")?;
        // Each is named, with what is wrong with it.
        for name in ["a-first", "b-watched"] {
            for kind in ["services", "pods", "endpointslices"] {
                let log = cluster.node(1).log();
                let mut lines = log.lines().filter(|line| line.contains("malformed"));
                ensure!(
                    lines.any(|line| line.contains(kind)
                        && line.contains(&format!("default/{name}"))
                        && line.contains("invalid type")),
                    "{kind} {name} is not named: {log}"
                );
            }
        }
        Ok(())
    })
}

/// Writes objects that no client can read.
fn spoil(cluster: &Cluster, name: &str) -> Result<()> {
    let metadata = json!({"name": name, "namespace": "default"});
    for (group, plural, object) in [
        ("", "services", json!({"spec": {"type": "NodePort", "ports": "80"}})),
        ("", "pods", json!({"spec": {"nodeName": "node1", "containers": {"a": 1}}})),
        ("discovery.k8s.io", "endpointslices", json!({"addressType": "IPv4", "endpoints": 7})),
    ] {
        let resource = Resource::find(group, "v1", plural).context("not served")?;
        let mut object = object;
        object["metadata"] = metadata.clone();
        cluster.api.store().inject(resource, object)?;
    }
    Ok(())
}

/// Credentials that are no longer good, and then are again.
#[test]
fn expired_credentials() -> Result<()> {
    Cluster::run(2, |cluster| {
        let _pod = cluster.start_pod(own("web", "web", 2))?;
        put(cluster, "web", 30001)?;
        serves(cluster, 30001, "web")?;
        cluster.api.access().set_tokens([]);
        cluster.api.faults().order(Order::Expire, None);
        put(cluster, "web", 30002)?;
        serves(cluster, 30001, "web")?;
        cluster.api.access().set_tokens([TOKEN.to_owned()]);
        serves(cluster, 30002, "web")
    })
}

/// Only what the node has to do with is asked for, and nothing that the role in `deploy/` does not
/// allow.
#[test]
fn what_is_asked_for() -> Result<()> {
    Cluster::run(2, |cluster| {
        let _pod = cluster.start_pod(own("web", "web", 2))?;
        put(cluster, "web", 30001)?;
        serves(cluster, 30001, "web")?;
        let asked = cluster.api.access().asked();
        ensure!(asked.iter().all(|asked| asked.allowed), "{asked:#?}");
        let mut pods = asked.iter().filter(|asked| asked.resource == "pods");
        ensure!(
            pods.all(|asked| asked.query.contains("fieldSelector")
                && asked.query.contains("spec.nodeName")
                && asked.query.contains("node")),
            "{asked:#?}"
        );
        Ok(())
    })
}
