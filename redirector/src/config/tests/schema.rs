use std::collections::BTreeSet;
use std::path::PathBuf;

use serde_json::Value;

use super::*;

fn deploy(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(file)
}

fn schema() -> Value {
    let text = std::fs::read_to_string(deploy("redirector.schema.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// The schema's objects, and the parser's keys of each.
const OBJECTS: [(&str, &[&str]); 5] = [
    ("", keys::FILE),
    ("/properties/tables", keys::TABLES),
    ("/$defs/service", keys::SERVICE),
    ("/$defs/frontend", keys::FRONTEND),
    ("/$defs/backend", keys::BACKEND),
];

#[test]
fn the_example_is_accepted() {
    let config = load(&deploy("redirector.example.yaml")).unwrap();
    assert_eq!(config.services.len(), 15);
}

#[test]
fn schema_and_parser_know_the_same_keys() {
    let schema = schema();
    for (object, keys) in OBJECTS {
        let object = schema.pointer(object).unwrap();
        let properties = object["properties"].as_object().unwrap();
        let found: BTreeSet<&str> = properties.keys().map(String::as_str).collect();
        assert_eq!(found, keys.iter().copied().collect());
        assert_eq!(object["additionalProperties"], Value::Bool(false));
    }
}

#[test]
fn schema_and_parser_require_the_same_keys() {
    let schema = schema();
    let missing = |text: &str| -> BTreeSet<String> {
        problems(text)
            .iter()
            .filter_map(|line| Some(line.split_once("key \"")?.1.split_once("\" is missing")?.0))
            .map(str::to_owned)
            .collect()
    };
    let rows = [
        ("/$defs/service", "services: [{}]"),
        ("/$defs/frontend", "services: [{name: a, frontends: [{}]}]"),
        ("/$defs/backend", "services: [{name: a, frontends: [{port: 1}], backends: [{}]}]"),
    ];
    for (object, text) in rows {
        let required = schema.pointer(object).unwrap()["required"].as_array().unwrap();
        let required = required.iter().map(|key| key.as_str().unwrap().to_owned()).collect();
        assert_eq!(missing(text), required, "{object}");
    }
}

#[test]
fn schema_and_parser_know_the_same_words() {
    let schema = schema();
    let allowed = |text: &str| -> Vec<String> {
        let problems = problems(text);
        let [line] = problems.as_slice() else { panic!("{problems:?}") };
        let (_, words) = line.split_once("allowed: ").unwrap();
        words.split(", ").map(str::to_owned).collect()
    };
    let service = |entry| format!("services: [{{name: a, frontends: [{{port: 1}}], {entry}}}]");
    let rows = [
        ("/properties/xdpMode", "xdpMode: 1".to_owned()),
        ("/properties/removedBackends", "removedBackends: 1".to_owned()),
        ("/$defs/service/properties/trafficPolicy", service("trafficPolicy: 1")),
        ("/$defs/service/properties/forwarding", service("forwarding: 1")),
    ];
    for (property, text) in rows {
        let words = schema.pointer(property).unwrap()["enum"].as_array().unwrap();
        let words: Vec<&str> = words.iter().map(|word| word.as_str().unwrap()).collect();
        assert_eq!(allowed(&text), words, "{property}");
    }
}

#[test]
fn schema_and_parser_know_the_same_bounds() {
    let schema = schema();
    let frontend = |port| format!("services: [{{name: a, frontends: [{{port: {port}}}]}}]");
    let weight = |weight| {
        format!(
            "services: [{{name: a, frontends: [{{port: 1}}], \
             backends: [{{address: local, port: 1, weight: {weight}}}]}}]"
        )
    };
    let affinity = |seconds| {
        format!(
            "services: [{{name: a, frontends: [{{port: 1}}], sessionAffinitySeconds: {seconds}}}]"
        )
    };
    // The number is refused as such, whatever else is.
    let refused = |text: String| match parse("redirector.yaml", &text) {
        Ok(_) => false,
        Err(error) => {
            let error = error.to_string();
            error.contains("out of range") || error.contains("is not a port")
        }
    };
    let rows: [(&str, &dyn Fn(i64) -> String); 3] = [
        ("/$defs/port", &frontend),
        ("/$defs/backend/properties/weight", &weight),
        ("/$defs/service/properties/sessionAffinitySeconds", &affinity),
    ];
    for (property, text) in rows {
        let property = schema.pointer(property).unwrap();
        let [minimum, maximum] = ["minimum", "maximum"].map(|key| property[key].as_i64().unwrap());
        assert!(!refused(text(minimum)), "{minimum}");
        // The largest port lies outside the translation block.
        assert!(!refused(text(maximum)), "{maximum}");
        assert!(refused(text(minimum - 1)), "{minimum} - 1");
        assert!(refused(text(maximum + 1)), "{maximum} + 1");
    }
}

#[test]
fn schema_and_parser_know_the_same_sizes() {
    let schema = schema();
    for (_, key, range) in crate::dataplane::sizes::CHOSEN {
        let property = &schema["properties"]["tables"]["properties"][key];
        let bounds = [*range.start(), *range.end()].map(Value::from);
        assert_eq!([&property["minimum"], &property["maximum"]], [&bounds[0], &bounds[1]], "{key}");
    }
}

#[test]
fn schema_and_parser_have_the_same_defaults() {
    let schema = schema();
    let default = Config::default();
    assert_eq!(schema["properties"]["xdpMode"]["default"], default.xdp_mode.to_string());
    assert_eq!(schema["properties"]["removedBackends"]["default"], "keep");
    assert!(!default.resets_clients);
    let (first, last) = (default.snat_ports.start(), default.snat_ports.end());
    assert_eq!(schema["properties"]["snatPorts"]["default"], format!("{first}-{last}"));
    assert_eq!(schema["properties"]["snatAddresses"]["default"], "primary");
    assert_eq!(default.snat_addresses, SnatAddresses::Primary);
    assert_eq!(schema["properties"]["mssClamp"]["default"], default.mss_clamp);
    let most = redirector_common::node::MAX_PEERS;
    assert_eq!(schema["properties"]["nodes"]["maxItems"], most);
}

#[test]
fn the_schemas_examples_are_accepted() {
    let schema = schema();
    for example in schema["properties"]["publish"]["items"]["examples"].as_array().unwrap() {
        publish::parse_spec(example.as_str().unwrap()).unwrap();
    }
}
