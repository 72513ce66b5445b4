//! Which addresses are served, for whom, and what becomes of their other ports.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use redirector_common::Protocol::{Tcp, Udp};
use redirector_tests::{
    cluster::{
        Cluster,
        build::{balance, mk_port, mk_service, spec},
        network::CLIENT,
        probe::{Outcome, await_outcome, await_servers, probe, servers},
    },
    topology::FAMILIES,
    wait,
};

use crate::{on_host, own};

/// Addresses of node 1 besides its own.
const FURTHER: [&str; 2] = ["198.18.50.1", "2001:db8:50::1"];

/// Addresses that no node has.
const EXTERNAL: [&str; 2] = ["203.0.113.61", "2001:db8:113::61"];
const BALANCED: [&str; 2] = ["203.0.113.62", "2001:db8:113::62"];

/// The addresses, with the router sending what is for them to node 1.
fn announced(cluster: &Cluster, addresses: [&str; 2]) -> Result<[IpAddr; 2]> {
    let [v4, v6] = addresses.map(str::parse::<IpAddr>);
    let addresses = [v4?, v6?];
    addresses.iter().try_for_each(|address| cluster.net.route(*address, 1))?;
    Ok(addresses)
}

/// Gives node 1 the further addresses on a device that nobody comes in by, or takes them away.
fn set_further(cluster: &Cluster, verb: &str) -> Result<()> {
    let [v4, v6] = FURTHER;
    let how = if verb == "add" { " nodad" } else { "" };
    let commands = format!("address {verb} {v4}/32 dev lo\naddress {verb} {v6}/128 dev lo{how}");
    cluster.host(1).ip(&commands).map(drop)
}

/// `--nodeport-addresses` as networks: any address of the node in them, also one that comes while
/// the agent runs, and until it goes; no other.
#[test]
fn node_ports_on_addresses_of_some_networks() -> Result<()> {
    let options = ["--nodeport-addresses", "198.18.50.0/24,2001:db8:50::/64"];
    Cluster::run_with_options(1, &options, |cluster| {
        let _pod = cluster.start_pod(on_host("pod", "web", 1))?;
        let ports = vec![mk_port(Tcp, 80, 8080, 30080), mk_port(Udp, 90, 8081, 30090)];
        cluster.put_service(mk_service("web", ports))?;
        let further = announced(cluster, FURTHER)?;
        for round in ["first", "again"] {
            set_further(cluster, "add")?;
            for (address, family) in further.into_iter().zip(FAMILIES) {
                let client = &cluster.net.client;
                await_servers(client, Tcp, (address, 30080).into(), &["pod"]).context(round)?;
                let own = cluster.at(1, family, 30080);
                await_outcome(client, Tcp, own, &Outcome::Refused).context(round)?;
            }
            set_further(cluster, "del")?;
            wait::until_true("the addresses to go", wait::SOON, || {
                let listed = serde_json::to_string(&cluster.rows(1, &["service", "list"])?)?;
                Ok(FURTHER.iter().all(|address| !listed.contains(address)))
            })?;
        }
        Ok(())
    })
}

/// `--nodeport-addresses=primary`: those that the Node names first, whatever else the interface
/// has.
#[test]
fn node_ports_on_primary_addresses() -> Result<()> {
    Cluster::run_with_options(1, &["--nodeport-addresses", "primary"], |cluster| {
        let _pod = cluster.start_pod(on_host("pod", "web", 1))?;
        let [v4, v6] = FURTHER;
        let more = format!("address add {v4}/32 dev eth0\naddress add {v6}/128 dev eth0 nodad");
        cluster.host(1).ip(&more)?;
        cluster.put_service(mk_service("web", vec![mk_port(Tcp, 80, 8080, 30080)]))?;
        let further = announced(cluster, FURTHER)?;
        let client = &cluster.net.client;
        for (address, family) in further.into_iter().zip(FAMILIES) {
            await_servers(client, Tcp, cluster.at(1, family, 30080), &["pod"])?;
            await_outcome(client, Tcp, (address, 30080).into(), &Outcome::Refused)?;
        }
        // The Node names others now.
        cluster.change_node(1, |node| {
            let all = node.status.iter_mut().flat_map(|status| status.addresses.iter_mut());
            for (address, text) in all.flatten().zip(FURTHER) {
                address.address = text.to_owned();
            }
        })?;
        for (address, family) in further.into_iter().zip(FAMILIES) {
            await_servers(client, Tcp, (address, 30080).into(), &["pod"])?;
            await_outcome(client, Tcp, cluster.at(1, family, 30080), &Outcome::Refused)?;
        }
        Ok(())
    })
}

