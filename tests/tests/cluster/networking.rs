//! `[sig-network] Networking Granular Checks: Services`.

use std::io::{Read as _, Write as _};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use redirector_common::Protocol::{Tcp, Udp};
use redirector_tests::{
    client,
    cluster::{
        Cluster,
        build::{mk_port, mk_service, spec},
        probe::{Outcome, await_outcome, await_servers},
    },
    server::Service,
    topology::FAMILIES,
    transfer, wait,
};

use crate::{on_host, own};

/// "should update nodePort: http" and "udp".
#[test]
fn update_node_port() -> Result<()> {
    Cluster::run(2, |cluster| {
        let _pods = [
            cluster.start_pod(own("one", "web", 2))?,
            cluster.start_pod(on_host("two", "web", 1))?,
        ];
        let ports = |http, udp| vec![mk_port(Tcp, 80, 8080, http), mk_port(Udp, 90, 8081, udp)];
        cluster.put_service(mk_service("web", ports(30080, 30090)))?;
        let client = &cluster.net.client;
        for (old, new) in [((30080, 30090), (30081, 30091)), ((30081, 30091), (30080, 30090))] {
            for family in FAMILIES {
                await_servers(client, Tcp, cluster.at(1, family, old.0), &["one", "two"])?;
                await_servers(client, Udp, cluster.at(1, family, old.1), &["one", "two"])?;
            }
            cluster.change_service("web", |web| {
                spec(web).ports = Some(ports(new.0, new.1));
            })?;
            for family in FAMILIES {
                await_servers(client, Tcp, cluster.at(1, family, new.0), &["one", "two"])?;
                await_servers(client, Udp, cluster.at(1, family, new.1), &["one", "two"])?;
                for (protocol, port) in [(Tcp, old.0), (Udp, old.1)] {
                    let to = cluster.at(1, family, port);
                    await_outcome(client, protocol, to, &Outcome::Refused)?;
                }
            }
        }
        Ok(())
    })
}

/// "should support basic nodePort: udp functionality" is part of all others; "should function for
/// multiple endpoint-Services with same selector" is this.
#[test]
fn services_with_the_same_selector() -> Result<()> {
    Cluster::run(2, |cluster| {
        let _pod = cluster.start_pod(own("pod", "web", 2))?;
        for (name, port) in [("web", 30080), ("other", 30081)] {
            let mut service = mk_service(name, vec![mk_port(Tcp, 80, 8080, port)]);
            spec(&mut service).selector = Some([("app".to_owned(), "web".to_owned())].into());
            cluster.put_service(service)?;
        }
        let client = &cluster.net.client;
        for family in FAMILIES {
            await_servers(client, Tcp, cluster.at(1, family, 30080), &["pod"])?;
            await_servers(client, Tcp, cluster.at(1, family, 30081), &["pod"])?;
        }
        cluster.remove_service("web")?;
        for family in FAMILIES {
            let to = cluster.at(1, family, 30080);
            await_outcome(client, Tcp, to, &Outcome::Refused)?;
            await_servers(client, Tcp, cluster.at(1, family, 30081), &["pod"])?;
        }
        Ok(())
    })
}

/// "should support large requests: http".
#[test]
fn large_requests_http() -> Result<()> {
    Cluster::run(2, |cluster| {
        let _pod = cluster.start_pod_with(own("pod", "web", 2), &Service::Bulk)?;
        cluster.put_service(mk_service("web", vec![mk_port(Tcp, 80, 8080, 30080)]))?;
        for family in FAMILIES {
            let to = cluster.at(1, family, 30080);
            // Once the agents have followed.
            let stream = wait::until("a connection", wait::SOON, || {
                Ok(client::tcp_within(&cluster.net.client, to, Duration::from_secs(1)).ok())
            })?;
            stream.set_read_timeout(Some(client::PATIENCE))?;
            transfer::exchange(&stream, 3_000_000, 5_000_000)?;
        }
        Ok(())
    })
}

/// "should support large requests: udp": 2000 bytes, which take two fragments.
#[test]
fn large_requests_udp() -> Result<()> {
    Cluster::run(2, |cluster| {
        let _pod = cluster.start_pod_with(own("pod", "dns", 2), &Service::Echo)?;
        cluster.put_service(mk_service("dns", vec![mk_port(Udp, 53, 8081, 30053)]))?;
        let large: Vec<u8> = (0_u8..=255).cycle().take(2000).collect();
        for family in FAMILIES {
            let socket = client::udp(&cluster.net.client, cluster.at(1, family, 30053))?;
            socket.set_read_timeout(Some(Duration::from_millis(200)))?;
            let what = format!("a large datagram's echo over {family:?}");
            wait::until_true(&what, wait::SOON, || {
                let answer = client::round_trip(&socket, &large);
                Ok(answer.is_ok_and(|answer| answer == large))
            })?;
        }
        Ok(())
    })
}

/// An agent that is killed and started again: what it had is served all the while, and what has
/// changed meanwhile is caught up with.
#[test]
fn an_agent_restarts() -> Result<()> {
    Cluster::run(2, |cluster| {
        let _pods = [
            cluster.start_pod_with(own("pod", "web", 2), &Service::Echo)?,
            cluster.start_pod(own("late", "late", 2))?,
        ];
        cluster.put_service(mk_service("web", vec![mk_port(Tcp, 80, 8080, 30080)]))?;
        let mut streams = Vec::new();
        for family in FAMILIES {
            let to = cluster.at(1, family, 30080);
            streams.push(wait::until("a connection", wait::SOON, || {
                Ok(client::tcp_within(&cluster.net.client, to, Duration::from_secs(1)).ok())
            })?);
        }
        let echo = |mut stream: &std::net::TcpStream| {
            stream.set_read_timeout(Some(client::PATIENCE))?;
            stream.write_all(b"still there?")?;
            let mut answer = [0; 12];
            stream.read_exact(&mut answer).context("the connection was lost")?;
            ensure!(&answer == b"still there?");
            Ok::<_, anyhow::Error>(())
        };
        streams.iter().try_for_each(echo)?;
        cluster.node(1).kill()?;
        streams.iter().try_for_each(echo)?;
        cluster.put_service(mk_service("late", vec![mk_port(Tcp, 80, 8080, 30081)]))?;
        cluster.start_agent(1)?;
        streams.iter().try_for_each(echo)?;
        for family in FAMILIES {
            await_servers(&cluster.net.client, Tcp, cluster.at(1, family, 30081), &["late"])?;
        }
        streams.iter().try_for_each(echo)
    })
}
