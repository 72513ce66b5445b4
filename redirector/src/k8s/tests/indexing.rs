//! The index: what is taken in, what is forgotten, and what has to be looked at again.

use std::collections::BTreeSet;

use serde_json::json;

use crate::k8s::index::{Dirty, Index};
use crate::k8s::mk::{NODE, mk_endpoint, mk_index, mk_service, mk_slice, read, web};
use crate::k8s::object::ObjectName;
use crate::k8s::record::Kind;

fn one(service: &ObjectName) -> Dirty {
    Dirty { services: BTreeSet::from([service.clone()]), ..Dirty::default() }
}

fn slice(name: &str, address: &str) -> serde_json::Value {
    mk_slice(name, &json!([mk_endpoint(address, &json!({}))]))
}

#[test]
fn only_what_changed_is_looked_at_again() {
    let mut index = mk_index(mk_service(&json!({})), [slice("a", "10.0.0.1")]);
    assert_eq!(index.take_dirty(), one(&web()));
    assert!(index.take_dirty().is_empty());
    // The same again: a change of what is not used.
    let mut object = mk_service(&json!({}));
    object["spec"]["externalName"] = json!("x");
    index.apply(read(Kind::Service, object));
    index.apply(read(Kind::Slice, slice("a", "10.0.0.1")));
    assert!(index.take_dirty().is_empty());
    index.apply(read(Kind::Slice, slice("a", "10.0.0.2")));
    assert_eq!(index.take_dirty(), one(&web()));
    index.delete(Kind::Slice, &ObjectName::new("default", "a"));
    assert_eq!(index.take_dirty(), one(&web()));
    assert_eq!(index.slices(&web()).count(), 0);
    index.delete(Kind::Slice, &ObjectName::new("default", "a"));
    assert!(index.take_dirty().is_empty());
}

#[test]
fn slices_may_come_before_their_service_and_change_hands() {
    let mut index = Index::default();
    index.apply(read(Kind::Slice, slice("a", "10.0.0.1")));
    assert_eq!(index.slices(&web()).count(), 1);
    let mut other = slice("a", "10.0.0.1");
    other["metadata"]["labels"]["kubernetes.io/service-name"] = json!("other");
    index.take_dirty();
    index.apply(read(Kind::Slice, other));
    assert_eq!(index.slices(&web()).count(), 0);
    assert_eq!(index.take_dirty().services.len(), 2);
}

/// A slice that gets another name is there twice for a moment, or not at all.
#[test]
fn slices_may_be_renamed_while_they_are_listed() {
    let mut index = mk_index(mk_service(&json!({})), [slice("a", "10.0.0.1")]);
    index.take_dirty();
    let renamed = vec![read(Kind::Slice, slice("b", "10.0.0.1"))];
    index.reset(Kind::Slice, renamed, &BTreeSet::new());
    let names: Vec<_> = index.slices(&web()).map(|slice| slice.name.name.as_str()).collect();
    assert_eq!(names, ["b"]);
    assert_eq!(index.take_dirty(), one(&web()));
    // One list may name an object twice: what came last holds.
    let twice = ["10.0.0.1", "10.0.0.2"].map(|address| read(Kind::Slice, slice("b", address)));
    index.reset(Kind::Slice, twice.into(), &BTreeSet::new());
    let addresses: Vec<_> =
        index.slices(&web()).map(|slice| slice.endpoints[0].address.to_string()).collect();
    assert_eq!(addresses, ["10.0.0.2"]);
}

/// A Node that is registered anew is gone for a moment, and then has no address yet.
#[test]
fn a_node_keeps_its_place_while_it_is_registered() {
    let node =
        |addresses| read(Kind::Node, json!({"metadata": {"name": NODE}, "status": addresses}));
    let address = |text| json!({"addresses": [{"type": "InternalIP", "address": text}]});
    let mut index = Index::new(NODE, None);
    let primary =
        |index: &Index| index.primary().iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(primary(&index), [""; 0]);
    index.apply(node(address("192.0.2.1")));
    index.delete(Kind::Node, &ObjectName::new("", NODE));
    assert_eq!((index.node(), primary(&index)), (None, vec!["192.0.2.1".to_owned()]));
    index.apply(node(json!({})));
    assert_eq!(primary(&index), ["192.0.2.1"]);
    index.apply(node(address("192.0.2.2")));
    assert_eq!(primary(&index), ["192.0.2.2"]);
}

