use super::*;
use proptest::prelude::*;

/// A file and all lines that it is refused with.
pub(super) type Row = (&'static str, &'static [&'static str]);

pub(super) fn check(rows: &[Row]) {
    for (text, wanted) in rows {
        let wanted: Vec<String> =
            wanted.iter().map(|line| format!("redirector.yaml:{line}")).collect();
        assert_eq!(problems(text), wanted, "{text}");
    }
}

#[test]
fn what_is_no_yaml() {
    check(&[
        ("a: b: c\n", &["1:5: not valid YAML: mapping values are not allowed in this context"]),
        ("publish: [\n", &["1:10: not valid YAML: unclosed bracket '['"]),
        (
            "publish:\n\t- 80:80",
            &["2:2: not valid YAML: tabs disallowed within this context (block indentation)"],
        ),
        (
            "publish: []\n---\npublish: []\n",
            &["3:1: a second document starts here; keep one in a file"],
        ),
    ]);
}

#[test]
fn tables_that_are_too_small_or_too_large() {
    check(&[
        (
            "tables: 5\n",
            &["1:9: tables: found 5; allowed: a mapping with the keys affinity, \
          backends, flows, fragments, frontends, maglev, services, slots, sockets, sourceRanges, \
          takers, vips"],
        ),
        (
            "tables: {flows: 1000, flow: 2000}\n",
            &[
                "1:17: tables.flows: 1000 is out of range; allowed: a number from 1024 to 16777216",
                "1:23: tables: unknown key \"flow\"; did you mean \"flows\"? allowed: affinity, \
                 backends, flows, fragments, frontends, maglev, services, slots, sockets, \
                 sourceRanges, takers, vips",
            ],
        ),
        (
            "tables:\n  vips: many\n",
            &["2:9: tables.vips: found \"many\"; allowed: a number from 16 to 1048576"],
        ),
    ]);
}

/// Neither the stack nor memory gives out.
#[test]
fn too_much_yaml() {
    let too_much = "holds too much; allowed: 150000 values, 12 levels of nesting";
    let mappings: String = (0..100).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect();
    let lists = format!("{}1", "- ".repeat(100));
    let flow = "[".repeat(100);
    let bomb: String = (1..9)
        .map(|level| format!("a{level}: &a{level} [{}]\n", format!("*a{},", level - 1).repeat(9)))
        .collect();
    let rows = [
        (mappings, "13:13", too_much),
        (lists, "1:25", too_much),
        (flow, "1:13", "not valid YAML: recursion limit exceeded"),
        (format!("a0: &a0 1\n{bomb}"), "7:14", too_much),
    ];
    for (text, position, message) in rows {
        assert_eq!(problems(&text), [format!("redirector.yaml:{position}: {message}")]);
    }
}

#[test]
fn what_is_of_the_wrong_kind() {
    check(&[
        (
            "80:8080",
            &[
                "1:1: found \"80:8080\"; allowed: a mapping with the keys interfaces, mssClamp, nodes, publish, \
                 removedBackends, services, snatAddresses, snatPorts, tables, xdpMode",
            ],
        ),
        (
            "publish: '80:8080'",
            &["1:10: publish: found \"80:8080\"; allowed: a list of entries of the form \
               PORT:LOCALPORT"],
        ),
        (
            "publish:\n  - 80: 8080\n  - 80\n",
            &[
                "2:5: publish: found a mapping; allowed: text of the form \
                 [ADDRESS:]PORT[-PORT]:LOCALPORT[-LOCALPORT][/tcp|/udp], in quotes",
                "3:5: publish: found 80; allowed: text of the form \
                 [ADDRESS:]PORT[-PORT]:LOCALPORT[-LOCALPORT][/tcp|/udp], in quotes",
            ],
        ),
        ("services: {name: a}", &["1:11: services: found a mapping; allowed: a list of services"]),
        (
            "services: [a]",
            &["1:12: services: found \"a\"; allowed: a mapping with the keys algorithm, \
               backends, forwarding, frontends, name, sessionAffinitySeconds, sourceRanges, trafficPolicy"],
        ),
        (
            "services: [{name: 5, frontends: 80, backends: local}]",
            &[
                "1:19: services.name: found 5; allowed: 1 to 63 letters, digits, \"-\", \"_\" and \
                 \".\", the first a letter or digit",
                "1:33: services.frontends: found 80; allowed: a list of frontends, at least one",
                "1:47: services.backends: found \"local\"; allowed: a list of backends",
            ],
        ),
        (
            "services: [{name: a, frontends: [{address: 5, port: '80', protocol: true}]}]",
            &[
                "1:44: services.frontends.address: found 5; allowed: an IPv4 or IPv6 address",
                "1:53: services.frontends.port: found \"80\"; allowed: a number from 1 to 65535",
                "1:69: services.frontends.protocol: found true; allowed: TCP, UDP",
            ],
        ),
        (
            "services: [{name: a, frontends: [{address: , port: 80.5}]}]",
            &[
                "1:42: services.frontends.address: found nothing; allowed: an IPv4 or IPv6 address",
                "1:52: services.frontends.port: found 80.5; allowed: a number from 1 to 65535",
            ],
        ),
    ]);
}

#[test]
fn unknown_repeated_and_missing_keys() {
    check(&[
        (
            "publsh: []\nxdpmode: auto\nports: []\n8: 9\n",
            &[
                "1:1: unknown key \"publsh\"; did you mean \"publish\"? allowed: interfaces, mssClamp, nodes, publish, \
                 removedBackends, services, snatAddresses, snatPorts, tables, xdpMode",
                "2:1: unknown key \"xdpmode\"; did you mean \"xdpMode\"? allowed: interfaces, mssClamp, nodes, publish, \
                 removedBackends, services, snatAddresses, snatPorts, tables, xdpMode",
                "3:1: unknown key \"ports\"; allowed: interfaces, mssClamp, nodes, publish, \
                 removedBackends, services, snatAddresses, snatPorts, tables, xdpMode",
                "4:1: key 8 is not text; allowed: interfaces, mssClamp, nodes, publish, \
                 removedBackends, services, snatAddresses, snatPorts, tables, xdpMode",
            ],
        ),
        (
            "services:
  - nmae: web
    frontends:
      - {port: 80, proto: TCP}
    backends:
      - {addr: local, port: 8080, wieght: 2}
",
            &[
                "2:5: services: unknown key \"nmae\"; did you mean \"name\"? allowed: algorithm, \
                 backends, forwarding, frontends, name, sessionAffinitySeconds, sourceRanges, trafficPolicy",
                "2:5: services: key \"name\" is missing; add it",
                "4:20: services.frontends: unknown key \"proto\"; did you mean \"protocol\"? \
                 allowed: address, port, protocol",
                "6:9: services.backends: key \"address\" is missing; add it",
                "6:10: services.backends: unknown key \"addr\"; did you mean \"address\"? allowed: \
                 address, port, state, weight",
                "6:35: services.backends: unknown key \"wieght\"; did you mean \"weight\"? \
                 allowed: address, port, state, weight",
            ],
        ),
        (
            "xdpMode: auto\nxdpMode: off\n",
            &["2:1: key \"xdpMode\" stands at redirector.yaml:1:1 already; remove one of them"],
        ),
        (
            "services: [{}]",
            &[
                "1:12: services: key \"name\" is missing; add it",
                "1:12: services: key \"frontends\" is missing; add it",
            ],
        ),
        (
            "services: [{name: a, frontends: [{}], backends: [{}]}]",
            &[
                "1:34: services.frontends: key \"port\" is missing; add it",
                "1:50: services.backends: key \"address\" is missing; add it",
                "1:50: services.backends: key \"port\" is missing; add it",
            ],
        ),
        (
            "services: [{name: a, frontends: []}]",
            &["1:33: services.frontends: the list is empty; a service needs at least one frontend"],
        ),
    ]);
}

#[test]
fn interfaces() {
    check(&[
        (
            "interfaces: eth0",
            &["1:13: interfaces: found \"eth0\"; allowed: a list of interface names"],
        ),
        (
            "interfaces: []",
            &["1:13: interfaces: the list is empty; name an interface, or leave the key out for \
               every interface with a default route"],
        ),
        (
            "interfaces: ['', abcdefghijklmnop, 'a b', a/b, ., 5, eth0, eth0]",
            &[
                "1:14: interfaces: the name is empty; name an interface",
                "1:18: interfaces: \"abcdefghijklmnop\" is 16 bytes long; names of interfaces have \
                 at most 15",
                "1:36: interfaces: \"a b\" is not the name of an interface; they are without \
                 spaces, \"/\" and \":\"",
                "1:43: interfaces: \"a/b\" is not the name of an interface; they are without \
                 spaces, \"/\" and \":\"",
                "1:48: interfaces: \".\" is not the name of an interface; they are without spaces, \
                 \"/\" and \":\"",
                "1:51: interfaces: found 5; allowed: the name of an interface",
                "1:60: interfaces: \"eth0\" stands at redirector.yaml:1:54 already; remove one of \
                 them",
            ],
        ),
    ]);
}

#[test]
fn modes_and_policies() {
    check(&[
        (
            "xdpMode: nativ",
            &["1:10: xdpMode: \"nativ\" is not known; did you mean \"native\"? allowed: auto, \
               native, generic, off"],
        ),
        ("xdpMode: 1", &["1:10: xdpMode: found 1; allowed: auto, native, generic, off"]),
        ("removedBackends: true", &["1:18: removedBackends: found true; allowed: keep, reset"]),
        (
            "services: [{name: a, frontends: [{port: 80, protocol: SCTP}], trafficPolicy: local, \
             forwarding: nat}]",
            &[
                "1:55: services.frontends.protocol: found \"SCTP\"; allowed: TCP, UDP",
                "1:78: services.trafficPolicy: \"local\" is not known; did you mean \"Local\"? \
                 allowed: Cluster, Local",
                "1:97: services.forwarding: \"nat\" is not known; did you mean \"snat\"? allowed: \
                 snat, dsr",
            ],
        ),
    ]);
}

#[test]
fn publish_entries_point_at_the_wrong_part() {
    check(&[(
        "publish:
  - \"80:0\"
  - 192.0.2.1:80:8080/sctp
  - '[2001:db8::1]:443:65536'
  - \"9000-9010:19000-19009\"
  - \"8\\u0030:0\"
  - 239.1.2.3:80:8080
",
        &[
            "2:9: publish: port 0 is not a port; ports are 1 to 65535",
            "3:23: publish: protocol \"sctp\" is not known; allowed: tcp, udp",
            "4:24: publish: port 65536 is not a port; ports are 1 to 65535",
            "5:16: publish: 9000-9010 (11 ports) and 19000-19009 (10 ports) differ in length; give \
             both sides equally many ports",
            "6:5: publish: port 0 is not a port; ports are 1 to 65535",
            "7:5: publish: 239.1.2.3 is a multicast address: no single host owns it; name an \
             address that one host owns",
        ],
    )]);
}

#[test]
fn arguments() {
    let error = from_arguments(["80:0", "81:8081", "81:8082", "50000:80"]).unwrap_err();
    assert_eq!(
        error.to_string().lines().collect::<Vec<_>>(),
        [
            "80:0: port 0 is not a port; ports are 1 to 65535",
            "81:8082: port 81/TCP of every node address is taken by the entry at 81:8081; remove \
             one of them",
            "50000:80: port 50000 lies in snatPorts 49152-57343 (the default), which is reserved \
             for translation; choose another port or another block",
        ]
    );
}

#[test]
fn files_that_cannot_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("redirector.yaml");
    let name = path.display();
    assert_eq!(
        load(&path).unwrap_err().to_string(),
        format!(
            "{name}: cannot be read: No such file or directory (os error 2); name a file that can \
             be read"
        )
    );
    assert_eq!(
        load(Path::new("/dev/zero")).unwrap_err().to_string(),
        "/dev/zero: is longer than 16777216 bytes; name a configuration file"
    );
    std::fs::write(&path, b"publish:\n  - \xc3\xa9\xff\n").unwrap();
    assert_eq!(
        load(&path).unwrap_err().to_string(),
        format!("{name}:2:6: a byte here is not UTF-8; the file must be UTF-8 text")
    );
}

#[test]
fn positions_are_kept_apart_from_text() {
    let error = parse("a.yaml", "publish:\n  - '0:1'\n").unwrap_err();
    let [problem] = error.problems() else { panic!("{error}") };
    assert_eq!(problem.place.position, Some(Position { line: 2, column: 6 }));
    assert_eq!(&*problem.place.name, "a.yaml");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Damaged files are refused or mean something else; nothing panics.
    #[test]
    fn damage(cut in 0_usize..1200, len in 0_usize..40, insert in r#"[\[\]{}:,*&!|>'"\t\n a0€-]{0,6}"#) {
        let text = include_str!("../../../../deploy/redirector.example.yaml");
        let start = text.floor_char_boundary(cut.min(text.len()));
        let end = text.floor_char_boundary((start + len).min(text.len()));
        let damaged = format!("{}{insert}{}", &text[..start], &text[end..]);
        if let Err(error) = parse("redirector.yaml", &damaged) {
            for line in error.to_string().lines() {
                prop_assert!(line.starts_with("redirector.yaml:"), "{line}");
            }
        }
    }
}

#[test]
fn addresses_to_translate_to() {
    check(&[
        (
            "snatAddresses: every",
            &["1:16: snatAddresses: found \"every\"; allowed: primary, all, or a list of \
               addresses and networks"],
        ),
        (
            "snatAddresses: 192.0.2.1",
            &["1:16: snatAddresses: found \"192.0.2.1\"; allowed: primary, all, or a list of \
               addresses and networks"],
        ),
        (
            "snatAddresses: []",
            &["1:16: snatAddresses: the list is empty; write primary for no further address"],
        ),
        (
            "snatAddresses:\n  - 192.0.2.300\n  - 5\n  - 192.0.2.7/24\n  - 127.0.0.0/8\n  - fe80::1\n",
            &[
                "2:5: snatAddresses: \"192.0.2.300\" is no address and no network; allowed: as in \
                 \"192.0.2.10\" or \"192.0.2.0/24\"",
                "3:5: snatAddresses: found 5; allowed: an address or a network, in quotes",
                "4:5: snatAddresses: 192.0.2.7/24 has bits set behind its prefix; write \
                 192.0.2.0/24",
                "5:5: snatAddresses: 127.0.0.0 is a loopback address: every node has it; name an \
                 address that other nodes reach the node at",
                "6:5: snatAddresses: fe80::1 is a link-local address: it means nothing without an \
                 interface; name a global or unique local address",
            ],
        ),
        (
            "snatAddresses: [192.0.2.1, '2001:db8::/64', 192.0.2.1/32]",
            &[
                "1:45: snatAddresses: 192.0.2.1/32 stands at redirector.yaml:1:17 already; remove one of \
               them",
            ],
        ),
    ]);
}
