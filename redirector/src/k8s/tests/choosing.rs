//! Endpoints: which count, and which get new flows.

use serde_json::{Value, json};

use crate::k8s::convert::Rules;
use crate::k8s::endpoints::count_local_ready;
use crate::k8s::mk::{NODE, mk_endpoint, mk_index, mk_service, mk_slice, read, web};
use crate::k8s::record::Kind;
use crate::model::{BackendAddress, BackendSpec, BackendState, Source};

fn rules() -> Rules {
    Rules { node_name: NODE.to_owned(), ..Rules::default() }
}

fn backends(slices: impl IntoIterator<Item = Value>) -> Vec<BackendSpec> {
    let mut index = mk_index(mk_service(&json!({})), slices);
    index.apply(read(
        Kind::Node,
        json!({"metadata": {"name": NODE, "labels": {"topology.kubernetes.io/zone": "z1"}}}),
    ));
    let services = rules().convert_service(&index, &web()).services;
    assert_eq!(services.len(), 1);
    assert_eq!(services[0].key.source, Source::NodePort);
    services[0].backends.clone()
}

/// Backends as `address:port`, with what is unusual of them.
fn shown(slices: impl IntoIterator<Item = Value>) -> Vec<String> {
    let show = |backend: BackendSpec| {
        let BackendAddress::At(address) = backend.address else {
            return "local".to_owned();
        };
        let mut text = format!("{}", std::net::SocketAddr::new(address, backend.port));
        for (is_so, word) in [
            (backend.here, " here"),
            (backend.avoided, " avoided"),
            (backend.state == BackendState::Terminating, " terminating"),
            (backend.weight == 0, " 0"),
        ] {
            if is_so {
                text.push_str(word);
            }
        }
        text
    };
    backends(slices).into_iter().map(show).collect()
}

fn with(conditions: &Value) -> Vec<String> {
    shown([mk_slice("a", &json!([mk_endpoint("10.0.0.1", &json!({"conditions": conditions}))]))])
}

#[test]
fn conditions() {
    let rows = [
        (json!({}), vec!["10.0.0.1:8080"]),
        (json!({"ready": true}), vec!["10.0.0.1:8080"]),
        // publishNotReadyAddresses: the slice says ready of what ends.
        (json!({"ready": true, "serving": false, "terminating": true}), vec!["10.0.0.1:8080"]),
        (json!({"serving": true, "terminating": true}), vec!["10.0.0.1:8080"]),
        (json!({"ready": false}), vec!["10.0.0.1:8080 0"]),
        (json!({"ready": false, "serving": false}), vec![]),
        (json!({"ready": false, "terminating": true}), vec!["10.0.0.1:8080 terminating"]),
        (json!({"ready": false, "serving": false, "terminating": true}), vec![]),
    ];
    for (conditions, wanted) in rows {
        assert_eq!(with(&conditions), wanted, "{conditions}");
    }
}

#[test]
fn only_the_first_address_counts() {
    let endpoint = json!({"addresses": ["10.0.0.1", "10.0.0.2"]});
    assert_eq!(shown([mk_slice("a", &json!([endpoint, {"addresses": []}]))]), ["10.0.0.1:8080"]);
}

#[test]
fn an_address_that_is_none_is_left_out() {
    let endpoints = ["10.0.0.1", "10.0.0.300", "2001:db8::1"];
    let endpoints = endpoints.map(|address| mk_endpoint(address, &json!({})));
    assert_eq!(shown([mk_slice("a", &json!(endpoints))]), ["10.0.0.1:8080"]);
}

#[test]
fn of_two_slices_the_one_that_does_not_end_counts() {
    let ends = json!({"conditions": {"ready": false, "terminating": true}});
    let slices = [json!({}), ends].map(|fields| json!([mk_endpoint("10.0.0.1", &fields)]));
    let [stays, ends] = slices;
    for order in [[&stays, &ends], [&ends, &stays]] {
        let [a, b] = order;
        assert_eq!(shown([mk_slice("a", a), mk_slice("b", b)]), ["10.0.0.1:8080"]);
    }
}

/// On its way from one slice to another an endpoint is in both, with what was true of it at other
/// times: whichever slice comes first, it is counted alike everywhere.
#[test]
fn of_two_slices_the_better_one_counts() {
    let conditions = |ready: bool, serving: bool, terminating: bool| {
        let conditions = json!({"ready": ready, "serving": serving, "terminating": terminating});
        json!([mk_endpoint("10.0.0.1", &json!({"conditions": conditions, "nodeName": NODE}))])
    };
    for (one, other, expected, ready) in [
        (conditions(true, true, false), conditions(false, false, false), "here", 1),
        (conditions(false, true, true), conditions(false, false, true), "here terminating", 0),
        (conditions(false, true, false), conditions(false, true, true), "here 0", 0),
    ] {
        for slices in [[&one, &other], [&other, &one]] {
            let slices = || [mk_slice("a", slices[0]), mk_slice("b", slices[1])];
            assert_eq!(shown(slices()), [format!("10.0.0.1:8080 {expected}")]);
            let index = mk_index(mk_service(&json!({})), slices());
            assert_eq!(count_local_ready(index.slices(&web()), rules().place(&index)), ready);
        }
    }
}

