//! `[sig-network] Services`: node ports and external addresses.

use anyhow::{Context as _, Result};
use redirector_common::Protocol::{Tcp, Udp};
use redirector_tests::{
    cluster::{
        Cluster,
        build::{mk_port, mk_service, spec},
        probe::{Outcome, await_outcome, await_servers},
    },
    topology::FAMILIES,
};

use crate::{on_host, own};

/// "should be able to create a functioning NodePort service"; with it "should function for
/// endpoint-Service: http / udp", "should function for node-Service: http / udp" and "should
/// function for service endpoints using hostNetwork".
#[test]
fn functioning_node_port() -> Result<()> {
    Cluster::run(2, |cluster| {
        let _pods = [
            cluster.start_pod(on_host("host1", "web", 1))?,
            cluster.start_pod(on_host("host2", "web", 2))?,
            cluster.start_pod(own("own2", "web", 2))?,
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

/// Services of one family on nodes of two, and one that gets the other later: what they do not have
/// is refused.
#[test]
fn one_family_of_two() -> Result<()> {
    Cluster::run(2, |cluster| {
        let _pods = [
            cluster.start_pod(on_host("host1", "web", 1))?,
            cluster.start_pod(own("own2", "web", 2))?,
        ];
        let families = |service: &mut k8s_openapi::api::core::v1::Service, names: &[&str]| {
            let policy = if names.len() == 1 { "SingleStack" } else { "RequireDualStack" };
            spec(service).ip_families = Some(names.iter().map(|it| (*it).to_owned()).collect());
            spec(service).ip_family_policy = Some(policy.to_owned());
        };
        let mut web =
            mk_service("web", vec![mk_port(Tcp, 80, 8080, 30080), mk_port(Udp, 90, 8081, 30090)]);
        families(&mut web, &["IPv4"]);
        cluster.put_service(web)?;
        let client = &cluster.net.client;
        let [v4, v6] = FAMILIES;
        let rounds: [(&[&str], &[redirector_common::Family]); 4] = [
            (&["IPv4"], &[v4]),
            (&["IPv6"], &[v6]),
            (&["IPv6", "IPv4"], &[v4, v6]),
            (&["IPv4"], &[v4]),
        ];
        for (names, served) in rounds {
            cluster.change_service("web", |web| families(web, names))?;
            for family in FAMILIES {
                for (protocol, port) in [(Tcp, 30080), (Udp, 30090)] {
                    for node in [1, 2] {
                        let to = cluster.at(node, family, port);
                        let met = if served.contains(&family) {
                            await_servers(client, protocol, to, &["host1", "own2"])
                        } else {
                            await_outcome(client, protocol, to, &Outcome::Refused)
                        };
                        met.with_context(|| format!("{names:?}, node {node}"))?;
                    }
                }
            }
        }
        Ok(())
    })
}

/// "should be able to change the type from ExternalName to NodePort", "from ClusterIP to
/// ExternalName", "from NodePort to ExternalName", and the ways between.
#[test]
fn type_changes() -> Result<()> {
    Cluster::run(2, |cluster| {
        let _pod = cluster.start_pod(own("pod", "web", 2))?;
        let client = &cluster.net.client;
        let mut named = mk_service("web", Vec::new());
        spec(&mut named).type_ = Some("ExternalName".into());
        spec(&mut named).external_name = Some("example.org".into());
        let mut inside = mk_service("web", vec![mk_port(Tcp, 80, 8080, 0)]);
        spec(&mut inside).type_ = Some("ClusterIP".into());
        let outside = mk_service("web", vec![mk_port(Tcp, 80, 8080, 30080)]);
        let [v4, v6] = FAMILIES.map(|family| cluster.at(1, family, 30080));
        cluster.put_service(named.clone())?;
        for from in [named, inside] {
            cluster.put_service(from.clone())?;
            await_outcome(client, Tcp, v4, &Outcome::Refused)?;
            cluster.put_service(outside.clone())?;
            await_servers(client, Tcp, v4, &["pod"])?;
            await_servers(client, Tcp, v6, &["pod"])?;
            cluster.put_service(from)?;
            await_outcome(client, Tcp, v4, &Outcome::Refused)?;
            await_outcome(client, Tcp, v6, &Outcome::Refused)?;
        }
        Ok(())
    })
}

/// "should be able to update service type to NodePort listening on same port number but different
/// protocols", and "should serve endpoints on same port and different protocols".
#[test]
fn same_port_with_different_protocols() -> Result<()> {
    Cluster::run(2, |cluster| {
        let _pod = cluster.start_pod(own("pod", "web", 2))?;
        let (tcp, udp) = (mk_port(Tcp, 80, 8080, 30080), mk_port(Udp, 80, 8081, 30080));
        cluster.put_service(mk_service("web", vec![tcp.clone(), udp.clone()]))?;
        let client = &cluster.net.client;
        for family in FAMILIES {
            for protocol in [Tcp, Udp] {
                await_servers(client, protocol, cluster.at(1, family, 30080), &["pod"])?;
            }
        }
        let keep = |ports| cluster.change_service("web", |web| spec(web).ports = Some(ports));
        keep(vec![udp])?;
        for family in FAMILIES {
            let to = cluster.at(1, family, 30080);
            await_outcome(client, Tcp, to, &Outcome::Refused)?;
            await_servers(client, Udp, to, &["pod"])?;
        }
        keep(vec![tcp])?;
        for family in FAMILIES {
            let to = cluster.at(1, family, 30080);
            await_outcome(client, Udp, to, &Outcome::Refused)?;
            await_servers(client, Tcp, to, &["pod"])?;
        }
        Ok(())
    })
}

/// "should be updated after adding or deleting ports".
#[test]
fn updated_after_adding_or_deleting_ports() -> Result<()> {
    Cluster::run(2, |cluster| {
        let _pod = cluster.start_pod(own("pod", "web", 2))?;
        let client = &cluster.net.client;
        let port = |number| mk_port(Tcp, number, 8080, 30_000 + number);
        cluster.put_service(mk_service("web", vec![port(80)]))?;
        for (ports, gone) in
            [(vec![80, 81], vec![]), (vec![81, 82], vec![80]), (vec![82], vec![81])]
        {
            let list = ports.iter().map(|number| port(*number)).collect();
            cluster.change_service("web", |web| spec(web).ports = Some(list))?;
            for family in FAMILIES {
                for number in &ports {
                    let to = cluster.at(1, family, 30_000 + number);
                    await_servers(client, Tcp, to, &["pod"])?;
                }
                for number in &gone {
                    let to = cluster.at(1, family, 30_000 + number);
                    await_outcome(client, Tcp, to, &Outcome::Refused)?;
                }
            }
        }
        Ok(())
    })
}

/// "should be able to up and down services"; and again under the same name.
#[test]
fn up_and_down() -> Result<()> {
    Cluster::run(2, |cluster| {
        let _pods =
            [cluster.start_pod(own("one", "one", 2))?, cluster.start_pod(own("two", "two", 2))?];
        let put = |name: &str, port| {
            cluster.put_service(mk_service(name, vec![mk_port(Tcp, 80, 8080, port)]))
        };
        let client = &cluster.net.client;
        put("one", 30001)?;
        put("two", 30002)?;
        for family in FAMILIES {
            await_servers(client, Tcp, cluster.at(1, family, 30001), &["one"])?;
            await_servers(client, Tcp, cluster.at(1, family, 30002), &["two"])?;
        }
        cluster.remove_service("one")?;
        for family in FAMILIES {
            await_outcome(client, Tcp, cluster.at(1, family, 30001), &Outcome::Refused)?;
            await_servers(client, Tcp, cluster.at(1, family, 30002), &["two"])?;
        }
        // Another port under the old name; the old port under another.
        put("one", 30003)?;
        cluster.remove_service("two")?;
        put("two", 30001)?;
        for family in FAMILIES {
            await_servers(client, Tcp, cluster.at(1, family, 30003), &["one"])?;
            await_servers(client, Tcp, cluster.at(1, family, 30001), &["two"])?;
            await_outcome(client, Tcp, cluster.at(1, family, 30002), &Outcome::Refused)?;
        }
        Ok(())
    })
}

/// "should be possible to connect to a service via ExternalIP when the external IP is not assigned
/// to a node".
#[test]
fn external_address_of_no_node() -> Result<()> {
    Cluster::run(2, |cluster| {
        let _pod = cluster.start_pod(own("pod", "web", 2))?;
        let addresses = ["203.0.113.10", "2001:db8:113::10"];
        let mut web = mk_service("web", vec![mk_port(Tcp, 80, 8080, 0)]);
        spec(&mut web).type_ = Some("ClusterIP".into());
        spec(&mut web).external_ips = Some(addresses.map(str::to_owned).to_vec());
        cluster.put_service(web)?;
        for address in addresses {
            let address = address.parse()?;
            cluster.net.route(address, 1)?;
            await_servers(&cluster.net.client, Tcp, (address, 80).into(), &["pod"])?;
        }
        Ok(())
    })
}

/// "should have session affinity work for NodePort service", "should be able to switch session
/// affinity for NodePort service" and "should have session affinity timeout work for NodePort
/// service".
#[test]
fn session_affinity() -> Result<()> {
    use k8s_openapi::api::core::v1::{ClientIPConfig, SessionAffinityConfig};
    use redirector_tests::{cluster::probe::servers, wait};
    use std::time::Duration;

    Cluster::run(2, |cluster| {
        let _pods = [
            cluster.start_pod(own("one", "web", 2))?,
            cluster.start_pod(own("two", "web", 2))?,
            cluster.start_pod(on_host("three", "web", 2))?,
        ];
        let all = ["one", "two", "three"];
        cluster.put_service(mk_service("web", vec![mk_port(Tcp, 80, 8080, 30080)]))?;
        let client = &cluster.net.client;
        let stick = |seconds: Option<i32>| {
            cluster.change_service("web", |web| {
                let affinity = if seconds.is_some() { "ClientIP" } else { "None" };
                spec(web).session_affinity = Some(affinity.into());
                let client_ip =
                    seconds.map(|seconds| ClientIPConfig { timeout_seconds: Some(seconds) });
                spec(web).session_affinity_config =
                    client_ip.map(|client_ip| SessionAffinityConfig { client_ip: Some(client_ip) });
            })
        };
        for family in FAMILIES {
            let to = cluster.at(1, family, 30080);
            await_servers(client, Tcp, to, &all)?;
            stick(Some(10800))?;
            let one = |what: &str| {
                wait::until_true(what, wait::SOON, || {
                    Ok(servers(client, Tcp, to, 15).is_ok_and(|met| met.len() == 1))
                })
            };
            one("one server")?;
            stick(None)?;
            await_servers(client, Tcp, to, &all)?;
            // Each connection refreshes it: what sticks is not let go by use, but by rest.
            stick(Some(1))?;
            one("one server, again")?;
            wait::until_true("another server after a rest", Duration::from_secs(60), || {
                let Ok(first) = servers(client, Tcp, to, 1) else { return Ok(false) };
                // The time that this is about.
                std::thread::sleep(Duration::from_millis(1500));
                Ok(servers(client, Tcp, to, 1).is_ok_and(|next| next != first))
            })?;
            stick(None)?;
        }
        Ok(())
    })
}
