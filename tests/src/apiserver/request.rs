//! What a request asks for.

use std::collections::BTreeMap;

use hyper::{Method, Uri};

use super::{error::ApiError, object::Key, resource::Resource, selector::Selector, write::Part};

/// What is asked.
#[derive(Debug)]
pub(super) enum Target {
    /// `/healthz`, `/livez`, `/readyz`.
    Health,
    /// `/version`.
    Version,
    /// `/api`.
    CoreVersions,
    /// `/apis`.
    Groups,
    /// `/api/v1`, `/apis/GROUP/VERSION`.
    Resources(String, String),
    /// Objects.
    Objects(Objects),
}

/// Objects of a kind, or one.
#[derive(Debug)]
pub(super) struct Objects {
    pub(super) resource: &'static Resource,
    /// `None`: in all namespaces, or of a kind without.
    pub(super) namespace: Option<String>,
    pub(super) name: Option<String>,
    pub(super) part: Part,
}

impl Target {
    pub(super) fn parse(path: &str) -> Result<Self, ApiError> {
        let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
        match segments.as_slice() {
            ["healthz" | "livez" | "readyz", ..] => Ok(Self::Health),
            ["version"] => Ok(Self::Version),
            ["api"] => Ok(Self::CoreVersions),
            ["apis"] => Ok(Self::Groups),
            ["api", version] => Ok(Self::Resources(String::new(), (*version).to_owned())),
            ["apis", group, version] => {
                Ok(Self::Resources((*group).to_owned(), (*version).to_owned()))
            }
            ["api", version, rest @ ..] => objects("", version, rest),
            ["apis", group, version, rest @ ..] => objects(group, version, rest),
            _ => Err(ApiError::no_such_path()),
        }
    }
}

fn objects(group: &str, version: &str, rest: &[&str]) -> Result<Target, ApiError> {
    let (namespace, rest) = match rest {
        // Of the namespace itself, "status" is a part and not a kind.
        ["namespaces", namespace, kind, ..] if *kind != "status" => (Some(*namespace), &rest[2..]),
        _ => (None, rest),
    };
    let find = |plural| {
        let found = Resource::find(group, version, plural);
        found.filter(|resource| namespace.is_none() || resource.namespaced)
    };
    let (resource, name, part) = match rest {
        [plural] => (find(plural), None, Part::Main),
        [plural, name] => (find(plural), Some(*name), Part::Main),
        [plural, name, "status"] => {
            (find(plural).filter(|resource| resource.status), Some(*name), Part::Status)
        }
        _ => (None, None, Part::Main),
    };
    let resource = resource.ok_or_else(ApiError::no_such_path)?;
    if name.is_some() && resource.namespaced && namespace.is_none() {
        return Err(ApiError::no_such_path());
    }
    let (namespace, name) = (namespace.map(str::to_owned), name.map(str::to_owned));
    Ok(Target::Objects(Objects { resource, namespace, name, part }))
}

impl Objects {
    /// The one object that is meant, if it is one.
    pub(super) fn key(&self) -> Option<Key> {
        let namespace = self.namespace.clone().unwrap_or_default();
        self.name.clone().map(|name| Key { namespace, name })
    }

    /// The verb, as rules of roles name it.
    pub(super) fn verb(
        &self,
        method: &Method,
        options: &Options,
    ) -> Result<&'static str, ApiError> {
        match (method.as_str(), &self.name) {
            ("GET", None) if options.watch => Ok("watch"),
            ("GET", None) => Ok("list"),
            ("GET", Some(_)) => Ok("get"),
            ("POST", None) => Ok("create"),
            ("PUT", Some(_)) => Ok("update"),
            ("PATCH", Some(_)) => Ok("patch"),
            ("DELETE", Some(_)) => Ok("delete"),
            ("DELETE", None) => Ok("deletecollection"),
            _ => Err(ApiError::no_such_verb()),
        }
    }
}

/// The parameters of a request.
#[derive(Clone, Debug, Default)]
pub(super) struct Options {
    pub(super) watch: bool,
    pub(super) labels: String,
    pub(super) fields: String,
    pub(super) limit: usize,
    pub(super) resume: String,
    pub(super) revision: Option<u64>,
    pub(super) revision_match: String,
    pub(super) bookmarks: bool,
    pub(super) initial_events: Option<bool>,
    pub(super) timeout_seconds: Option<u64>,
    pub(super) field_manager: String,
}

impl Options {
    pub(super) fn parse(uri: &Uri) -> Result<Self, ApiError> {
        let query = uri.query().unwrap_or_default();
        let mut found: BTreeMap<String, String> =
            form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        if found.contains_key("dryRun") {
            return Err(ApiError::bad_request("dryRun is not supported"));
        }
        let mut take = |name: &str| found.remove(name).unwrap_or_default();
        Ok(Self {
            watch: flag(&take("watch"))?.unwrap_or(false),
            labels: take("labelSelector"),
            fields: take("fieldSelector"),
            limit: number("limit", &take("limit"))?.unwrap_or(0),
            resume: take("continue"),
            revision: number("resourceVersion", &take("resourceVersion"))?,
            revision_match: take("resourceVersionMatch"),
            bookmarks: flag(&take("allowWatchBookmarks"))?.unwrap_or(false),
            initial_events: flag(&take("sendInitialEvents"))?,
            timeout_seconds: number("timeoutSeconds", &take("timeoutSeconds"))?,
            field_manager: take("fieldManager"),
        })
    }

    pub(super) fn selector(&self, resource: &Resource) -> Result<Selector, ApiError> {
        Selector::parse(resource, &self.labels, &self.fields)
    }
}

fn number<T: std::str::FromStr>(name: &str, text: &str) -> Result<Option<T>, ApiError> {
    if text.is_empty() {
        return Ok(None);
    }
    let number = text.parse().map_err(|_| {
        ApiError::bad_request(format!("{name}: Invalid value: {text:?}: must be a number"))
    })?;
    Ok(Some(number))
}

fn flag(text: &str) -> Result<Option<bool>, ApiError> {
    match text {
        "" => Ok(None),
        "true" | "1" => Ok(Some(true)),
        "false" | "0" => Ok(Some(false)),
        other => Err(ApiError::bad_request(format!("not a boolean: {other:?}"))),
    }
}