/// An external address, or a load balancer's, that is the node's own, at a port that is the node
/// port's number too: both are the same Service, and nobody is in conflict. Source ranges hold where
/// the load balancer's address is hit.
#[test]
fn external_addresses_that_are_the_nodes() -> Result<()> {
    Cluster::run(2, |cluster| {
        let _pod = cluster.start_pod(own("pod", "web", 2))?;
        let mut web = mk_service("web", vec![mk_port(Tcp, 30080, 8080, 30080)]);
        let own = FAMILIES.map(|family| cluster.at(1, family, 30080).ip());
        spec(&mut web).external_ips = Some(own.map(|address| address.to_string()).to_vec());
        cluster.put_service(web)?;
        let client = &cluster.net.client;
        let serve = || -> Result<()> {
            for (node, family) in [1, 2].into_iter().flat_map(|node| FAMILIES.map(|it| (node, it)))
            {
                await_servers(client, Tcp, cluster.at(node, family, 30080), &["pod"])?;
            }
            for node in [1, 2] {
                let rows = serde_json::to_string(&cluster.rows(node, &["service", "list"])?)?;
                ensure!(!rows.contains("conflict"), "node {node}: {rows}");
            }
            Ok(())
        };
        serve()?;
        cluster.change_service("web", |web| balance(web, &own))?;
        serve()?;
        cluster.change_service("web", |web| {
            let elsewhere = ["192.0.2.0/24", "2001:db8:dead::/48"].map(str::to_owned);
            spec(web).load_balancer_source_ranges = Some(elsewhere.to_vec());
        })?;
        for family in FAMILIES {
            await_outcome(client, Tcp, cluster.at(1, family, 30080), &Outcome::Silence)?;
            await_servers(client, Tcp, cluster.at(2, family, 30080), &["pod"])?;
        }
        Ok(())
    })
}

/// A port of an external address, or of a load balancer's, that no Service defines: nothing, so
/// that nothing goes round in a circle. Without the Service, the address is the network's business.
#[test]
fn ports_that_no_service_defines() -> Result<()> {
    Cluster::run(1, |cluster| {
        let _pod = cluster.start_pod(own("pod", "web", 1))?;
        let mut web = mk_service("web", vec![mk_port(Tcp, 80, 8080, 30080)]);
        balance(&mut web, &announced(cluster, BALANCED)?);
        spec(&mut web).external_ips = Some(EXTERNAL.map(str::to_owned).to_vec());
        cluster.put_service(web)?;
        let external = announced(cluster, EXTERNAL)?;
        let client = &cluster.net.client;
        for address in announced(cluster, BALANCED)?.into_iter().chain(external) {
            await_servers(client, Tcp, (address, 80).into(), &["pod"])?;
            let before = dropped(cluster)?;
            for (protocol, port) in [(Tcp, 81), (Udp, 80), (Tcp, 30080)] {
                await_outcome(client, protocol, (address, port).into(), &Outcome::Silence)?;
            }
            let now = dropped(cluster)? - before;
            // A SYN may be sent again; what goes round is sent dozens of times.
            ensure!((3..=8).contains(&now), "{address}: {now} packets");
        }
        Ok(())
    })
}

fn dropped(cluster: &Cluster) -> Result<u64> {
    let rows = cluster.rows(1, &["counters"])?;
    let found = rows.iter().filter(|row| row["reason"] == "undefined-port");
    Ok(found.filter_map(|row| row["packets"].as_u64()).sum())
}

/// A Service with every kind of frontend: its node port, an external address, a load balancer's
/// and a port by annotation. Of both protocols, in both families.
fn put_with_everything(cluster: &Cluster, annotations: &[(&str, &str)]) -> Result<()> {
    let ports = vec![mk_port(Tcp, 80, 8080, 30080)];
    let mut web = mk_service("web", ports);
    balance(&mut web, &announced(cluster, BALANCED)?);
    announced(cluster, EXTERNAL)?;
    spec(&mut web).external_ips = Some(EXTERNAL.map(str::to_owned).to_vec());
    let all = [("redirector.io/publish", "443:80")].iter().chain(annotations);
    web.metadata.annotations =
        Some(all.map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect());
    cluster.put_service(web)
}

/// All frontends of one family.
fn everything(cluster: &Cluster, family: usize) -> Result<[SocketAddr; 4]> {
    let [external, balanced] =
        [EXTERNAL, BALANCED].map(|addresses| addresses[family].parse::<IpAddr>());
    let node = |port| cluster.at(1, FAMILIES[family], port);
    Ok([node(30080), node(443), (external?, 80).into(), (balanced?, 80).into()])
}