#[test]
fn another_proxys_objects_are_not_ours() {
    let labelled = |value: &str| {
        let mut object = mk_service(&json!({}));
        object["metadata"]["labels"] = json!({"service.kubernetes.io/service-proxy-name": value});
        read(Kind::Service, object)
    };
    let mut index = mk_index(mk_service(&json!({})), []);
    index.take_dirty();
    index.apply(labelled("other"));
    assert_eq!(index.take_dirty(), one(&web()));
    assert!(index.service(&web()).is_none());
    index.apply(read(Kind::Service, mk_service(&json!({}))));
    assert!(index.service(&web()).is_some());

    let mut ours = Index::new(NODE, Some("mine".to_owned()));
    ours.apply(read(Kind::Service, mk_service(&json!({}))));
    ours.apply(labelled("other"));
    assert!(ours.service(&web()).is_none());
    ours.apply(labelled("mine"));
    assert!(ours.service(&web()).is_some());
}

#[test]
fn another_proxys_slices_are_not_ours() {
    let labelled = |value: &str| {
        let mut object = slice("a", "10.0.0.1");
        object["metadata"]["labels"]["service.kubernetes.io/service-proxy-name"] = json!(value);
        read(Kind::Slice, object)
    };
    let count = |index: &Index| index.slices(&web()).count();
    let mut index = mk_index(mk_service(&json!({})), [slice("a", "10.0.0.1")]);
    index.take_dirty();
    // The label that comes later takes it away, and its removal brings it back.
    for value in ["other", ""] {
        index.apply(labelled(value));
        assert_eq!((count(&index), index.take_dirty()), (0, one(&web())), "{value:?}");
        index.apply(read(Kind::Slice, slice("a", "10.0.0.1")));
        assert_eq!((count(&index), index.take_dirty()), (1, one(&web())), "{value:?}");
    }
    let mut ours = Index::new(NODE, Some("mine".to_owned()));
    for (slice, expected) in [
        (read(Kind::Slice, slice("a", "10.0.0.1")), 0),
        (labelled("other"), 0),
        (labelled("mine"), 1),
    ] {
        ours.apply(slice);
        assert_eq!(count(&ours), expected);
    }
}

/// Of nodes, what matters changes seldom: their reports to the API server come often.
#[test]
fn of_other_nodes_only_addresses_matter() {
    let node = |name: &str, ready: &str, addresses: &[&str]| {
        let addresses: Vec<_> = addresses
            .iter()
            .map(|text| match text.split_once('=') {
                Some((kind, address)) => json!({"type": kind, "address": address}),
                None => json!({"type": "InternalIP", "address": text}),
            })
            .collect();
        read(
            Kind::Node,
            json!({
                "metadata": {"name": name},
                "status": {
                    "addresses": addresses,
                    "conditions": [{"type": "Ready", "status": ready}],
                },
            }),
        )
    };
    let mut index = Index::new(NODE, None);
    let known = |index: &Index| {
        index.others().flat_map(|(all, _)| all).map(ToString::to_string).collect::<Vec<_>>()
    };
    index.apply(node(NODE, "True", &["192.0.2.1", "ExternalIP=203.0.113.1"]));
    assert!(index.take_dirty().all);
    assert_eq!(index.node().map(|node| node.addresses.len()), Some(2));
    index.apply(node(
        "b",
        "True",
        &[
            "192.0.2.2",
            "2001:db8::2",
            "ExternalIP=203.0.113.2",
            "Hostname=b",
            "InternalDNS=10.0.0.1",
        ],
    ));
    let nodes_alone = Dirty { nodes: true, ..Dirty::default() };
    assert_eq!(index.take_dirty(), nodes_alone);
    assert_eq!(known(&index), ["192.0.2.2", "203.0.113.2", "2001:db8::2"]);
    // One that is not ready may still take what is handed over, and one that reports changes nothing.
    index.apply(node("b", "False", &["2001:db8::2", "192.0.2.2", "ExternalIP=203.0.113.2"]));
    assert!(index.take_dirty().is_empty());
    index.apply(node("b", "True", &["192.0.2.3"]));
    assert_eq!(index.take_dirty(), nodes_alone);
    assert_eq!(known(&index), ["192.0.2.3"]);
    // What cannot be read stays, what is not listed goes.
    index.apply(node("c", "True", &["192.0.2.4"]));
    index.take_dirty();
    let unreadable = BTreeSet::from([ObjectName::new("", "c")]);
    index.reset(Kind::Node, vec![node(NODE, "True", &["192.0.2.1"])], &unreadable);
    assert_eq!(known(&index), ["192.0.2.4"]);
    index.take_dirty();
    index.delete(Kind::Node, &ObjectName::new("", "c"));
    assert_eq!(index.take_dirty(), nodes_alone);
    assert!(known(&index).is_empty() && index.node().is_some());
    index.delete(Kind::Node, &ObjectName::new("", NODE));
    assert!(index.take_dirty().all && index.node().is_none());
}

