//! What nodes hand over to each other.

use super::*;

/// [`node`], one of three.
fn one_of_three() -> NodeAddresses {
    let nodes = ["192.0.2.10", "192.0.2.20", "192.0.2.30", "2001:db8::10", "2001:db8::20"];
    NodeAddresses { nodes: nodes.map(|text| (ip(text), Peer::known())).into(), ..node() }
}

fn direct(frontends: &[(Option<&str>, u16)], backends: &[BackendSpec]) -> Service {
    Service { forwarding: Forwarding::Dsr, ..mk_service("web", frontends, backends) }
}

fn only(service: Service, family: Family) -> Option<DesiredService> {
    let key = (service.key.clone(), family);
    build(&[service], &one_of_three()).services.remove(&key)
}

/// `address:port -> local address` of every frontend on another node's address.
fn foreign(service: &DesiredService) -> Vec<String> {
    let rows = service.foreign.iter();
    rows.map(|(key, local)| format!("{}:{} at {local}", key.address, key.port)).collect()
}

#[test]
fn a_backend_here_is_reached_at_every_nodes_address() {
    let backends = [backend("local", 8080), backend("10.0.0.5", 80)];
    let service = only(direct(&[(None, 80)], &backends), Family::V4).unwrap();
    assert_eq!(frontends(&service).len(), 2);
    assert_eq!(foreign(&service), ["192.0.2.20:80 at 192.0.2.10", "192.0.2.30:80 at 192.0.2.10"]);
    let service = only(direct(&[(None, 80)], &backends), Family::V6).unwrap();
    assert_eq!(foreign(&service), ["2001:db8::20:80 at 2001:db8::10"]);
    // In a network of its own, and of one family alone.
    let service = direct(&[(None, 80)], &[backend("10.1.0.5", 8080)]);
    assert_eq!(foreign(&only(service.clone(), Family::V4).unwrap()).len(), 2);
    assert!(foreign(&only(service, Family::V6).unwrap()).is_empty());
}

#[test]
fn without_a_backend_here_nothing_is_handed_over() {
    let service = only(direct(&[(None, 80)], &[backend("10.0.0.5", 80)]), Family::V4).unwrap();
    assert!(service.foreign.is_empty());
    assert!(service.table(Origin::Peer, Density::FULL).is_empty());
    let translated = mk_service("web", &[(None, 80)], &[backend("local", 80)]);
    let service = only(translated, Family::V4).unwrap();
    assert!(service.foreign.is_empty() && service.unlisted.is_empty());
    assert!(service.table(Origin::Peer, Density::FULL).is_empty());
}

/// Also those that topology or another node's choice keep clients of this node from.
#[test]
fn peers_are_given_backends_of_this_host_alone() {
    let avoided = BackendSpec { avoided: true, ..backend("10.1.0.5", 80) };
    let backends = [backend("local", 8080), backend("10.0.0.5", 80), avoided];
    let service = only(direct(&[(None, 80)], &backends), Family::V4).unwrap();
    let taken: Vec<bool> =
        service.backends.iter().map(|backend| backend.takes_from(Origin::Peer)).collect();
    assert_eq!(taken, [true, false, true]);
    assert!(!service.backends[2].takes_from(Origin::Outside));
}

#[test]
fn a_named_address_of_another_node_is_that_nodes() {
    let named = |backends: &[BackendSpec]| direct(&[(Some("192.0.2.20"), 80)], backends);
    let service = only(named(&[backend("local", 8080)]), Family::V4).unwrap();
    assert!(service.frontends.is_empty());
    assert_eq!(foreign(&service), ["192.0.2.20:80 at 192.0.2.10"]);
    assert_eq!(only(named(&[backend("10.0.0.5", 8080)]), Family::V4), None);
    // An address that no node has is every node's.
    let service = direct(&[(Some("203.0.113.1"), 80)], &[backend("local", 8080)]);
    let service = only(service, Family::V4).unwrap();
    assert_eq!((frontends(&service).len(), service.foreign.len()), (1, 0));
}

#[test]
fn addresses_that_others_do_not_know_are_told_apart() {
    let service = only(direct(&[(None, 80)], &[]), Family::V4).unwrap();
    assert_eq!(service.unlisted, BTreeSet::from([ip("192.0.2.11").into()]));
    let service = only(direct(&[(Some("203.0.113.1"), 80)], &[]), Family::V4).unwrap();
    assert!(service.unlisted.is_empty());
}

#[test]
fn nodes_have_the_addresses_that_only_frontends_seem_to_have() {
    let service = mk_service("web", &[(Some("192.0.2.20"), 80), (Some("203.0.113.1"), 80)], &[]);
    let desired = build(&[service], &one_of_three());
    assert_eq!(desired.vips, BTreeSet::from([ip("203.0.113.1").into()]));
    let peers =
        ["192.0.2.20", "192.0.2.30", "2001:db8::20"].map(|text| (ip(text).into(), Peer::known()));
    assert_eq!(desired.peers, BTreeMap::from(peers));
}

#[test]
fn the_first_to_claim_a_port_has_it_on_other_nodes_too() {
    let first = direct(&[(None, 80)], &[backend("local", 8080)]);
    let second = Service { key: key("second"), ..first.clone() };
    let desired = build(&[first, second], &one_of_three());
    let services: Vec<&DesiredService> = desired
        .services
        .iter()
        .filter(|((_, family), _)| *family == Family::V4)
        .map(|it| it.1)
        .collect();
    // By name.
    assert_eq!(services.iter().map(|it| it.foreign.len()).collect::<Vec<_>>(), [0, 2]);
    // Of other nodes' addresses they tell themselves.
    assert!(desired.conflicts.iter().all(|it| node().is_own(it.frontend.address.into())));
}
