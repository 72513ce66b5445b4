//! Writing: what is added, merged, refused.

use anyhow::{Context as _, Result, ensure};
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::{
    api::{
        coordination::v1::{Lease, LeaseSpec},
        core::v1::{Event as CoreEvent, Node, ObjectReference, Pod, Service},
        events::v1::Event,
        rbac::v1::PolicyRule,
    },
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, Time},
    jiff::Timestamp,
};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams},
};
use redirector_tests::cluster::build::mk_namespace;
use serde_json::json;

use crate::{fixture, lists::code, node, pod};

#[tokio::test]
async fn objects_are_made_changed_and_deleted() -> Result<()> {
    let at = fixture().await?;
    let pods: Api<Pod> = Api::namespaced(at.client.clone(), "a");
    let made = pods.create(&PostParams::default(), &pod("a", "x", "")).await?;
    ensure!(made.uid().is_some() && made.creation_timestamp().is_some());
    ensure!(code(pods.create(&PostParams::default(), &pod("a", "x", "")).await) == Some(409));
    let mut changed = made.clone();
    changed.labels_mut().insert("more".into(), "yes".into());
    let changed = pods.replace("x", &PostParams::default(), &changed).await?;
    ensure!(changed.resource_version() != made.resource_version());
    // By somebody who has not seen that.
    ensure!(code(pods.replace("x", &PostParams::default(), &made).await) == Some(409));
    ensure!(code(pods.get("y").await) == Some(404));
    pods.delete("x", &DeleteParams::default()).await?;
    ensure!(code(pods.get("x").await) == Some(404));
    // One that runs on a node is its kubelet's to remove.
    pods.create(&PostParams::default(), &pod("a", "z", "n1")).await?;
    pods.delete("z", &DeleteParams::default()).await?;
    ensure!(pods.get("z").await?.metadata.deletion_timestamp.is_some());
    pods.delete("z", &DeleteParams::default().grace_period(0)).await?;
    ensure!(code(pods.get("z").await) == Some(404));
    Ok(())
}

#[tokio::test]
async fn finalizers_hold() -> Result<()> {
    let at = fixture().await?;
    let nodes: Api<Node> = Api::all(at.client.clone());
    let mut held = node("n1");
    held.finalizers_mut().push("example.org/held".into());
    nodes.create(&PostParams::default(), &held).await?;
    nodes.delete("n1", &DeleteParams::default()).await?;
    ensure!(nodes.get("n1").await?.metadata.deletion_timestamp.is_some());
    let release = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    nodes.patch("n1", &PatchParams::default(), &release).await?;
    ensure!(code(nodes.get("n1").await) == Some(404));
    Ok(())
}

/// The status and the rest are written apart.
#[tokio::test]
async fn statuses_are_patched() -> Result<()> {
    let at = fixture().await?;
    at.server.store().put(&pod("a", "x", "n1"))?;
    let pods: Api<Pod> = Api::namespaced(at.client.clone(), "a");
    let condition = |kind: &str, status: &str| {
        json!({"status": {"conditions": [{"type": kind, "status": status}]},
               "spec": {"nodeName": "elsewhere"}})
    };
    let params = PatchParams::default();
    for (kind, status) in [("Ready", "False"), ("Other", "True"), ("Ready", "True")] {
        let patch = Patch::Strategic(condition(kind, status));
        pods.patch_status("x", &params, &patch).await?;
    }
    let pod = pods.get("x").await?;
    let conditions = pod.status.context("no status")?.conditions.context("no conditions")?;
    let found: Vec<(&str, &str)> =
        conditions.iter().map(|one| (one.type_.as_str(), one.status.as_str())).collect();
    ensure!(found == [("Ready", "True"), ("Other", "True")], "{found:?}");
    ensure!(pod.spec.context("no spec")?.node_name.as_deref() == Some("n1"));
    let merged = pods.patch_status("x", &params, &Patch::Merge(condition("Last", "True"))).await?;
    ensure!(merged.status.and_then(|status| status.conditions).map(|all| all.len()) == Some(1));
    // And a status through the front door is ignored.
    let ignored = Patch::Merge(json!({"status": {"phase": "Failed"}}));
    let ignored = pods.patch("x", &params, &ignored).await?;
    ensure!(ignored.status.and_then(|status| status.phase).is_none());
    Ok(())
}

