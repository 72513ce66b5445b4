//! A map's entry for listings: fields with names.

use serde::ser::{Serialize, SerializeMap as _, Serializer};
use serde_json::Value;

use crate::cli::render;

/// One entry: fields in the order in which they are shown.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Record(pub(super) Vec<(&'static str, Value)>);

impl Serialize for Record {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut map = to.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

/// Fields from `name: value` pairs.
macro_rules! record {
    ($($name:literal: $value:expr),+ $(,)?) => {
        $crate::cli::map::record::Record(vec![$(($name, serde_json::json!($value))),+])
    };
}
pub(super) use record;

/// Records in columns.
pub(super) fn table(records: &[Record]) -> String {
    let Some(first) = records.first() else {
        return String::new();
    };
    let headings: Vec<_> = first.0.iter().map(|(name, value)| heading(name, value)).collect();
    let headings: Vec<_> = headings.iter().map(String::as_str).collect();
    let rows = records.iter().map(|record| record.0.iter().map(|(_, value)| text(value)).collect());
    render::columns(&headings, rows)
}

/// A heading in capitals, with a hyphen before each word; numbers are aligned to the right.
fn heading(name: &str, value: &Value) -> String {
    let mut heading = String::new();
    if value.is_number() {
        heading.push('>');
    }
    for letter in name.chars() {
        if letter.is_ascii_uppercase() {
            heading.push('-');
        }
        heading.push(letter.to_ascii_uppercase());
    }
    heading
}

/// A value for a column.
pub(super) fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::Array(values) => values.iter().map(text).collect::<Vec<_>>().join(","),
        Value::Number(_) | Value::Object(_) => value.to_string(),
    }
}
