//! `[sig-network] Services`: which endpoints count.

use anyhow::Result;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use redirector_common::Protocol::Tcp;
use redirector_tests::{
    cluster::{
        Cluster,
        build::{mk_port, mk_service, spec},
        pod::{Net, Plan},
        probe::{Outcome, await_outcome, await_servers},
    },
    topology::FAMILIES,
};

use crate::{on_host, own};

/// "should be rejected when no endpoints exist", and "should be rejected for evicted pods (no
/// endpoints exist)".
#[test]
fn rejected_when_no_endpoints() -> Result<()> {
    use redirector_common::Protocol::Udp;
    Cluster::run(2, |cluster| {
        let ports = vec![mk_port(Tcp, 80, 8080, 30080), mk_port(Udp, 90, 8081, 30090)];
        cluster.put_service(mk_service("web", ports))?;
        let refused = |cluster: &Cluster| {
            for family in FAMILIES {
                for (protocol, port) in [(Tcp, 30080), (Udp, 30090)] {
                    let to = cluster.at(1, family, port);
                    await_outcome(&cluster.net.client, protocol, to, &Outcome::Refused)?;
                }
            }
            Ok::<_, anyhow::Error>(())
        };
        refused(cluster)?;
        let pod = cluster.start_pod(own("pod", "web", 2))?;
        await_servers(&cluster.net.client, Tcp, cluster.at(1, FAMILIES[0], 30080), &["pod"])?;
        // Evicted: its object stays, without addresses.
        cluster.change_pod("pod", |pod| {
            let status = pod.status.get_or_insert_default();
            status.phase = Some("Failed".into());
            (status.pod_ip, status.pod_ips) = (None, None);
        })?;
        refused(cluster)?;
        drop(pod);
        Ok(())
    })
}

/// "should create endpoints for unready pods", "should be able to connect to terminating and
/// unready endpoints if PublishNotReadyAddresses is true".
#[test]
fn publish_not_ready_addresses() -> Result<()> {
    Cluster::run(2, |cluster| {
        let _pod = cluster.start_pod(own("pod", "web", 2))?;
        let mut web = mk_service("web", vec![mk_port(Tcp, 80, 8080, 30080)]);
        spec(&mut web).publish_not_ready_addresses = Some(true);
        cluster.set_ready("pod", false)?;
        cluster.put_service(web)?;
        for family in FAMILIES {
            await_servers(&cluster.net.client, Tcp, cluster.at(1, family, 30080), &["pod"])?;
        }
        cluster.terminate("pod")?;
        for family in FAMILIES {
            await_servers(&cluster.net.client, Tcp, cluster.at(1, family, 30080), &["pod"])?;
        }
        Ok(())
    })
}

/// "should not be able to connect to terminating and unready endpoints if
/// PublishNotReadyAddresses is false".
#[test]
fn do_not_publish_not_ready_addresses() -> Result<()> {
    Cluster::run(2, |cluster| {
        let _pod = cluster.start_pod(own("pod", "web", 2))?;
        cluster.put_service(mk_service("web", vec![mk_port(Tcp, 80, 8080, 30080)]))?;
        let client = &cluster.net.client;
        let [v4, v6] = FAMILIES.map(|family| cluster.at(1, family, 30080));
        await_servers(client, Tcp, v4, &["pod"])?;
        await_servers(client, Tcp, v6, &["pod"])?;
        cluster.set_ready("pod", false)?;
        await_outcome(client, Tcp, v4, &Outcome::Refused)?;
        cluster.terminate("pod")?;
        await_outcome(client, Tcp, v4, &Outcome::Refused)?;
        await_outcome(client, Tcp, v6, &Outcome::Refused)
    })
}

/// "should implement service.kubernetes.io/service-proxy-name": the label added later takes the
/// service away, and its removal brings it back.
#[test]
fn service_proxy_name() -> Result<()> {
    label_hides("service.kubernetes.io/service-proxy-name", "another")
}

