//! What operators are told: by Events, by the log, and by `redirector audit`.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Event;
use redirector_common::Protocol::{Tcp, Udp};
use redirector_tests::{
    cli::program,
    cluster::{
        Cluster,
        build::{mk_pod, mk_port, mk_service},
        network::node_address,
        probe::await_servers,
    },
    namespace::Namespace,
    topology::FAMILIES,
    wait,
};
use serde_json::Value;

use crate::{PORTS, on_host};

/// What `redirector audit` finds, asked from a host.
fn audit(host: &Namespace, kubeconfig: &str, options: &[&str]) -> Result<Vec<Value>> {
    let mut command = host.command(program()?);
    command.args(["audit", "-o", "json", "--kubeconfig", kubeconfig]).args(options);
    let output = command.output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).context("not an array")
}

/// The warning that started it all: a pod in the host's network whose ports have names that mean
/// others than it binds is told what nobody hears on, and what to paste; what it was told to paste
/// makes it work.
#[test]
fn ports_that_are_discarded() -> Result<()> {
    const PASTE: &str = "redirector.io/publish: \"80:8080,53:8081/udp\"";
    Cluster::run(1, |cluster| {
        let _pod = cluster.start_pod(on_host("pod", "web", 1))?;
        let kubeconfig = cluster.node(1).kubeconfig().display().to_string();
        let ask = |cluster: &Cluster| audit(cluster.host(1), &kubeconfig, &[]);
        let found = ask(cluster)?;
        ensure!(found.len() == 2, "{found:#?}");
        for (finding, words) in found.iter().zip(["port 53", "port 80"]) {
            let problem = finding["problem"].as_str().unwrap_or_default();
            ensure!(problem.contains(words) && finding["annotation"] == PASTE, "{finding:#}");
            ensure!(finding["name"] == "pod" && finding["node"] == "node1", "{finding:#}");
        }
        for words in ["port 53", "port 80"] {
            cluster.await_event("Pod", "pod", &["Warning PortDiscarded", words, PASTE])?;
        }
        let (key, value) = PASTE.split_once(": ").context("no annotation")?;
        cluster.change_pod("pod", |pod| {
            let annotations = pod.metadata.annotations.get_or_insert_default();
            annotations.insert(key.to_owned(), value.trim_matches('"').to_owned());
        })?;
        for family in FAMILIES {
            for (protocol, port) in [(Tcp, 80), (Udp, 53)] {
                let to = cluster.at(1, family, port);
                await_servers(&cluster.net.client, protocol, to, &["pod"])?;
            }
        }
        let found = ask(cluster)?;
        ensure!(found.is_empty(), "{found:#?}");
        Ok(())
    })
}

/// Two pods in the host's network that claim one port: the younger is told, with the port to bind
/// instead, and only on the node where both are.
#[test]
fn ports_that_two_pods_claim() -> Result<()> {
    Cluster::run(1, |cluster| {
        let _older = cluster.start_pod(on_host("older", "web", 1))?;
        // It cannot bind them, which is what this is about.
        let ports = &PORTS[..1];
        let mut younger = mk_pod("younger", "other", "node1", node_address(1), true, ports);
        let day =
            k8s_openapi::jiff::Timestamp::now() + k8s_openapi::jiff::SignedDuration::from_hours(1);
        younger.metadata.creation_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(day));
        cluster.put(&younger)?;
        cluster.put(&mk_pod("elsewhere", "other", "node2", node_address(2), true, ports))?;
        let words = ["Warning PortDiscarded", "8080/tcp", "default/older", "FREEPORT:18080"];
        cluster.await_event("Pod", "younger", &words)?;
        let kubeconfig = cluster.node(1).kubeconfig().display().to_string();
        let claims = |options: &[&str]| {
            let found = audit(cluster.host(1), &kubeconfig, options)?;
            let claims = found.iter().filter(|finding| {
                finding["problem"].as_str().is_some_and(|it| it.contains("is claimed by"))
            });
            Ok::<_, anyhow::Error>(claims.map(|it| it["name"].to_string()).collect::<Vec<_>>())
        };
        ensure!(claims(&[])? == ["\"younger\""]);
        ensure!(claims(&["--node-name", "node2"])?.is_empty());

        // And by annotation.
        for (name, entry) in [("older", "80:8080"), ("younger", "80:9090")] {
            cluster.change_pod(name, |pod| {
                let annotations = pod.metadata.annotations.get_or_insert_default();
                annotations.insert("redirector.io/publish".to_owned(), entry.to_owned());
            })?;
        }
        cluster.await_event(
            "Pod",
            "younger",
            &["Warning PortConflict", ":80/tcp", "default/older"],
        )?;
        let found = audit(cluster.host(1), &kubeconfig, &[])?;
        let contested = found.iter().find(|finding| {
            finding["problem"].as_str().is_some_and(|it| it.contains("is published by pod"))
        });
        let contested = contested.with_context(|| format!("{found:#?}"))?;
        ensure!(contested["name"] == "younger", "{contested:#}");
        ensure!(contested["advice"].as_str().is_some_and(|it| it.contains("FREEPORT:9090")));
        Ok(())
    })
}

