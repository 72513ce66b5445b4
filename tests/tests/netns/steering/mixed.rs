//! Services with programs of the node itself and backends elsewhere.

use anyhow::{Context as _, Result, ensure};
use redirector_common::Family;
use redirector_tests::{
    agent::Lab,
    client,
    server::{Server, Service},
    topology::FAMILIES,
    wait,
};

use super::frontend;

const MIXED: &str = "
services:
  - name: mixed
    frontends: [{port: 80, protocol: TCP}]
    backends:
      - {address: local, port: 8080, weight: LOCAL}
      - {address: 198.18.2.2, port: 8080, weight: REMOTE}
      - {address: '2001:db8:2::2', port: 8080, weight: REMOTE}
";

fn mixed(local: u32, remote: u32) -> String {
    MIXED.replace("LOCAL", &local.to_string()).replace("REMOTE", &remote.to_string())
}

/// Some connections are steered and others forwarded, and each stays what it is, whatever becomes
/// of the service.
#[test]
fn local_and_remote_backends_of_one_service() -> Result<()> {
    for mode in ["native", "off"] {
        Lab::run_with_options(&mixed(1, 1), &["--xdp-mode", mode], |lab| {
            let _remote = Server::tcp(&lab.net.node2, 8080, Service::Echo)?;
            let local = Server::tcp(&lab.net.node1, 8080, Service::Echo)?;
            let mut streams = Vec::new();
            let mut open = |lab: &Lab, count: u32| -> Result<()> {
                for _ in 0..count {
                    for family in FAMILIES {
                        let stream = client::tcp(&lab.net.client, frontend(family, 80))?;
                        client::echo(&stream, b"hello")?;
                        streams.push(stream);
                    }
                }
                for stream in &streams {
                    client::echo(stream, b"still here").context(mode)?;
                }
                Ok(())
            };
            let flows =
                |lab: &Lab| Ok::<_, anyhow::Error>(lab.cli().rows(&["flow", "list"])?.len());
            open(lab, 20)?;
            let (steered, forwarded) = (local.accepted(), flows(lab)?);
            ensure!(steered + forwarded as u64 == 40, "{steered} steered, {forwarded} forwarded");
            // A coin that was thrown forty times.
            ensure!(steered >= 4 && forwarded >= 4, "{steered} steered, {forwarded} forwarded");

            // New connections of a dozen clients in a row that came here.
            let come_here = |lab: &Lab| -> Result<u64> {
                let before = local.accepted();
                for _ in 0..12 {
                    client::echo(&client::tcp(&lab.net.client, frontend(Family::V4, 80))?, b"x")?;
                }
                Ok(local.accepted() - before)
            };
            for (weights, expected) in [((0, 1), 0), ((1, 0), 12)] {
                lab.write_config(&mixed(weights.0, weights.1))?;
                wait::until_true("new connections to go elsewhere", wait::SOON, || {
                    Ok(come_here(lab)? == expected)
                })?;
                let before = local.accepted();
                open(lab, 6)?;
                ensure!(local.accepted() - before == expected, "{weights:?}");
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// With cookies, of a service that is mixed, too.
#[test]
fn syn_cookies_of_a_mixed_service() -> Result<()> {
    for mode in ["native", "off"] {
        for algorithm in ["maglev", "random"] {
            let config = format!("{}    algorithm: {algorithm}\n", mixed(1, 1));
            Lab::run_with_options(&config, &["--xdp-mode", mode], |lab| {
                lab.net.node1.set_sysctl("net/ipv4/tcp_syncookies", "2")?;
                let _remote = Server::tcp(&lab.net.node2, 8080, Service::Echo)?;
                let local = Server::tcp(&lab.net.node1, 8080, Service::Echo)?;
                for _ in 0..20 {
                    for family in FAMILIES {
                        let stream = client::tcp(&lab.net.client, frontend(family, 80))?;
                        client::echo(&stream, b"hello")
                            .with_context(|| format!("{algorithm}, XDP {mode}"))?;
                    }
                }
                ensure!((4..=36).contains(&local.accepted()), "{} here", local.accepted());
                Ok(())
            })?;
        }
    }
    Ok(())
}
