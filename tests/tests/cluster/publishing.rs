//! The annotation `redirector.io/publish`, and what the operator may restrict.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::{Event, Pod as PodObject};
use redirector_common::Protocol::{Tcp, Udp};
use redirector_tests::{
    cluster::{
        Cluster,
        build::{mk_port, mk_service, spec},
        network::CLIENT,
        pod::{Net, Plan},
        probe::{Outcome, await_outcome, await_servers, expect_server},
    },
    server::{Server, Service},
    topology::FAMILIES,
    wait,
};

use crate::{on_host, own};

const PUBLISH: &str = "redirector.io/publish";

fn annotate(cluster: &Cluster, pod: &str, value: Option<&str>) -> Result<()> {
    cluster.change_pod(pod, |pod: &mut PodObject| {
        let annotations = pod.metadata.annotations.get_or_insert_default();
        match value {
            Some(value) => annotations.insert(PUBLISH.into(), value.into()),
            None => annotations.remove(PUBLISH),
        };
    })
}

/// What it is all for: a pod in the host's network is reached on ports that it does not bind, from
/// outside, with the client's own address.
#[test]
fn ports_of_a_host_network_pod() -> Result<()> {
    Cluster::run(2, |cluster| {
        let _pod = cluster.start_pod(on_host("pod", "web", 1))?;
        annotate(cluster, "pod", Some("80:8080,53:8081/udp"))?;
        let client = &cluster.net.client;
        for family in FAMILIES {
            for (protocol, port) in [(Tcp, 80), (Udp, 53)] {
                let to = cluster.at(1, family, port);
                await_servers(client, protocol, to, &["pod"])?;
                expect_server(client, protocol, to, "pod", CLIENT.of(family))?;
                // Of its own node only.
                let elsewhere = cluster.at(2, family, port);
                await_outcome(client, protocol, elsewhere, &Outcome::Refused)?;
            }
        }
        annotate(cluster, "pod", Some("81:8080"))?;
        for family in FAMILIES {
            await_servers(client, Tcp, cluster.at(1, family, 81), &["pod"])?;
            await_outcome(client, Tcp, cluster.at(1, family, 80), &Outcome::Refused)?;
        }
        annotate(cluster, "pod", None)?;
        for family in FAMILIES {
            await_outcome(client, Tcp, cluster.at(1, family, 81), &Outcome::Refused)?;
        }
        Ok(())
    })
}

/// A Service's annotation: any port, on every node.
#[test]
fn ports_of_a_service() -> Result<()> {
    Cluster::run(2, |cluster| {
        let _pod = cluster.start_pod(own("pod", "web", 2))?;
        let mut web = mk_service("web", vec![mk_port(Tcp, 80, 8080, 0)]);
        spec(&mut web).type_ = Some("ClusterIP".into());
        web.metadata.annotations = Some([(PUBLISH.into(), "443:80".into())].into());
        cluster.put_service(web)?;
        for family in FAMILIES {
            for node in [1, 2] {
                let to = cluster.at(node, family, 443);
                await_servers(&cluster.net.client, Tcp, to, &["pod"])?;
            }
        }
        Ok(())
    })
}

/// Two pods want one port: the older has it, the younger is told, and has it when the other goes.
#[test]
fn conflicts_go_to_the_older() -> Result<()> {
    Cluster::run(1, |cluster| {
        let ports = [("http", Tcp, 8080)];
        let older = Plan { name: "older", app: "a", node: 1, net: Net::Host, ports: &ports };
        let other = [("http", Tcp, 9090)];
        let younger = Plan { name: "younger", app: "b", node: 1, net: Net::Host, ports: &other };
        let older = cluster.start_pod(older)?;
        let _younger = cluster.start_pod(younger)?;
        cluster.change_pod("older", |pod| {
            let day = k8s_openapi::jiff::Timestamp::UNIX_EPOCH;
            pod.metadata.creation_timestamp =
                Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(day));
        })?;
        annotate(cluster, "younger", Some("80:9090"))?;
        let client = &cluster.net.client;
        for family in FAMILIES {
            await_servers(client, Tcp, cluster.at(1, family, 80), &["younger"])?;
        }
        annotate(cluster, "older", Some("80:8080"))?;
        for family in FAMILIES {
            await_servers(client, Tcp, cluster.at(1, family, 80), &["older"])?;
        }
        let words = ["Warning PortConflict", ":80/tcp", "pod default/older"];
        cluster.await_event("Pod", "younger", &words)?;
        let rows = cluster.rows(1, &["service", "list"])?;
        for (name, state) in [("older:80:8080/tcp", "active"), ("younger:80:9090/tcp", "conflict")]
        {
            let row = rows.iter().find(|row| row["name"] == name);
            let row = row.with_context(|| format!("no {name}: {rows:#?}"))?;
            let frontends = row["frontends"].as_array().context("no frontends")?;
            let is_so = |frontend: &serde_json::Value| frontend["state"] == state;
            ensure!(frontends.len() == 2 && frontends.iter().all(is_so), "{row:#}");
        }
        cluster.remove_pod(older)?;
        for family in FAMILIES {
            await_servers(client, Tcp, cluster.at(1, family, 80), &["younger"])?;
        }
        Ok(())
    })
}

