//! Objects as Kubernetes' own types, where nothing may be lost: what a type does not know, an API
//! server would refuse or forget.

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Service, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

/// The documents of a YAML stream, each checked.
pub(crate) fn read(yaml: &str) -> Result<Vec<Value>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(yaml).context("not YAML")?;
    let objects: Vec<Value> =
        documents.into_iter().filter(|document| !document.is_null()).collect();
    ensure!(!objects.is_empty(), "no objects");
    for object in &objects {
        check(object)
            .with_context(|| format!("{} {}", object["kind"], object["metadata"]["name"]))?;
    }
    Ok(objects)
}

/// The only object of a kind.
pub(crate) fn only<'a>(objects: &'a [Value], kind: &str) -> Result<&'a Value> {
    let mut found = objects.iter().filter(|object| object["kind"] == kind);
    let object = found.next().with_context(|| format!("no {kind}"))?;
    ensure!(found.next().is_none(), "more than one {kind}");
    Ok(object)
}

fn check(object: &Value) -> Result<()> {
    match (object["apiVersion"].as_str(), object["kind"].as_str()) {
        (Some("v1"), Some("ConfigMap")) => keeps::<ConfigMap>(object),
        (Some("v1"), Some("Namespace")) => keeps::<Namespace>(object),
        (Some("v1"), Some("Service")) => keeps::<Service>(object),
        (Some("v1"), Some("ServiceAccount")) => keeps::<ServiceAccount>(object),
        (Some("apps/v1"), Some("DaemonSet")) => keeps::<DaemonSet>(object),
        (Some("rbac.authorization.k8s.io/v1"), Some("ClusterRole")) => keeps::<ClusterRole>(object),
        (Some("rbac.authorization.k8s.io/v1"), Some("ClusterRoleBinding")) => {
            keeps::<ClusterRoleBinding>(object)
        }
        (Some("rbac.authorization.k8s.io/v1"), Some("Role")) => keeps::<Role>(object),
        (Some("rbac.authorization.k8s.io/v1"), Some("RoleBinding")) => keeps::<RoleBinding>(object),
        (Some("monitoring.coreos.com/v1"), Some("ServiceMonitor")) => {
            keeps::<ServiceMonitor>(object)
        }
        (version, kind) => bail!("unknown to this test: {version:?} {kind:?}"),
    }
}

fn keeps<T: DeserializeOwned + Serialize>(object: &Value) -> Result<()> {
    let typed: T = serde_json::from_value(object.clone())?;
    let kept = serde_json::to_value(&typed)?;
    lost("", object, &kept).map_or(Ok(()), |path| bail!("no such field: {path}"))
}

/// The first thing of `given` that `kept` lacks.
fn lost(path: &str, given: &Value, kept: &Value) -> Option<String> {
    match (given, kept) {
        (Value::Object(given), Value::Object(kept)) => given.iter().find_map(|(key, given)| {
            lost(&format!("{path}.{key}"), given, kept.get(key).unwrap_or(&Value::Null))
        }),
        (Value::Array(given), Value::Array(kept)) if given.len() == kept.len() => given
            .iter()
            .zip(kept)
            .enumerate()
            .find_map(|(index, (given, kept))| lost(&format!("{path}[{index}]"), given, kept)),
        _ => (given != kept).then(|| format!("{path}: {given} became {kept}")),
    }
}

/// The Prometheus operator's, as far as we use it: it is no part of Kubernetes.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ServiceMonitor {
    api_version: String,
    kind: String,
    metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
    spec: ServiceMonitorSpec,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ServiceMonitorSpec {
    selector: k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector,
    namespace_selector: NamespaceSelector,
    endpoints: Vec<Endpoint>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct NamespaceSelector {
    match_names: Vec<String>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Endpoint {
    port: String,
    path: String,
    interval: String,
    relabelings: Vec<Relabeling>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Relabeling {
    source_labels: Vec<String>,
    target_label: String,
}

#[test]
fn unknown_fields_are_found() {
    let yaml = |spec: &str| {
        format!("apiVersion: v1\nkind: Service\nmetadata: {{name: a}}\nspec: {spec}\n")
    };
    assert!(read(&yaml("{ports: [{port: 80, targetPort: admin}]}")).is_ok());
    for spec in ["{port: 80}", "{ports: [{port: 80, nodePorts: 1}]}", "{ports: [{port: a}]}"] {
        assert!(read(&yaml(spec)).is_err(), "{spec}");
    }
}