#[tokio::test]
async fn apply_makes_what_is_not_there() -> Result<()> {
    let at = fixture().await?;
    let leases: Api<Lease> = Api::namespaced(at.client.clone(), "kube-system");
    let lease = |holder: &str| Lease {
        metadata: ObjectMeta { name: Some("a".into()), ..ObjectMeta::default() },
        spec: Some(LeaseSpec {
            holder_identity: Some(holder.into()),
            renew_time: Some(MicroTime(Timestamp::now())),
            ..LeaseSpec::default()
        }),
    };
    let params = PatchParams::apply("redirector");
    for holder in ["n1", "n2"] {
        leases.patch("a", &params, &Patch::Apply(lease(holder))).await?;
        let spec = leases.get("a").await?.spec.context("no spec")?;
        ensure!(spec.holder_identity.as_deref() == Some(holder));
    }
    let nobody = leases.patch("a", &PatchParams::default(), &Patch::Apply(lease("n3"))).await;
    ensure!(nobody.is_err());
    Ok(())
}

/// In a namespace that is not there, or about to go, nothing is made; what is there can be changed.
#[tokio::test]
async fn namespaces_are_there_before_what_is_in_them() -> Result<()> {
    let at = fixture().await?;
    let leases = |namespace| Api::<Lease>::namespaced(at.client.clone(), namespace);
    let lease = Lease {
        metadata: ObjectMeta { name: Some("x".into()), ..ObjectMeta::default() },
        ..Lease::default()
    };
    let (params, apply) = (PostParams::default(), PatchParams::apply("redirector"));
    ensure!(code(leases("nowhere").create(&params, &lease).await) == Some(404));
    ensure!(code(leases("nowhere").patch("x", &apply, &Patch::Apply(&lease)).await) == Some(404));
    leases("a").create(&params, &lease).await?;
    let mut going = mk_namespace("a");
    going.metadata.deletion_timestamp = Some(Time(Timestamp::now()));
    at.server.store().put(&going)?;
    leases("a").patch("x", &apply, &Patch::Apply(&lease)).await?;
    ensure!(code(leases("a").patch("y", &apply, &Patch::Apply(&lease)).await) == Some(403));
    Ok(())
}

/// Leases as those see them who keep them: made, renewed by whoever has seen the last one, watched.
#[tokio::test]
async fn leases() -> Result<()> {
    let at = fixture().await?;
    let leases: Api<Lease> = Api::namespaced(at.client.clone(), "a");
    let lease = |name: &str, seconds: i32| -> Result<Lease> {
        let time = MicroTime(Timestamp::now());
        let spec = json!({"leaseDurationSeconds": seconds, "renewTime": time});
        let metadata = json!({"name": name, "labels": {"kept-by": "n1"}});
        Ok(serde_json::from_value(json!({"metadata": metadata, "spec": spec}))?)
    };
    let post = PostParams::default();
    ensure!(code(leases.create(&post, &lease("a", 0)?).await) == Some(422));
    let made = leases.create(&post, &lease("a", 10)?).await?;
    ensure!(code(leases.create(&post, &lease("a", 10)?).await) == Some(409));
    let mut renewed = made.clone();
    renewed.spec.get_or_insert_default().lease_duration_seconds = Some(20);
    let renewed = leases.replace("a", &post, &renewed).await?;
    ensure!(code(leases.replace("a", &post, &made).await) == Some(409));
    let stale = json!({"metadata": {"resourceVersion": made.resource_version()}});
    let stale = leases.patch("a", &PatchParams::default(), &Patch::Merge(stale)).await;
    ensure!(code(stale) == Some(409));
    // Unseen it is not replaced, but it is made where it is not there.
    ensure!(code(leases.replace("a", &post, &lease("a", 30)?).await) == Some(422));
    leases.replace("b", &post, &lease("b", 30)?).await?;
    let of = |label: &str| ListParams::default().labels(label);
    ensure!(leases.list(&of("kept-by=n1")).await?.items.len() == 2);
    ensure!(leases.list(&of("kept-by=n2")).await?.items.is_empty());
    let elsewhere: Api<Lease> = Api::namespaced(at.client.clone(), "b");
    ensure!(elsewhere.list(&of("kept-by")).await?.items.is_empty());
    let since = renewed.resource_version().context("no resourceVersion")?;
    leases.delete("a", &DeleteParams::default()).await?;
    let watch = leases.watch(&WatchParams::default().labels("kept-by"), &since).await?;
    let seen: Vec<_> = watch.take(2).try_collect().await?;
    ensure!(
        matches!(seen.as_slice(), [WatchEvent::Added(b), WatchEvent::Deleted(a)]
            if b.name_any() == "b" && a.name_any() == "a"),
        "{seen:?}"
    );
    Ok(())
}

