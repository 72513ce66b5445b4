//! What is discarded without a word: ports that pods in the host's network seem to ask for and do
//! not get.
//!
//! Docker prints "Published ports are discarded when using host network mode" and goes on;
//! Kubernetes refuses a `hostPort` that differs from its `containerPort`. Either way people are
//! left with a program that can be reached only on the port that it binds. What they wanted can
//! still be read from names of ports and from annotations.

use std::collections::{BTreeMap, BTreeSet};

use redirector_common::Protocol;
use serde::Serialize;

use super::PUBLISH;
use super::pod::{ContainerPort, PodRecord};
use super::publish;
use crate::model::FrontendSpec;

/// Names of ports that say which port clients try.
const WELL_KNOWN: [(&str, u16); 16] = [
    ("dns", 53),
    ("dns-tcp", 53),
    ("ftp", 21),
    ("http", 80),
    ("https", 443),
    ("imap", 143),
    ("imaps", 993),
    ("ldap", 389),
    ("ldaps", 636),
    ("ntp", 123),
    ("pop3", 110),
    ("smtp", 25),
    ("smtps", 465),
    ("ssh", 22),
    ("submission", 587),
    ("syslog", 514),
];

/// Something that is discarded.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// Namespace of the object.
    pub namespace: String,
    /// Kind of the object.
    pub kind: &'static str,
    /// Name of the object.
    pub name: String,
    /// Node of a pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// What is discarded, and why.
    pub problem: String,
    /// What would make it work.
    pub advice: String,
    /// The annotation to set, with what the pod has already.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub annotation: Option<String>,
}

impl Finding {
    /// Problem and advice in one text.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = format!("{}; {}", self.problem, self.advice);
        if let Some(annotation) = &self.annotation {
            text = format!("{text}: {annotation}");
        }
        text
    }
}

/// Looks at pods, those of one node with each other.
#[must_use]
pub fn audit<'a>(pods: impl Iterator<Item = &'a PodRecord>) -> Vec<Finding> {
    let mut findings = BTreeSet::new();
    for pods in by_node(pods) {
        for pod in &pods {
            findings.extend(discarded(pod));
        }
        findings.extend(claimed_twice(&pods));
    }
    findings.into_iter().collect()
}

/// Looks for ports that pods publish and others have. Agents find these by themselves, and others
/// with them, when they try.
#[must_use]
pub fn contested<'a>(pods: impl Iterator<Item = &'a PodRecord>) -> Vec<Finding> {
    by_node(pods).flat_map(|pods| published_twice(&pods)).collect()
}

/// Pods in the network of each node, the older first.
fn by_node<'a>(
    pods: impl Iterator<Item = &'a PodRecord>,
) -> impl Iterator<Item = Vec<&'a PodRecord>> {
    let mut nodes: BTreeMap<&str, Vec<&PodRecord>> = BTreeMap::new();
    for pod in pods.filter(|pod| pod.alive && pod.host_network) {
        nodes.entry(&pod.node).or_default().push(pod);
    }
    nodes.into_values().map(|mut pods| {
        pods.sort_by_key(|pod| (pod.created, &pod.name));
        pods
    })
}

/// A port that a pod seems to ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Ask {
    protocol: Protocol,
    port: u16,
    local: u16,
}

impl Ask {
    /// As an entry of the annotation.
    fn entry(self) -> String {
        match self.protocol {
            Protocol::Tcp => format!("{}:{}", self.port, self.local),
            Protocol::Udp => format!("{}:{}/udp", self.port, self.local),
        }
    }
}

/// Ports that names and annotations ask for and that the pod does not publish.
fn discarded(pod: &PodRecord) -> Vec<Finding> {
    let published: BTreeSet<(Protocol, u16)> = publish::of_pod(pod)
        .wishes
        .iter()
        .map(|wish| (wish.frontend.protocol, wish.frontend.port))
        .collect();
    let bound: BTreeSet<(Protocol, u16)> =
        pod.ports.iter().map(|port| (port.protocol, port.container_port)).collect();
    let mut found: BTreeMap<Ask, String> = BTreeMap::new();
    for port in &pod.ports {
        if let Some(ask) = named(port) {
            let problem = format!(
                "port {:?} of container {:?} is bound to {}, so in the host's network nobody \
                 answers on port {}",
                port.name, port.container, ask.local, ask.port
            );
            found.entry(ask).or_insert(problem);
        }
        if let Some(host_port) = port.host_port.filter(|port_| *port_ != port.container_port) {
            let ask = Ask { protocol: port.protocol, port: host_port, local: port.container_port };
            let problem = format!(
                "hostPort {host_port} of container {:?} is discarded in the host's network: the \
                 program is bound to {}",
                port.container, port.container_port
            );
            found.entry(ask).or_insert(problem);
        }
    }
    for foreign in &pod.foreign {
        let ask = Ask { protocol: foreign.protocol, port: foreign.port, local: foreign.local };
        // Another's word is taken only for a port that the pod says it has.
        if ask.port != ask.local && bound.contains(&(ask.protocol, ask.local)) {
            let problem = format!(
                "annotation {} asks for port {}, and nobody acts upon it in the host's network",
                foreign.annotation, ask.port
            );
            found.entry(ask).or_insert(problem);
        }
    }
    found.retain(|ask, _| {
        !published.contains(&(ask.protocol, ask.port)) && !bound.contains(&(ask.protocol, ask.port))
    });
    let asks: Vec<String> = found.keys().map(|ask| ask.entry()).collect();
    let annotation = paste(pod, &asks);
    found
        .into_values()
        .map(|problem| Finding {
            problem,
            advice: "publish it with the annotation".to_owned(),
            annotation: Some(annotation.clone()),
            ..finding(pod)
        })
        .collect()
}

