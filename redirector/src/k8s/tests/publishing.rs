//! The annotation `redirector.io/publish`.

use serde_json::{Value, json};

use crate::k8s::PUBLISH;
use crate::k8s::convert::{Converted, Rules};
use crate::k8s::index::Index;
use crate::k8s::mk::{NODE, mk_index, mk_pod, mk_service, read, web};
use crate::k8s::record::Kind;

fn rules() -> Rules {
    Rules { node_name: NODE.to_owned(), ..Rules::default() }
}

fn of_pod(publish: &str, spec: &Value) -> Converted {
    let mut index = Index::default();
    index.apply(read(Kind::Pod, mk_pod(Some(publish), spec)));
    rules().convert_pod(&index, &web())
}

fn names(converted: &Converted) -> Vec<&str> {
    converted.services.iter().map(|service| service.key.name.as_str()).collect()
}

#[test]
fn ports_of_a_pod_in_the_hosts_network() {
    let converted =
        of_pod("80:8080, 53:5353/udp,192.0.2.1:443:8443,[2001:db8::1]:1:2,80:8080", &json!({}));
    assert_eq!(
        names(&converted),
        [
            "web:80:8080/tcp",
            "web:53:5353/udp",
            "web:192.0.2.1:443:8443/tcp",
            "web:[2001:db8::1]:1:2/tcp"
        ]
    );
    assert_eq!(converted.problems, Vec::<String>::new());
    assert_eq!(names(&of_pod("9000-9001:8000-8001", &json!({}))).len(), 2);
}

#[test]
fn entries_that_are_wrong_do_not_take_the_others_along() {
    let converted = of_pod("80:8080,http,0:1,81:8081", &json!({}));
    assert_eq!(names(&converted), ["web:80:8080/tcp", "web:81:8081/tcp"]);
    assert_eq!(converted.problems.len(), 2);
    assert!(converted.problems[0].starts_with("redirector.io/publish: \"http\": "));
}

#[test]
fn pods_elsewhere_or_over_or_with_a_network_of_their_own() {
    assert_eq!(of_pod("80:8080", &json!({"nodeName": "other"})), Converted::default());
    let own = of_pod("80:8080", &json!({"hostNetwork": false}));
    assert_eq!((own.services.len(), own.problems.len()), (0, 1));
    let mut over = mk_pod(Some("80:8080"), &json!({}));
    over["status"]["phase"] = json!("Succeeded");
    let mut index = Index::default();
    index.apply(read(Kind::Pod, over));
    assert_eq!(rules().convert_pod(&index, &web()).services, []);
}

fn of_service(publish: &str) -> (Vec<String>, Vec<String>) {
    let mut service = mk_service(&json!({"type": "ClusterIP", "ports": [
        {"name": "http", "port": 8080},
        {"name": "dns", "port": 53, "protocol": "UDP"},
        {"name": "dns-tcp", "port": 53},
    ]}));
    service["metadata"]["annotations"] = json!({(PUBLISH): publish});
    let converted = rules().convert_service(&mk_index(service, []), &web());
    let shown = converted.services.iter().flat_map(|service| {
        service.frontends.iter().map(|frontend| {
            let address = frontend.address.map(|address| format!("{address} ")).unwrap_or_default();
            format!("{} {address}{}/{}", service.key.name, frontend.port, frontend.protocol.name())
        })
    });
    (shown.collect(), converted.problems)
}

#[test]
fn ports_of_a_service_by_name_or_number() {
    let (shown, problems) =
        of_service("80:http,81:8080,53:53,53:53/udp,54:dns,192.0.2.1:99:http,[2001:db8::1]:9:http");
    assert_eq!(problems, Vec::<String>::new());
    assert_eq!(
        shown,
        [
            "web:http 80/TCP",
            "web:http 81/TCP",
            "web:http 192.0.2.1 99/TCP",
            "web:http 2001:db8::1 9/TCP",
            "web:dns 53/UDP",
            "web:dns 54/UDP",
            "web:dns-tcp 53/TCP",
        ]
    );
}

#[test]
fn entries_of_a_service_that_are_wrong() {
    for (entry, part) in [
        ("80", "write [ADDRESS:]PORT:SERVICEPORT"),
        ("80:https", "no port \"https\"; it has http (8080/TCP), dns (53/UDP)"),
        ("0:http", "not a port"),
        ("80:http/sctp", "protocol \"sctp\" is not known"),
        ("80:http/udp", "no port \"http\""),
        ("127.0.0.1:80:http", "loopback"),
        ("nonsense:80:http", "not an address"),
    ] {
        let (shown, problems) = of_service(entry);
        assert_eq!(shown, Vec::<String>::new(), "{entry}");
        assert!(problems.iter().any(|problem| problem.contains(part)), "{entry}: {problems:?}");
    }
}

#[test]
fn a_port_that_the_program_has_anyway() {
    let converted = of_pod("8080:8080,80:8080", &json!({}));
    assert_eq!(names(&converted), ["web:80:8080/tcp"]);
    assert!(converted.problems[0].contains("the program's own"), "{:?}", converted.problems);
}
