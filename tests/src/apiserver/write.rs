//! Creating, changing and deleting objects, with what Kubernetes adds and refuses.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use k8s_openapi::jiff::{Timestamp, fmt::strtime};
use serde_json::Value;

use super::{
    error::ApiError,
    event,
    object::{Key, child, map, metadata, revision, text},
    patch::PatchKind,
    resource::Resource,
    store::Store,
};

/// Makes an object.
pub(super) fn create(
    store: &Store,
    resource: &Resource,
    namespace: &str,
    mut body: Value,
) -> Result<Arc<Value>, ApiError> {
    let generate = text(&body, "/metadata/generateName").to_owned();
    if text(&body, "/metadata/name").is_empty() && !generate.is_empty() {
        let name = format!("{generate}{}", unique());
        metadata(&mut body).insert("name".into(), name.into());
    }
    place(resource, namespace, &mut body)?;
    let key = Key::of(&body).ok_or_else(|| {
        ApiError::invalid(resource.kind, "metadata.name: Required value: name or generateName")
    })?;
    check(resource, &key, &mut body)?;
    event::validate(resource, &body)?;
    live_in(store, resource, namespace)?;
    if matches!(resource.kind, "Service" | "Pod") {
        map(&mut body).remove("status");
    }
    store.modify(resource, &key, |old| match old {
        Some(_) => Err(ApiError::exists(resource, &key)),
        None => Ok(Some(born(body))),
    })
}

/// What identifies a new object.
pub(super) fn born(mut object: Value) -> Value {
    let metadata = metadata(&mut object);
    metadata.remove("resourceVersion");
    metadata.remove("deletionTimestamp");
    let uid = format!("00000000-0000-4000-8000-{}", unique());
    metadata.insert("uid".into(), uid.into());
    metadata.insert("creationTimestamp".into(), now().into());
    metadata.insert("generation".into(), 1.into());
    object
}

/// Which part of an object is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// All but the status, where that is written apart.
    Main,
    /// The status.
    Status,
}

/// Replaces an object.
pub(super) fn update(
    store: &Store,
    resource: &Resource,
    key: &Key,
    part: Part,
    mut body: Value,
) -> Result<Arc<Value>, ApiError> {
    place(resource, &key.namespace, &mut body)?;
    if Key::of(&body).as_ref() != Some(key) {
        return Err(ApiError::bad_request(
            "the name of the object does not match the name on the URL",
        ));
    }
    check(resource, key, &mut body)?;
    store.modify(resource, key, |old| match old {
        // Leases alone are made by the same request, and never replaced unseen.
        None if resource.kind == "Lease" => Ok(Some(born(body))),
        None => Err(ApiError::not_found(resource, key)),
        Some(_) if resource.kind == "Lease" && revision(&body).is_none() => {
            let problem = "metadata.resourceVersion: Invalid value: 0x0: must be specified for an \
                           update";
            Err(ApiError::invalid(resource.kind, problem))
        }
        Some(old) => changed(resource, key, part, old, body),
    })
}

/// Changes an object in part.
pub(super) fn patch(
    store: &Store,
    resource: &Resource,
    key: &Key,
    part: Part,
    kind: PatchKind,
    mut body: Value,
) -> Result<Arc<Value>, ApiError> {
    if kind == PatchKind::Apply {
        for field in ["kind", "apiVersion"] {
            if text(&body, &format!("/{field}")).is_empty() {
                return Err(ApiError::bad_request(format!("invalid object type: {field} not set")));
            }
        }
        if store.get(resource, key).is_none() {
            live_in(store, resource, &key.namespace)?;
        }
    }
    event::to_kept(resource, &mut body);
    store.modify(resource, key, |old| {
        let Some(old) = old else {
            if kind != PatchKind::Apply || part != Part::Main {
                return Err(ApiError::not_found(resource, key));
            }
            place(resource, &key.namespace, &mut body)?;
            check(resource, key, &mut body)?;
            return Ok(Some(born(body)));
        };
        let mut new = kind.apply(old, &body)?;
        check(resource, key, &mut new)?;
        changed(resource, key, part, old, new)
    })
}

/// Deletes an object, or marks it as being deleted where something still holds it.
pub(super) fn delete(
    store: &Store,
    resource: &Resource,
    key: &Key,
    options: &Value,
) -> Result<Arc<Value>, ApiError> {
    store.modify(resource, key, |old| {
        let old = old.ok_or_else(|| ApiError::not_found(resource, key))?;
        for field in ["uid", "resourceVersion"] {
            let wanted = text(options, &format!("/preconditions/{field}"));
            if !wanted.is_empty() && wanted != text(old, &format!("/metadata/{field}")) {
                return Err(ApiError::conflict(resource, key));
            }
        }
        let grace = options.get("gracePeriodSeconds").and_then(Value::as_u64);
        let grace = grace.unwrap_or(if resource.kind == "Pod" { 30 } else { 0 });
        let runs = resource.kind == "Pod" && !text(old, "/spec/nodeName").is_empty();
        if !(is_held(old) || runs && grace > 0) {
            return Ok(None);
        }
        let mut marked = Value::clone(old);
        let metadata = metadata(&mut marked);
        metadata.entry("deletionTimestamp").or_insert_with(|| now().into());
        metadata.insert("deletionGracePeriodSeconds".into(), grace.into());
        Ok(Some(marked))
    })
}

