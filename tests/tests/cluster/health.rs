//! Health checks of load balancers.

use anyhow::{Context as _, Result, ensure};
use redirector_common::Protocol::Tcp;
use redirector_tests::{
    agent::get,
    cluster::{
        Cluster,
        build::{balance, mk_port, mk_service, spec},
        probe::await_servers,
    },
    topology::FAMILIES,
    wait,
};
use serde_json::Value;

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
fn ask(cluster: &Cluster, node: u8, family: redirector_common::Family) -> Option<(u16, Value)> {
    let (status, body) =
        get(&cluster.net.client, cluster.at(node, family, HEALTH), "/whatever").ok()?;
    Some((status, serde_json::from_str(&body).ok()?))
}

fn await_status(cluster: &Cluster, node: u8, expected: Option<u16>) -> Result<()> {
    for family in FAMILIES {
        let mut last = None;
        let met = wait::until_true("the node's health", wait::SOON, || {
            last = ask(cluster, node, family);
            Ok(last.as_ref().map(|(status, _)| *status) == expected)
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
        let (_, body) = ask(cluster, 1, FAMILIES[0]).context("no answer")?;
        ensure!(
            body == serde_json::json!({
                "service": {"namespace": "default", "name": "web"},
                "localEndpoints": 1,
                "serviceProxyHealthy": true,
            }),
            "{body}"
        );
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
