//! Metadata of objects.

use std::sync::Arc;

use serde_json::{Map, Value};

/// Identity of an object among those of its kind; its order is the order of lists.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Empty for kinds without namespaces.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl Key {
    /// The key of an object, if it has a name.
    pub(super) fn of(object: &Value) -> Option<Self> {
        let name = text(object, "/metadata/name");
        (!name.is_empty()).then(|| Self {
            namespace: text(object, "/metadata/namespace").to_owned(),
            name: name.to_owned(),
        })
    }
}

/// A text within an object; empty where there is none.
pub(super) fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The metadata, made where there is none.
pub(super) fn metadata(object: &mut Value) -> &mut Map<String, Value> {
    child(object, "metadata")
}

/// A field that is a map, made so if it is none.
pub(super) fn child<'a>(object: &'a mut Value, field: &str) -> &'a mut Map<String, Value> {
    let value = map(object).entry(field).or_insert(Value::Null);
    map(value)
}

/// The value as a map, made so if it is none.
pub(super) fn map(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) => map,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            unreachable!("made a map above")
        }
    }
}

/// The revision that an object says it has; `None`: it names none.
pub(super) fn revision(object: &Value) -> Option<u64> {
    text(object, "/metadata/resourceVersion").parse().ok()
}

/// The object with another revision.
pub(super) fn at_revision(object: &Arc<Value>, revision: u64) -> Arc<Value> {
    let mut object = Value::clone(object);
    metadata(&mut object).insert("resourceVersion".into(), revision.to_string().into());
    Arc::new(object)
}