/// The port that the name of a port means, where it is another than the program's.
fn named(port: &ContainerPort) -> Option<Ask> {
    let (_, known) = WELL_KNOWN.iter().find(|(name, _)| *name == port.name)?;
    let ask = Ask { protocol: port.protocol, port: *known, local: port.container_port };
    (ask.port != ask.local).then_some(ask)
}

/// Pods of one node that say they bind one port: only the first can.
fn claimed_twice(pods: &[&PodRecord]) -> Vec<Finding> {
    let mut owners: BTreeMap<(Protocol, u16), &PodRecord> = BTreeMap::new();
    let mut findings = Vec::new();
    for pod in pods {
        for port in &pod.ports {
            let claim = (port.protocol, port.container_port);
            let owner = *owners.entry(claim).or_insert(pod);
            if owner.name == pod.name {
                continue;
            }
            let number = port.container_port;
            let other = number.checked_add(10_000).unwrap_or_else(|| number - 10_000);
            let protocol = port.protocol.name().to_ascii_lowercase();
            let ask = Ask { protocol: port.protocol, port: number, local: other };
            findings.push(Finding {
                problem: format!(
                    "port {number}/{protocol} of the node is claimed by pod {} too, which is \
                     older: only one of them can bind it",
                    owner.name
                ),
                advice: format!(
                    "let the program bind another port, {other} say, and publish a port that is \
                     free on the node with the annotation"
                ),
                annotation: Some(paste(
                    pod,
                    &[ask.entry().replacen(&number.to_string(), "FREEPORT", 1)],
                )),
                ..finding(pod)
            });
        }
    }
    findings
}

/// Ports that a pod publishes and another one of its node binds, or has published before.
fn published_twice(pods: &[&PodRecord]) -> Vec<Finding> {
    let mut granted: Vec<(&PodRecord, FrontendSpec)> = Vec::new();
    let mut findings = Vec::new();
    for pod in pods {
        for wish in publish::of_pod(pod).wishes {
            let FrontendSpec { port, protocol, .. } = wish.frontend;
            let binds = |other: &&&PodRecord| {
                let mut ports = other.ports.iter();
                other.name != pod.name
                    && ports.any(|it| it.protocol == protocol && it.container_port == port)
            };
            let holder = granted.iter().find(|(_, other)| overlap(other, &wish.frontend));
            let why = match (holder, pods.iter().find(binds)) {
                (Some((other, _)), _) if other.name == pod.name => continue,
                (Some((other, _)), _) => {
                    format!("is published by pod {} too, which is older and has it", other.name)
                }
                (None, Some(other)) => format!("is bound by pod {}", other.name),
                (None, None) => {
                    granted.push((pod, wish.frontend));
                    continue;
                }
            };
            let ask = Ask { protocol, port, local: wish.target };
            let entry = ask.entry().replacen(&port.to_string(), "FREEPORT", 1);
            findings.push(Finding {
                problem: format!(
                    "port {port}/{} of the node, which it publishes, {why}",
                    protocol.name().to_ascii_lowercase()
                ),
                advice: format!("publish a port that is free on the node: {entry}"),
                ..finding(pod)
            });
        }
    }
    findings
}

fn overlap(one: &FrontendSpec, other: &FrontendSpec) -> bool {
    (one.port, one.protocol) == (other.port, other.protocol)
        && (one.address.is_none() || other.address.is_none() || one.address == other.address)
}

fn finding(pod: &PodRecord) -> Finding {
    Finding {
        namespace: pod.name.namespace.clone(),
        kind: "Pod",
        name: pod.name.name.clone(),
        node: Some(pod.node.clone()),
        problem: String::new(),
        advice: String::new(),
        annotation: None,
    }
}

