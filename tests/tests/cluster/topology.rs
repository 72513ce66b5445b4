//! `[sig-network] Traffic Distribution`.

use anyhow::Result;
use redirector_common::Protocol::Tcp;
use redirector_tests::{
    cluster::{
        Cluster,
        build::{mk_port, mk_service, spec},
        probe::await_servers,
    },
    topology::FAMILIES,
};

use crate::on_host;

fn prefer(cluster: &mut Cluster, distribution: &str) -> Result<()> {
    let mut web = mk_service("web", vec![mk_port(Tcp, 80, 8080, 30080)]);
    spec(&mut web).traffic_distribution = Some(distribution.to_owned());
    cluster.put_service(web)
}

fn meets(cluster: &Cluster, node: u8, expected: &[&str]) -> Result<()> {
    FAMILIES.iter().try_for_each(|family| {
        await_servers(&cluster.net.client, Tcp, cluster.at(node, *family, 30080), expected)
    })
}

/// "should route traffic to an endpoint in the same zone when using PreferSameZone": nodes 1 and 3
/// are in one zone, node 2 is in another.
#[test]
fn prefer_same_zone() -> Result<()> {
    Cluster::run(3, |cluster| {
        let one = cluster.start_pod(on_host("one", "web", 1))?;
        let _two = cluster.start_pod(on_host("two", "web", 2))?;
        prefer(cluster, "PreferSameZone")?;
        meets(cluster, 1, &["one"])?;
        meets(cluster, 2, &["two"])?;
        meets(cluster, 3, &["one"])?;
        // None in the zone any more: any will do.
        cluster.remove_pod(one)?;
        meets(cluster, 3, &["two"])
    })
}

/// "should route traffic to an endpoint on the same node or fall back to same zone when using
/// PreferSameNode".
#[test]
fn prefer_same_node() -> Result<()> {
    Cluster::run(3, |cluster| {
        let one = cluster.start_pod(on_host("one", "web", 1))?;
        let _two = cluster.start_pod(on_host("two", "web", 2))?;
        let three = cluster.start_pod(on_host("three", "web", 3))?;
        prefer(cluster, "PreferSameNode")?;
        meets(cluster, 1, &["one"])?;
        meets(cluster, 2, &["two"])?;
        meets(cluster, 3, &["three"])?;
        cluster.remove_pod(one)?;
        meets(cluster, 1, &["three"])?;
        cluster.remove_pod(three)?;
        meets(cluster, 1, &["two"])
    })
}
