//! Events: one set of objects, which the core group and `events.k8s.io` show under different
//! names, and which are accepted only when they are complete.

use serde_json::{Map, Value};

use super::{
    error::ApiError,
    object::{map, text},
    resource::Resource,
};

/// Names in `events.k8s.io` and in the core group, where they differ.
const NAMES: [(&str, &str); 7] = [
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];

fn is_new(resource: &Resource) -> bool {
    resource.group == "events.k8s.io"
}

/// As it is kept: by the core group's names.
pub(super) fn to_kept(resource: &Resource, object: &mut Value) {
    if is_new(resource) {
        rename(map(object), |(new, core)| (new, core));
    }
}

/// As `resource` shows what is kept.
pub(super) fn to_shown(resource: &Resource, object: &mut Value) {
    if is_new(resource) {
        rename(map(object), |(new, core)| (core, new));
    }
}

type Pair = (&'static str, &'static str);

fn rename(object: &mut Map<String, Value>, direction: impl Fn(Pair) -> Pair) {
    for (from, to) in NAMES.map(direction) {
        if let Some(value) = object.remove(from) {
            object.insert(to.to_owned(), value);
        }
    }
}

/// Whether a new event, by the core group's names, may be made through `resource`.
pub(super) fn validate(resource: &Resource, event: &Value) -> Result<(), ApiError> {
    if resource.storage() != "events" {
        return Ok(());
    }
    let refuse = |why: &str| Err(ApiError::invalid("Event", why));
    let (here, there) = (text(event, "/metadata/namespace"), "/involvedObject/namespace");
    match text(event, there) {
        "" if here != "default" && here != "kube-system" => {
            return refuse("metadata.namespace: must be default for an object without namespace");
        }
        namespace if !namespace.is_empty() && namespace != here => {
            return refuse("involvedObject.namespace: does not match event.namespace");
        }
        _ => {}
    }
    // Those of the core group may be of the old kind, which has no such time.
    match text(event, "/eventTime") {
        "" if is_new(resource) => return refuse("eventTime: Required value"),
        "" => return Ok(()),
        _ => {}
    }
    for (pointer, limit) in [
        ("/reportingComponent", 253),
        ("/reportingInstance", 128),
        ("/action", 128),
        ("/reason", 128),
    ] {
        let value = text(event, pointer);
        if value.is_empty() || value.len() > limit {
            return refuse(&format!("{pointer}: required, and at most {limit} bytes: {value:?}"));
        }
    }
    if text(event, "/message").len() > 1024 {
        return refuse("message: can have at most 1024 characters");
    }
    if !is_new(resource) {
        return Ok(());
    }
    if !matches!(text(event, "/type"), "Normal" | "Warning") {
        return refuse("type: has invalid value");
    }
    let deprecated = ["firstTimestamp", "lastTimestamp", "count"];
    if deprecated.iter().any(|field| event.get(field).is_some_and(|value| !value.is_null())) {
        return refuse("deprecated fields: needs to be unset");
    }
    Ok(())
}
