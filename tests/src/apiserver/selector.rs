//! Label and field selectors.

use serde_json::Value;

use super::{error::ApiError, resource::Resource};

/// What a list or watch selects.
#[derive(Clone, Debug, Default)]
pub(super) struct Selector {
    labels: Vec<LabelRule>,
    fields: Vec<FieldRule>,
}

#[derive(Clone, Debug)]
struct LabelRule {
    key: String,
    test: Test,
}

#[derive(Clone, Debug)]
enum Test {
    Exists,
    Missing,
    In(Vec<String>),
    NotIn(Vec<String>),
}

#[derive(Clone, Debug)]
struct FieldRule {
    pointer: String,
    missing: &'static str,
    equal: bool,
    value: String,
}

impl Selector {
    /// From a request's parameters.
    pub(super) fn parse(resource: &Resource, labels: &str, fields: &str) -> Result<Self, ApiError> {
        let labels = split(labels).into_iter().map(parse_label).collect::<Option<_>>();
        let labels =
            labels.ok_or_else(|| ApiError::bad_request("unable to parse labelSelector"))?;
        let fields = split(fields).into_iter().map(|term| parse_field(resource, term));
        Ok(Self { labels, fields: fields.collect::<Result<_, _>>()? })
    }

    /// Whether it selects everything.
    pub(super) fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    pub(super) fn matches(&self, object: &Value) -> bool {
        self.labels.iter().all(|rule| rule.matches(object))
            && self.fields.iter().all(|rule| rule.matches(object))
    }
}

impl LabelRule {
    fn matches(&self, object: &Value) -> bool {
        let labels = object.pointer("/metadata/labels");
        let label = labels.and_then(|labels| labels.get(&self.key)).and_then(Value::as_str);
        let is_in =
            |values: &[String]| label.is_some_and(|label| values.iter().any(|v| v == label));
        match &self.test {
            Test::Exists => label.is_some(),
            Test::Missing => label.is_none(),
            Test::In(values) => is_in(values),
            Test::NotIn(values) => !is_in(values),
        }
    }
}

impl FieldRule {
    fn matches(&self, object: &Value) -> bool {
        let found = match object.pointer(&self.pointer) {
            Some(Value::String(found)) => found.clone(),
            Some(other @ (Value::Bool(_) | Value::Number(_))) => other.to_string(),
            Some(Value::Null | Value::Array(_) | Value::Object(_)) | None => self.missing.into(),
        };
        (found == self.value) == self.equal
    }
}

/// Terms between commas, but for those within parentheses.
fn split(selector: &str) -> Vec<&str> {
    let mut depth = 0_u32;
    let terms = selector.split(|letter| {
        match letter {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        letter == ',' && depth == 0
    });
    terms.map(str::trim).filter(|term| !term.is_empty()).collect()
}

fn parse_label(term: &str) -> Option<LabelRule> {
    let rule = |key: &str, test| {
        let key = key.trim().to_owned();
        (!key.is_empty() && !key.contains(char::is_whitespace)).then_some(LabelRule { key, test })
    };
    let one = |value: &str| vec![value.trim().to_owned()];
    let set = |values: &str| -> Option<Vec<String>> {
        let inner = values.trim().strip_prefix('(')?.strip_suffix(')')?;
        Some(inner.split(',').map(|value| value.trim().to_owned()).collect())
    };
    if let Some((key, values)) = term.split_once(" notin ") {
        return rule(key, Test::NotIn(set(values)?));
    }
    if let Some((key, values)) = term.split_once(" in ") {
        return rule(key, Test::In(set(values)?));
    }
    if let Some((key, value)) = term.split_once("!=") {
        return rule(key, Test::NotIn(one(value)));
    }
    if let Some((key, value)) = term.split_once("==").or_else(|| term.split_once('=')) {
        return rule(key, Test::In(one(value)));
    }
    match term.strip_prefix('!') {
        Some(key) => rule(key, Test::Missing),
        None => rule(term, Test::Exists),
    }
}

fn parse_field(resource: &Resource, term: &str) -> Result<FieldRule, ApiError> {
    let equal = !term.contains("!=");
    let parts = match term.split_once("!=").or_else(|| term.split_once("==")) {
        Some(parts) => parts,
        None => term.split_once('=').ok_or_else(|| {
            ApiError::bad_request(format!("invalid selector: {term:?}; can't understand it"))
        })?,
    };
    let (field, value) = (parts.0.trim(), parts.1.trim().to_owned());
    let missing = match field {
        "metadata.name" => Some(""),
        "metadata.namespace" => resource.namespaced.then_some(""),
        _ => resource.fields.iter().find(|(name, _)| *name == field).map(|(_, missing)| *missing),
    };
    let Some(missing) = missing else {
        return Err(ApiError::bad_request(format!(
            "field label not supported: {field} (of {})",
            resource.qualified()
        )));
    };
    Ok(FieldRule { pointer: format!("/{}", field.replace('.', "/")), missing, equal, value })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn selects(labels: &str, fields: &str) -> Result<bool, ApiError> {
        let pods = Resource::find("", "v1", "pods").expect("served");
        let pod = json!({
            "metadata": {"name": "a", "namespace": "ns", "labels": {"app": "web", "x/y": "1"}},
            "spec": {"nodeName": "node1"},
        });
        Ok(Selector::parse(pods, labels, fields)?.matches(&pod))
    }

    #[test]
    fn labels() {
        for (selector, expected) in [
            ("", true),
            ("app", true),
            ("!app", false),
            ("!other", true),
            ("app=web,x/y=1", true),
            ("app==web, x/y!=2", true),
            ("app!=web", false),
            ("other!=web", true),
            ("app in (db, web)", true),
            ("app notin (db,web),x/y", false),
            ("other notin (db,web),x/y", true),
        ] {
            assert_eq!(selects(selector, ""), Ok(expected), "{selector}");
        }
        assert!(selects("app in web", "").is_err());
        assert!(selects("=web", "").is_err());
    }

    #[test]
    fn fields() {
        for (selector, expected) in [
            ("spec.nodeName=node1", true),
            ("spec.nodeName==node2", false),
            ("metadata.name!=a", false),
            ("metadata.namespace=ns,spec.hostNetwork=false", true),
            ("status.phase=", true),
        ] {
            assert_eq!(selects("", selector), Ok(expected), "{selector}");
        }
        for unknown in ["spec.hostname=a", "metadata.uid=1", "nonsense"] {
            assert!(selects("", unknown).is_err(), "{unknown}");
        }
    }
}
