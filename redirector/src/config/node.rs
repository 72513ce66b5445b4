//! The YAML tree with positions, before anything is known of its meaning.
//!
//! The file is not deserialised into its types at once: that would stop at the first problem, and
//! an operator wants all of them.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{
    DefaultMessageFormatter, DuplicateKeyPolicy, MessageFormatter, NonFiniteFloatPolicy, Options,
    Spanned,
};

use super::error::Position;

/// A value and where it stands.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) position: Position,
    /// Bytes of the source that the value takes up, quotes included.
    span: Option<std::ops::Range<usize>>,
    pub(super) value: Value,
}

/// What YAML knows.
#[derive(Debug)]
pub(super) enum Value {
    Empty,
    Bool(bool),
    Integer(i128),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Node, Node)>),
}

/// Reads one YAML document.
pub(super) fn read(text: &str) -> Result<Node, (Option<Position>, String)> {
    serde_saphyr::from_str_with_options(text, options()).map_err(|error| describe(&error))
}

/// Mappings and lists in each other; the file needs five. The parser recurses, and the stack of
/// a thread is not much.
const MAX_DEPTH: usize = 12;
/// Enough to publish every port on its own line, twice.
const MAX_NODES: usize = 150_000;

fn options() -> Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            max_nodes: MAX_NODES,
            flow_nesting_limit: MAX_DEPTH,
        },
        // We report duplicates ourselves, all of them.
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        non_finite_float_policy: NonFiniteFloatPolicy::AsString,
        // `off` is a mode of XDP here, not a boolean.
        strict_booleans: true,
        with_snippet: false,
    }
}

/// Position and one line of text, without the position, which stands in front already.
fn describe(error: &serde_saphyr::Error) -> (Option<Position>, String) {
    let position = error.location().map(position);
    let mut error = error.without_snippet();
    while let serde_saphyr::Error::AliasError { error: inner, .. } = error {
        error = inner;
    }
    let message = if matches!(error, serde_saphyr::Error::MultipleDocuments { .. }) {
        "a second document starts here; keep one in a file".to_owned()
    } else if matches!(error, serde_saphyr::Error::Budget { .. }) {
        format!("holds too much; allowed: {MAX_NODES} values, {MAX_DEPTH} levels of nesting")
    } else {
        let text = DefaultMessageFormatter.format_message(error);
        format!("not valid YAML: {text}").replace(char::is_control, " ")
    };
    (position, message)
}

fn position(location: serde_saphyr::Location) -> Position {
    Position { line: location.line(), column: location.column() }
}

impl Node {
    /// The position of byte `offset` of a text value: that of the very character where the
    /// source spells the value out on one line, else that of the value.
    pub(super) fn position_of(&self, source: &str, offset: usize) -> Position {
        let Some(skipped) = self.prefix(source, offset) else {
            return self.position;
        };
        Position {
            line: self.position.line,
            column: self.position.column + skipped.chars().count() as u64,
        }
    }

    fn prefix<'s>(&self, source: &'s str, offset: usize) -> Option<&'s str> {
        let Value::Text(text) = &self.value else {
            return None;
        };
        let raw = source.get(self.span.clone()?)?;
        let quote = match raw.chars().next()? {
            quote @ ('"' | '\'') => quote.len_utf8(),
            _ => 0,
        };
        let body = raw.get(quote..raw.len().checked_sub(quote)?)?;
        (body == text).then(|| raw.get(..quote + offset)).flatten()
    }
}

/// The value as an error message quotes it.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("nothing"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Integer(value) => write!(f, "{value}"),
            Self::Float(value) => write!(f, "{value}"),
            Self::Text(value) => write!(f, "{value:?}"),
            Self::List(_) => f.write_str("a list"),
            Self::Map(_) => f.write_str("a mapping"),
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        let span = spanned.referenced.span();
        let bytes = |bytes: Option<u64>| bytes.and_then(|bytes| usize::try_from(bytes).ok());
        let span = bytes(span.byte_offset())
            .zip(bytes(span.byte_len()))
            .map(|(start, len)| start..start + len);
        Ok(Self { position: position(spanned.referenced), span, value: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any YAML value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Empty)
    }

    fn visit_none<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Empty)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Integer(value.into()))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Integer(value.into()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            map.push(entry);
        }
        Ok(Value::Map(map))
    }
}