#[test]
fn ports_are_found_by_name_and_protocol_in_each_slice() {
    let endpoint = |address| json!([mk_endpoint(address, &json!({}))]);
    let mut other = mk_slice("b", &endpoint("10.0.0.2"));
    other["ports"][0]["port"] = json!(8081);
    let mut udp = mk_slice("c", &endpoint("10.0.0.3"));
    udp["ports"][0]["protocol"] = json!("UDP");
    let mut named = mk_slice("d", &endpoint("10.0.0.4"));
    named["ports"][0]["name"] = json!("metrics");
    let mut none = mk_slice("e", &endpoint("10.0.0.5"));
    none["ports"][0]["port"] = Value::Null;
    let mut zero = mk_slice("f", &endpoint("10.0.0.6"));
    zero["ports"][0]["port"] = json!(0);
    let slices = [mk_slice("a", &endpoint("10.0.0.1")), other, udp, named, none, zero];
    assert_eq!(shown(slices), ["10.0.0.1:8080", "10.0.0.2:8081"]);
}

#[test]
fn both_families() {
    let v6 = mk_slice("b", &json!([mk_endpoint("2001:db8::1", &json!({"nodeName": NODE}))]));
    let v4 = mk_slice("a", &json!([mk_endpoint("10.0.0.1", &json!({}))]));
    assert_eq!(shown([v4, v6]), ["10.0.0.1:8080", "[2001:db8::1]:8080 here"]);
}

fn hinted(hints: &[Value]) -> Vec<String> {
    let endpoints = hints
        .iter()
        .enumerate()
        .map(|(i, hints)| mk_endpoint(&format!("10.0.0.{i}"), &json!({"hints": hints})));
    let endpoints: Vec<Value> = endpoints.collect();
    let shown = shown([mk_slice("a", &json!(endpoints))]);
    shown.into_iter().map(|text| text.replace("10.0.0.", "").replace(":8080", "")).collect()
}

#[test]
fn topology() {
    let zone = |zones: &[&str]| json!({"forZones": zones.iter().map(|name| json!({"name": name})).collect::<Vec<_>>()});
    let both = |node: &str, zones: &[&str]| {
        let mut hints = zone(zones);
        hints["forNodes"] = json!([{"name": node}]);
        hints
    };
    assert_eq!(hinted(&[zone(&["z1"]), zone(&["z2", "z3"])]), ["0", "1 avoided"]);
    // One without hints: none count.
    assert_eq!(hinted(&[zone(&["z1"]), zone(&["z2"]), json!({})]), ["0", "1", "2"]);
    // None means this zone.
    assert_eq!(hinted(&[zone(&["z2"]), zone(&["z3"])]), ["0", "1"]);
    // Nodes go before zones, and fall back to them.
    assert_eq!(hinted(&[both(NODE, &["z1"]), both("other", &["z1"])]), ["0", "1 avoided"]);
    assert_eq!(hinted(&[both("one", &["z1"]), both("other", &["z2"])]), ["0", "1 avoided"]);
}

#[test]
fn endpoints_that_are_not_ready_have_no_say_in_topology() {
    let ends = json!({"conditions": {"ready": false, "terminating": true}});
    let ready = json!({"hints": {"forZones": [{"name": "z1"}]}});
    let slice =
        mk_slice("a", &json!([mk_endpoint("10.0.0.1", &ends), mk_endpoint("10.0.0.2", &ready)]));
    assert_eq!(shown([slice]), ["10.0.0.1:8080 terminating", "10.0.0.2:8080"]);
}

#[test]
fn load_balancers_hear_of_ready_endpoints_of_this_node() {
    let here = json!({"nodeName": NODE});
    let ends = json!({"nodeName": NODE, "conditions": {"ready": false, "terminating": true}});
    let v4 = mk_slice(
        "a",
        &json!([
            mk_endpoint("10.0.0.1", &here),
            mk_endpoint("10.0.0.2", &json!({})),
            mk_endpoint("10.0.0.3", &ends),
        ]),
    );
    let again = mk_slice("b", &json!([mk_endpoint("10.0.0.1", &here)]));
    let v6 = mk_slice("c", &json!([mk_endpoint("2001:db8::1", &here)]));
    let index = mk_index(mk_service(&json!({})), [v4, again, v6]);
    let rules = rules();
    assert_eq!(count_local_ready(index.slices(&web()), rules.place(&index)), 1);
}
