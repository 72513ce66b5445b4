use super::*;

#[test]
fn frontend_without_address_stands_for_every_chosen_address() {
    let desired = build(&[mk_service("web", &[(None, 80)], &[backend("local", 8080)])], &node());
    let rows: Vec<_> = desired
        .services
        .iter()
        .map(|((_, family), service)| (*family, frontends(service)))
        .collect();
    assert_eq!(
        rows,
        [
            (
                Family::V4,
                vec![
                    "192.0.2.10:80 at 192.0.2.10".to_owned(),
                    "192.0.2.11:80 at 192.0.2.11".to_owned(),
                ]
            ),
            (Family::V6, vec!["2001:db8::10:80 at 2001:db8::10".to_owned()]),
        ]
    );
    assert_eq!(desired.conflicts, []);
}

#[test]
fn local_address_is_the_frontends_own_or_the_primary() {
    let rows = [
        // One of the chosen, another of the host, and foreign ones.
        ("192.0.2.11", "192.0.2.11:80 at 192.0.2.11"),
        ("10.0.0.1", "10.0.0.1:80 at 10.0.0.1"),
        ("203.0.113.1", "203.0.113.1:80 at 192.0.2.10"),
        ("2001:db8::99", "2001:db8::99:80 at 2001:db8::10"),
    ];
    for (address, wanted) in rows {
        let service = mk_service("web", &[(Some(address), 80)], &[backend("local", 8080)]);
        let service = only(service, Family::of(ip(address)));
        assert_eq!(frontends(&service), [wanted]);
    }
}

#[test]
fn local_address_without_a_primary_is_the_frontend() {
    let node = NodeAddresses {
        chosen: vec![ip("fe80::1")],
        host: [ip("fe80::1")].into(),
        ..NodeAddresses::default()
    };
    let service = mk_service("web", &[(Some("2001:db8::99"), 80)], &[]);
    let desired = build(&[service], &node);
    assert_eq!(
        frontends(&desired.services[&(key("web"), Family::V6)]),
        ["2001:db8::99:80 at 2001:db8::99"]
    );
}

#[test]
fn a_family_without_frontends_has_no_entry() {
    let service = mk_service("web", &[(Some("192.0.2.10"), 80)], &[backend("2001:db8::5", 80)]);
    let desired = build(&[service], &node());
    assert_eq!(desired.services.keys().collect::<Vec<_>>(), [&(key("web"), Family::V4)]);
    assert_eq!(desired.services[&(key("web"), Family::V4)].backends, []);
}

#[test]
fn a_node_without_addresses_publishes_nothing() {
    let service = mk_service("web", &[(None, 80)], &[backend("local", 8080)]);
    assert_eq!(build(&[service], &NodeAddresses::default()), Desired::default());
}

#[test]
fn a_claimed_frontend_stays_with_the_earlier_service() {
    let first = mk_service("first", &[(Some("192.0.2.11"), 80)], &[]);
    let second = mk_service("second", &[(None, 80)], &[]);
    let third = mk_service("third", &[(Some("192.0.2.11"), 80)], &[]);
    let desired = build(&[first, second, third], &node());
    let frontend = FrontendKey::new(ip("192.0.2.11").into(), Port::new(80), Protocol::Tcp);

    let entry = |name: &str| &desired.services[&(key(name), Family::V4)];
    assert_eq!(frontends(entry("first")), ["192.0.2.11:80 at 192.0.2.11"]);
    assert_eq!(frontends(entry("second")), ["192.0.2.10:80 at 192.0.2.10"]);
    assert_eq!(entry("second").conflicts, [frontend].into());
    // All in conflict: the service still exists, to be shown.
    assert_eq!(frontends(entry("third")), [""; 0]);
    assert_eq!(entry("third").conflicts, [frontend].into());
    let loser = |name| Conflict { frontend, winner: key("first"), loser: key(name) };
    assert_eq!(desired.conflicts, [loser("second"), loser("third")]);
}

#[test]
fn protocols_and_ports_do_not_conflict() {
    let tcp = mk_service("tcp", &[(None, 53), (None, 54)], &[]);
    let mut udp = mk_service("udp", &[(None, 53)], &[]);
    udp.frontends[0].protocol = Protocol::Udp;
    assert_eq!(build(&[tcp, udp], &node()).conflicts, []);
}

#[test]
fn of_services_with_one_key_the_first_counts() {
    let first = mk_service("web", &[(Some("192.0.2.11"), 80)], &[]);
    let second = mk_service("web", &[(Some("192.0.2.11"), 81)], &[]);
    let desired = build(&[first, second], &node());
    assert_eq!(
        frontends(&desired.services[&(key("web"), Family::V4)]),
        ["192.0.2.11:80 at 192.0.2.11"]
    );
}

#[test]
fn source_ranges_are_divided_by_family() {
    let both = |ranges: &[&str]| {
        let service = Service {
            source_ranges: ranges.iter().map(|range| range.parse().unwrap()).collect(),
            ..mk_service("web", &[(None, 80)], &[backend("local", 8080)])
        };
        [Family::V4, Family::V6].map(|family| {
            let ranges = only(service.clone(), family).source_ranges?;
            Some(ranges.iter().map(ToString::to_string).collect::<Vec<_>>())
        })
    };
    let some = |ranges: &[&str]| Some(ranges.iter().map(|&range| range.to_owned()).collect());
    assert_eq!(both(&[]), [None, None]);
    assert_eq!(both(&["10.0.0.0/8", "::/0"]), [some(&["10.0.0.0/8"]), some(&["::/0"])]);
    assert_eq!(both(&["10.0.0.0/8"]), [some(&["10.0.0.0/8"]), some(&[])]);
}

/// Those without an address, each for the first service that claims it; no conflict is told twice.
#[test]
fn localhost_stands_for_frontends_without_an_address() {
    let services = [
        mk_service("web", &[(None, 80), (Some("192.0.2.9"), 81)], &[backend("local", 8080)]),
        mk_service("late", &[(None, 80), (None, 82)], &[backend("local", 8080)]),
    ];
    let desired = build(&services, &node());
    let ports = |name: &str| -> Vec<(Family, u16)> {
        let services = desired.services.iter().filter(|((key, _), _)| key.name == name);
        let keys = services.flat_map(|(_, service)| &service.localhost);
        keys.map(|key| {
            assert!(key.is_localhost());
            (key.address.family(), key.port.number())
        })
        .collect()
    };
    assert_eq!(ports("web"), [(Family::V4, 80), (Family::V6, 80)]);
    assert_eq!(ports("late"), [(Family::V4, 82), (Family::V6, 82)]);
    assert!(desired.conflicts.iter().all(|conflict| !conflict.frontend.is_localhost()));
}

#[test]
fn a_family_that_a_service_is_not_for_is_left_alone() {
    let both = mk_service("web", &[(None, 80), (Some("203.0.113.1"), 81)], &[backend("local", 1)]);
    for family in [Family::V4, Family::V6] {
        let service = Service { only: Some(family), ..both.clone() };
        let desired = build(&[service], &node());
        let families: Vec<Family> = desired.services.keys().map(|(_, family)| *family).collect();
        assert_eq!(families, [family]);
    }
}
