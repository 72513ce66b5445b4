use proptest::prelude::*;

use super::*;

fn any_service(name: usize) -> impl Strategy<Value = Service> {
    let address = prop_oneof![
        Just(None),
        Just(Some("192.0.2.10")),
        Just(Some("203.0.113.1")),
        Just(Some("2001:db8::10")),
    ];
    let backends = proptest::collection::vec(
        (prop_oneof![Just("local"), Just("10.0.0.5"), Just("2001:db8::5")], 1_u16..4, 0_u16..3),
        0..4,
    );
    (proptest::collection::vec((address, 80_u16..83), 1..4), backends).prop_map(
        move |(frontends, backends)| {
            let backends: Vec<_> =
                backends.into_iter().map(|(a, port, weight)| weighted(a, port, weight)).collect();
            mk_service(&name.to_string(), &frontends, &backends)
        },
    )
}

fn any_services() -> impl Strategy<Value = Vec<Service>> {
    (any_service(0), any_service(1), any_service(2)).prop_map(|(a, b, c)| vec![a, b, c])
}

proptest! {
    #[test]
    fn every_frontend_has_one_service(services in any_services()) {
        let desired = build(&services, &node());
        let mut seen = BTreeSet::new();
        for service in desired.services.values() {
            for frontend in service.frontends.keys() {
                prop_assert!(seen.insert(*frontend), "{frontend:?} twice");
                prop_assert!(!service.conflicts.contains(frontend));
            }
        }
        for conflict in &desired.conflicts {
            prop_assert!(seen.contains(&conflict.frontend));
        }
    }

    #[test]
    fn tables_name_takers_alone(services in any_services()) {
        for service in build(&services, &node()).services.values() {
            for index in service.table(Origin::Outside, Density::FULL) {
                prop_assert!(service.backends[usize::from(index)].takes_new_flows);
            }
            for index in service.table(Origin::Node, Density::FULL) {
                prop_assert!(service.backends[usize::from(index)].takes_node_flows);
            }
        }
    }

    #[test]
    fn services_without_conflicts_do_not_depend_on_their_order(services in any_services()) {
        let mut services = services;
        for (apart, service) in (0..).step_by(10).zip(&mut services) {
            for frontend in &mut service.frontends {
                frontend.port += apart;
            }
        }
        let forward = build(&services, &node());
        prop_assert_eq!(&forward.conflicts, &[]);
        let reversed: Vec<_> = services.into_iter().rev().collect();
        prop_assert_eq!(forward, build(&reversed, &node()));
    }
}
