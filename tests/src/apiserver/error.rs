//! Refusals, as Kubernetes words them.

use hyper::StatusCode;
use serde_json::{Map, Value, json};

use super::{object::Key, resource::Resource};

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// HTTP status.
    pub code: u16,
    /// Machine readable.
    pub reason: &'static str,
    /// For people.
    pub message: String,
    /// Seconds after which to try again.
    pub retry_after: Option<u32>,
    /// What machines read besides the reason.
    pub cause: Option<&'static str>,
    /// Where to go on with a list whose token has expired.
    pub resume: Option<String>,
}

impl ApiError {
    fn new(code: StatusCode, reason: &'static str, message: String) -> Self {
        let code = code.as_u16();
        Self { code, reason, message, retry_after: None, cause: None, resume: None }
    }

    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message.into())
    }

    pub(super) fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized".into())
    }

    pub(super) fn forbidden(message: String) -> Self {
        Self::new(StatusCode::FORBIDDEN, "Forbidden", message)
    }

    pub(super) fn no_such_path() -> Self {
        let message = "the server could not find the requested resource";
        Self::new(StatusCode::NOT_FOUND, "NotFound", message.into())
    }

    pub(super) fn not_found(resource: &Resource, key: &Key) -> Self {
        let message = format!("{} {:?} not found", resource.qualified(), key.name);
        Self::new(StatusCode::NOT_FOUND, "NotFound", message)
    }

    pub(super) fn exists(resource: &Resource, key: &Key) -> Self {
        let message = format!("{} {:?} already exists", resource.qualified(), key.name);
        Self::new(StatusCode::CONFLICT, "AlreadyExists", message)
    }

    pub(super) fn conflict(resource: &Resource, key: &Key) -> Self {
        let message = format!(
            "Operation cannot be fulfilled on {} {:?}: the object has been modified; please apply \
             your changes to the latest version and try again",
            resource.qualified(),
            key.name
        );
        Self::new(StatusCode::CONFLICT, "Conflict", message)
    }

    pub(super) fn invalid(what: &str, why: &str) -> Self {
        let message = format!("{what} is invalid: {why}");
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message)
    }

    pub(super) fn media_type(found: &str) -> Self {
        let message = format!("the body of the request was in an unknown format: {found:?}");
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType", message)
    }

    pub(super) fn not_acceptable(wanted: &str) -> Self {
        let message = format!("only whole objects as JSON are served, not {wanted:?}");
        Self::new(StatusCode::NOT_ACCEPTABLE, "NotAcceptable", message)
    }

    pub(super) fn no_such_verb() -> Self {
        let message = "the server does not allow this method on the requested resource";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", message.into())
    }

    /// The history does not reach back so far.
    pub(super) fn expired(asked: u64, oldest: u64) -> Self {
        let message = format!("too old resource version: {asked} ({oldest})");
        Self::new(StatusCode::GONE, "Expired", message)
    }

    /// A list can't be continued; `resume` goes on with what there is now.
    pub(super) fn expired_continue(resume: String) -> Self {
        let message = "The provided continue parameter is too old to display a consistent list \
                       result. You can start a new list without the continue parameter, or use \
                       the continue token in this response to retrieve the remainder of the \
                       results.";
        let error = Self::new(StatusCode::GONE, "Expired", message.into());
        Self { resume: Some(resume), ..error }
    }

    /// Nobody has written this revision yet.
    pub(super) fn too_large(asked: u64, current: u64) -> Self {
        let message = format!("Timeout: Too large resource version: {asked}, current: {current}");
        let error = Self::new(StatusCode::GATEWAY_TIMEOUT, "Timeout", message);
        Self { retry_after: Some(1), cause: Some("ResourceVersionTooLarge"), ..error }
    }

    pub(super) fn unavailable() -> Self {
        let message = "the server is currently unable to handle the request";
        let code = StatusCode::SERVICE_UNAVAILABLE;
        let error = Self::new(code, "ServiceUnavailable", message.into());
        Self { retry_after: Some(1), ..error }
    }

    pub(super) fn too_many() -> Self {
        let message = "Too many requests, please try again later.";
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", message.into());
        Self { retry_after: Some(1), ..error }
    }

    /// The object of kind `Status` that clients get.
    #[must_use]
    pub fn status(&self) -> Value {
        let mut metadata = Map::new();
        if let Some(resume) = &self.resume {
            metadata.insert("continue".into(), resume.clone().into());
        }
        let mut details = Map::new();
        if let Some(seconds) = self.retry_after {
            details.insert("retryAfterSeconds".into(), seconds.into());
        }
        if let Some(cause) = self.cause {
            let causes = json!([{"reason": cause, "message": "Too large resource version"}]);
            details.insert("causes".into(), causes);
        }
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": metadata,
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        });
        if !details.is_empty() {
            status["details"] = details.into();
        }
        status
    }
}
