//! The test API server, seen by the client library that the agent uses: what tests of the agent
//! rest on. Needs neither root nor a kernel.

mod faults;
mod lists;
mod watches;
mod writes;

use anyhow::Result;
use k8s_openapi::{
    api::core::v1::{Node, Pod, PodSpec},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use redirector_tests::{
    apiserver::{ApiServer, Credentials},
    cluster::build::mk_namespace,
};

/// A server on this machine, and its client.
struct Fixture {
    server: ApiServer,
    client: Client,
}

async fn fixture() -> Result<Fixture> {
    let mut server = ApiServer::new(([127, 0, 0, 1], 0).into())?;
    ["a", "b"].iter().try_for_each(|name| server.store().put(&mk_namespace(name)))?;
    server.start(None)?;
    let client = connect(&server, Credentials::Token).await?;
    Ok(Fixture { server, client })
}

async fn connect(server: &ApiServer, credentials: Credentials) -> Result<Client> {
    let kubeconfig = Kubeconfig::read_from(server.kubeconfig(credentials)?)?;
    let options = KubeConfigOptions::default();
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &options).await?;
    // Refusals are what many of these tests are about.
    config.default_retry = false;
    Ok(Client::try_from(config)?)
}

fn node(name: &str) -> Node {
    let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
    Node { metadata, ..Node::default() }
}

fn pod(namespace: &str, name: &str, node: &str) -> Pod {
    let labels = [("app".to_owned(), name.to_owned())].into();
    Pod {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(namespace.to_owned()),
            labels: Some(labels),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec { node_name: Some(node.to_owned()), ..PodSpec::default() }),
        ..Pod::default()
    }
}