/// "should implement service.kubernetes.io/headless".
#[test]
fn headless() -> Result<()> {
    label_hides("service.kubernetes.io/headless", "")
}

fn label_hides(label: &str, value: &str) -> Result<()> {
    Cluster::run(2, |cluster| {
        let _pod = cluster.start_pod(own("pod", "web", 2))?;
        let mut web = mk_service("web", vec![mk_port(Tcp, 80, 8080, 30080)]);
        web.metadata.labels = Some([(label.to_owned(), value.to_owned())].into());
        cluster.put_service(web)?;
        cluster.put_service(mk_service("web2", vec![mk_port(Tcp, 80, 8080, 30081)]))?;
        cluster.change_service("web2", |web| {
            spec(web).selector = Some([("app".to_owned(), "web".to_owned())].into());
        })?;
        let client = &cluster.net.client;
        for family in FAMILIES {
            let [to, other] = [30080, 30081].map(|port| cluster.at(1, family, port));
            await_servers(client, Tcp, other, &["pod"])?;
            await_outcome(client, Tcp, to, &Outcome::Refused)?;
            cluster.change_service("web", |web| web.metadata.labels = None)?;
            await_servers(client, Tcp, to, &["pod"])?;
            cluster.change_service("web", |web| {
                web.metadata.labels = Some([(label.to_owned(), value.to_owned())].into());
            })?;
            await_outcome(client, Tcp, to, &Outcome::Refused)?;
            await_servers(client, Tcp, other, &["pod"])?;
        }
        Ok(())
    })
}

/// "should support named targetPorts that resolve to different ports on different endpoints".
#[test]
fn named_target_ports() -> Result<()> {
    Cluster::run(2, |cluster| {
        let plan = |name, net, port| (name, net, [("http", Tcp, port)]);
        let mut pods = Vec::new();
        for (name, net, ports) in [
            plan("one", Net::Own, 8080),
            plan("two", Net::Own, 8090),
            plan("three", Net::Host, 9090),
        ] {
            let plan = Plan { name, app: "web", node: 2, net, ports: &ports };
            pods.push(cluster.start_pod(plan)?);
        }
        let mut port = mk_port(Tcp, 80, 0, 30080);
        port.target_port = Some(IntOrString::String("http".into()));
        cluster.put_service(mk_service("web", vec![port]))?;
        for family in FAMILIES {
            let to = cluster.at(1, family, 30080);
            await_servers(&cluster.net.client, Tcp, to, &["one", "two", "three"])?;
        }
        Ok(())
    })
}

/// "should fallback to terminating endpoints when there are no ready endpoints with
/// externalTrafficPolicy=Cluster".
#[test]
fn fallback_to_terminating_endpoints() -> Result<()> {
    Cluster::run(2, |cluster| {
        let old = cluster.start_pod(own("old", "web", 2))?;
        cluster.put_service(mk_service("web", vec![mk_port(Tcp, 80, 8080, 30080)]))?;
        let client_meets = |cluster: &Cluster, expected: &[&str]| {
            FAMILIES.iter().try_for_each(|family| {
                let to = cluster.at(1, *family, 30080);
                await_servers(&cluster.net.client, Tcp, to, expected)
            })
        };
        client_meets(cluster, &["old"])?;
        cluster.terminate("old")?;
        client_meets(cluster, &["old"])?;
        // A ready one: the old one gets nothing new any more.
        let _new = cluster.start_pod(on_host("new", "web", 2))?;
        client_meets(cluster, &["new"])?;
        cluster.set_ready("new", false)?;
        client_meets(cluster, &["old"])?;
        cluster.remove_pod(old)?;
        for family in FAMILIES {
            let to = cluster.at(1, family, 30080);
            await_outcome(&cluster.net.client, Tcp, to, &Outcome::Refused)?;
        }
        Ok(())
    })
}
