//! The agent and the API server on its bad days: see "Watches" in Kubernetes' own proxy.

use std::{fs, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use redirector_common::Protocol::Tcp;
use redirector_tests::{
    apiserver::{Asked, Failure, Order, Pace, Requests, Resource, TOKEN},
    cluster::{
        Cluster,
        build::{mk_port, mk_service, mk_slice},
        probe::{Outcome, await_outcome, await_servers},
    },
    topology::FAMILIES,
    wait,
};
use serde_json::json;

use crate::own;

/// A service whose pods are there already.
fn put(cluster: &Cluster, name: &str, port: u16) -> Result<()> {
    cluster.put_service(mk_service(name, vec![mk_port(Tcp, 80, 8080, port)]))
}

fn serves(cluster: &Cluster, port: u16, server: &str) -> Result<()> {
    FAMILIES.iter().try_for_each(|family| {
        await_servers(&cluster.net.client, Tcp, cluster.at(1, *family, port), &[server])
    })
}

/// Kinds of objects that an agent watches.
const WATCHED: usize = 5;

/// Whatever happens to watches and lists, a change comes through in the end, and nothing that is
/// still there goes in between.
#[test]
fn interrupted_watches() -> Result<()> {
    Cluster::run(2, |cluster| {
        let _pods = [
            cluster.start_pod(own("stays", "stays", 2))?,
            cluster.start_pod(own("web", "web", 2))?,
        ];
        put(cluster, "stays", 30001)?;
        serves(cluster, 30001, "stays")?;
        let mut port = 30010;
        for disturb in [
            |cluster: &mut Cluster| {
                cluster.api.faults().order(Order::Cut, None);
                Ok(())
            },
            |cluster: &mut Cluster| {
                cluster.api.faults().order(Order::Expire, None);
                Ok(())
            },
            |cluster: &mut Cluster| {
                cluster.api.faults().fail(Requests::WATCHES, Failure::Gone, 4);
                cluster.api.store().compact();
                cluster.api.faults().order(Order::End, None);
                Ok(())
            },
            |cluster: &mut Cluster| {
                cluster.api.faults().fail(Requests::ALL, Failure::Cut, 4);
                cluster.api.faults().fail(Requests::LISTS, Failure::Unavailable, 2);
                cluster.api.faults().order(Order::Cut, Some("services"));
                Ok(())
            },
            |cluster: &mut Cluster| {
                let pause = Duration::from_millis(1);
                cluster.api.faults().slow(Pace { bytes: 64, pause });
                cluster.api.faults().order(Order::Expire, None);
                Ok(())
            },
            |cluster: &mut Cluster| {
                cluster.api.faults().heal();
                cluster.api.stop();
                cluster.api.start(Some(&cluster.net.router))
            },
        ] {
            disturb(cluster)?;
            port += 1;
            put(cluster, "web", port)?;
            serves(cluster, port, "web")?;
            serves(cluster, 30001, "stays")?;
        }
        Ok(())
    })
}

/// The server is away: what there was is served on. It comes back: what has changed meanwhile is
/// caught up with, and only what is gone goes.
#[test]
fn the_server_is_away() -> Result<()> {
    Cluster::run(2, |cluster| {
        let _pods = [
            cluster.start_pod(own("stays", "stays", 2))?,
            cluster.start_pod(own("goes", "goes", 2))?,
            cluster.start_pod(own("comes", "comes", 2))?,
        ];
        put(cluster, "stays", 30001)?;
        put(cluster, "goes", 30002)?;
        serves(cluster, 30001, "stays")?;
        serves(cluster, 30002, "goes")?;
        cluster.api.stop();
        cluster.remove_service("goes")?;
        put(cluster, "comes", 30003)?;
        cluster.api.store().compact();
        serves(cluster, 30001, "stays")?;
        serves(cluster, 30002, "goes")?;
        cluster.api.start(Some(&cluster.net.router))?;
        serves(cluster, 30003, "comes")?;
        serves(cluster, 30001, "stays")?;
        for family in FAMILIES {
            let to = cluster.at(1, family, 30002);
            await_outcome(&cluster.net.client, Tcp, to, &Outcome::Refused)?;
        }
        Ok(())
    })
}

/// What is deleted while a list of it comes is gone, though the list has it.
#[test]
fn objects_that_go_while_they_are_listed() -> Result<()> {
    Cluster::run(1, |cluster| {
        let _pods = [
            cluster.start_pod(own("goes", "a-goes", 1))?,
            cluster.start_pod(own("stays", "stays", 1))?,
        ];
        put(cluster, "a-goes", 30001)?;
        put(cluster, "stays", 30002)?;
        for number in 0..50 {
            let mut other = mk_service(&format!("b-{number}"), Vec::new());
            other.spec.get_or_insert_default().type_ = Some("ClusterIP".to_owned());
            cluster.put(&other)?;
        }
        serves(cluster, 30001, "goes")?;
        let watches = || {
            let asked = cluster.api.access().asked();
            let is_list = |asked: &&Asked| {
                asked.resource == "services" && asked.query.contains("sendInitialEvents=true")
            };
            asked.iter().filter(is_list).count()
        };
        let before = watches();
        // Each Service takes a while.
        cluster.api.faults().slow(Pace { bytes: 64, pause: Duration::from_millis(2) });
        cluster.api.faults().order(Order::Expire, Some("services"));
        wait::until_true("another list", wait::SOON, || Ok(watches() > before))?;
        cluster.remove_service("a-goes")?;
        for family in FAMILIES {
            let to = cluster.at(1, family, 30001);
            await_outcome(&cluster.net.client, Tcp, to, &Outcome::Refused)?;
        }
        serves(cluster, 30002, "stays")
    })
}

/// A malformed object is passed over: in the first list, in a watch and in a later list.
#[test]
fn malformed_objects() -> Result<()> {
    Cluster::run_without_agents(2, |cluster| {
        let _pod = cluster.start_pod(own("web", "web", 2))?;
        spoil(cluster, "a-first")?;
        cluster.start_agents(&[])?;
        put(cluster, "web", 30001)?;
        serves(cluster, 30001, "web")?;
        spoil(cluster, "b-watched")?;
        put(cluster, "web", 30002)?;
        serves(cluster, 30002, "web")?;
        cluster.api.faults().order(Order::Expire, None);
        put(cluster, "web", 30003)?;
        serves(cluster, 30003, "web")?;
        // Each is named, with what is wrong with it.
        for name in ["a-first", "b-watched"] {
            for kind in ["services", "pods", "endpointslices"] {
                let log = cluster.node(1).log();
                let mut lines = log.lines().filter(|line| line.contains("malformed"));
                ensure!(
                    lines.any(|line| line.contains(kind)
                        && line.contains(&format!("default/{name}"))
                        && line.contains("invalid type")),
                    "{kind} {name} is not named: {log}"
                );
            }
        }
        Ok(())
    })
}

/// Writes objects that no client can read.
fn spoil(cluster: &Cluster, name: &str) -> Result<()> {
    let metadata = json!({"name": name, "namespace": "default"});
    for (group, plural, object) in [
        ("", "services", json!({"spec": {"type": "NodePort", "ports": "80"}})),
        ("", "pods", json!({"spec": {"nodeName": "node1", "containers": {"a": 1}}})),
        ("discovery.k8s.io", "endpointslices", json!({"addressType": "IPv4", "endpoints": 7})),
    ] {
        let resource = Resource::find(group, "v1", plural).context("not served")?;
        let mut object = object;
        object["metadata"] = metadata.clone();
        cluster.api.store().inject(resource, object)?;
    }
    Ok(())
}

/// Credentials that are no longer good, and then are again.
#[test]
fn expired_credentials() -> Result<()> {
    Cluster::run(2, |cluster| {
        let _pod = cluster.start_pod(own("web", "web", 2))?;
        put(cluster, "web", 30001)?;
        serves(cluster, 30001, "web")?;
        cluster.api.access().set_tokens([]);
        cluster.api.faults().order(Order::Expire, None);
        put(cluster, "web", 30002)?;
        serves(cluster, 30001, "web")?;
        cluster.api.access().set_tokens([TOKEN.to_owned()]);
        serves(cluster, 30002, "web")
    })
}

/// Only what the node has to do with is asked for, and nothing that the role in `deploy/` does not
/// allow.
#[test]
fn what_is_asked_for() -> Result<()> {
    Cluster::run(2, |cluster| {
        let _pod = cluster.start_pod(own("web", "web", 2))?;
        put(cluster, "web", 30001)?;
        serves(cluster, 30001, "web")?;
        let asked = cluster.api.access().asked();
        ensure!(asked.iter().all(|asked| asked.allowed), "{asked:#?}");
        let mut pods = asked.iter().filter(|asked| asked.resource == "pods");
        ensure!(
            pods.all(|asked| asked.query.contains("fieldSelector")
                && asked.query.contains("spec.nodeName")
                && asked.query.contains("node")),
            "{asked:#?}"
        );
        Ok(())
    })
}

/// Streaming lists where the server has them, and nothing else; pages where it has not.
#[test]
fn streaming_lists_and_pages() -> Result<()> {
    const MANY: usize = 1100;
    for streams in [true, false] {
        Cluster::run_without_agents(2, |cluster| {
            let _pod = cluster.start_pod(own("web", "web", 2))?;
            put(cluster, "web", 30001)?;
            for number in 0..MANY {
                // The web's own come last.
                let name = format!("a-{number}");
                let slice = mk_slice(&name, "nobody", FAMILIES[0], &[], Vec::new());
                cluster.api.store().put(&slice)?;
            }
            cluster.api.faults().set_streaming_lists(streams);
            cluster.start_agents(&[])?;
            serves(cluster, 30001, "web")?;
            let asked = cluster.api.access().asked();
            let lists = asked.iter().filter(|asked| asked.verb == "list");
            if streams {
                ensure!(lists.count() == 0, "{asked:#?}");
                let watches = asked.iter().filter(|asked| asked.verb == "watch");
                ensure!(watches.clone().count() >= 2 * WATCHED, "{asked:#?}");
                for watch in watches {
                    let wanted = ["sendInitialEvents=true", "allowWatchBookmarks=true"];
                    ensure!(wanted.iter().all(|it| watch.query.contains(it)), "{watch:#?}");
                }
            } else {
                let pages = lists.filter(|asked| asked.resource == "endpointslices");
                let pages: Vec<_> = pages.map(|asked| asked.query.as_str()).collect();
                ensure!(pages.iter().all(|query| query.contains("limit=500")), "{pages:#?}");
                let further = pages.iter().filter(|query| query.contains("continue="));
                // Three pages for each of two agents.
                ensure!(pages.len() == 6 && further.count() == 4, "{pages:#?}");
            }
            Ok(())
        })
        .with_context(|| format!("with streaming lists: {streams}"))?;
    }
    Ok(())
}

/// Others renew the credentials: the old ones are refused, and what stands in the file now is not.
#[test]
fn renewed_credentials() -> Result<()> {
    Cluster::run(2, |cluster| {
        let _pod = cluster.start_pod(own("web", "web", 2))?;
        put(cluster, "web", 30001)?;
        serves(cluster, 30001, "web")?;
        let file = cluster.node(1).kubeconfig().to_owned();
        let renewed = fs::read_to_string(&file)?.replace(TOKEN, "renewed");
        cluster.api.access().set_tokens(["renewed".to_owned()]);
        cluster.api.faults().order(Order::Cut, None);
        put(cluster, "web", 30002)?;
        serves(cluster, 30001, "web")?;
        fs::write(&file, renewed)?;
        serves(cluster, 30002, "web")
    })
}

/// A server that refuses is asked again, but ever less often.
#[test]
fn pauses() -> Result<()> {
    Cluster::run(1, |cluster| {
        let _pod = cluster.start_pod(own("web", "web", 1))?;
        put(cluster, "web", 30001)?;
        serves(cluster, 30001, "web")?;
        let before = cluster.api.access().asked().len();
        cluster.api.faults().fail_always(Requests::ALL, Failure::Unavailable);
        cluster.api.faults().order(Order::Cut, None);
        // The time that this is about: pauses of 0.2, 0.4, 0.8, 1.6, 3.2 s, half of that at least.
        thread::sleep(Duration::from_secs(6));
        let asked = cluster.api.access().asked().split_off(before);
        let is_read = |asked: &&Asked| ["list", "watch"].contains(&asked.verb);
        let watches = asked.iter().filter(is_read).count();
        ensure!((2 * WATCHED..=7 * WATCHED).contains(&watches), "{watches}: {asked:#?}");
        cluster.api.faults().heal();
        put(cluster, "web", 30002)?;
        serves(cluster, 30002, "web")?;
        // Libraries that tell of every attempt are not heard.
        let log = cluster.node(1).log();
        ensure!(!log.contains(" kube_"), "{log}");
        Ok(())
    })
}
