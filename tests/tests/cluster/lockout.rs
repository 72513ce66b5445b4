//! What the node is asked for must not cut it off from who asks.

use std::{fs, time::Duration};

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Event;
use redirector_common::Protocol::Tcp;
use redirector_tests::{
    cgroup::Cgroup,
    cluster::{
        Cluster,
        build::{mk_port, mk_service, spec},
        network::API,
        probe::{Outcome, await_outcome, await_servers},
    },
    topology::FAMILIES,
    wait,
};

use crate::on_host;

/// Longer than the agent waits before it takes its programs off, and for proof.
const PATIENCE: Duration = Duration::from_secs(60);

/// A Service claims the API server's own address and port, for programs on the node too, and the
/// agent is one: it lets go of everything, says so, and stays that way until it is started again.
#[test]
fn a_service_that_takes_the_api_server() -> Result<()> {
    let cgroup = Cgroup::new()?;
    let dir = cgroup.dir().display().to_string();
    Cluster::run_without_agents(1, |cluster| {
        let _pod = cluster.start_pod(on_host("pod", "web", 1))?;
        cluster.put_service(mk_service("web", vec![mk_port(Tcp, 80, 8080, 30080)]))?;
        let mut thief = mk_service("thief", vec![mk_port(Tcp, API.port(), 8080, 0)]);
        spec(&mut thief).type_ = Some("ClusterIP".into());
        spec(&mut thief).selector = None;
        spec(&mut thief).external_ips = Some(vec![API.ip().to_string()]);
        cluster.put_service(thief)?;
        cluster.start_agents(&["--cgroup", &dir])?;
        ensure!(cgroup.programs()? > 0, "no clients on the node are served");

        wait::until_true("the agent to let go", PATIENCE, || {
            Ok(cluster.node(1).log().contains("they stay off"))
        })?;
        ensure!(cgroup.programs()? == 0, "programs for sockets stay");
        let links = cluster.host(1).ip("-details link show dev eth0")?;
        ensure!(!links.contains("xdp"), "XDP stays: {links}");
        let pins = cluster.node(1).pins();
        let cli = redirector_tests::cli::Cli::new(cluster.host(1), &pins);
        let status = cli.json(&["status"])?;
        let said = status["sync"]["error"].as_str().unwrap_or_default();
        ensure!(status["sync"]["inSync"] == false && said.contains("they stay off"), "{status}");
        for interface in status["interfaces"].as_array().into_iter().flatten() {
            ensure!(interface["xdp"] == "off" && interface["tc"] == "off", "{interface}");
            ensure!(interface["programs"].as_array().is_some_and(Vec::is_empty), "{interface}");
        }
        ensure!(status["clients"]["programs"].as_array().is_some_and(Vec::is_empty), "{status}");
        let (ready, _) = cluster.ask_agent(1, "/readyz")?;
        ensure!(ready == 503, "/readyz answers {ready}");
        wait::until_true("an Event on the node", PATIENCE, || {
            let events = cluster.api.store().all::<Event>()?;
            Ok(events.iter().any(|event| {
                event.involved_object.kind.as_deref() == Some("Node")
                    && event.message.as_deref().is_some_and(|it| it.contains("they stay off"))
            }))
        })?;
        for family in FAMILIES {
            let to = cluster.at(1, family, 30080);
            await_outcome(&cluster.net.client, Tcp, to, &Outcome::Refused)?;
        }

        // The operator finds out, and starts the agent again: it reads what is asked for now before
        // it uses what its maps still hold.
        cluster.node(1).kill()?;
        cluster.remove_service("thief")?;
        cluster.start_agents(&["--cgroup", &dir])?;
        for family in FAMILIES {
            await_servers(&cluster.net.client, Tcp, cluster.at(1, family, 30080), &["pod"])?;
        }
        ensure!(cgroup.programs()? > 0, "no clients on the node are served");
        Ok(())
    })
}

/// The API server is away, but not by our doing: everything stays on.
#[test]
fn an_api_server_that_is_away() -> Result<()> {
    Cluster::run(1, |cluster| {
        let _pod = cluster.start_pod(on_host("pod", "web", 1))?;
        cluster.put_service(mk_service("web", vec![mk_port(Tcp, 80, 8080, 30080)]))?;
        for family in FAMILIES {
            await_servers(&cluster.net.client, Tcp, cluster.at(1, family, 30080), &["pod"])?;
        }
        wait::until_true("the agent to be sure of itself", PATIENCE, || {
            Ok(cluster.node(1).log().contains("with the programs in place"))
        })?;
        cluster.api.stop();
        let began = std::time::Instant::now();
        while began.elapsed() < Duration::from_secs(25) {
            for family in FAMILIES {
                await_servers(&cluster.net.client, Tcp, cluster.at(1, family, 30080), &["pod"])?;
            }
        }
        ensure!(!cluster.node(1).log().contains("taken off"), "{}", cluster.node(1).log());
        Ok(())
    })
}

/// Ports for translation that change take ports back that were granted, and give free what was
/// refused.
#[test]
fn ports_for_translation_that_change() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("redirector.yaml");
    let put = |range: &str| -> Result<()> {
        let new = file.with_extension("new");
        fs::write(&new, format!("snatPorts: {range}\n"))?;
        Ok(fs::rename(new, &file)?)
    };
    put("40000-41000")?;
    let path = file.display().to_string();
    Cluster::run_with_options(1, &["--config", &path], |cluster| {
        let _pod = cluster.start_pod(on_host("pod", "web", 1))?;
        cluster.change_pod("pod", |pod: &mut k8s_openapi::api::core::v1::Pod| {
            let annotations = pod.metadata.annotations.get_or_insert_default();
            annotations.insert("redirector.io/publish".into(), "40500:8080,50500:8080".into());
        })?;
        let client = &cluster.net.client;
        for range in ["40000-41000", "50000-51000", "40000-41000"] {
            put(range)?;
            let granted = if range.starts_with('4') { 50500 } else { 40500 };
            let refused = if range.starts_with('4') { 40500 } else { 50500 };
            for family in FAMILIES {
                await_servers(client, Tcp, cluster.at(1, family, granted), &["pod"])?;
                let to = cluster.at(1, family, refused);
                await_outcome(client, Tcp, to, &Outcome::Refused)?;
            }
        }
        Ok(())
    })
}
