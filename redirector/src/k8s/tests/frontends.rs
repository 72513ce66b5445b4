//! Services: what clients may hit, and with which policy.

use redirector_common::Family;
use serde_json::{Value, json};

use crate::k8s::convert::{Converted, NodePortAddresses, Rules};
use crate::k8s::mk::{NODE, merge, mk_index, mk_service, mk_slice, read, web};
use crate::k8s::record::Kind;
use crate::model::{Forwarding, Service, Source, TrafficPolicy};

fn rules() -> Rules {
    Rules { node_name: NODE.to_owned(), ..Rules::default() }
}

fn convert(rules: &Rules, service: Value) -> Converted {
    let mut index = mk_index(service, []);
    index.apply(read(
        Kind::Node,
        json!({"metadata": {"name": NODE}, "status": {"addresses": [
            {"type": "Hostname", "address": "here"},
            {"type": "ExternalIP", "address": "203.0.113.1"},
            {"type": "InternalIP", "address": "192.0.2.1"},
            {"type": "InternalIP", "address": "192.0.2.2"},
            {"type": "ExternalIP", "address": "2001:db8::1"},
        ]}}),
    ));
    rules.convert_service(&index, &web())
}

/// `source name address:port/protocol`.
fn shown(converted: &Converted) -> Vec<String> {
    let show = |service: &Service| {
        let key = service.key.clone();
        let source = format!("{:?}", key.source).to_lowercase();
        service
            .frontends
            .iter()
            .map(|frontend| {
                let address =
                    frontend.address.map_or_else(|| "*".to_owned(), |address| address.to_string());
                let protocol = frontend.protocol.name().to_lowercase();
                format!("{source} {} {address}:{}/{protocol}", key.name, frontend.port)
            })
            .collect::<Vec<_>>()
    };
    converted.services.iter().flat_map(|service| show(service)).collect()
}

fn frontends(spec: &Value) -> Vec<String> {
    shown(&convert(&rules(), mk_service(spec)))
}

fn ip_mode(mode: &str) -> Value {
    json!({"loadBalancer": {"ingress": [
        {"ip": "203.0.113.9", "ipMode": mode},
        {"hostname": "lb.example"},
    ]}})
}

#[test]
fn types() {
    let node_port = vec!["nodeport web *:30080/tcp".to_owned()];
    assert_eq!(frontends(&json!({})), node_port);
    assert_eq!(frontends(&json!({"type": "LoadBalancer"})), node_port);
    for unreachable in [
        json!({"type": "ClusterIP"}),
        json!({"type": null}),
        json!({"type": "ExternalName", "externalName": "example.com"}),
        json!({"clusterIP": "None"}),
        json!({"clusterIP": ""}),
        json!({"clusterIP": null}),
        json!({"ports": []}),
        json!({"ports": [{"port": 80}]}),
        json!({"ports": [{"port": 80, "nodePort": 0}]}),
        json!({"ports": [{"port": 80, "nodePort": 30080, "protocol": "SCTP"}]}),
    ] {
        assert_eq!(frontends(&unreachable), Vec::<String>::new(), "{unreachable}");
    }
    let mut headless = mk_service(&json!({}));
    merge(&mut headless["metadata"], &json!({"labels": {"service.kubernetes.io/headless": ""}}));
    assert_eq!(shown(&convert(&rules(), headless)), Vec::<String>::new());
}

/// A Service may become any other, and is then what one that was made so is.
#[test]
fn type_changes() {
    let mut headless = mk_service(&json!({"clusterIP": "None"}));
    merge(&mut headless["spec"], &json!({"type": "ClusterIP"}));
    let mut balanced = mk_service(&json!({"type": "LoadBalancer"}));
    balanced["status"] = ip_mode("VIP");
    let types = [
        mk_service(&json!({"type": "ExternalName", "externalName": "example.com"})),
        headless,
        mk_service(&json!({"type": "ClusterIP", "externalIPs": ["203.0.113.7"]})),
        mk_service(&json!({})),
        balanced,
    ];
    let endpoints = json!([{"addresses": ["10.0.0.1"]}]);
    for from in &types {
        for to in &types {
            let mut index = mk_index(from.clone(), [mk_slice("a", &endpoints)]);
            index.apply(read(Kind::Service, to.clone()));
            let made = mk_index(to.clone(), [mk_slice("a", &endpoints)]);
            let rules = rules();
            let (changed, made) =
                (rules.convert_service(&index, &web()), rules.convert_service(&made, &web()));
            assert_eq!(changed, made, "from {from} to {to}");
        }
    }
}