/// Who takes flows: who has a Lease that holds, by the clock that the index is told.
#[test]
fn leases_say_who_takes_flows() {
    const RENEWED: i64 = 1_767_225_600;
    let lease = |node: &str, seconds: u32| {
        let object = json!({
            "metadata": {"namespace": "kube-system", "name": format!("redirector-{node}")},
            "spec": {
                "holderIdentity": node,
                "leaseDurationSeconds": seconds,
                "renewTime": "2026-01-01T00:00:00.000000Z",
            },
        });
        read(Kind::Lease, object)
    };
    let name = |node: &str| ObjectName::new("kube-system", &format!("redirector-{node}"));
    let mut index = Index::new(NODE, None);
    for (node, address) in [(NODE, "192.0.2.1"), ("b", "192.0.2.2"), ("c", "192.0.2.3")] {
        let status = json!({"addresses": [{"type": "InternalIP", "address": address}]});
        let object = json!({"metadata": {"name": node}, "status": status});
        index.apply(read(Kind::Node, object));
    }
    let taking = |index: &Index| {
        let taking = index.others().filter(|(_, takes_flows)| *takes_flows);
        taking.flat_map(|(all, _)| all).map(ToString::to_string).collect::<Vec<_>>()
    };
    let nodes_alone = Dirty { nodes: true, ..Dirty::default() };
    index.set_time(RENEWED + 10);
    index.take_dirty();
    assert!(taking(&index).is_empty());
    index.apply(lease("b", 60));
    index.apply(lease("c", 10));
    assert_eq!(
        (taking(&index), index.take_dirty()),
        (vec!["192.0.2.2".to_owned()], nodes_alone.clone())
    );
    // Renewed, or of a node that nobody knows: nobody's flows go another way.
    index.apply(lease("b", 100));
    assert!(index.take_dirty().is_empty());
    index.apply(lease("d", 100));
    assert_eq!(taking(&index), ["192.0.2.2"]);
    // It runs out, without a word from anyone; and the clock may be set.
    index.take_dirty();
    assert!(!index.set_time(RENEWED + 99));
    assert!(index.set_time(RENEWED + 100));
    assert_eq!((taking(&index), index.take_dirty()), (vec![], nodes_alone.clone()));
    assert!(index.set_time(RENEWED) && taking(&index).len() == 2);
    index.delete(Kind::Lease, &name("c"));
    assert_eq!(taking(&index), ["192.0.2.2"]);
    // What is refused says nothing new.
    index.take_dirty();
    index.refuse(Kind::Lease, "no".to_owned());
    assert_eq!((taking(&index).len(), index.refused(Kind::Lease)), (1, Some("no")));
    assert!(index.missing().all(|kind| kind != Kind::Lease));
    index.reset(Kind::Lease, vec![lease(NODE, 100)], &BTreeSet::new());
    assert_eq!((taking(&index), index.take_dirty()), (vec![], nodes_alone));
    assert_eq!(index.refused(Kind::Lease), None);
    assert_eq!(index.losses(), 0);
    index.delete(Kind::Lease, &name(NODE));
    assert_eq!(index.losses(), 1);
}

#[test]
fn headless_slices_are_ignored() {
    let mut headless = slice("a", "10.0.0.1");
    headless["metadata"]["labels"]["service.kubernetes.io/headless"] = json!("");
    let index = mk_index(mk_service(&json!({})), [headless]);
    assert_eq!(index.slices(&web()).count(), 0);
}

#[test]
fn a_list_forgets_what_it_lacks_but_not_what_could_not_be_read() {
    let names = ["a", "b", "c"];
    let mut index = mk_index(mk_service(&json!({})), names.map(|name| slice(name, "10.0.0.1")));
    let unreadable = BTreeSet::from([ObjectName::new("default", "b")]);
    let listed = vec![read(Kind::Slice, slice("c", "10.0.0.3"))];
    index.reset(Kind::Slice, listed, &unreadable);
    let left: Vec<_> = index.slices(&web()).map(|slice| slice.name.name.as_str()).collect();
    assert_eq!(left, ["b", "c"]);
}

#[test]
fn the_index_is_complete_when_every_kind_was_listed() {
    let mut index = Index::default();
    for kind in Kind::ALL {
        assert!(!index.is_complete());
        index.reset(kind, Vec::new(), &BTreeSet::new());
    }
    assert!(index.is_complete());
}

#[test]
fn trigger_times_count_after_the_first_list() {
    let mut object = slice("a", "10.0.0.1");
    object["metadata"]["annotations"] =
        json!({"endpoints.kubernetes.io/last-change-trigger-time": "2026-01-01T00:00:00.5Z"});
    let mut index = Index::default();
    index.reset(Kind::Slice, vec![read(Kind::Slice, object.clone())], &BTreeSet::new());
    assert!(index.take_dirty().triggers.is_empty());
    object["endpoints"] = json!([]);
    index.apply(read(Kind::Slice, object));
    assert_eq!(index.take_dirty().triggers, [1_767_225_600_500]);
}
