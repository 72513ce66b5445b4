//! An agent that has not read everything yet takes nothing away.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};
use redirector_common::Protocol::Tcp;
use redirector_tests::{
    apiserver::{Failure, Requests},
    client,
    cluster::{
        Cluster,
        build::{mk_port, mk_service},
        probe::{Outcome, await_outcome, await_servers},
    },
    server::Service,
    topology::FAMILIES,
    wait,
};

use crate::{chaos::echo, own};

const KINDS: [&str; 5] = ["services", "endpointslices", "nodes", "pods", "leases"];

fn serves(cluster: &Cluster, port: u16, server: &str) -> Result<()> {
    FAMILIES.iter().try_for_each(|family| {
        await_servers(&cluster.net.client, Tcp, cluster.at(1, *family, port), &[server])
    })
}

/// Whichever kind of objects does not come: an agent that was started again is not ready, says
/// what it waits for, and leaves alone what an earlier one wrote; then it catches up.
#[test]
fn the_first_sync_waits_for_every_kind() -> Result<()> {
    Cluster::run(2, |cluster| {
        let _pods = [
            cluster.start_pod(own("web", "web", 2))?,
            cluster.start_pod_with(own("echo", "echo", 2), &Service::Echo)?,
        ];
        cluster.put_service(mk_service("echo", vec![mk_port(Tcp, 80, 8080, 30080)]))?;
        let stop = Arc::new(AtomicBool::new(false));
        let mut echoes = Vec::new();
        for family in FAMILIES {
            let to = cluster.at(1, family, 30080);
            let stream = wait::until("a connection", wait::SOON, || {
                Ok(client::tcp_within(&cluster.net.client, to, Duration::from_secs(1)).ok())
            })?;
            let stop = stop.clone();
            echoes.push(thread::spawn(move || echo(&stream, &stop)));
        }
        for (port, (kind, failure)) in (30001..).zip([
            ("services", Failure::Unavailable),
            ("endpointslices", Failure::Forbidden),
            ("nodes", Failure::Cut),
            ("pods", Failure::TooMany),
            ("leases", Failure::Unavailable),
        ]) {
            cluster.put_service(mk_service("web", vec![mk_port(Tcp, 80, 8080, port)]))?;
            serves(cluster, port, "web")?;
            cluster.node(1).kill()?;
            // Gone while nobody looks.
            cluster.remove_service("web")?;
            cluster.api.faults().fail_always(Requests::ALL.of(kind), failure);
            cluster.start_agent_without_waiting(1)?;
            wait::until_true("the agent to say what it waits for", wait::SOON * 3, || {
                let is_last =
                    |said: &str| KINDS.iter().all(|it| said.contains(it) == (*it == kind));
                let answer = cluster.ask_agent(1, "/readyz");
                Ok(answer.is_ok_and(|(status, said)| status == 503 && is_last(&said)))
            })
            .with_context(|| kind.to_owned())?;
            serves(cluster, port, "web").with_context(|| format!("without {kind}"))?;
            // Nor is half of what was read believed.
            for family in FAMILIES {
                let stream = client::tcp(&cluster.net.client, cluster.at(1, family, 30080))
                    .with_context(|| format!("a new connection without {kind}"))?;
                client::echo(&stream, b"new")?;
            }
            cluster.api.faults().heal();
            for family in FAMILIES {
                let to = cluster.at(1, family, port);
                await_outcome(&cluster.net.client, Tcp, to, &Outcome::Refused)
                    .with_context(|| kind.to_owned())?;
            }
            wait::until_true("the agent to be ready", wait::SOON, || {
                Ok(cluster.ask_agent(1, "/readyz")?.0 == 200)
            })?;
        }
        stop.store(true, Ordering::Relaxed);
        for echo in echoes {
            echo.join().map_err(|_| anyhow!("a client panicked"))??;
        }
        Ok(())
    })
}

/// The API server is away when an agent starts: what an earlier one wrote is served on.
#[test]
fn a_start_without_the_api_server() -> Result<()> {
    Cluster::run(2, |cluster| {
        let _pod = cluster.start_pod(own("web", "web", 2))?;
        cluster.put_service(mk_service("web", vec![mk_port(Tcp, 80, 8080, 30001)]))?;
        serves(cluster, 30001, "web")?;
        cluster.node(1).kill()?;
        cluster.api.stop();
        cluster.start_agent_without_waiting(1)?;
        wait::until_true("the agent to say what it waits for", wait::SOON * 3, || {
            let answer = cluster.ask_agent(1, "/readyz");
            Ok(answer.is_ok_and(|(status, said)| status == 503 && said.contains("pods")))
        })?;
        serves(cluster, 30001, "web")?;
        cluster.put_service(mk_service("web", vec![mk_port(Tcp, 80, 8080, 30002)]))?;
        cluster.api.start(Some(&cluster.net.router))?;
        serves(cluster, 30002, "web")?;
        for family in FAMILIES {
            let to = cluster.at(1, family, 30001);
            await_outcome(&cluster.net.client, Tcp, to, &Outcome::Refused)?;
        }
        Ok(())
    })
}
