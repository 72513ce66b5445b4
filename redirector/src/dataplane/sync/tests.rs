//! Any state to any other, over tables that check after each single write that every way from a
//! frontend to a backend is whole.

use std::collections::BTreeSet;
use std::net::IpAddr;

use proptest::prelude::*;
use redirector_common::{Family, Port, PortFlags, Protocol};

use self::node::{Node, addresses, service, services};
use self::world::admits;
use super::*;
use crate::dataplane::info::Info;
use crate::model::Service as ModelService;
use crate::model::desired::{self, Desired};

mod node;
mod world;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_state_is_reached_from_any_other(states in prop::collection::vec(services(), 1..5)) {
        let mut node = Node::new();
        for state in &states {
            node.apply(state);
            let mut fresh = Node::new();
            fresh.apply(state);
            prop_assert_eq!(node.essence(), fresh.essence());
        }
    }

    #[test]
    fn a_restart_writes_nothing(state in services()) {
        let mut node = Node::new();
        node.apply(&state);
        let before = node.actual.clone();
        node.restart();
        prop_assert!(node.apply(&state).is_none());
        prop_assert_eq!(&node.actual, &before);
    }
}

#[test]
fn what_is_wrong_in_a_table_is_put_right() {
    let mut node = Node::new();
    let frontends = BTreeSet::from([(80, true)]);
    let state = [service(1, &frontends, &[(2, 8080, 1), (3, 8080, 1), (4, 8080, 1)], &[])];
    node.apply(&state);
    let before = node.essence();
    let line = *node.world().lines.keys().next().expect("a table");
    node.world().lines.get_mut(&line).expect("the line").entries.rotate_left(1);
    node.restart();
    let writes = node.apply(&state);
    assert!(!writes.is_none());
    assert_eq!(node.essence(), before);
}

#[test]
fn numbers_stay_when_others_go() {
    let front = |port| BTreeSet::from([(port, true)]);
    let mut node = Node::new();
    let first = service(1, &front(80), &[(2, 8080, 1)], &[]);
    let second = service(2, &front(81), &[(3, 8080, 1), (4, 8080, 1)], &[]);
    node.apply(&[first, second.clone()]);
    let before = node.actual.frontends.clone();
    node.restart();
    node.apply(&[second]);
    assert!(!node.actual.frontends.is_empty());
    for (key, frontend) in &node.actual.frontends {
        assert_eq!(before.get(key), Some(frontend));
    }
}

#[test]
fn ports_that_flows_use_are_kept() {
    let mut node = Node::new();
    node.apply(&[service(1, &BTreeSet::from([(80, true)]), &[(2, 8080, 1)], &[])]);
    let encoded = node.encode(&Desired::default()).expect("fits");
    let contents = encoded.contents.clone();
    node.tables.sync(&mut node.actual, encoded).expect("synced");
    let port = Port::new(80);
    let mut in_use = Ports::default();
    in_use.add(Protocol::Tcp, port, PortFlags::FRONTEND);
    let (tables, actual) = (&mut node.tables, &mut node.actual);
    tables.release_ports(actual, &contents.ports, &in_use).expect("released");
    assert_eq!(actual.ports.get(Protocol::Tcp, port), PortFlags::FRONTEND);
    let none = Ports::default();
    tables.release_ports(actual, &contents.ports, &none).expect("released");
    assert_eq!(actual.ports.get(Protocol::Tcp, port), PortFlags(0));
    assert_eq!(*actual, contents);
}

#[test]
fn what_does_not_fit_is_named() {
    let mut node = Node::new();
    let backends: Vec<_> = (0..70).map(|port| (2, 8000 + port, 1)).collect();
    let state = [service(1, &BTreeSet::from([(80, true)]), &backends, &[])];
    let error =
        node.encode(&desired::build(&state, &addresses())).expect_err("more than 64 backends");
    assert!(error.to_string().contains("BACKENDS is full"), "{error}");
}