#[test]
fn one_port_for_two_protocols() {
    let spec = json!({"ports": [
        {"name": "dns", "port": 53, "nodePort": 30053, "protocol": "UDP"},
        {"name": "dns-tcp", "port": 53, "nodePort": 30053, "protocol": "TCP"},
    ]});
    assert_eq!(
        frontends(&spec),
        ["nodeport web:dns *:30053/udp", "nodeport web:dns-tcp *:30053/tcp"]
    );
}

#[test]
fn external_addresses_of_every_type() {
    let spec = json!({"type": "ClusterIP", "externalIPs": [
        "203.0.113.7", "2001:db8::7", "127.0.0.1", "224.0.0.1", "nonsense", "203.0.113.7",
    ]});
    let wanted = ["externalip web 203.0.113.7:80/tcp", "externalip web 2001:db8::7:80/tcp"];
    assert_eq!(frontends(&spec), wanted);
    let rules = Rules {
        external_ip_networks: vec!["203.0.113.0/24".parse().expect("a network")],
        ..rules()
    };
    let converted = convert(&rules, mk_service(&spec));
    assert_eq!(shown(&converted), wanted[..1]);
    let wanted = ["\"127.0.0.1\"", "\"224.0.0.1\"", "\"nonsense\"", "2001:db8::7 is in none"];
    assert_eq!(converted.problems.len(), wanted.len());
    for (problem, wanted) in converted.problems.iter().zip(wanted) {
        assert!(problem.contains(wanted), "{problem}: not about {wanted}");
    }
}

#[test]
fn load_balancers() {
    let mut service = mk_service(&json!({
        "type": "LoadBalancer",
        "allocateLoadBalancerNodePorts": false,
        "ports": [{"port": 80}],
        "loadBalancerSourceRanges": [" 198.51.100.0/24 ", "10.0.0.1/8"],
        "externalIPs": ["203.0.113.9"],
    }));
    service["status"] = ip_mode("VIP");
    let converted = convert(&rules(), service.clone());
    assert_eq!(shown(&converted), ["loadbalancer web 203.0.113.9:80/tcp"]);
    let ranges: Vec<String> =
        converted.services[0].source_ranges.iter().map(ToString::to_string).collect();
    assert_eq!(ranges, ["198.51.100.0/24", "10.0.0.0/8", "::/0"]);

    service["status"] = ip_mode("Proxy");
    assert_eq!(shown(&convert(&rules(), service)), ["externalip web 203.0.113.9:80/tcp"]);
}

#[test]
fn source_ranges_hold_for_load_balancers_only() {
    let mut service = mk_service(&json!({
        "type": "LoadBalancer",
        "loadBalancerSourceRanges": ["198.51.100.0/24"],
        "externalIPs": ["203.0.113.7"],
    }));
    service["status"] = ip_mode("VIP");
    for service in convert(&rules(), service).services {
        let is_limited = !service.source_ranges.is_empty();
        assert_eq!(is_limited, service.key.source == Source::LoadBalancer, "{:?}", service.key);
    }
}

/// An annotation has them hold for all who come from outside.
#[test]
fn source_ranges_of_all_frontends() {
    let mut service = mk_service(&json!({
        "type": "LoadBalancer",
        "loadBalancerSourceRanges": ["198.51.100.0/24"],
        "externalIPs": ["203.0.113.7"],
    }));
    service["status"] = ip_mode("VIP");
    merge(
        &mut service["metadata"],
        &json!({"annotations": {
            "redirector.io/source-ranges": "all",
            "redirector.io/publish": "443:80",
        }}),
    );
    let services = convert(&rules(), service).services;
    assert_eq!(services.len(), 4);
    for service in services {
        assert_eq!(service.source_ranges.len(), 2, "{:?}", service.key);
    }
}

