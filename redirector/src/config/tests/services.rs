//! Single values of services that are refused.

use super::refused::check;

#[test]
fn addresses() {
    check(&[(
        "services:
  - name: web
    frontends:
      - {address: example.org, port: 1}
      - {address: 192.0.2.0/24, port: 2}
      - {address: 0.0.0.0, port: 3}
      - {address: ff02::1, port: 4}
      - {address: 255.255.255.255, port: 5}
      - {address: '::1', port: 6}
      - {address: local, port: 7}
    backends:
      - {address: 10.0.0.5:80, port: 1}
      - {address: '::', port: 2}
      - {address: 224.0.0.1, port: 3}
      - {address: 255.255.255.255, port: 4}
      - {address: 127.0.0.1, port: 5}
      - {address: fe80::1, port: 6}
      - {address: '::ffff:10.0.0.5', port: 7}
",
        &[
            "4:19: services.frontends.address: \"example.org\" is not an address; allowed: an \
             IPv4 or IPv6 address, without a port or prefix length",
            "5:19: services.frontends.address: \"192.0.2.0/24\" is not an address; allowed: an \
             IPv4 or IPv6 address, without a port or prefix length",
            "6:19: services.frontends.address: 0.0.0.0 is the unspecified address: clients cannot \
             send to it; leave the address out for every node address",
            "7:19: services.frontends.address: ff02::1 is a multicast address: no single host owns \
             it; name an address that one host owns",
            "8:19: services.frontends.address: 255.255.255.255 is the broadcast address: no single \
             host owns it; name an address that one host owns",
            "9:19: services.frontends.address: ::1 is a loopback address: packets from outside \
             never carry it; name an address that clients send to",
            "10:19: services.frontends.address: \"local\" is not an address; allowed: an IPv4 or \
             IPv6 address, without a port or prefix length",
            "12:19: services.backends.address: \"10.0.0.5:80\" is not an address; allowed: \
             \"local\", or an IPv4 or IPv6 address without a port or prefix length",
            "13:19: services.backends.address: :: is the unspecified address: no single program \
             answers at it; name the backend's own address",
            "14:19: services.backends.address: 224.0.0.1 is a multicast address: no single program \
             answers at it; name the backend's own address",
            "15:19: services.backends.address: 255.255.255.255 is the broadcast address: no single \
             program answers at it; name the backend's own address",
            "16:19: services.backends.address: 127.0.0.1 is a loopback address: packets from \
             outside cannot be sent to it; write \"local\" for a program of this host",
            "17:19: services.backends.address: fe80::1 is a link-local address: it means nothing \
             without an interface; name a global or unique local address",
            "18:19: services.backends.address: ::ffff:10.0.0.5 is an IPv4 address in IPv6 form; \
             write 10.0.0.5",
        ],
    )]);
}

#[test]
fn ports_and_weights() {
    check(&[(
        "services:
  - name: web
    frontends: [{port: 0}, {port: 65536}, {port: -1}]
    backends:
      - {address: local, port: 0}
      - {address: local, port: 80, weight: 65536}
      - {address: local, port: 81, weight: -1}
      - {address: local, port: 82, weight: 1.5}
",
        &[
            "3:24: services.frontends.port: 0 is not a port; ports are 1 to 65535",
            "3:35: services.frontends.port: 65536 is not a port; ports are 1 to 65535",
            "3:50: services.frontends.port: -1 is not a port; ports are 1 to 65535",
            "5:32: services.backends.port: 0 is not a port; ports are 1 to 65535",
            "6:44: services.backends.weight: 65536 is out of range; allowed: a number from 0 to \
             65535",
            "7:44: services.backends.weight: -1 is out of range; allowed: a number from 0 to 65535",
            "8:44: services.backends.weight: found 1.5; allowed: a number from 0 to 65535",
        ],
    )]);
}

