//! Requests and answers.

use std::{future, io, sync::Arc};

use http_body_util::{BodyExt as _, Limited};
use hyper::{
    HeaderMap, Request, Response,
    body::Incoming,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, RETRY_AFTER},
};
use serde_json::{Value, json};

use super::{
    Shared,
    answer::Answer,
    error::ApiError,
    faults::Failure,
    list::{list, show},
    patch::PatchKind,
    request::{Objects, Options, Target},
    resource::{RESOURCES, Resource},
    watch::Watch,
    write,
};

/// As much as Kubernetes takes.
const LARGEST_BODY: usize = 3 << 20;

/// What comes of a request.
enum Reply {
    Value(u16, Value),
    Text(&'static str),
    Watch(Box<Watch>),
    Failure(Failure),
}

/// Answers a request. An error breaks the connection.
pub(super) async fn handle(
    shared: Arc<Shared>,
    has_certificate: bool,
    request: Request<Incoming>,
) -> io::Result<Response<Answer>> {
    let reply = match reply(&shared, has_certificate, request).await {
        Ok(Reply::Failure(failure)) => match failure.error() {
            Some(error) => Err(error),
            None => Ok(Reply::Failure(failure)),
        },
        reply => reply,
    };
    let (sender, answer) = Answer::new();
    let mut response = Response::new(answer);
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    let pace = shared.faults.pace();
    let (code, bytes) = match reply {
        Ok(Reply::Value(code, value)) => (code, value.to_string().into_bytes()),
        Ok(Reply::Text(text)) => (200, text.as_bytes().to_vec()),
        Ok(Reply::Watch(watch)) => {
            tokio::spawn(watch.run(sender));
            return Ok(response);
        }
        Ok(Reply::Failure(Failure::Hang)) => future::pending().await,
        Ok(Reply::Failure(Failure::CutHalfway)) => {
            let half = br#"{"kind":"List","apiVersion":"v1","metadata":{},"items":[{"meta"#;
            tokio::spawn(async move {
                // If the client is still there.
                let _ = sender.send(half.to_vec(), pace).await;
                sender.cut().await;
            });
            return Ok(response);
        }
        Ok(Reply::Failure(_)) => return Err(io::ErrorKind::ConnectionAborted.into()),
        Err(error) => {
            if let Some(seconds) = error.retry_after {
                response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
            }
            (error.code, error.status().to_string().into_bytes())
        }
    };
    *response.status_mut() = code.try_into().map_err(io::Error::other)?;
    tokio::spawn(async move { sender.send(bytes, pace).await });
    Ok(response)
}

async fn reply(
    shared: &Arc<Shared>,
    has_certificate: bool,
    request: Request<Incoming>,
) -> Result<Reply, ApiError> {
    let target = Target::parse(request.uri().path())?;
    match &target {
        Target::Health => return Ok(Reply::Text("ok")),
        Target::Version => return Ok(Reply::Value(200, version())),
        Target::CoreVersions | Target::Groups | Target::Resources(..) | Target::Objects(_) => {}
    }
    if !has_certificate && !has_token(shared, request.headers()) {
        return Err(ApiError::unauthorized());
    }
    match target {
        Target::Objects(wanted) => reply_with_objects(shared, wanted, request).await,
        Target::CoreVersions => {
            Ok(Reply::Value(200, json!({"kind": "APIVersions", "versions": ["v1"]})))
        }
        Target::Groups => Ok(Reply::Value(200, groups())),
        Target::Resources(group, version) => resources(&group, &version),
        Target::Health | Target::Version => Err(ApiError::no_such_path()),
    }
}

async fn reply_with_objects(
    shared: &Arc<Shared>,
    wanted: Objects,
    request: Request<Incoming>,
) -> Result<Reply, ApiError> {
    let options = Options::parse(request.uri())?;
    let verb = wanted.verb(request.method(), &options)?;
    shared.access.check(verb, &wanted, request.uri().query().unwrap_or_default())?;
    if let Some(failure) = shared.faults.take(verb, wanted.resource.plural) {
        return Ok(Reply::Failure(failure));
    }
    refuse_other_forms(request.headers())?;
    let store = &shared.store;
    match verb {
        "list" => return Ok(Reply::Value(200, list(store, &wanted, &options)?)),
        "watch" => {
            let watch = Watch::open(store, &shared.faults, &wanted, options)?;
            return Ok(Reply::Watch(Box::new(watch)));
        }
        _ => {}
    }
    let media_type = header(request.headers(), CONTENT_TYPE).to_owned();
    let body = read(request).await?;
    let (resource, part) = (wanted.resource, wanted.part);
    let namespace = wanted.namespace.clone().unwrap_or_default();
    let key = wanted.key().unwrap_or_default();
    let (code, object) = match verb {
        "get" => {
            let found = store.get(resource, &key);
            (200, found.ok_or_else(|| ApiError::not_found(resource, &key))?)
        }
        "create" if resource.namespaced && namespace.is_empty() => {
            return Err(ApiError::no_such_verb());
        }
        "create" => (201, write::create(store, resource, &namespace, body)?),
        "update" => (200, write::update(store, resource, &key, part, body)?),
        "patch" => {
            let kind = PatchKind::of(&media_type)?;
            if kind == PatchKind::Apply && options.field_manager.is_empty() {
                return Err(ApiError::invalid(
                    "PatchOptions.meta.k8s.io",
                    "fieldManager: Required value: is required for apply patch",
                ));
            }
            if kind == PatchKind::Apply && store.get(resource, &key).is_none() {
                shared.access.check("create", &wanted, "")?;
            }
            (200, write::patch(store, resource, &key, part, kind, body)?)
        }
        "delete" => (200, write::delete(store, resource, &key, &body)?),
        _ => return Err(ApiError::no_such_verb()),
    };
    Ok(Reply::Value(code, show(resource, &object)))
}

fn header(headers: &HeaderMap, name: hyper::header::HeaderName) -> &str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

fn has_token(shared: &Shared, headers: &HeaderMap) -> bool {
    let token = header(headers, AUTHORIZATION).strip_prefix("Bearer ");
    token.is_some_and(|token| shared.access.knows(token))
}

/// Only whole objects as JSON are served: no tables, no protocol buffers.
fn refuse_other_forms(headers: &HeaderMap) -> Result<(), ApiError> {
    let accepted = header(headers, ACCEPT);
    let mut forms = accepted.split(',').map(str::trim);
    let whole = |form: &str| {
        let form = form.split(";q=").next().unwrap_or_default();
        ["", "*/*", "application/*", "application/json"].contains(&form)
            || form.starts_with("application/json;") && !form.contains("as=")
    };
    if forms.any(whole) { Ok(()) } else { Err(ApiError::not_acceptable(accepted)) }
}

/// The body, as JSON; null if there is none.
async fn read(request: Request<Incoming>) -> Result<Value, ApiError> {
    let body = Limited::new(request.into_body(), LARGEST_BODY).collect().await;
    let body = body.map_err(|error| ApiError::bad_request(error.to_string()))?.to_bytes();
    if body.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(&body).map_err(|error| ApiError::bad_request(error.to_string()))
}

fn version() -> Value {
    json!({
        "major": "1",
        "minor": "33",
        "gitVersion": "v1.33.0",
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "2025-04-23T13:00:00Z",
        "goVersion": "go1.24.2",
        "compiler": "gc",
        "platform": "linux/amd64",
    })
}

fn groups() -> Value {
    let mut names: Vec<&str> = RESOURCES.iter().map(|resource| resource.group).collect();
    names.sort_unstable();
    names.dedup();
    let groups: Vec<Value> = names
        .into_iter()
        .filter(|group| !group.is_empty())
        .map(|group| {
            let version = json!({"groupVersion": format!("{group}/v1"), "version": "v1"});
            json!({"name": group, "versions": [version], "preferredVersion": version})
        })
        .collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

fn resources(group: &str, version: &str) -> Result<Reply, ApiError> {
    let ours = RESOURCES.iter().filter(|all| all.group == group && all.version == version);
    let described: Vec<Value> = ours.clone().map(Resource::describe).collect();
    let first = ours.clone().next().ok_or_else(ApiError::no_such_path)?;
    Ok(Reply::Value(
        200,
        json!({
            "kind": "APIResourceList",
            "apiVersion": "v1",
            "groupVersion": first.api_version(),
            "resources": described,
        }),
    ))
}
