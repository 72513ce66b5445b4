//! Whatever changes in whatever order, what is kept is what would be made anew.

use proptest::prelude::*;
use redirector_common::Protocol;

use super::super::desired::build;
use super::super::{BackendAddress, BackendSpec, FrontendSpec, Source};
use super::*;

fn node() -> NodeAddresses {
    let ip = |text: &str| text.parse().expect("an address");
    NodeAddresses {
        chosen: vec![ip("192.0.2.10"), ip("2001:db8::10")],
        host: [ip("192.0.2.10"), ip("2001:db8::10")].into(),
        ..NodeAddresses::default()
    }
}

fn key(name: u8) -> ServiceKey {
    ServiceKey { source: Source::Static, namespace: None, name: name.to_string() }
}

/// A service put, or taken out without frontends.
fn any_change() -> impl Strategy<Value = (Rank, Service)> {
    let address = prop_oneof![Just(None), Just(Some("192.0.2.10")), Just(Some("203.0.113.1"))];
    let frontends = proptest::collection::vec((address, 80_u16..83), 0..3);
    (0_u8..4, 0_i64..3, frontends, 0_u16..3).prop_map(|(name, order, frontends, backends)| {
        let frontends = frontends.into_iter().map(|(address, port)| FrontendSpec {
            address: address.map(|text| text.parse().expect("an address")),
            port,
            protocol: Protocol::Tcp,
        });
        let service = Service {
            frontends: frontends.collect(),
            backends: (0..backends)
                .map(|port| BackendSpec::new(BackendAddress::Local, 8080 + port))
                .collect(),
            ..Service::new(key(name))
        };
        (Rank { source: 1, order }, service)
    })
}

/// In the order in which they get frontends.
fn sorted(services: &BTreeMap<ServiceKey, (Rank, Service)>) -> Vec<Service> {
    let mut all: Vec<_> = services.iter().map(|(key, (rank, it))| (*rank, key, it)).collect();
    all.sort_by_key(|(rank, key, _)| (*rank, (*key).clone()));
    all.into_iter().map(|(.., service)| service.clone()).collect()
}

fn by_frontend(mut conflicts: Vec<Conflict>) -> Vec<Conflict> {
    conflicts.sort_by_key(|conflict| (conflict.frontend, conflict.loser.clone()));
    conflicts
}

proptest! {
    #[test]
    fn what_is_kept_is_what_would_be_made(changes in proptest::collection::vec(any_change(), 0..12)) {
        let mut state = State::new(node(), []);
        let mut services = BTreeMap::new();
        for (rank, service) in changes {
            let before = state.all();
            state.take_dirty();
            if service.frontends.is_empty() {
                state.remove(&service.key);
                services.remove(&service.key);
            } else {
                state.put(rank, service.clone());
                services.insert(service.key.clone(), (rank, service));
            }
            let mut kept = state.all();
            let mut made = build(&sorted(&services), &node());
            kept.conflicts = by_frontend(kept.conflicts);
            made.conflicts = by_frontend(made.conflicts);
            prop_assert_eq!(&kept, &made);
            // Nothing but what was said to be dirty has changed.
            let dirty = state.take_dirty();
            let all = before.services.keys().chain(kept.services.keys());
            for key in all.filter(|key| !dirty.contains(&key.0)) {
                prop_assert_eq!(before.services.get(key), kept.services.get(key));
            }
        }
    }
}

#[test]
fn a_change_concerns_those_who_claim_the_same() {
    let service = |name, port| {
        let frontend = FrontendSpec { address: None, port, protocol: Protocol::Tcp };
        Service { frontends: vec![frontend], ..Service::new(key(name)) }
    };
    let rank = |order| Rank { source: 1, order };
    let mut state = State::new(
        node(),
        [(rank(1), service(1, 80)), (rank(2), service(2, 80)), (rank(3), service(3, 81))],
    );
    assert_eq!(state.conflicts().len(), 2);
    state.put(rank(1), service(1, 82));
    assert_eq!(state.take_dirty(), BTreeSet::from([key(1), key(2)]));
    assert_eq!(state.conflicts(), []);
    state.put(rank(3), Service { affinity_seconds: Some(1), ..service(3, 81) });
    assert_eq!(state.take_dirty(), BTreeSet::from([key(3)]));
    state.put(rank(3), Service { affinity_seconds: Some(1), ..service(3, 81) });
    assert!(state.take_dirty().is_empty());
}
