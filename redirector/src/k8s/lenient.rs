//! Objects of which one may be malformed without the others suffering.
//!
//! A list or watch whose type is the object's own fails as a whole where one object does not fit
//! the type, and is tried again for ever. Here such an object is read as far as it can be.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// An object, or why it is none.
#[derive(Clone, Debug)]
pub struct Lenient<K> {
    /// Name, namespace, uid and resourceVersion.
    meta: ObjectMeta,
    /// The object; what does not fit.
    pub object: Result<K, String>,
}

impl<'de, K: DeserializeOwned> Deserialize<'de> for Lenient<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut value = Value::deserialize(deserializer)?;
        let meta = read_meta(&value);
        prune(&mut value);
        let object = K::deserialize(value).map_err(|error| error.to_string());
        Ok(Self { meta, object })
    }
}

/// Fields of `metadata`, `spec`, `status` and containers that any record is made of.
const METADATA: &[&str] = &[
    "annotations",
    "creationTimestamp",
    "deletionTimestamp",
    "labels",
    "name",
    "namespace",
    "resourceVersion",
    "uid",
];
const SPEC: &[&str] = &[
    "clusterIP",
    "containers",
    "externalIPs",
    "externalTrafficPolicy",
    "healthCheckNodePort",
    "holderIdentity",
    "hostNetwork",
    "initContainers",
    "ipFamilies",
    "leaseDurationSeconds",
    "loadBalancerSourceRanges",
    "nodeName",
    "ports",
    "renewTime",
    "sessionAffinity",
    "sessionAffinityConfig",
    "taints",
    "type",
];
const STATUS: &[&str] = &["addresses", "loadBalancer", "phase"];
const CONTAINER: &[&str] = &["name", "ports", "restartPolicy"];

/// Leaves only what records are made of: the rest is by far the larger part of many objects, and
/// may be as it likes.
fn prune(value: &mut Value) {
    let retain = |value: Option<&mut Value>, fields: &[&str]| {
        if let Some(Value::Object(object)) = value {
            object.retain(|key, _| fields.contains(&key.as_str()));
        }
    };
    retain(value.get_mut("metadata"), METADATA);
    retain(value.get_mut("status"), STATUS);
    let Some(spec) = value.get_mut("spec") else {
        return;
    };
    retain(Some(spec), SPEC);
    for list in ["containers", "initContainers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            retain(Some(container), CONTAINER);
        }
    }
}

/// What identifies an object, as far as it can be read.
fn read_meta(value: &Value) -> ObjectMeta {
    let text = |key| value.get("metadata")?.get(key)?.as_str().map(str::to_owned);
    ObjectMeta {
        name: text("name"),
        namespace: text("namespace"),
        uid: text("uid"),
        resource_version: text("resourceVersion"),
        ..ObjectMeta::default()
    }
}

impl<K: Resource> Resource for Lenient<K> {
    type DynamicType = K::DynamicType;
    type Scope = K::Scope;

    fn kind(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::kind(dt)
    }

    fn group(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::group(dt)
    }

    fn version(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::version(dt)
    }

    fn plural(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::plural(dt)
    }

    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.meta
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Service;

    use super::*;

    #[test]
    fn a_malformed_object_keeps_its_name() {
        let text = r#"[
            {"metadata": {"name": "good", "namespace": "a", "labels": {"x": "y"},
             "managedFields": 7}, "spec": {"unknown": 7}, "status": {"conditions": 7}},
            {"metadata": {"name": "bad", "namespace": "a", "labels": 5}},
            {"metadata": {"name": "worse", "resourceVersion": "7"}, "spec": {"ports": "all"}},
            17
        ]"#;
        let all: Vec<Lenient<Service>> = serde_json::from_str(text).expect("read");
        let names: Vec<_> = all.iter().map(|object| object.meta().name.as_deref()).collect();
        assert_eq!(names, [Some("good"), Some("bad"), Some("worse"), None]);
        let good: Vec<bool> = all.iter().map(|object| object.object.is_ok()).collect();
        assert_eq!(good, [true, false, false, false]);
        assert_eq!(all[2].meta().resource_version.as_deref(), Some("7"));
    }
}