#[test]
fn every_range_belongs_to_its_family_s_service() {
    let mut node = Node::new();
    let ranges = ["10.1.0.0/16", "10.2.0.0/16"].map(|range| range.parse().expect("a network"));
    node.apply(&[service(1, &BTreeSet::from([(80, true)]), &[(0, 8080, 1)], &ranges)]);
    let contents = &node.actual;
    assert_eq!(contents.ranges.len(), 2);
    for (key, frontend) in &contents.frontends {
        let client = |text: &str| text.parse::<IpAddr>().expect("an address").into();
        let admitted = ["10.1.2.3", "10.3.0.1", "2001:db8::7"]
            .map(|text| admits(contents, frontend.service, client(text)));
        // No range is of IPv6: nobody comes that way.
        assert_eq!(admitted, [key.address.family() == Family::V4, false, false], "{key:?}");
    }
}

/// Services of ten backends each.
fn tens(services: u8) -> Vec<ModelService> {
    let backends: Vec<_> = (0..10).map(|port| (2, 8000 + port, 1)).collect();
    (0..services)
        .map(|name| service(name, &BTreeSet::from([(100 + u16::from(name), true)]), &backends, &[]))
        .collect()
}

#[test]
fn tables_are_as_dense_as_there_is_room_for() {
    let mut node = Node::new();
    node.capacity.lines = 400;
    let mut sizes = |services| {
        node.apply(&tens(services));
        let crowded = node.cursors.is_crowded();
        if crowded {
            node.apply(&tens(services));
        }
        assert!(!node.cursors.is_crowded());
        let sizes = node.actual.services.values().map(|service| service.table_size);
        let mut sizes: Vec<_> = sizes.filter(|size| *size > 0).collect();
        sizes.dedup();
        (sizes, crowded)
    };
    // 350 of the 400 lines may be used: 5 × 64, 21 × 16, 87 × 4.
    assert_eq!(sizes(5), (vec![1021], false));
    assert_eq!(sizes(6), (vec![251], true));
    assert_eq!(sizes(21), (vec![251], false));
    assert_eq!(sizes(22), (vec![61], true));
    assert_eq!(sizes(31), (vec![61], false));
    assert_eq!(sizes(2), (vec![1021], false));
}

#[test]
fn affinity_groups_keep_their_numbers() {
    let mut node = Node::new();
    let with = |name, group: Option<&str>| ModelService {
        affinity_seconds: Some(60),
        affinity_group: group.map(str::to_owned),
        ..service(name, &BTreeSet::from([(80 + u16::from(name), true)]), &[(2, 8080, 1)], &[])
    };
    node.apply(&[with(1, Some("a")), with(2, Some("a")), with(3, None), with(4, None)]);
    let groups = |node: &Node| -> Vec<u32> {
        let front = |name: u16| {
            let mut all = node.actual.frontends.iter();
            let found = all.find(|(key, _)| key.port == Port::new(80 + name));
            found.map_or(0, |(_, it)| node.actual.services[&it.service].affinity_group)
        };
        (1..=4).map(front).collect()
    };
    let before = groups(&node);
    assert!(before.iter().all(|group| *group != 0), "{before:?}");
    assert_eq!(before[0], before[1]);
    assert_eq!(before[1..].iter().collect::<BTreeSet<_>>().len(), 3);
    node.restart();
    // The service that had the number first may go.
    node.apply(&[with(2, Some("a")), with(3, None), with(4, None)]);
    assert_eq!(groups(&node), [0, before[1], before[2], before[3]]);
    for (key, info) in &node.actual.infos {
        let info = Info::decode(info).expect("legible");
        let group = node.actual.services[key].affinity_group;
        let twin = node.actual.infos.iter().find(|(id, other)| {
            *id != key && Info::decode(other).is_ok_and(|other| other.key == info.key)
        });
        let (id, _) = twin.expect("both families");
        assert_eq!(node.actual.services[id].affinity_group, group, "families share");
    }
}
