//! `[sig-network] Services` and `LoadBalancers ExternalTrafficPolicy: Local`.

use anyhow::{Context as _, Result, ensure};
use redirector_common::Protocol::{Tcp, Udp};
use redirector_tests::{
    agent::get,
    cluster::{
        Cluster,
        build::{balance, mk_port, mk_service, spec},
        network::{CLIENT, node_address},
        probe::{Outcome, await_outcome, await_servers, expect_server, probe},
    },
    topology::FAMILIES,
    wait,
};

use crate::{on_host, own};

/// A load balancer asks here.
const HEALTH: u16 = 32_701;

/// "should support externalTrafficPolicy=Local for type=NodePort": only the endpoint's node
/// answers, and it shows the client's own address.
#[test]
fn local_for_node_port() -> Result<()> {
    Cluster::run(3, |cluster| {
        let _pod = cluster.start_pod(on_host("pod", "web", 2))?;
        let ports = vec![mk_port(Tcp, 80, 8080, 30080), mk_port(Udp, 90, 8081, 30090)];
        let mut web = mk_service("web", ports);
        spec(&mut web).external_traffic_policy = Some("Local".into());
        cluster.put_service(web)?;
        let client = &cluster.net.client;
        for family in FAMILIES {
            for (protocol, port) in [(Tcp, 30080), (Udp, 30090)] {
                await_servers(client, protocol, cluster.at(2, family, port), &["pod"])?;
                let seen = CLIENT.of(family);
                expect_server(client, protocol, cluster.at(2, family, port), "pod", seen)?;
                for node in [1, 3] {
                    let to = cluster.at(node, family, port);
                    await_outcome(client, protocol, to, &Outcome::Silence)?;
                }
            }
        }
        Ok(())
    })
}

/// "should adapt NodePort and HealthCheckNodePort when ExternalTrafficPolicy changes": with three
/// nodes, of which the third must not answer.
#[test]
fn node_port_when_the_policy_changes() -> Result<()> {
    Cluster::run(3, |cluster| {
        let _pods = [
            cluster.start_pod(on_host("one", "web", 1))?,
            cluster.start_pod(on_host("two", "web", 2))?,
        ];
        let mut web = mk_service("web", vec![mk_port(Tcp, 80, 8080, 30080)]);
        balance(&mut web, &["203.0.113.50".parse()?, "2001:db8:113::50".parse()?]);
        cluster.put_service(web)?;
        let client = &cluster.net.client;
        let set = |policy: &str| {
            let health = (policy == "Local").then_some(HEALTH.into());
            cluster.change_service("web", |web| {
                spec(web).external_traffic_policy = Some(policy.to_owned());
                spec(web).health_check_node_port = health;
            })
        };
        for family in FAMILIES {
            let at = |node| cluster.at(node, family, 30080);
            let healths = |expected: [Option<u16>; 3]| {
                let mut last = Vec::new();
                let met = wait::until_true("the nodes' health", wait::SOON, || {
                    last.clear();
                    for node in 1..=3 {
                        let said = get(client, cluster.at(node, family, HEALTH), "/healthz");
                        last.push(said.ok().map(|(status, _)| status));
                    }
                    Ok(last == expected)
                });
                met.with_context(|| format!("wanted {expected:?}, met {last:?}"))
            };
            healths([None; 3])?;
            for node in [1, 2, 3] {
                await_servers(client, Tcp, at(node), &["one", "two"])?;
            }
            // A backend elsewhere sees the node that the client asked.
            let Outcome::Answer(who) = probe(client, Tcp, at(3))? else {
                anyhow::bail!("the third node does not answer");
            };
            ensure!(who.client.ip() == node_address(3).of(family), "{who:?}");
            set("Local")?;
            await_servers(client, Tcp, at(1), &["one"])?;
            await_servers(client, Tcp, at(2), &["two"])?;
            await_outcome(client, Tcp, at(3), &Outcome::Silence)?;
            healths([Some(200), Some(200), Some(503)])?;
            set("Cluster")?;
            await_servers(client, Tcp, at(3), &["one", "two"])?;
            healths([None; 3])?;
        }
        Ok(())
    })
}

/// "should fallback to local terminating endpoints when there are no ready endpoints with
/// externalTrafficPolicy=Local".
#[test]
fn fallback_to_local_terminating_endpoints() -> Result<()> {
    Cluster::run(2, |cluster| {
        let _old = cluster.start_pod(on_host("old", "web", 1))?;
        let _other = cluster.start_pod(own("other", "web", 2))?;
        let mut web = mk_service("web", vec![mk_port(Tcp, 80, 8080, 30080)]);
        spec(&mut web).external_traffic_policy = Some("Local".into());
        cluster.put_service(web)?;
        let client = &cluster.net.client;
        let meets = |expected: &[&str]| {
            FAMILIES.iter().try_for_each(|family| {
                await_servers(client, Tcp, cluster.at(1, *family, 30080), expected)
            })
        };
        meets(&["old"])?;
        // Ready ones elsewhere do not count here.
        cluster.terminate("old")?;
        meets(&["old"])?;
        cluster.set_ready("old", false)?;
        for family in FAMILIES {
            await_outcome(client, Tcp, cluster.at(1, family, 30080), &Outcome::Silence)?;
        }
        Ok(())
    })
}