fn paste(pod: &PodRecord, entries: &[String]) -> String {
    let mut all: Vec<&str> = pod.publish.as_deref().into_iter().collect();
    all.extend(entries.iter().map(String::as_str));
    format!("{PUBLISH}: \"{}\"", all.join(","))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::k8s::mk::{merge, mk_pod, read};
    use crate::k8s::record::{Kind, Record};

    fn pod(meta: &Value, publish: Option<&str>, ports: &Value) -> PodRecord {
        let containers = json!([{"name": "main", "ports": ports}]);
        let mut object = mk_pod(publish, &json!({"containers": containers}));
        merge(&mut object["metadata"], meta);
        match read(Kind::Pod, object) {
            Record::Pod(pod) => pod,
            Record::Service(_) | Record::Slice(_) | Record::Node(_) | Record::Lease(_) => {
                unreachable!("a pod")
            }
        }
    }

    fn found(pods: &[PodRecord]) -> Vec<(String, String)> {
        let findings = audit(pods.iter());
        let show = |finding: Finding| (finding.problem, finding.annotation.unwrap_or_default());
        findings.into_iter().map(show).collect()
    }

    #[test]
    fn a_name_that_means_another_port() {
        let ports = json!([
            {"name": "http", "containerPort": 8080},
            {"name": "https", "containerPort": 443},
            {"name": "metrics", "containerPort": 9090},
            {"name": "dns", "containerPort": 5353, "protocol": "UDP"},
        ]);
        let all = found(&[pod(&json!({}), None, &ports)]);
        assert_eq!(all.len(), 2);
        assert!(all[0].0.contains("bound to 5353") && all[1].0.contains("answers on port 80"));
        let wanted = "redirector.io/publish: \"80:8080,53:5353/udp\"";
        assert!(all.iter().all(|(_, annotation)| annotation == wanted), "{all:?}");
        // What is published already is not discarded.
        let all = found(&[pod(&json!({}), Some("80:8080"), &ports)]);
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].1, "redirector.io/publish: \"80:8080,53:5353/udp\"");
    }

    #[test]
    fn annotations_of_others() {
        let annotations = json!({"annotations": {
            "example.com/ports": "80:8080, 81:9999",
            "example.com/time": "12:30",
            "example.com/text": "a:b",
        }});
        let all = found(&[pod(&annotations, None, &json!([{"containerPort": 8080}]))]);
        assert_eq!(all.len(), 1);
        assert!(all[0].0.contains("example.com/ports asks for port 80"), "{all:?}");
    }

    #[test]
    fn two_pods_that_claim_one_port() {
        let ports = json!([{"containerPort": 8080}]);
        let old = pod(&json!({"creationTimestamp": "2026-01-01T00:00:00Z"}), None, &ports);
        let young = json!({"name": "young", "creationTimestamp": "2026-01-02T00:00:00Z"});
        let young = pod(&young, None, &ports);
        let all = found(&[young.clone(), old.clone()]);
        assert_eq!(all.len(), 1);
        assert!(all[0].0.contains("claimed by pod default/web too"), "{all:?}");
        assert_eq!(all[0].1, "redirector.io/publish: \"FREEPORT:18080\"");
        let elsewhere = PodRecord { node: "other".to_owned(), ..young };
        assert_eq!(found(&[old, elsewhere]), []);
    }

    #[test]
    fn ports_that_are_published_twice() {
        let made = |name: &str, day: u8, publish, ports: &Value| {
            let time = format!("2026-01-0{day}T00:00:00Z");
            pod(&json!({"name": name, "creationTimestamp": time}), publish, ports)
        };
        let pods = [
            made("younger", 2, Some("80:9090,81:9090"), &json!([{"containerPort": 9090}])),
            made("older", 1, Some("80:8080,192.0.2.1:82:8080"), &json!([])),
            made("binds", 3, Some("192.0.2.2:82:8082"), &json!([{"containerPort": 81}])),
        ];
        let all = contested(pods.iter());
        let names: Vec<_> = all.iter().map(|finding| finding.name.as_str()).collect();
        assert_eq!(names, ["younger", "younger"]);
        assert!(all[0].problem.starts_with("port 80/tcp") && all[0].problem.contains("/older too"));
        assert!(all[1].problem.contains("port 81/tcp") && all[1].problem.contains("bound by pod"));
        assert!(all.iter().all(|finding| finding.advice.ends_with(": FREEPORT:9090")), "{all:?}");
    }

    #[test]
    fn pods_with_a_network_of_their_own_lose_nothing() {
        let ports = json!([{"name": "http", "containerPort": 8080}]);
        let own = PodRecord { host_network: false, ..pod(&json!({}), None, &ports) };
        assert_eq!(found(&[own]), []);
    }
}