/// Namespaces that every cluster has.
const BUILT_IN: [&str; 4] = ["default", "kube-node-lease", "kube-public", "kube-system"];

/// Nothing is made in a namespace that is not there, or about to go.
fn live_in(store: &Store, resource: &Resource, namespace: &str) -> Result<(), ApiError> {
    if !resource.namespaced || BUILT_IN.contains(&namespace) {
        return Ok(());
    }
    let key = Key { namespace: String::new(), name: namespace.to_owned() };
    let namespaces = Resource::find("", "v1", "namespaces").ok_or_else(ApiError::no_such_path)?;
    let found = store.get(namespaces, &key).ok_or_else(|| ApiError::not_found(namespaces, &key))?;
    if text(&found, "/metadata/deletionTimestamp").is_empty() {
        return Ok(());
    }
    Err(ApiError::forbidden(format!(
        "unable to create new content in namespace {namespace} because it is being terminated"
    )))
}

/// The namespace that the path says, and the type.
fn place(resource: &Resource, namespace: &str, body: &mut Value) -> Result<(), ApiError> {
    for (field, expected) in
        [("kind", resource.kind), ("apiVersion", resource.api_version().as_str())]
    {
        let found = text(body, &format!("/{field}"));
        if !found.is_empty() && found != expected {
            return Err(ApiError::bad_request(format!(
                "{found} in request does not match the expected {expected} ({field})"
            )));
        }
    }
    event::to_kept(resource, body);
    let found = text(body, "/metadata/namespace");
    if !found.is_empty() && found != namespace {
        return Err(ApiError::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    if resource.namespaced {
        metadata(body).insert("namespace".into(), namespace.into());
    }
    Ok(())
}

fn check(resource: &Resource, key: &Key, body: &mut Value) -> Result<(), ApiError> {
    let good = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit();
    let inner = |letter: char| good(letter) || letter == '-' || letter == '.';
    let name = &key.name;
    if !(name.starts_with(good) && name.ends_with(good) && name.chars().all(inner))
        || name.len() > 253
    {
        return Err(ApiError::invalid(resource.kind, &format!("metadata.name: {name:?}")));
    }
    let mut shown = body.clone();
    event::to_shown(resource, &mut shown);
    let type_fits = resource.check(&shown);
    map(body).remove("kind");
    map(body).remove("apiVersion");
    type_fits.map_err(|error| {
        let (kind, version) = (resource.kind, resource.version);
        ApiError::bad_request(format!("{kind} in version {version:?} cannot be handled: {error}"))
    })?;
    let seconds = body.pointer("/spec/leaseDurationSeconds").and_then(Value::as_i64);
    if resource.kind == "Lease" && seconds.is_some_and(|seconds| seconds <= 0) {
        let problem = "spec.leaseDurationSeconds: Invalid value: must be greater than 0";
        return Err(ApiError::invalid(resource.kind, problem));
    }
    Ok(())
}

/// The object after a change: what nobody may change is as it was.
fn changed(
    resource: &Resource,
    key: &Key,
    part: Part,
    old: &Arc<Value>,
    mut new: Value,
) -> Result<Option<Value>, ApiError> {
    let stale = revision(&new).is_some_and(|wanted| Some(wanted) != revision(old));
    let uid = text(&new, "/metadata/uid");
    if stale || !uid.is_empty() && uid != text(old, "/metadata/uid") {
        return Err(ApiError::conflict(resource, key));
    }
    let kept: &[&str] = match part {
        Part::Main if resource.status => &["status"],
        Part::Main => &[],
        Part::Status => &["spec"],
    };
    for field in kept {
        copy(map(&mut new), old, field);
    }
    let old_metadata = &old["metadata"];
    for field in ["uid", "creationTimestamp", "deletionTimestamp", "resourceVersion", "generation"]
    {
        copy(child(&mut new, "metadata"), old_metadata, field);
    }
    if new.get("spec") != old.get("spec") {
        let generation = old_metadata["generation"].as_u64().unwrap_or_default() + 1;
        metadata(&mut new).insert("generation".into(), generation.into());
    }
    let released =
        !text(&new, "/metadata/deletionTimestamp").is_empty() && is_held(old) && !is_held(&new);
    Ok((!released).then_some(new))
}

fn copy(to: &mut serde_json::Map<String, Value>, from: &Value, field: &str) {
    match from.get(field) {
        Some(value) => to.insert(field.to_owned(), value.clone()),
        None => to.remove(field),
    };
}

fn is_held(object: &Value) -> bool {
    let finalizers = object.pointer("/metadata/finalizers").and_then(Value::as_array);
    finalizers.is_some_and(|finalizers| !finalizers.is_empty())
}

fn unique() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    format!("{:012x}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The time as Kubernetes writes it: whole seconds.
pub(super) fn now() -> String {
    strtime::format("%Y-%m-%dT%H:%M:%SZ", Timestamp::now()).unwrap_or_default()
}
