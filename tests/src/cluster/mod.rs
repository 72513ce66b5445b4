//! A cluster: nodes with agents, pods with servers, an API server, and a client outside.
//!
//! Objects are written into the API server's store by [`Cluster::put`], which also does what the
//! control plane does: see [`control`]. Agents follow in their own time, and tests await that:
//! see [`probe`]. They have the rights that `deploy/` gives them, and no others.

pub mod build;
pub mod control;
pub mod network;
pub mod node;
pub mod pod;
pub mod probe;

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::{Event, Node as NodeObject, Service};
use redirector_common::Family;
use serde::{Serialize, de::DeserializeOwned};
use tempfile::TempDir;

use crate::{
    agent::{ADMIN, get},
    apiserver::{ApiServer, Credentials},
    cli::Cli,
    deployed,
    namespace::{Namespace, prefix},
    wait,
};
use build::{NAMESPACE, mk_namespace, mk_node};
use network::{API, Network, node_address};
use node::Node;

/// How long it may take until something is said: agents look at some things only now and then.
const EVENT: Duration = Duration::from_secs(60);

/// Nodes, an API server, and who is outside. Nodes count from 1.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Node>,
    /// The API server.
    pub api: ApiServer,
    pods: u8,
    /// The hosts.
    pub net: Network,
    _files: TempDir,
}

impl Cluster {
    /// Runs a test in a new cluster of so many nodes, with an agent on each. Where it fails,
    /// prints why, and what the agents say.
    ///
    /// # Errors
    ///
    /// The test's own, or that something can't be made: this needs root.
    pub fn run(nodes: u8, test: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        Self::run_with_options(nodes, &[], test)
    }