#[test]
fn direct_answers_need_nodes() {
    let service = "services:
  - name: a
    frontends: [{port: 80}]
    forwarding: dsr
";
    check(&[(
        service,
        &[
            "4:17: services.forwarding: \"dsr\" needs to know the nodes that run redirector: add the \
             addresses of all of them as `nodes: [ADDRESS, …]` to the file, the same on every node",
        ],
    )]);
    let found = super::config(&format!("nodes: [192.0.2.11, '2001:db8::11']\n{service}"));
    assert_eq!(found.services[0].forwarding, crate::model::Forwarding::Dsr);
    let nodes: Vec<String> = found.nodes.iter().map(ToString::to_string).collect();
    assert_eq!(nodes, ["192.0.2.11", "2001:db8::11"]);
}

#[test]
fn nodes() {
    check(&[(
        "nodes: [192.0.2.11, node-b, 127.0.0.1, 'fe80::1', 192.0.2.0/24, 192.0.2.11, 5,
  224.0.0.1, '::ffff:192.0.2.1']",
        &[
            "1:21: nodes: \"node-b\" is not an address; allowed: an IPv4 or IPv6 address, without a \
             port or prefix length",
            "1:29: nodes: 127.0.0.1 is a loopback address: every node has it; name an address that \
             other nodes reach the node at",
            "1:40: nodes: fe80::1 is a link-local address: it means nothing without an interface; \
             name a global or unique local address",
            "1:51: nodes: \"192.0.2.0/24\" is not an address; allowed: an IPv4 or IPv6 address, \
             without a port or prefix length",
            "1:65: nodes: 192.0.2.11 stands at redirector.yaml:1:9 already; remove one of them",
            "1:77: nodes: found 5; allowed: an IPv4 or IPv6 address, in quotes",
            "2:3: nodes: 224.0.0.1 is a multicast address: no node has it; name an address that \
             other nodes reach the node at",
            "2:14: nodes: ::ffff:192.0.2.1 is an IPv4 address in IPv6 form; write 192.0.2.1",
        ],
    )]);
}

#[test]
fn affinities() {
    check(&[(
        "services:
  - name: a
    frontends: [{port: 80}]
    sessionAffinitySeconds: 0
  - name: b
    frontends: [{port: 81}]
    sessionAffinitySeconds: 86401
",
        &[
            "4:29: services.sessionAffinitySeconds: 0 is out of range; allowed: a number from \
                 1 to 86400",
            "7:29: services.sessionAffinitySeconds: 86401 is out of range; allowed: a number \
                 from 1 to 86400",
        ],
    )]);
}

#[test]
fn source_ranges() {
    check(&[(
        "services:
  - name: a
    frontends: [{port: 80}]
    sourceRanges: [198.51.100.0, 2001:db8::/129, 5, 198.51.100.0/24]
  - name: b
    frontends: [{port: 81}]
    sourceRanges: 198.51.100.0/24
  - name: c
    frontends: [{port: 82}]
    sourceRanges: []
  - name: d
    frontends: [{port: 83}]
    sourceRanges:
      # - 198.51.100.0/24
  - name: e
    frontends: [{port: 84}]
    sourceRanges: [198.51.100.7/24, '2001:db8::1/32', '::ffff:10.0.0.0/104']
",
        &[
            "4:20: services.sourceRanges: found \"198.51.100.0\"; allowed: networks as in \
             198.51.100.0/24 or 2001:db8::/32",
            "4:34: services.sourceRanges: found \"2001:db8::/129\"; allowed: networks as in \
             198.51.100.0/24 or 2001:db8::/32",
            "4:50: services.sourceRanges: found 5; allowed: networks as in 198.51.100.0/24 or \
             2001:db8::/32",
            "7:19: services.sourceRanges: found \"198.51.100.0/24\"; allowed: a list of networks \
             as in 198.51.100.0/24 or 2001:db8::/32",
            "10:19: services.sourceRanges: the list is empty; name the networks that clients may \
             come from, or remove the key if they may come from everywhere",
            "13:17: services.sourceRanges: the list is empty; name the networks that clients may \
             come from, or remove the key if they may come from everywhere",
            "17:20: services.sourceRanges: 198.51.100.7/24 has bits set behind its prefix; write \
             198.51.100.0/24",
            "17:37: services.sourceRanges: 2001:db8::1/32 has bits set behind its prefix; write \
             2001:db8::/32",
            "17:55: services.sourceRanges: ::ffff:10.0.0.0/104 is an IPv4 network in IPv6 form; \
             write 10.0.0.0/8",
        ],
    )]);
}
