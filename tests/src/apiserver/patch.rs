//! The ways of changing an object in part.

use serde_json::{Map, Value, json};

use super::error::ApiError;

/// What a patch is, by its media type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PatchKind {
    /// RFC 6902.
    Json,
    /// RFC 7386.
    Merge,
    /// As merge, but lists of objects are merged by their keys.
    Strategic,
    /// Server-side apply: what one manager of fields wants, made if it is not there.
    Apply,
}

impl PatchKind {
    pub(super) fn of(media_type: &str) -> Result<Self, ApiError> {
        match media_type.split(';').next().unwrap_or_default().trim() {
            "application/json-patch+json" => Ok(Self::Json),
            "application/merge-patch+json" => Ok(Self::Merge),
            "application/strategic-merge-patch+json" => Ok(Self::Strategic),
            "application/apply-patch+yaml" => Ok(Self::Apply),
            other => Err(ApiError::media_type(other)),
        }
    }

    /// The object after the patch.
    pub(super) fn apply(self, object: &Value, patch: &Value) -> Result<Value, ApiError> {
        let mut patched = object.clone();
        match self {
            Self::Json => {
                let patch: json_patch::Patch = serde_json::from_value(patch.clone())
                    .map_err(|error| ApiError::bad_request(error.to_string()))?;
                json_patch::patch(&mut patched, &patch)
                    .map_err(|error| ApiError::invalid("the patch", &error.to_string()))?;
            }
            Self::Merge => json_patch::merge(&mut patched, patch),
            Self::Strategic | Self::Apply => merge(&mut patched, patch, ""),
        }
        Ok(patched)
    }
}

/// Lists that are merged item by item, and the fields by which items are the same, in the types
/// that are served. All other lists are replaced.
fn merge_keys(field: &str) -> &'static [&'static str] {
    match field {
        "conditions" | "addresses" => &["type"],
        "containers" | "initContainers" | "volumes" | "env" => &["name"],
        "ports" => &["port", "containerPort"],
        "ownerReferences" => &["uid"],
        "taints" => &["key"],
        "podIPs" => &["ip"],
        _ => &[],
    }
}

fn merge(target: &mut Value, patch: &Value, field: &str) {
    match (target, patch) {
        (Value::Object(target), Value::Object(patch)) => merge_maps(target, patch),
        (Value::Array(target), Value::Array(patch)) => merge_lists(target, patch, field),
        (target, Value::Object(patch)) => {
            // Not copied as it is: what the patch deletes is not there.
            let mut map = Map::new();
            merge_maps(&mut map, patch);
            *target = Value::Object(map);
        }
        (target, patch) => *target = patch.clone(),
    }
}

fn merge_maps(target: &mut Map<String, Value>, patch: &Map<String, Value>) {
    for (field, value) in patch.iter().filter(|(field, _)| !field.starts_with('$')) {
        if value.is_null() {
            target.remove(field);
        } else {
            merge(target.entry(field).or_insert(Value::Null), value, field);
        }
    }
}

fn merge_lists(target: &mut Vec<Value>, patch: &[Value], field: &str) {
    if field == "finalizers" {
        let new: Vec<Value> = patch.iter().filter(|item| !target.contains(item)).cloned().collect();
        target.extend(new);
        return;
    }
    let keys = merge_keys(field);
    if keys.is_empty() || patch.contains(&json!({"$patch": "replace"})) {
        *target = patch.iter().filter(|item| item.get("$patch").is_none()).cloned().collect();
        return;
    }
    for item in patch {
        let identity = keys.iter().find(|key| item.get(key).is_some());
        let is_same = |other: &Value| identity.is_some_and(|key| other.get(key) == item.get(key));
        let found = target.iter().position(is_same);
        match (found, item.get("$patch").and_then(Value::as_str)) {
            (Some(index), Some("delete")) => drop(target.remove(index)),
            (None, Some("delete")) => {}
            (Some(index), _) => merge(&mut target[index], item, field),
            (None, _) => target.push(item.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> Value {
        json!({
            "metadata": {"name": "a", "labels": {"x": "1"}},
            "status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "Other"}]},
        })
    }

    fn patched(kind: PatchKind, patch: &Value) -> Value {
        kind.apply(&pod(), patch).expect("a good patch")
    }

    #[test]
    fn merge_replaces_lists_and_removes_nulls() {
        let patch = json!({
            "metadata": {"labels": {"x": null, "y": "2"}},
            "status": {"conditions": [{"type": "Ready"}]},
        });
        let result = patched(PatchKind::Merge, &patch);
        assert_eq!(result["metadata"]["labels"], json!({"y": "2"}));
        assert_eq!(result["status"]["conditions"], json!([{"type": "Ready"}]));
    }

    #[test]
    fn strategic_merges_conditions_by_type() {
        let patch = json!({"status": {"conditions": [
            {"type": "Ready", "status": "False"},
            {"$patch": "delete", "type": "Other"},
            {"type": "New"},
        ]}});
        assert_eq!(
            patched(PatchKind::Strategic, &patch)["status"]["conditions"],
            json!([{"type": "Ready", "status": "False"}, {"type": "New"}])
        );
    }

    #[test]
    fn json_patch_tests_and_replaces() {
        let good = json!([
            {"op": "test", "path": "/metadata/name", "value": "a"},
            {"op": "replace", "path": "/metadata/labels/x", "value": "3"},
        ]);
        assert_eq!(patched(PatchKind::Json, &good)["metadata"]["labels"]["x"], "3");
        let bad = json!([{"op": "test", "path": "/metadata/name", "value": "b"}]);
        assert!(PatchKind::Json.apply(&pod(), &bad).is_err());
    }

    #[test]
    fn media_types() {
        let merge = PatchKind::of("application/merge-patch+json; charset=utf-8");
        assert_eq!(merge, Ok(PatchKind::Merge));
        assert_eq!(PatchKind::of("application/json").map_err(|error| error.code), Err(415));
    }
}
