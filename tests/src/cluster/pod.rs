//! Pods: their objects, and the servers in them.

use anyhow::{Context as _, Result};
use k8s_openapi::{
    api::core::v1::Pod as PodObject, apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp,
};
use redirector_common::Protocol;

use super::{
    Cluster,
    build::{NAMESPACE, mk_pod, ready_condition},
    control,
    network::{node_address, pod_address},
};
use crate::{
    namespace::Namespace,
    server::{Server, Service},
    topology::Addresses,
};

/// Where a pod's programs listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Net {
    /// In the node's own network.
    Host,
    /// In a namespace of the pod's own.
    Own,
}

/// A pod; its servers end when it is dropped, its object stays.
#[derive(Debug)]
pub struct Pod {
    /// Its name, by which its servers answer.
    pub name: &'static str,
    /// Its node's number.
    pub node: u8,
    /// Its addresses.
    pub addresses: Addresses,
    own: Option<Namespace>,
    servers: Vec<Server>,
}

/// A pod that is to be.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'a> {
    /// Its name, by which its servers answer.
    pub name: &'static str,
    /// Value of the label `app`.
    pub app: &'a str,
    /// Its node's number.
    pub node: u8,
    /// Where its programs listen.
    pub net: Net,
    /// On what: name of the container's port, protocol, number.
    pub ports: &'a [(&'a str, Protocol, u16)],
}

impl Cluster {
    /// Starts a pod whose servers say its name; its object is ready.
    ///
    /// # Errors
    ///
    /// If it can't be made.
    pub fn start_pod(&mut self, plan: Plan<'_>) -> Result<Pod> {
        self.start_pod_with(plan, &Service::Whoami(plan.name))
    }

    /// Starts a pod with servers of this kind.
    ///
    /// # Errors
    ///
    /// If it can't be made.
    pub fn start_pod_with(&mut self, plan: Plan<'_>, service: &Service) -> Result<Pod> {
        let Plan { name, app, node, net, ports } = plan;
        let (own, addresses) = match net {
            Net::Host => (None, node_address(node)),
            Net::Own => {
                self.pods += 1;
                let own = self.net.add_pod(node, self.pods)?;
                (Some(own), pod_address(node, self.pods))
            }
        };
        let mut pod = Pod { name, node, addresses, own, servers: Vec::new() };
        for (_, protocol, port) in ports {
            pod.serve(self, *protocol, *port, service.clone())?;
        }
        let host_network = net == Net::Host;
        let object = mk_pod(name, app, &format!("node{node}"), addresses, host_network, ports);
        self.put(&object)?;
        Ok(pod)
    }

    /// Changes a pod's object.
    ///
    /// # Errors
    ///
    /// If there is none.
    pub fn change_pod(&self, name: &str, change: impl FnOnce(&mut PodObject)) -> Result<()> {
        self.change(name, change)
    }

    /// Says that a pod is ready, or not.
    ///
    /// # Errors
    ///
    /// If there is no such pod.
    pub fn set_ready(&self, name: &str, ready: bool) -> Result<()> {
        self.change_pod(name, |pod| {
            pod.status.get_or_insert_default().conditions = Some(vec![ready_condition(ready)]);
        })
    }

    /// Marks a pod as terminating: its programs run on.
    ///
    /// # Errors
    ///
    /// If there is no such pod.
    pub fn terminate(&self, name: &str) -> Result<()> {
        self.change_pod(name, |pod| {
            pod.metadata.deletion_timestamp = Some(Time(Timestamp::now()));
        })
    }

    /// Takes a pod away: the object, then its programs and its network.
    ///
    /// # Errors
    ///
    /// If there is no such pod.
    pub fn remove_pod(&self, pod: Pod) -> Result<()> {
        self.api.store().remove::<PodObject>(NAMESPACE, pod.name)?;
        control::reconcile(self.api.store())?;
        drop(pod);
        Ok(())
    }
}

impl Pod {
    /// Starts another server in the pod.
    ///
    /// # Errors
    ///
    /// If it can't listen there.
    pub fn serve(
        &mut self,
        cluster: &Cluster,
        protocol: Protocol,
        port: u16,
        service: Service,
    ) -> Result<()> {
        let host = self.host(cluster);
        let server = match protocol {
            Protocol::Tcp => Server::tcp(host, port, service),
            Protocol::Udp => Server::udp(host, port, service),
        };
        self.servers.push(server.with_context(|| format!("a server of {}", self.name))?);
        Ok(())
    }

    /// Where its programs run.
    #[must_use]
    pub fn host<'a>(&'a self, cluster: &'a Cluster) -> &'a Namespace {
        self.own.as_ref().unwrap_or_else(|| cluster.host(self.node))
    }

    /// Ends its programs; network and object stay.
    pub fn stop_serving(&mut self) {
        self.servers.clear();
    }
}
