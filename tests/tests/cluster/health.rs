//! Health checks of load balancers.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::{
    api::core::v1::{Node, Taint},
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::Timestamp,
};
use redirector_common::{Family, Protocol::Tcp};
use redirector_tests::{
    agent::{get, get_with_head},
    cluster::{
        Cluster,
        build::{balance, mk_port, mk_service, spec},
        probe::await_servers,
    },
    server::{Server, Service},
    topology::FAMILIES,
    wait,
};
use serde_json::{Value, json};

use crate::on_host;

const HEALTH: u16 = 32_700;

/// A service of a load balancer that asks nodes for their health.
fn put(cluster: &Cluster, policy: &str) -> Result<()> {
    let mut web = mk_service("web", vec![mk_port(Tcp, 80, 8080, 30080)]);
    balance(&mut web, &["203.0.113.40".parse()?, "2001:db8:113::40".parse()?]);
    spec(&mut web).external_traffic_policy = Some(policy.into());
    spec(&mut web).health_check_node_port = (policy == "Local").then_some(HEALTH.into());
    cluster.put_service(web)
}

/// Asks node `node`, from outside; `None`: nobody answers.
fn ask(cluster: &Cluster, node: u8, family: Family) -> Option<(u16, String, Value)> {
    let to = cluster.at(node, family, HEALTH);
    let (status, head, body) = get_with_head(&cluster.net.client, to, "/whatever").ok()?;
    Some((status, head.to_lowercase(), serde_json::from_str(&body).ok()?))
}

fn await_status(cluster: &Cluster, node: u8, expected: Option<u16>) -> Result<()> {
    for family in FAMILIES {
        let mut last = None;
        let met = wait::until_true("the node's health", wait::SOON, || {
            last = ask(cluster, node, family);
            Ok(last.as_ref().map(|(status, _, _)| *status) == expected)
        });
        met.with_context(|| format!("node {node}: wanted {expected:?}, met {last:?}"))?;
    }
    Ok(())
}

/// "should fail health check node port if there are only terminating endpoints"; and the health
/// check's part of "should adapt NodePort and HealthCheckNodePort when ExternalTrafficPolicy
/// changes".
#[test]
fn health_check_node_port() -> Result<()> {
    Cluster::run(2, |cluster| {
        let _pod = cluster.start_pod(on_host("pod", "web", 1))?;
        put(cluster, "Local")?;
        await_status(cluster, 1, Some(200))?;
        await_status(cluster, 2, Some(503))?;
        for (node, endpoints) in [(1, 1), (2, 0)] {
            let (_, head, body) = ask(cluster, node, FAMILIES[0]).context("no answer")?;
            let wanted = json!({
                "service": {"namespace": "default", "name": "web"},
                "localEndpoints": endpoints,
                "serviceProxyHealthy": true,
            });
            ensure!(body == wanted, "{body}");
            let weight = format!("x-load-balancing-endpoint-weight: {endpoints}");
            for header in
                [&*weight, "content-type: application/json", "x-content-type-options: nosniff"]
            {
                ensure!(head.lines().any(|line| line == header), "no {header}: {head}");
            }
        }
        cluster.terminate("pod")?;
        await_status(cluster, 1, Some(503))?;
        // It serves on all the same.
        await_servers(&cluster.net.client, Tcp, cluster.at(1, FAMILIES[0], 30080), &["pod"])?;
        put(cluster, "Cluster")?;
        await_status(cluster, 1, None)?;
        put(cluster, "Local")?;
        await_status(cluster, 1, Some(503))?;
        cluster.remove_service("web")?;
        await_status(cluster, 1, None)
    })
}

/// A port that another program has: the Service is told, and it is tried again.
#[test]
fn a_health_check_port_that_is_taken() -> Result<()> {
    Cluster::run(1, |cluster| {
        let _pod = cluster.start_pod(on_host("pod", "web", 1))?;
        let taken = Server::tcp(cluster.host(1), HEALTH, Service::Echo)?;
        put(cluster, "Local")?;
        let said = ["Warning FailedToStartServiceHealthcheck", "32700", "in use"];
        cluster.await_event("Service", "web", &said)?;
        drop(taken);
        await_status(cluster, 1, Some(200))
    })
}

/// Two Services with one port, which an API server hands out once but a restored one may know twice:
/// one of them has it, the other is told so, and has it when it is free.
#[test]
fn a_health_check_port_of_two_services() -> Result<()> {
    Cluster::run(1, |cluster| {
        let _pod = cluster.start_pod(on_host("pod", "web", 1))?;
        put(cluster, "Local")?;
        await_status(cluster, 1, Some(200))?;
        let mut other = mk_service("web-too", vec![mk_port(Tcp, 81, 8080, 30081)]);
        spec(&mut other).type_ = Some("LoadBalancer".into());
        spec(&mut other).external_traffic_policy = Some("Local".into());
        spec(&mut other).health_check_node_port = Some(HEALTH.into());
        cluster.put_service(other)?;
        let said =
            ["Warning FailedToStartServiceHealthcheck", "32700", "Service default/web has it"];
        cluster.await_event("Service", "web-too", &said)?;
        let asked_for = |expected: &str| {
            wait::until_true("the Service that is asked for", wait::SOON, || {
                let answer = ask(cluster, 1, FAMILIES[0]);
                Ok(answer.is_some_and(|(_, _, body)| body["service"]["name"] == expected))
            })
        };
        asked_for("web")?;
        cluster.remove_service("web")?;
        asked_for("web-too")
    })
}

/// The node's own health, as its usual proxy has it: one that is about to go lives, but wants no
/// traffic.
#[test]
fn health_of_the_node() -> Result<()> {
    let address = "[::]:10256";
    Cluster::run_with_options(1, &["--healthz-address", address], |cluster| {
        let answers = |expected: [u16; 2]| {
            let mut last = Vec::new();
            let met = wait::until_true("the node's health", wait::SOON, || {
                last.clear();
                for family in FAMILIES {
                    let to: SocketAddr = cluster.at(1, family, 10256);
                    for path in ["/healthz", "/livez"] {
                        last.push(get(&cluster.net.client, to, path)?.0);
                    }
                }
                Ok(last == expected.repeat(2))
            });
            met.with_context(|| format!("wanted {expected:?}, met {last:?}"))
        };
        answers([200, 200])?;
        let taint = |key: &str| {
            let taint = Taint { key: key.into(), effect: "NoSchedule".into(), ..Taint::default() };
            move |node: &mut Node| {
                node.spec.get_or_insert_default().taints = Some(vec![taint]);
            }
        };
        cluster.change_node(1, taint("ToBeDeletedByClusterAutoscaler"))?;
        answers([503, 200])?;
        cluster.change_node(1, taint("example.org/other"))?;
        answers([200, 200])?;
        cluster.change_node(1, |node| {
            node.metadata.deletion_timestamp = Some(Time(Timestamp::now()));
        })?;
        answers([503, 200])
    })
}
