//! Lists, whole and in pages, and who may ask for them.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, ResourceExt as _,
    api::{ListParams, VersionMatch},
};
use redirector_tests::apiserver::Credentials;

use crate::{connect, fixture, node, pod};

#[tokio::test]
async fn lists_have_revisions_and_selectors() -> Result<()> {
    let at = fixture().await?;
    for (namespace, name, node) in [("a", "x", "n1"), ("a", "y", "n2"), ("b", "z", "n1")] {
        at.server.store().put(&pod(namespace, name, node))?;
    }
    let all: Api<Pod> = Api::all(at.client.clone());
    let names = async |api: &Api<Pod>, params: ListParams| {
        let list = api.list(&params).await?;
        Ok::<_, anyhow::Error>(list.iter().map(|pod| pod.name_any()).collect::<Vec<_>>())
    };
    let list = all.list(&ListParams::default()).await?;
    ensure!(list.metadata.resource_version == Some(at.server.store().revision().to_string()));
    ensure!(list.items.iter().all(|pod| pod.resource_version().is_some() && pod.uid().is_some()));
    let default = ListParams::default;
    ensure!(names(&all, default()).await? == ["x", "y", "z"]);
    ensure!(names(&all, default().fields("spec.nodeName=n1")).await? == ["x", "z"]);
    ensure!(names(&all, default().fields("metadata.name=y")).await? == ["y"]);
    ensure!(names(&all, default().labels("app in (x,z)")).await? == ["x", "z"]);
    ensure!(names(&all, default().labels("app!=x")).await? == ["y", "z"]);
    let in_a: Api<Pod> = Api::namespaced(at.client.clone(), "a");
    ensure!(names(&in_a, default()).await? == ["x", "y"]);
    ensure!(in_a.get("x").await?.spec.context("no spec")?.node_name.as_deref() == Some("n1"));
    let refused = all.list(&default().fields("spec.hostname=x")).await;
    ensure!(code(refused) == Some(400));
    Ok(())
}

/// Later pages show what was there when the first was asked for.
#[tokio::test]
async fn pages_are_consistent() -> Result<()> {
    let at = fixture().await?;
    let store = at.server.store();
    for number in 0..10 {
        store.put(&node(&format!("n{number}")))?;
    }
    let nodes: Api<Node> = Api::all(at.client.clone());
    let mut params = ListParams::default().limit(4);
    let (mut names, mut revisions) = (Vec::new(), Vec::new());
    loop {
        let page = nodes.list(&params).await?;
        names.extend(page.iter().map(|node| node.name_any()));
        revisions.push(page.metadata.resource_version.clone());
        // In the meantime things change: on pages that have been seen, and on those to come.
        if revisions.len() == 1 {
            ensure!(page.metadata.remaining_item_count == Some(6), "{:?}", page.metadata);
            store.remove::<Node>("", "n7")?;
            store.put(&node("n55"))?;
            store.put(&node("n0a"))?;
        }
        let Some(next) = page.metadata.continue_.filter(|next| !next.is_empty()) else {
            break;
        };
        params = params.continue_token(&next);
    }
    let expected: Vec<String> = (0..10).map(|number| format!("n{number}")).collect();
    ensure!(names == expected, "{names:?}");
    ensure!(revisions.len() == 3 && revisions.windows(2).all(|pair| pair[0] == pair[1]));
    Ok(())
}

/// A token from before the history: 410, and a token with which to go on all the same.
#[tokio::test]
async fn pages_expire() -> Result<()> {
    let at = fixture().await?;
    for number in 0..4 {
        at.server.store().put(&node(&format!("n{number}")))?;
    }
    let nodes: Api<Node> = Api::all(at.client.clone());
    let page = nodes.list(&ListParams::default().limit(2)).await?;
    let next = page.metadata.continue_.context("no further page")?;
    at.server.store().put(&node("n4"))?;
    at.server.store().compact();
    let refused = nodes.list(&ListParams::default().limit(2).continue_token(&next)).await;
    let Err(kube::Error::Api(status)) = refused else {
        anyhow::bail!("not refused: {refused:?}");
    };
    ensure!(status.code == 410 && status.reason == "Expired", "{status:?}");
    let resume = status.metadata.and_then(|metadata| metadata.continue_).context("no token")?;
    let rest = nodes.list(&ListParams::default().continue_token(&resume)).await?;
    let names: Vec<String> = rest.iter().map(|node| node.name_any()).collect();
    ensure!(names == ["n2", "n3", "n4"], "{names:?}");
    Ok(())
}

#[tokio::test]
async fn lists_of_the_past_and_the_future() -> Result<()> {
    let at = fixture().await?;
    at.server.store().put(&node("a"))?;
    let then = at.server.store().revision();
    at.server.store().put(&node("b"))?;
    let nodes: Api<Node> = Api::all(at.client.clone());
    let exactly = |revision: u64| {
        ListParams::default().at(&revision.to_string()).matching(VersionMatch::Exact)
    };
    ensure!(nodes.list(&exactly(then)).await?.items.len() == 1);
    ensure!(nodes.list(&exactly(then + 1)).await?.items.len() == 2);
    ensure!(code(nodes.list(&exactly(then + 100)).await) == Some(504));
    at.server.store().compact();
    ensure!(code(nodes.list(&exactly(then)).await) == Some(410));
    Ok(())
}

#[tokio::test]
async fn strangers_are_turned_away() -> Result<()> {
    let at = fixture().await?;
    let list = async |credentials| {
        let nodes: Api<Node> = Api::all(connect(&at.server, credentials).await?);
        Ok::<_, anyhow::Error>(code(nodes.list(&ListParams::default()).await))
    };
    for good in [Credentials::Token, Credentials::TokenFile, Credentials::Certificate] {
        ensure!(list(good).await?.is_none(), "{good:?}");
    }
    ensure!(list(Credentials::None).await? == Some(401));
    at.server.access().set_tokens(["another".to_owned()]);
    ensure!(list(Credentials::Token).await? == Some(401));
    ensure!(at.client.apiserver_version().await?.minor == "33");
    Ok(())
}

/// Only what the rules of a role allow.
#[tokio::test]
async fn rules_hold() -> Result<()> {
    let at = fixture().await?;
    at.server.access().set_rules(vec![k8s_openapi::api::rbac::v1::PolicyRule {
        api_groups: Some(vec![String::new()]),
        resources: Some(vec!["nodes".to_owned()]),
        verbs: vec!["list".to_owned()],
        ..Default::default()
    }]);
    let nodes: Api<Node> = Api::all(at.client.clone());
    let pods: Api<Pod> = Api::all(at.client.clone());
    ensure!(code(nodes.list(&ListParams::default()).await).is_none());
    ensure!(code(nodes.get("a").await) == Some(403));
    ensure!(code(pods.list(&ListParams::default()).await) == Some(403));
    let asked = at.server.access().asked();
    ensure!(asked.iter().map(|asked| asked.verb).eq(["list", "get", "list"]), "{asked:?}");
    Ok(())
}

pub(crate) fn code<T>(result: kube::Result<T>) -> Option<u16> {
    match result {
        Err(kube::Error::Api(status)) => Some(status.code),
        Err(_) => Some(0),
        Ok(_) => None,
    }
}