/// What is wrong is told, and the rest is served.
#[test]
fn what_cannot_be_used() {
    let mut service = mk_service(&json!({
        "type": "LoadBalancer",
        "loadBalancerSourceRanges": ["198.51.100.0/24", "everyone"],
        "externalIPs": ["127.0.0.1"],
    }));
    merge(
        &mut service["metadata"],
        &json!({"annotations": {
            "redirector.io/source-ranges": "some",
            "redirector.io/algorithm": "best",
            "redirector.io/forwarding": "fast",
        }}),
    );
    let converted = convert(&rules(), service);
    assert_eq!(shown(&converted), ["nodeport web *:30080/tcp"]);
    let wanted = ["\"127.0.0.1\"", "\"everyone\"", "\"some\"", "\"fast\"", "\"best\""];
    assert_eq!(converted.problems.len(), wanted.len());
    for (problem, wanted) in converted.problems.iter().zip(wanted) {
        assert!(problem.contains(wanted), "{problem}: not about {wanted}");
    }
}

#[test]
fn a_range_of_everyone_turns_the_filter_off() {
    let mut service = mk_service(&json!({
        "type": "LoadBalancer",
        "loadBalancerSourceRanges": ["198.51.100.0/24", "0.0.0.0/0"],
    }));
    service["status"] = ip_mode("VIP");
    let ranges = |service: &Value| {
        let converted = convert(&rules(), service.clone());
        let service = &converted.services[1];
        assert_eq!(service.key.source, Source::LoadBalancer);
        service.source_ranges.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(ranges(&service), Vec::<String>::new());
    // Of its own family alone.
    for (everyone, others) in [("0.0.0.0/0", "2001:db8::/32"), ("::/0", "198.51.100.0/24")] {
        service["spec"]["loadBalancerSourceRanges"] = json!([everyone, others]);
        assert_eq!(ranges(&service), [everyone, others]);
    }
}

#[test]
fn policy_affinity_and_forwarding() {
    let rows = [
        (json!({}), None),
        (json!({"sessionAffinity": "None"}), None),
        (json!({"sessionAffinity": "ClientIP"}), Some(10_800)),
        (affinity(1), Some(1)),
        (affinity(0), Some(1)),
        (affinity(100_000), Some(86_400)),
    ];
    for (spec, wanted) in rows {
        let converted = convert(&rules(), mk_service(&spec));
        assert_eq!(converted.services[0].affinity_seconds, wanted, "{spec}");
        assert_eq!(converted.services[0].policy, TrafficPolicy::Cluster);
    }
    let mut service = mk_service(&json!({"externalTrafficPolicy": "Local"}));
    merge(&mut service["metadata"], &json!({"annotations": {"redirector.io/forwarding": "dsr"}}));
    let converted = convert(&rules(), service);
    assert_eq!(converted.services[0].policy, TrafficPolicy::Local);
    assert_eq!(converted.services[0].forwarding, Forwarding::Dsr);
}

fn affinity(seconds: u32) -> Value {
    json!({
        "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": seconds}},
    })
}

#[test]
fn node_addresses() {
    let networks = |addresses| {
        let rules = Rules { node_port_addresses: addresses, ..rules() };
        let converted = convert(&rules, mk_service(&json!({})));
        let networks = converted.services[0].node_networks.clone()?;
        Some(networks.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    assert_eq!(networks(NodePortAddresses::Chosen), None);
    let given = ["10.0.0.0/8".parse().expect("a network")];
    assert_eq!(networks(NodePortAddresses::In(given.into())), Some(vec!["10.0.0.0/8".to_owned()]));
    assert_eq!(
        networks(NodePortAddresses::Primary),
        Some(vec!["192.0.2.1/32".to_owned(), "2001:db8::1/128".to_owned()])
    );
}

#[test]
fn families() {
    let rows = [
        (json!(["IPv4"]), [true, false]),
        (json!(["IPv6"]), [false, true]),
        (json!(["IPv6", "IPv4"]), [true, true]),
        (json!([]), [true, true]),
        (json!(null), [true, true]),
    ];
    for (names, expected) in rows {
        let spec = json!({
            "type": "NodePort", "ipFamilies": names, "ports": [{"port": 80, "nodePort": 30080}],
        });
        let converted = convert(&rules(), mk_service(&spec));
        let [service] = converted.services.as_slice() else {
            panic!("{converted:?}");
        };
        let served = [Family::V4, Family::V6].map(|family| service.is_for(family));
        assert_eq!(served, expected, "{names}");
    }
}