/// A program that comes to listen on a port that was granted before takes it from nobody. A pod that
/// replaces another under the same name, however fast, was granted nothing yet.
#[test]
fn a_port_is_granted_to_a_pod_and_not_to_its_name() -> Result<()> {
    Cluster::run(1, |cluster| {
        let _pod = cluster.start_pod(on_host("pod", "web", 1))?;
        annotate(cluster, "pod", Some("80:8080"))?;
        let served_by = |name| {
            FAMILIES.iter().try_for_each(|family| {
                await_servers(&cluster.net.client, Tcp, cluster.at(1, *family, 80), &[name])
            })
        };
        served_by("pod")?;
        let _other = Server::tcp(cluster.host(1), 80, Service::Whoami("other"))?;
        // Something else changes, and the pod is looked at again.
        annotate(cluster, "pod", Some("80:8080,81:8080"))?;
        await_servers(&cluster.net.client, Tcp, cluster.at(1, FAMILIES[0], 81), &["pod"])?;
        served_by("pod")?;
        cluster.change_pod("pod", |pod| pod.metadata.uid = Some("another".to_owned()))?;
        served_by("other")?;
        cluster.await_event("Pod", "pod", &["Warning Refused", "another program", "80/tcp"])
    })
}

/// Ports without which the node is lost are refused, with an event; other ports of the same
/// annotation are published.
#[test]
fn protected_ports() -> Result<()> {
    Cluster::run(1, |cluster| {
        let _pod = cluster.start_pod(on_host("pod", "web", 1))?;
        annotate(cluster, "pod", Some("22:8080,10250:8080,80:8080"))?;
        let client = &cluster.net.client;
        for family in FAMILIES {
            await_servers(client, Tcp, cluster.at(1, family, 80), &["pod"])?;
            for port in [22, 10250] {
                await_outcome(client, Tcp, cluster.at(1, family, port), &Outcome::Refused)?;
            }
        }
        wait::until_true("an event that names the ports", wait::SOON, || {
            let events = cluster.api.store().all::<Event>()?;
            let said: String = events.into_iter().filter_map(|event| event.message).collect();
            Ok(said.contains("22") && said.contains("10250"))
        })?;
        let asked = cluster.api.access().asked();
        ensure!(asked.iter().all(|asked| asked.allowed), "{asked:#?}");
        Ok(())
    })
}

/// `--service-proxy-name`: only services with that label; `--external-ip-cidrs`: only external
/// addresses from there.
#[test]
fn what_the_operator_restricts() -> Result<()> {
    let options = [
        "--service-proxy-name",
        "ours",
        "--external-ip-cidrs",
        "203.0.113.0/28,2001:db8:113::/112",
    ];
    Cluster::run_with_options(2, &options, |cluster| {
        let _pod = cluster.start_pod(own("pod", "web", 2))?;
        let label = "service.kubernetes.io/service-proxy-name".to_owned();
        let external = ["203.0.113.1", "203.0.113.99", "2001:db8:113::1", "2001:db8:113:1::1"];
        let mut web = mk_service("web", vec![mk_port(Tcp, 80, 8080, 30080)]);
        web.metadata.labels = Some([(label, "ours".to_owned())].into());
        spec(&mut web).external_ips = Some(external.map(str::to_owned).to_vec());
        cluster.put_service(web)?;
        let mut other = mk_service("other", vec![mk_port(Tcp, 80, 8080, 30081)]);
        spec(&mut other).selector = Some([("app".to_owned(), "web".to_owned())].into());
        cluster.put_service(other)?;
        let client = &cluster.net.client;
        for family in FAMILIES {
            await_servers(client, Tcp, cluster.at(1, family, 30080), &["pod"])?;
            let to = cluster.at(1, family, 30081);
            await_outcome(client, Tcp, to, &Outcome::Refused)?;
        }
        let listed = serde_json::to_string(&cluster.rows(1, &["service", "list"])?)?;
        for (address, allowed) in external.into_iter().zip([true, false, true, false]) {
            let quoted = format!("\"{address}\"");
            ensure!(listed.contains(&quoted) == allowed, "{address}: {listed}");
        }
        Ok(())
    })
}
