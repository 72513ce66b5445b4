//! `[sig-network] Services`: node ports.

use anyhow::{Context as _, Result};
use redirector_common::Protocol::{Tcp, Udp};
use redirector_tests::{
    cluster::{
        Cluster,
        build::{mk_port, mk_service},
        pod::{Net, Plan},
        probe::{Outcome, await_outcome, await_servers},
    },
    topology::FAMILIES,
};

/// "should be able to create a functioning NodePort service"; with it "should function for
/// endpoint-Service: http / udp", "should function for node-Service: http / udp" and "should
/// function for service endpoints using hostNetwork".
#[test]
fn functioning_node_port() -> Result<()> {
    Cluster::run(2, |cluster| {
        let ports = [("http", Tcp, 8080), ("udp", Udp, 8081)];
        let plan = |name, node, net| Plan { name, app: "web", node, net, ports: &ports };
        let _pods = [
            cluster.start_pod(plan("host1", 1, Net::Host))?,
            cluster.start_pod(plan("host2", 2, Net::Host))?,
            cluster.start_pod(plan("own2", 2, Net::Own))?,
        ];
        let ports = vec![mk_port(Tcp, 80, 8080, 30080), mk_port(Udp, 90, 8081, 30090)];
        cluster.put_service(mk_service("web", ports))?;
        for family in FAMILIES {
            for node in [1, 2] {
                for (protocol, port) in [(Tcp, 30080), (Udp, 30090)] {
                    let to = cluster.at(node, family, port);
                    await_servers(&cluster.net.client, protocol, to, &["host1", "host2", "own2"])
                        .with_context(|| format!("node {node}"))?;
                }
            }
        }
        cluster.remove_service("web")?;
        for family in FAMILIES {
            let to = cluster.at(1, family, 30080);
            await_outcome(&cluster.net.client, Tcp, to, &Outcome::Refused)?;
        }
        Ok(())
    })
}
