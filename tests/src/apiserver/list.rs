//! Lists, whole and in pages.

use serde_json::{Map, Value, json};

use super::{
    error::ApiError,
    event,
    object::{Key, map},
    request::{self, Options},
    resource::Resource,
    store::Store,
};

/// The answer to a list.
pub(super) fn list(
    store: &Store,
    wanted: &request::Objects,
    options: &Options,
) -> Result<Value, ApiError> {
    let resource = wanted.resource;
    let selector = options.selector(resource)?;
    let start = Start::of(options)?;
    let listed = store.list(resource, start.at);
    if let Some(wanted) = options.revision.filter(|wanted| *wanted > store.revision()) {
        return Err(ApiError::too_large(wanted, store.revision()));
    }
    let (objects, revision) = match (listed, &start.after) {
        (Err(error), Some(after)) if error.reason == "Expired" => {
            let after = after.clone();
            return Err(ApiError::expired_continue(
                Start { at: None, after: Some(after) }.encode(),
            ));
        }
        (listed, _) => listed?,
    };
    let in_namespace = |key: &Key| wanted.namespace.as_ref().is_none_or(|ns| *ns == key.namespace);
    let mut selected = objects.into_iter().filter(|(key, object)| {
        in_namespace(key)
            && start.after.as_ref().is_none_or(|after| key > after)
            && selector.matches(object)
    });
    let limit = match options.limit {
        0 => usize::MAX,
        // Answered from the server's memory, in one piece.
        _ if options.revision == Some(0) => usize::MAX,
        limit => limit,
    };
    let (mut items, mut last) = (Vec::new(), None);
    for (key, object) in selected.by_ref().take(limit) {
        let mut item = Value::clone(&object);
        event::to_shown(resource, &mut item);
        // Within a list, the list says it.
        map(&mut item).remove("kind");
        map(&mut item).remove("apiVersion");
        items.push(item);
        last = Some(key);
    }
    let mut metadata = Map::new();
    metadata.insert("resourceVersion".into(), revision.to_string().into());
    let remaining = selected.count();
    if remaining > 0 {
        let next = Start { at: Some(revision), after: last };
        metadata.insert("continue".into(), next.encode().into());
        if selector.is_empty() {
            metadata.insert("remainingItemCount".into(), remaining.into());
        }
    }
    Ok(json!({
        "kind": format!("{}List", resource.kind),
        "apiVersion": resource.api_version(),
        "metadata": metadata,
        "items": items,
    }))
}

/// Where a list begins.
struct Start {
    /// `None`: as it is now.
    at: Option<u64>,
    after: Option<Key>,
}

impl Start {
    fn of(options: &Options) -> Result<Self, ApiError> {
        if !options.resume.is_empty() {
            if options.revision.is_some_and(|revision| revision != 0) {
                return Err(ApiError::bad_request(
                    "specifying resource version is not allowed when using continue",
                ));
            }
            return Self::decode(&options.resume)
                .ok_or_else(|| ApiError::bad_request("continue key is not valid"));
        }
        let at = match (options.revision_match.as_str(), options.revision) {
            ("Exact", Some(0)) => {
                return Err(ApiError::invalid("resourceVersionMatch", "Exact forbidden for 0"));
            }
            ("" | "NotOlderThan" | "Exact", None) if !options.revision_match.is_empty() => {
                return Err(ApiError::invalid(
                    "resourceVersionMatch",
                    "is forbidden unless resourceVersion is provided",
                ));
            }
            ("Exact", Some(exact)) => Some(exact),
            // "Not older": the newest always is that.
            ("" | "NotOlderThan", None | Some(_)) => None,
            (other, _) => {
                return Err(ApiError::invalid("resourceVersionMatch", other));
            }
        };
        Ok(Self { at, after: None })
    }

    /// Opaque to clients.
    fn encode(&self) -> String {
        let after = self.after.clone().unwrap_or_default();
        format!("{}/{}/{}", self.at.unwrap_or(0), after.namespace, after.name)
    }

    fn decode(token: &str) -> Option<Self> {
        let mut parts = token.splitn(3, '/');
        let at: u64 = parts.next()?.parse().ok()?;
        let (namespace, name) = (parts.next()?.to_owned(), parts.next()?.to_owned());
        Some(Self { at: (at != 0).then_some(at), after: Some(Key { namespace, name }) })
    }
}

/// One object as `resource` shows it.
pub(super) fn show(resource: &Resource, object: &Value) -> Value {
    let mut shown = object.clone();
    event::to_shown(resource, &mut shown);
    let map = map(&mut shown);
    map.insert("kind".into(), resource.kind.into());
    map.insert("apiVersion".into(), resource.api_version().into());
    shown
}