    /// As [`Self::run`], with options of the agents.
    ///
    /// # Errors
    ///
    /// As [`Self::run`].
    pub fn run_with_options(
        nodes: u8,
        options: &[&str],
        test: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<()> {
        Self::run_without_agents(nodes, |cluster| {
            cluster.start_agents(options)?;
            test(cluster)
        })
    }

    /// As [`Self::run`], with agents yet to be started.
    ///
    /// # Errors
    ///
    /// As [`Self::run`].
    pub fn run_without_agents(nodes: u8, test: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let mut cluster = Self::new(nodes)?;
        let result = test(&mut cluster);
        if let Err(error) = &result {
            // What is printed of the state is long: whoever sees but a part sees the reason.
            eprintln!("{error:#}");
            for (node, host) in cluster.nodes.iter().zip(&cluster.net.nodes) {
                node.print_state(host);
            }
        }
        result
    }

    /// Every second node is in another zone.
    fn new(nodes: u8) -> Result<Self> {
        let net = Network::new(nodes)?;
        let mut api = ApiServer::new(API)?;
        api.access().set_rules(deployed::rights("ClusterRole")?);
        api.access().set_role(deployed::NAMESPACE, deployed::rights("Role")?);
        api.store().put(&mk_namespace(deployed::NAMESPACE))?;
        api.start(Some(&net.router))?;
        let files = tempfile::Builder::new().prefix(&(prefix() + "cluster-")).tempdir()?;
        let kubeconfig = api.kubeconfig(Credentials::Token)?;
        let mut cluster = Self { nodes: Vec::new(), api, pods: 0, net, _files: files };
        for number in 1..=nodes {
            let name = format!("node{number}");
            let zone = if number % 2 == 1 { "odd" } else { "even" };
            cluster.api.store().put(&mk_node(&name, node_address(number), zone))?;
            let files = cluster._files.path();
            cluster.nodes.push(Node::new(name, kubeconfig.clone(), files)?);
        }
        Ok(cluster)
    }

    /// Starts an agent on every node and waits until all are ready.
    ///
    /// # Errors
    ///
    /// If one of them does not become ready.
    pub fn start_agents(&mut self, options: &[&str]) -> Result<()> {
        for (node, host) in self.nodes.iter_mut().zip(&self.net.nodes) {
            node.start(host, options)?;
        }
        for (node, host) in self.nodes.iter_mut().zip(&self.net.nodes) {
            node.await_ready(host)?;
        }
        Ok(())
    }

    /// Starts the agents of some nodes and waits until they are ready.
    ///
    /// # Errors
    ///
    /// If one of them does not become ready.
    pub fn start_agents_of(&mut self, numbers: &[u8], options: &[&str]) -> Result<()> {
        for number in numbers {
            let index = usize::from(*number) - 1;
            let host = &self.net.nodes[index];
            self.nodes[index].start(host, options)?;
            self.nodes[index].await_ready(host)?;
        }
        Ok(())
    }

    /// Starts an agent again that was killed.
    ///
    /// # Errors
    ///
    /// If it does not become ready.
    pub fn start_agent(&mut self, number: u8) -> Result<()> {
        let index = usize::from(number) - 1;
        let host = &self.net.nodes[index];
        self.nodes[index].start(host, &[])?;
        self.nodes[index].await_ready(host)
    }

    /// Starts an agent again that was killed, without waiting until it is ready.
    ///
    /// # Errors
    ///
    /// If it cannot be started.
    pub fn start_agent_without_waiting(&mut self, number: u8) -> Result<()> {
        let index = usize::from(number) - 1;
        self.nodes[index].start(&self.net.nodes[index], &[])
    }

    /// Removes what a node's agent has installed.
    ///
    /// # Errors
    ///
    /// If the command fails, as it does while the agent runs.
    pub fn detach(&self, number: u8) -> Result<()> {
        let pins = self.nodes[usize::from(number) - 1].pins();
        Cli::new(self.host(number), &pins).text(&["detach"]).map(drop)
    }

    /// A node's agent.
    pub fn node(&mut self, number: u8) -> &mut Node {
        &mut self.nodes[usize::from(number) - 1]
    }

    /// A node's network.
    #[must_use]
    pub fn host(&self, number: u8) -> &Namespace {
        &self.net.nodes[usize::from(number) - 1]
    }

    /// A port of a node, from outside.
    #[must_use]
    pub fn at(&self, node: u8, family: Family, port: u16) -> SocketAddr {
        SocketAddr::new(node_address(node).of(family), port)
    }

    /// Writes an object, and what follows from it.
    ///
    /// # Errors
    ///
    /// If it has no name.
    pub fn put<T: k8s_openapi::Resource + Serialize>(&self, object: &T) -> Result<()> {
        self.api.store().put(object)?;
        control::reconcile(self.api.store())
    }

    /// Changes an object, and what follows from it.
    ///
    /// # Errors
    ///
    /// If there is no such object.
    pub fn change<T: k8s_openapi::Resource + Serialize + DeserializeOwned>(
        &self,
        name: &str,
        change: impl FnOnce(&mut T),
    ) -> Result<()> {
        let found = self.api.store().find::<T>(NAMESPACE, name)?;
        let mut object = found.with_context(|| format!("no {} {name}", T::KIND))?;
        change(&mut object);
        self.put(&object)
    }

    /// Writes a service, with the addresses that the control plane gives it.
    ///
    /// # Errors
    ///
    /// If it has no name.
    pub fn put_service(&self, mut service: Service) -> Result<()> {
        let spec = build::spec(&mut service);
        if spec.cluster_ip.is_none() && spec.type_.as_deref() != Some("ExternalName") {
            let number = self.api.store().all::<Service>()?.len() + 1;
            let (v4, v6) = (format!("10.96.0.{number}"), format!("2001:db8:96::{number:x}"));
            spec.cluster_ip = Some(v4.clone());
            spec.cluster_ips = Some(vec![v4, v6]);
        }
        self.put(&service)
    }

    /// Changes a service's spec.
    ///
    /// # Errors
    ///
    /// If there is no such service.
    pub fn change_service(&self, name: &str, change: impl FnOnce(&mut Service)) -> Result<()> {
        self.change(name, change)
    }

    /// Takes a service away.
    ///
    /// # Errors
    ///
    /// If there is none.
    pub fn remove_service(&self, name: &str) -> Result<()> {
        self.api.store().remove::<Service>(NAMESPACE, name)?;
        control::reconcile(self.api.store())
    }

    /// Changes a node's object.
    ///
    /// # Errors
    ///
    /// If there is no such node.
    pub fn change_node(&self, number: u8, change: impl FnOnce(&mut NodeObject)) -> Result<()> {
        let found = self.api.store().find::<NodeObject>("", &format!("node{number}"))?;
        let mut node = found.context("no such node")?;
        change(&mut node);
        self.put(&node)
    }

    /// Runs a command about a node's maps.
    ///
    /// # Errors
    ///
    /// If it fails or prints no array.
    pub fn rows(&self, number: u8, arguments: &[&str]) -> Result<Vec<serde_json::Value>> {
        let pins = self.nodes[usize::from(number) - 1].pins();
        Cli::new(self.host(number), &pins).rows(arguments)
    }

    /// Runs a command about a node's maps that prints one object.
    ///
    /// # Errors
    ///
    /// If it fails.
    pub fn show(&self, number: u8, arguments: &[&str]) -> Result<serde_json::Value> {
        let pins = self.nodes[usize::from(number) - 1].pins();
        Cli::new(self.host(number), &pins).json(arguments)
    }

    /// Waits until an Event about an object says all this.
    ///
    /// # Errors
    ///
    /// If none does: says what was said instead.
    pub fn await_event(&self, kind: &str, name: &str, words: &[&str]) -> Result<()> {
        let mut last = Vec::new();
        let said = wait::until_true("an Event", EVENT, || {
            let events = self.api.store().all::<Event>()?.into_iter();
            last = events
                .filter(|event| {
                    let about = &event.involved_object;
                    about.kind.as_deref() == Some(kind) && about.name.as_deref() == Some(name)
                })
                .map(|event| {
                    let [kind, reason, text] =
                        [event.type_, event.reason, event.message].map(Option::unwrap_or_default);
                    format!("{kind} {reason}: {text}")
                })
                .collect();
            Ok(last.iter().any(|said| words.iter().all(|word| said.contains(word))))
        });
        said.with_context(|| format!("{kind} {name}: wanted {words:?}, was told {last:#?}"))
    }

    /// Asks an agent's admin server.
    ///
    /// # Errors
    ///
    /// If it does not answer.
    pub fn ask_agent(&self, number: u8, path: &str) -> Result<(u16, String)> {
        get(self.host(number), ADMIN, path)
    }
}