/// What a Service asks for and does not get is said once, on the Service, by one of all nodes that
/// find the same.
#[test]
fn services_that_ask_for_nonsense() -> Result<()> {
    Cluster::run(2, |cluster| {
        let mut web = mk_service("web", vec![mk_port(Tcp, 80, 8080, 30080)]);
        let annotations =
            [("redirector.io/algorithm", "best"), ("redirector.io/publish", "443:https")];
        let annotations = annotations.map(|(key, value)| (key.to_owned(), value.to_owned()));
        web.metadata.annotations = Some(annotations.into());
        cluster.put_service(web)?;
        let words = ["Warning Refused", "redirector.io/algorithm", "\"best\"", "maglev or random"];
        cluster.await_event("Service", "web", &words)?;
        cluster.await_event("Service", "web", &["Warning Refused", "\"https\"", "80/TCP"])?;
        wait::until_true("both nodes to find it", wait::SOON, || {
            Ok([1, 2].into_iter().all(|node| cluster.node(node).log().contains("\"best\"")))
        })?;
        let events = cluster.api.store().all::<Event>()?;
        ensure!(events.len() == 2, "{events:#?}");
        let kubeconfig = cluster.node(1).kubeconfig().display().to_string();
        let found = audit(cluster.host(1), &kubeconfig, &["--namespace", "default"])?;
        ensure!(found.len() == 2 && found.iter().all(|it| it["kind"] == "Service"), "{found:#?}");
        Ok(())
    })
}

/// Much that is wrong at once does not flood the API server: twenty Events, and then one now and
/// then. The log has them all.
#[test]
fn events_are_rationed() -> Result<()> {
    const WRONG: usize = 60;
    const AT_ONCE: usize = 20;
    Cluster::run(1, |cluster| {
        let start = Instant::now();
        for number in 0..WRONG {
            let mut service = mk_service(&format!("web{number}"), Vec::new());
            let annotation = ("redirector.io/algorithm".to_owned(), "best".to_owned());
            service.metadata.annotations = Some([annotation].into());
            cluster.put_service(service)?;
        }
        let count = || Ok::<_, anyhow::Error>(cluster.api.store().all::<Event>()?.len());
        wait::until_true("the first Events", wait::SOON, || Ok(count()? >= AT_ONCE))?;
        // The time that this is about.
        thread::sleep(Duration::from_secs(5));
        wait::until_true("one more", wait::SOON, || Ok(count()? > AT_ONCE))?;
        let (made, seconds) = (count()?, start.elapsed().as_secs());
        let allowed = AT_ONCE + usize::try_from(seconds)? / 2 + 1;
        ensure!((AT_ONCE + 1..=allowed).contains(&made), "{made} Events in {seconds} s");
        wait::until_true("all to be logged", wait::SOON, || {
            Ok(cluster.node(1).log().matches("\"best\"").count() >= WRONG)
        })
    })
}
