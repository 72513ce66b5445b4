use super::*;

#[test]
fn backends_are_local_where_their_address_is_the_hosts() {
    let specs = [
        backend("local", 8080),
        backend("10.0.0.1", 8080),
        backend("10.0.0.5", 8080),
        backend("2001:db8::5", 8080),
    ];
    let service = mk_service("web", &[(None, 80)], &specs);
    let of = |family| -> Vec<Backend> {
        only(service.clone(), family).backends.iter().map(|backend| backend.backend).collect()
    };
    let port = Port::new(8080);
    assert_eq!(
        of(Family::V4),
        [
            Backend::local(port),
            Backend::local_at(ip("10.0.0.1").into(), port),
            Backend::remote(ip("10.0.0.5").into(), port),
        ]
    );
    assert_eq!(
        of(Family::V6),
        [Backend::local(port), Backend::remote(ip("2001:db8::5").into(), port)]
    );
}

/// Pods of this node: where routes lead to them, or where Kubernetes says so and routes say
/// nothing; not behind an interface that clients come by.
#[test]
fn backends_on_this_node_are_routed_to() {
    let here = |address| BackendSpec { here: true, ..backend(address, 8080) };
    let specs =
        [backend("10.1.0.5", 8080), here("10.2.0.5"), here("10.1.9.5"), backend("10.1.9.6", 8080)];
    let service = only(mk_service("web", &[(None, 80)], &specs), Family::V4);
    let routed: Vec<_> = service.backends.iter().map(|b| b.backend.is_routed()).collect();
    assert_eq!(routed, [true, true, false, false]);
    assert!(service.backends.iter().all(|backend| !backend.backend.is_own()));
}

/// Kube-proxy has rules for what Kubernetes calls node ports, and none for published ports.
#[test]
fn connections_are_not_steered_past_kube_proxy() {
    for (has_kube_proxy, source, steers) in [
        (false, Source::NodePort, true),
        (true, Source::NodePort, false),
        (true, Source::LoadBalancer, false),
        (true, Source::Publish, true),
        (true, Source::Annotation, true),
    ] {
        let mut service = mk_service("web", &[(None, 80)], &[backend("local", 80)]);
        service.key.source = source;
        let node = NodeAddresses { has_kube_proxy, ..node() };
        let desired = build(&[service], &node);
        assert!(desired.services.values().all(|service| service.steers == steers), "{source:?}");
    }
}

#[test]
fn a_backend_that_is_listed_twice_counts_once() {
    let specs = [weighted("10.0.0.5", 80, 2), backend("10.0.0.5", 80), backend("10.0.0.5", 81)];
    let service = only(mk_service("web", &[(None, 80)], &specs), Family::V4);
    let rows: Vec<_> = service.backends.iter().map(|b| (b.backend.port, b.weight)).collect();
    assert_eq!(rows, [(Port::new(80), 2), (Port::new(81), 1)]);
}

/// An address of the host, and one that is not.
const HERE: &str = "10.0.0.1";
const THERE: &str = "10.0.0.5";

/// Name, policy and backends; who takes new flows; whether the service is silent.
type TakersRow = (&'static str, TrafficPolicy, Vec<BackendSpec>, &'static [&'static str], bool);

#[test]
fn takers_of_new_flows() {
    let (cluster, local) = (TrafficPolicy::Cluster, TrafficPolicy::Local);
    let avoided = |address| BackendSpec { avoided: true, ..backend(address, 80) };
    let rows: [TakersRow; 15] = [
        ("none", cluster, vec![], &[], false),
        ("none, Local", local, vec![], &[], false),
        ("both", cluster, vec![backend(HERE, 80), backend(THERE, 80)], &[HERE, THERE], false),
        ("Local keeps here", local, vec![backend(HERE, 80), backend(THERE, 80)], &[HERE], false),
        ("topology", cluster, vec![avoided(HERE), backend(THERE, 80)], &[THERE], false),
        ("Local knows none", local, vec![avoided(HERE), backend(THERE, 80)], &[HERE], false),
        ("Local, only there", local, vec![backend(THERE, 80)], &[], true),
        ("Cluster, only there", cluster, vec![backend(THERE, 80)], &[THERE], false),
        (
            "terminating gives way",
            cluster,
            vec![terminating(HERE, 80), backend(THERE, 80)],
            &[THERE],
            false,
        ),
        (
            "terminating is better than none",
            cluster,
            vec![terminating(HERE, 80), weighted(THERE, 80, 0)],
            &[HERE],
            false,
        ),
        (
            "Local prefers terminating here to active there",
            local,
            vec![terminating(HERE, 80), backend(THERE, 80)],
            &[HERE],
            false,
        ),
        ("Local, terminating there", local, vec![terminating(THERE, 80)], &[], true),
        ("weight 0", cluster, vec![weighted(THERE, 80, 0)], &[], false),
        ("Local, weight 0 there", local, vec![weighted(THERE, 80, 0)], &[], false),
        (
            "Local, weight 0 here, active there",
            local,
            vec![weighted(HERE, 80, 0), backend(THERE, 80)],
            &[],
            true,
        ),
    ];
    for (name, policy, specs, wanted, silent) in rows {
        let mut service = mk_service("web", &[(None, 80)], &specs);
        service.policy = policy;
        let service = only(service, Family::V4);
        let wanted: Vec<_> = wanted.iter().map(|address| BackendAddress::At(ip(address))).collect();
        assert_eq!(takers(&service), wanted, "{name}");
        assert_eq!(service.silent, silent, "{name}");
        assert_eq!(service.backends.len(), specs.len(), "{name}: all are listed");
        assert_eq!(
            service.table(Origin::Outside, Density::FULL).is_empty(),
            wanted.is_empty(),
            "{name}"
        );
        let mut anywhere = mk_service("web", &[(None, 80)], &specs);
        anywhere.policy = cluster;
        let anywhere = only(anywhere, Family::V4);
        let node = (
            service.table(Origin::Node, Density::FULL),
            anywhere.table(Origin::Outside, Density::FULL),
        );
        assert_eq!(node.0, node.1, "{name}: clients on the node know no policy");
    }
}

#[test]
fn policy_local_takes_the_local_program() {
    let mut service =
        mk_service("web", &[(None, 80)], &[backend("10.0.0.5", 80), backend("local", 8080)]);
    service.policy = TrafficPolicy::Local;
    assert_eq!(takers(&only(service, Family::V6)), [BackendAddress::Local]);
}

#[test]
fn table_names_takers_by_their_position() {
    let specs = [weighted("10.0.0.4", 80, 0), weighted("10.0.0.5", 80, 3), backend("local", 80)];
    let service = only(mk_service("web", &[(None, 80)], &specs), Family::V4);
    let table = service.table(Origin::Outside, Density::FULL);
    assert_eq!(table.len(), 251);
    assert_eq!(service.table_size(Origin::Outside, Density::FULL), 251);
    let count = |index| table.iter().filter(|entry| **entry == index).count();
    assert_eq!((count(0), count(1), count(2)), (0, 188, 63));
}

#[test]
fn settings_are_carried_over() {
    let mut service = mk_service("web", &[(None, 80)], &[]);
    service.affinity_seconds = Some(60);
    service.forwarding = Forwarding::Dsr;
    service.policy = TrafficPolicy::Local;
    let service = only(service, Family::V4);
    assert_eq!(service.affinity_seconds, Some(60));
    assert_eq!(service.forwarding, Forwarding::Dsr);
    assert_eq!(service.policy, TrafficPolicy::Local);
}
