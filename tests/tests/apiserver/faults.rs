//! Bad days, on demand.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, ResourceExt as _,
    api::{ListParams, WatchParams},
};
use redirector_tests::apiserver::{Failure, Pace, Requests, Resource};
use serde_json::json;

use crate::{fixture, lists::code, node};

#[tokio::test]
async fn requests_fail_as_told() -> Result<()> {
    let at = fixture().await?;
    let nodes: Api<Node> = Api::all(at.client.clone());
    let list = async || code(nodes.list(&ListParams::default()).await);
    let faults = at.server.faults();
    for (failure, expected) in [
        (Failure::Gone, 410),
        (Failure::Unauthorized, 401),
        (Failure::Forbidden, 403),
        (Failure::Cut, 0),
        (Failure::CutHalfway, 0),
    ] {
        faults.fail(Requests::LISTS.of("nodes"), failure, 1);
        ensure!(list().await == Some(expected), "{failure:?}");
        ensure!(list().await.is_none(), "{failure:?}: only once");
    }
    faults.fail(Requests::WATCHES.of("nodes"), Failure::Gone, 1);
    ensure!(list().await.is_none());
    ensure!(code(nodes.watch(&WatchParams::default(), "0").await) == Some(410));
    ensure!(faults.all_seen());
    faults.fail_always(Requests::ALL, Failure::Hang);
    let patience = Duration::from_millis(100);
    ensure!(tokio::time::timeout(patience, list()).await.is_err(), "an answer came");
    faults.heal();
    ensure!(list().await.is_none());
    Ok(())
}

#[tokio::test]
async fn answers_trickle() -> Result<()> {
    let at = fixture().await?;
    for number in 0..3 {
        at.server.store().put(&node(&format!("n{number}")))?;
    }
    let pause = Duration::from_millis(2);
    at.server.faults().slow(Pace { bytes: 10, pause });
    let nodes: Api<Node> = Api::all(at.client.clone());
    let start = Instant::now();
    ensure!(nodes.list(&ListParams::default()).await?.items.len() == 3);
    ensure!(start.elapsed() > pause * 40, "{:?}", start.elapsed());
    Ok(())
}

/// Objects that no client can read are served all the same.
#[tokio::test]
async fn malformed_objects_are_served() -> Result<()> {
    let at = fixture().await?;
    let pods = Resource::find("", "v1", "pods").expect("served");
    at.server.store().inject(
        pods,
        json!({"metadata": {"name": "x", "namespace": "a"}, "spec": {"containers": 7}}),
    )?;
    let typed: Api<Pod> = Api::all(at.client.clone());
    ensure!(typed.list(&ListParams::default()).await.is_err());
    let untyped: Api<kube::core::DynamicObject> =
        Api::all_with(at.client.clone(), &kube::core::ApiResource::erase::<Pod>(&()));
    let list = untyped.list(&ListParams::default()).await?;
    ensure!(list.items.len() == 1 && list.items[0].name_any() == "x");
    ensure!(list.items[0].data["spec"]["containers"] == 7);
    Ok(())
}