/// To apply what is not there is to make it, and takes that right too.
#[tokio::test]
async fn applying_may_be_making() -> Result<()> {
    let at = fixture().await?;
    let rule = |verb: &str| PolicyRule {
        api_groups: Some(vec!["coordination.k8s.io".to_owned()]),
        resources: Some(vec!["leases".to_owned()]),
        verbs: vec![verb.to_owned()],
        ..PolicyRule::default()
    };
    at.server.access().set_rules(Vec::new());
    let apply = async |namespace| {
        let leases: Api<Lease> = Api::namespaced(at.client.clone(), namespace);
        let metadata = ObjectMeta { name: Some("a".into()), ..ObjectMeta::default() };
        let patch = Patch::Apply(Lease { metadata, spec: None });
        code(leases.patch("a", &PatchParams::apply("redirector"), &patch).await)
    };
    ensure!(apply("a").await == Some(403));
    at.server.access().set_role("a", vec![rule("patch")]);
    ensure!(apply("a").await == Some(403));
    at.server.access().set_role("a", vec![rule("patch"), rule("create")]);
    ensure!(apply("a").await.is_none() && apply("b").await == Some(403));
    at.server.access().set_role("a", vec![rule("patch")]);
    ensure!(apply("a").await.is_none());
    Ok(())
}

/// Both groups show the same events; the newer one is strict about them.
#[tokio::test]
async fn events() -> Result<()> {
    let at = fixture().await?;
    let events: Api<Event> = Api::namespaced(at.client.clone(), "a");
    let event = Event {
        metadata: ObjectMeta { generate_name: Some("x.".into()), ..ObjectMeta::default() },
        action: Some("Publishing".into()),
        event_time: Some(MicroTime(Timestamp::now())),
        note: Some("port 80 is taken".into()),
        reason: Some("Conflict".into()),
        regarding: Some(ObjectReference {
            kind: Some("Pod".into()),
            name: Some("x".into()),
            namespace: Some("a".into()),
            ..ObjectReference::default()
        }),
        reporting_controller: Some("redirector.io/agent".into()),
        reporting_instance: Some("n1".into()),
        type_: Some("Warning".into()),
        ..Event::default()
    };
    let post = PostParams::default();
    let made = events.create(&post, &event).await?;
    ensure!(made.note == event.note && made.name_any().starts_with("x."));
    let core: Api<CoreEvent> = Api::namespaced(at.client.clone(), "a");
    let about_x = ListParams::default().fields("involvedObject.name=x");
    let found = core.list(&about_x).await?.items;
    ensure!(found.len() == 1 && found[0].message == event.note, "{found:?}");
    ensure!(found[0].reporting_component == event.reporting_controller);
    for broken in [
        Event { action: None, ..event.clone() },
        Event { event_time: None, ..event.clone() },
        Event { type_: Some("Error".into()), ..event.clone() },
        Event { note: Some("x".repeat(1025)), ..event.clone() },
        Event { deprecated_count: Some(1), ..event.clone() },
    ] {
        ensure!(code(events.create(&post, &broken).await) == Some(422), "{broken:?}");
    }
    let elsewhere: Api<Event> = Api::namespaced(at.client.clone(), "b");
    ensure!(code(elsewhere.create(&post, &event).await) == Some(422));
    Ok(())
}

#[tokio::test]
async fn what_is_not_of_its_type_is_refused() -> Result<()> {
    let at = fixture().await?;
    let services: Api<Service> = Api::namespaced(at.client.clone(), "a");
    let params = PatchParams::default();
    services
        .create(
            &PostParams::default(),
            &Service {
                metadata: ObjectMeta { name: Some("s".into()), ..ObjectMeta::default() },
                ..Service::default()
            },
        )
        .await?;
    let broken = Patch::Merge(json!({"spec": {"ports": "80"}}));
    ensure!(code(services.patch("s", &params, &broken).await) == Some(400));
    let named = Service {
        metadata: ObjectMeta { name: Some("No Name".into()), ..ObjectMeta::default() },
        ..Service::default()
    };
    ensure!(code(services.create(&PostParams::default(), &named).await) == Some(422));
    Ok(())
}
