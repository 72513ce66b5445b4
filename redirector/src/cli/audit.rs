//! `redirector audit`: ports that objects of the cluster ask for and silently do not get.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use kube::api::ListParams;
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;

use super::render::{self, Format, Row};
use crate::k8s::audit::{Finding, audit, contested};
use crate::k8s::client::Access;
use crate::k8s::lenient::Lenient;
use crate::k8s::pod::PodRecord;
use crate::k8s::publish;
use crate::k8s::service::ServiceRecord;

/// Objects asked for at once.
const PAGE: u32 = 500;

/// Options of `redirector audit`.
#[derive(Args, Debug)]
#[command(
    after_help = "A program in the host's network can be reached only on the port that it binds; what its pod
declares besides is discarded without a word. This shows such pods, and the annotation to set.

Examples:
  redirector audit
  redirector audit --kubeconfig ~/.kube/config --node-name node1 -o json"
)]
pub struct AuditArgs {
    /// Where the API server is and who we are [default: the pod's service account, or the user's
    /// own kubeconfig]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Look only at pods of this node
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
    /// Look only at this namespace
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// How to print
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t)]
    output: Format,
}

impl Row for Finding {
    fn headings() -> Vec<&'static str> {
        vec!["NAMESPACE", "OBJECT", "NODE", "PROBLEM", "WHAT TO DO"]
    }

    fn cells(&self) -> Vec<String> {
        let advice = match &self.annotation {
            Some(annotation) => format!("{}: {annotation}", self.advice),
            None => self.advice.clone(),
        };
        vec![
            self.namespace.clone(),
            format!("{}/{}", self.kind, self.name),
            self.node.clone().unwrap_or_default(),
            self.problem.clone(),
            advice,
        ]
    }
}

/// Runs the command.
///
/// # Errors
///
/// If the API server cannot be asked.
pub fn run(args: &AuditArgs) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start")?;
    let findings = runtime.block_on(find(args))?;
    render::print_rows(args.output, &findings, "nothing is discarded")
}

async fn find(args: &AuditArgs) -> Result<Vec<Finding>> {
    let client = Access::new(args.kubeconfig.clone()).connect().await?;
    let namespace = args.namespace.as_deref();
    let selector = match &args.node_name {
        Some(node) => ListParams::default().fields(&format!("spec.nodeName={node}")),
        None => ListParams::default(),
    };
    let pods: Vec<PodRecord> = list(&client, namespace, &selector, PodRecord::read).await?;
    let everything = ListParams::default();
    let services = list(&client, namespace, &everything, ServiceRecord::read).await?;
    let mut findings = audit(pods.iter());
    findings.extend(contested(pods.iter()));
    for pod in pods.iter().filter(|pod| pod.alive) {
        let problems = publish::of_pod(pod).problems;
        findings.extend(problems.into_iter().map(|problem| Finding {
            node: Some(pod.node.clone()),
            ..wrong("Pod", &pod.name, problem)
        }));
    }
    for service in &services {
        let problems = service.problems.iter().cloned();
        let problems = problems.chain(publish::of_service(service).problems);
        findings.extend(problems.map(|problem| wrong("Service", &service.name, problem)));
    }
    findings.sort();
    Ok(findings)
}

fn wrong(kind: &'static str, name: &crate::k8s::object::ObjectName, problem: String) -> Finding {
    Finding {
        namespace: name.namespace.clone(),
        kind,
        name: name.name.clone(),
        node: None,
        problem,
        advice: "correct it".to_owned(),
        annotation: None,
    }
}

/// All objects of a kind, page by page. Malformed ones are named on stderr.
async fn list<K, R>(
    client: &Client,
    namespace: Option<&str>,
    selector: &ListParams,
    read: fn(K) -> Result<R, String>,
) -> Result<Vec<R>>
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + DeserializeOwned
        + Clone
        + std::fmt::Debug,
{
    let api: Api<Lenient<K>> = match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    };
    let kind = K::plural(&());
    let mut page = selector.clone().limit(PAGE);
    let mut records = Vec::new();
    loop {
        let list = api
            .list(&page)
            .await
            .with_context(|| format!("cannot list {kind}: check the kubeconfig and its rights"))?;
        for object in list.items {
            let name = object.meta().name.clone().unwrap_or_default();
            match object.object.and_then(read) {
                Ok(record) => records.push(record),
                Err(error) => render::say(&format!("{kind} {name}: malformed, left out: {error}")),
            }
        }
        match list.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page = page.continue_token(&token),
            None => return Ok(records),
        }
    }
}
