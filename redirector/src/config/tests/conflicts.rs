//! Entries that do not fit together.

use super::refused::check;
use super::*;

#[test]
fn services_that_do_not_fit_together() {
    check(&[
        (
            "services:
  - name: a
    frontends: [{port: 80}]
  - name: a
    frontends: [{port: 81}]
  - name: -a
    frontends: [{port: 82}]
",
            &[
                "4:11: services.name: \"a\" is the name of the service at redirector.yaml:2:11 \
                 already; choose another",
                "6:11: services.name: found \"-a\"; allowed: 1 to 63 letters, digits, \"-\", \"_\" \
                 and \".\", the first a letter or digit",
            ],
        ),
        (
            "services:
  - name: a
    frontends: [{address: 192.0.2.10, port: 80}]
    backends:
      - {address: 10.0.0.5, port: 8080}
      - {address: '2001:db8::5', port: 8080}
      - {address: 10.0.0.5, port: 8080, weight: 2}
      - {address: local, port: 8080}
      - {address: local, port: 8080}
",
            &[
                "6:19: services.backends.address: 2001:db8::5 is IPv6, and every frontend of the \
                 service is IPv4; add an IPv6 frontend or remove the backend",
                "7:9: services.backends: 10.0.0.5:8080 is listed at redirector.yaml:5:9 already; \
                 remove one of them, and use weight for its share",
                "9:9: services.backends: local:8080 is listed at redirector.yaml:8:9 already; \
                 remove one of them, and use weight for its share",
            ],
        ),
        // The frontend that could not be read might be the one for the backend.
        (
            "services:
  - name: a
    frontends: [{address: 192.0.2.10, port: 80}, {address: '2001:db8::1', port: 0}]
    backends: [{address: '2001:db8::5', port: 8080}]
",
            &["3:81: services.frontends.port: 0 is not a port; ports are 1 to 65535"],
        ),
    ]);
}

#[test]
fn frontends_that_two_entries_claim() {
    check(&[
        (
            "publish:\n  - 80:8080\n  - 80:9090/tcp\n  - 192.0.2.1:80:1\n",
            &[
                "3:5: publish: port 80/TCP of every node address is taken by the entry at \
                 redirector.yaml:2:5; remove one of them",
                "4:5: publish: 192.0.2.1:80/TCP is taken by port 80/TCP of every node address at \
                 redirector.yaml:2:5; remove one of them",
            ],
        ),
        (
            "publish:\n  - '[2001:db8::1]:53:1/udp'\n  - 53:2/udp\n",
            &[
                "3:5: publish: port 53/UDP of every node address is taken by [2001:db8::1]:53/UDP at \
               redirector.yaml:2:5; remove one of them",
            ],
        ),
        // One line for two ranges, however much they share.
        (
            "publish:\n  - 9000-9010:19000-19010\n  - 9005-9020:29005-29020\n",
            &["3:5: publish: port 9005/TCP of every node address is taken by the entry at \
               redirector.yaml:2:5; remove one of them"],
        ),
        (
            "publish: ['80:8080']
services:
  - name: a
    frontends:
      - {port: 80}
      - {address: 192.0.2.1, port: 81}
      - {address: 192.0.2.1, port: 81, protocol: TCP}
  - name: b
    frontends:
      - {port: 81}
",
            &[
                "5:9: services.frontends: port 80/TCP of every node address is taken by the entry \
                 at redirector.yaml:1:11; remove one of them",
                "7:9: services.frontends: 192.0.2.1:81/TCP is taken by the entry at \
                 redirector.yaml:6:9; remove one of them",
                "10:9: services.frontends: port 81/TCP of every node address is taken by \
                 192.0.2.1:81/TCP at redirector.yaml:6:9; remove one of them",
            ],
        ),
    ]);
}

#[test]
fn translation_blocks() {
    let allowed = "allowed: two ports from 1024 to 65535, as in \"49152-57343\"";
    let rows = [
        ("50000", "found 50000; "),
        ("fifty", "found \"fifty\"; "),
        ("50000-", "found \"50000-\"; "),
        ("1024-65536", "found \"1024-65536\"; "),
        ("+1024-2000", "found \"+1024-2000\"; "),
    ];
    for (found, message) in rows {
        assert_eq!(
            problems(&format!("snatPorts: {found}")),
            [format!("redirector.yaml:1:12: snatPorts: {message}{allowed}")]
        );
    }
    check(&[
        (
            "snatPorts: 50001-50000",
            &["1:12: snatPorts: \"50001-50000\" is reversed; write the lower port first"],
        ),
        (
            "snatPorts: 0-2000",
            &["1:12: snatPorts: \"0-2000\" includes ports below 1024, which belong to well-known \
               services; allowed: 1024 to 65535"],
        ),
    ]);
}

#[test]
fn ports_in_the_translation_block() {
    check(&[
        (
            "publish: ['50000:80', '81:57343/udp', '57344:49151']",
            &[
                "1:11: publish: port 50000 lies in snatPorts 49152-57343 (the default), which is \
                 reserved for translation; choose another port or another block",
                "1:23: publish: local port 57343 lies in snatPorts 49152-57343 (the default), \
                 which is reserved for translation; choose another port or another block",
            ],
        ),
        (
            "snatPorts: 2000-3000
services:
  - name: a
    frontends: [{port: 2000}]
    backends: [{address: local, port: 3000}, {address: 10.0.0.5, port: 2500}]
",
            &[
                "4:17: services.frontends: port 2000 lies in snatPorts 2000-3000 at \
                 redirector.yaml:1:12, which is reserved for translation; choose another port or \
                 another block",
                "5:16: services.backends: local port 3000 lies in snatPorts 2000-3000 at \
                 redirector.yaml:1:12, which is reserved for translation; choose another port or \
                 another block",
            ],
        ),
    ]);
}
