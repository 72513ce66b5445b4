use super::*;
use crate::model::{
    Algorithm, BackendAddress, BackendSpec, BackendState, FrontendSpec, ServiceKey, Source,
    TrafficPolicy,
};
use redirector_common::Protocol;

#[test]
fn an_empty_file_publishes_nothing() {
    for text in
        ["", "{}", "# nothing\n", "---\n", "publish:\nservices:\ninterfaces:\n", "publish: []"]
    {
        assert_eq!(config(text), Config::default(), "{text:?}");
    }
}

#[test]
fn settings() {
    let found = config(
        "interfaces: [eth0, bond0.100]\nxdpMode: off\nsnatPorts: 20000-20000\nmssClamp: false\n\
         removedBackends: reset\n",
    );
    assert_eq!(
        found,
        Config {
            interfaces: Some(vec!["eth0".to_owned(), "bond0.100".to_owned()]),
            tables: BTreeMap::new(),
            xdp_mode: XdpMode::Off,
            resets_clients: true,
            snat_ports: 20000..=20000,
            mss_clamp: false,
            ..Config::default()
        }
    );
}

#[test]
fn addresses_to_translate_to() {
    let rows = [
        ("", SnatAddresses::Primary),
        ("primary", SnatAddresses::Primary),
        ("all", SnatAddresses::All),
        (
            "[192.0.2.10, '2001:db8::/64', 0.0.0.0/0]",
            SnatAddresses::In(
                ["192.0.2.10/32", "2001:db8::/64", "0.0.0.0/0"]
                    .map(|network| network.parse().unwrap())
                    .into(),
            ),
        ),
    ];
    for (text, expected) in rows {
        assert_eq!(config(&format!("snatAddresses: {text}")).snat_addresses, expected, "{text}");
    }
}

#[test]
fn xdp_modes() {
    for (word, mode) in XdpMode::WORDS {
        assert_eq!(config(&format!("xdpMode: {word}")).xdp_mode, mode);
        assert_eq!(mode.to_string(), word);
    }
}

#[test]
fn publish_entries_become_services_in_order() {
    let found = config("publish: ['80:8080', '[2001:db8::1]:443:8443', 9000-9002:19000-19002/udp]");
    let names: Vec<_> = found.services.iter().map(|service| service.key.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "80:8080/tcp",
            "[2001:db8::1]:443:8443/tcp",
            "9000:19000/udp",
            "9001:19001/udp",
            "9002:19002/udp",
        ]
    );
    assert!(found.services.iter().all(|service| service.key.source == Source::Publish));
}

#[test]
fn a_service() {
    let found = config(
        "services:
  - name: web
    frontends:
      - {address: 192.0.2.10, port: 80}
      - {port: 53, protocol: udp}
    backends:
      - {address: local, port: 8080}
      - {address: 10.0.0.5, port: 8081, weight: 65535, state: active}
      - {address: 10.0.0.6, port: 8081, state: terminating}
      - {address: '2001:db8::5', port: 8082, weight: 0}
    trafficPolicy: Local
    forwarding: snat
    algorithm: random
    sessionAffinitySeconds: 86400
",
    );
    let backend = |address, port, weight| BackendSpec { weight, ..BackendSpec::new(address, port) };
    let at = |address: &str| BackendAddress::At(address.parse().unwrap());
    assert_eq!(
        found.services,
        [Service {
            frontends: vec![
                FrontendSpec {
                    address: Some("192.0.2.10".parse().unwrap()),
                    port: 80,
                    protocol: Protocol::Tcp,
                },
                FrontendSpec { address: None, port: 53, protocol: Protocol::Udp },
            ],
            backends: vec![
                backend(BackendAddress::Local, 8080, 1),
                backend(at("10.0.0.5"), 8081, 65535),
                BackendSpec {
                    state: BackendState::Terminating,
                    ..backend(at("10.0.0.6"), 8081, 1)
                },
                backend(at("2001:db8::5"), 8082, 0),
            ],
            policy: TrafficPolicy::Local,
            algorithm: Algorithm::Random,
            affinity_seconds: Some(86400),
            ..Service::new(ServiceKey {
                source: Source::Static,
                namespace: None,
                name: "web".to_owned()
            })
        }]
    );
}

#[test]
fn a_service_may_have_no_backends() {
    for backends in ["", ", backends: []", ", backends: "] {
        let found =
            config(&format!("services: [{{name: a, frontends: [{{port: 80}}]{backends}}}]"));
        assert_eq!(found.services[0].backends, []);
    }
}

#[test]
fn frontends_that_only_look_alike() {
    config(
        "publish: ['80:8080', '80:8080/udp', '192.0.2.1:81:1', '192.0.2.2:81:1', '[2001:db8::1]:81:1']
services:
  - {name: a, frontends: [{port: 82}, {port: 82, protocol: UDP}]}
",
    );
}

#[test]
fn ports_may_be_published_and_local_at_once() {
    // Published ports chained: a packet is translated once, so these do not meet.
    config("publish: ['80:8080', '8080:9090', '443:443']");
}

#[test]
fn remote_backends_may_listen_in_the_translation_block() {
    config(
        "services: [{name: a, frontends: [{port: 80}], backends: [{address: 10.0.0.5, port: 50000}]}]",
    );
}

#[test]
fn anchors_and_merge_keys() {
    let found = config(
        "services:
  - &a {name: a, frontends: [{port: 80}], backends: &b [{address: local, port: 8080}]}
  - <<: *a
    name: b
    frontends: [{port: 81}]
",
    );
    assert_eq!(found.services[1].backends, found.services[0].backends);
    assert_eq!(found.services[1].frontends[0].port, 81);
}

#[test]
fn arguments_become_the_same_services() {
    let specs = ["80:8080", "192.0.2.10:53:5353/udp"];
    let file = config("publish: ['80:8080', '192.0.2.10:53:5353/udp']");
    assert_eq!(from_arguments(specs), Ok(file));
}

#[test]
fn files_are_read() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "publish: ['80:8080']\r\n").unwrap();
    assert_eq!(load(file.path()).unwrap().services.len(), 1);
}

#[test]
fn a_service_has_its_exact_address_before_publish_entries() {
    let found = config(
        "publish: ['80:8080']
services: [{name: web, frontends: [{address: 192.0.2.10, port: 80}]}]
",
    );
    let names: Vec<_> = found.services.iter().map(|service| service.key.name.as_str()).collect();
    assert_eq!(names, ["web", "80:8080/tcp"]);
}

#[test]
fn source_ranges_of_both_families() {
    let found = config(
        "services:
  - name: a
    frontends: [{port: 80}]
    sourceRanges: [198.51.100.0/24, '2001:db8::/32', 0.0.0.0/0, ' ::/0 ', 192.0.2.1/32]
",
    );
    let ranges: Vec<_> = found.services[0].source_ranges.iter().map(ToString::to_string).collect();
    assert_eq!(ranges, ["198.51.100.0/24", "2001:db8::/32", "0.0.0.0/0", "::/0", "192.0.2.1/32"]);
}

#[test]
fn tables() {
    let config = parse("redirector.yaml", "tables: {flows: 4096, sourceRanges: 16}").unwrap();
    let expected = [(MapName::Flows, 4096), (MapName::SourceRanges, 16)];
    assert_eq!(config.tables, BTreeMap::from(expected));
    let empty = parse("redirector.yaml", "tables:").unwrap();
    assert!(empty.tables.is_empty());
}