/// Session affinity is of a client and a port of a Service, whichever frontend it comes by.
#[test]
fn affinity_across_frontends() -> Result<()> {
    Cluster::run(2, |cluster| {
        let _pods = [
            cluster.start_pod(own("one", "web", 1))?,
            cluster.start_pod(own("two", "web", 2))?,
            cluster.start_pod(on_host("three", "web", 2))?,
        ];
        // At random, so that no table makes it look as if.
        put_with_everything(cluster, &[("redirector.io/algorithm", "random")])?;
        let client = &cluster.net.client;
        for family in 0..FAMILIES.len() {
            for to in everything(cluster, family)? {
                await_servers(client, Tcp, to, &["one", "two", "three"])?;
            }
        }
        cluster
            .change_service("web", |web| spec(web).session_affinity = Some("ClientIP".into()))?;
        for family in 0..FAMILIES.len() {
            wait::until_true("one server for all frontends", wait::SOON, || {
                let mut met = std::collections::BTreeSet::new();
                for to in everything(cluster, family)? {
                    // One that took too long says nothing.
                    let Ok(found) = servers(client, Tcp, to, 6) else { return Ok(false) };
                    met.extend(found);
                }
                Ok(met.len() == 1)
            })?;
        }
        let listed = cluster.rows(1, &["service", "list"])?;
        let ours: Vec<_> = listed.iter().filter(|row| row["namespace"] == "default").collect();
        ensure!(ours.len() == 4, "{ours:#?}");
        ensure!(ours.iter().all(|row| row["affinitySeconds"] == 10_800), "{ours:#?}");
        Ok(())
    })
}

/// An annotation has source ranges hold for all frontends; without it they hold for the load
/// balancer's addresses alone.
#[test]
fn source_ranges_of_all_frontends() -> Result<()> {
    const SCOPE: &str = "redirector.io/source-ranges";
    Cluster::run(1, |cluster| {
        let _pod = cluster.start_pod(own("pod", "web", 1))?;
        put_with_everything(cluster, &[(SCOPE, "all")])?;
        let allow = |ranges: &[&str], scope: &str| {
            let ranges = ranges.iter().map(|range| (*range).to_owned()).collect();
            cluster.change_service("web", |web| {
                spec(web).load_balancer_source_ranges = Some(ranges);
                let annotations = web.metadata.annotations.get_or_insert_default();
                annotations.insert(SCOPE.to_owned(), scope.to_owned());
            })
        };
        let client = &cluster.net.client;
        let (v4, v6) = (format!("{}/24", CLIENT.v4), format!("{}/64", CLIENT.v6));
        let others = ["192.0.2.0/24", "2001:db8:dead::/48"];
        for family in 0..FAMILIES.len() {
            let all = everything(cluster, family)?;
            let meets = |to: SocketAddr, is_served: bool| match is_served {
                true => await_servers(client, Tcp, to, &["pod"]),
                false => await_outcome(client, Tcp, to, &Outcome::Silence),
            };
            allow(&[&v4, &v6], "all")?;
            all.iter().try_for_each(|to| meets(*to, true))?;
            allow(&others, "all")?;
            all.iter().try_for_each(|to| meets(*to, false))?;
            allow(&others, "load-balancer")?;
            let [node, annotated, external, balanced] = all;
            [node, annotated, external].iter().try_for_each(|to| meets(*to, true))?;
            meets(balanced, false)?;
        }
        Ok(())
    })
}

/// An external address that the operator does not allow is not served, and the Service is told.
#[test]
fn external_addresses_that_are_not_allowed() -> Result<()> {
    let networks = "192.0.2.0/24,2001:db8:77::/64";
    Cluster::run_with_options(1, &["--external-ip-cidrs", networks], |cluster| {
        let _pod = cluster.start_pod(own("pod", "web", 1))?;
        put_with_everything(cluster, &[])?;
        let client = &cluster.net.client;
        for family in 0..FAMILIES.len() {
            let [node, annotated, external, balanced] = everything(cluster, family)?;
            for to in [node, annotated, balanced] {
                await_servers(client, Tcp, to, &["pod"])?;
            }
            let met = probe(client, Tcp, external);
            ensure!(!matches!(met, Ok(Outcome::Answer(_))), "{met:?}");
            let address = external.ip().to_string();
            let words = ["Warning Refused", &address, "--external-ip-cidrs"];
            cluster.await_event("Service", "web", &words)?;
        }
        Ok(())
    })
}
