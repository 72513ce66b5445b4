use proptest::prelude::*;

use super::*;

/// Frontend address, port, local port and protocol of each service, and its name.
fn parsed(spec: &str) -> Vec<(Option<String>, u16, u16, Protocol, String)> {
    parse_spec(spec)
        .unwrap()
        .into_iter()
        .map(|service| {
            let [frontend] = service.frontends[..] else { panic!("{service:?}") };
            let [backend] = service.backends[..] else { panic!("{service:?}") };
            assert_eq!(backend.address, BackendAddress::Local);
            let address = frontend.address.map(|address| address.to_string());
            (address, frontend.port, backend.port, frontend.protocol, service.key.name)
        })
        .collect()
}

#[test]
fn single_ports() {
    let (tcp, udp) = (Protocol::Tcp, Protocol::Udp);
    let rows = [
        ("80:8080", None, 80, 8080, tcp, "80:8080/tcp"),
        ("80:8080/tcp", None, 80, 8080, tcp, "80:8080/tcp"),
        ("80:8080/TCP", None, 80, 8080, tcp, "80:8080/tcp"),
        ("53:5353/udp", None, 53, 5353, udp, "53:5353/udp"),
        ("53:5353/Udp", None, 53, 5353, udp, "53:5353/udp"),
        ("1:65535", None, 1, 65535, tcp, "1:65535/tcp"),
        ("80-80:8080-8080", None, 80, 8080, tcp, "80:8080/tcp"),
        ("192.0.2.10:53:5353/udp", Some("192.0.2.10"), 53, 5353, udp, "192.0.2.10:53:5353/udp"),
        (
            "[2001:db8::1]:443:8443",
            Some("2001:db8::1"),
            443,
            8443,
            tcp,
            "[2001:db8::1]:443:8443/tcp",
        ),
        // Named by the canonical form.
        (
            "[2001:DB8:0::1]:443:8443",
            Some("2001:db8::1"),
            443,
            8443,
            tcp,
            "[2001:db8::1]:443:8443/tcp",
        ),
    ];
    for (spec, address, port, local_port, protocol, name) in rows {
        let wanted = (address.map(str::to_owned), port, local_port, protocol, name.to_owned());
        assert_eq!(parsed(spec), [wanted], "{spec}");
    }
}

#[test]
fn ranges_are_paired_in_order() {
    let names: Vec<_> = parsed("192.0.2.1:9000-9002:19000-19002/udp")
        .into_iter()
        .map(|(_, _, _, _, name)| name)
        .collect();
    assert_eq!(
        names,
        ["192.0.2.1:9000:19000/udp", "192.0.2.1:9001:19001/udp", "192.0.2.1:9002:19002/udp"]
    );
    assert_eq!(parsed("1-65535:1-65535").len(), 65535);
}

#[test]
fn wrong_entries() {
    const WRITE: &str = "write [ADDRESS:]PORT[-PORT]:LOCALPORT[-LOCALPORT][/tcp|/udp]";
    let rows = [
        ("", 0, format!("\"\" names no local port; {WRITE}")),
        ("80", 0, format!("\"80\" names no local port; {WRITE}")),
        ("80/tcp", 0, format!("\"80\" names no local port; {WRITE}")),
        (":", 0, "port \"\" is not a port; ports are 1 to 65535".into()),
        ("80:", 3, "port \"\" is not a port; ports are 1 to 65535".into()),
        ("0:8080", 0, "port 0 is not a port; ports are 1 to 65535".into()),
        ("80:0", 3, "port 0 is not a port; ports are 1 to 65535".into()),
        ("80:65536", 3, "port 65536 is not a port; ports are 1 to 65535".into()),
        ("80:99999999999999999999", 3, "port 99999999999999999999 is not a port; ports are 1 to 65535".into()),
        ("http:8080", 0, "port \"http\" is not a port; ports are 1 to 65535".into()),
        ("+80:8080", 0, "port \"+80\" is not a port; ports are 1 to 65535".into()),
        (" 80:8080", 0, "port \" 80\" is not a port; ports are 1 to 65535".into()),
        ("-80:8080", 0, "port \"\" is not a port; ports are 1 to 65535".into()),
        ("80-:8080", 3, "port \"\" is not a port; ports are 1 to 65535".into()),
        ("80-90-95:8080", 3, "port \"90-95\" is not a port; ports are 1 to 65535".into()),
        ("9010-9000:1-11", 0, "range 9010-9000 is reversed; write 9000-9010".into()),
        ("1-11:9010-9000", 5, "range 9010-9000 is reversed; write 9000-9010".into()),
        (
            "9000-9010:80",
            10,
            "9000-9010 (11 ports) and 80 (1 port) differ in length; give both sides equally many \
             ports"
                .into(),
        ),
        (
            "1-2:3-5",
            4,
            "1-2 (2 ports) and 3-5 (3 ports) differ in length; give both sides equally many ports"
                .into(),
        ),
        ("80:8080/sctp", 8, "protocol \"sctp\" is not known; allowed: tcp, udp".into()),
        ("80:8080/", 8, "protocol \"\" is not known; allowed: tcp, udp".into()),
        ("80:8080/tcp/udp", 3, "port \"8080/tcp\" is not a port; ports are 1 to 65535".into()),
        (
            "192.0.2.300:80:8080",
            0,
            "\"192.0.2.300\" is not an address; allowed: an IPv4 or IPv6 address, without a port \
             or prefix length"
                .into(),
        ),
        (
            ":80:8080",
            0,
            "\"\" is not an address; allowed: an IPv4 or IPv6 address, without a port or prefix \
             length"
                .into(),
        ),
        (
            "0.0.0.0:80:8080",
            0,
            "0.0.0.0 is the unspecified address: clients cannot send to it; leave the address out \
             for every node address"
                .into(),
        ),
        (
            "[::]:80:8080",
            1,
            ":: is the unspecified address: clients cannot send to it; leave the address out for \
             every node address"
                .into(),
        ),
        (
            "127.0.0.1:80:8080",
            0,
            "127.0.0.1 is a loopback address: packets from outside never carry it; name an \
             address that clients send to"
                .into(),
        ),
        (
            "2001:db8::1:443:8443",
            0,
            "\"2001:db8::1:443:8443\" has too many colons; put an IPv6 address in brackets, as in \
             [2001:db8::1]:443:8443"
                .into(),
        ),
        ("[2001:db8::1:443:8443", 0, format!("\"[\" has no \"]\"; {WRITE}")),
        ("[2001:db8::1]", 13, format!("\"\" follows the address; {WRITE}")),
        ("[2001:db8::1]443:8443", 13, format!("\"443:8443\" follows the address; {WRITE}")),
        ("[2001:db8::1]:443", 13, format!("\":443\" follows the address; {WRITE}")),
        (
            "[192.0.2.1]:443:8443",
            1,
            "\"192.0.2.1\" is not an IPv6 address; only those stand in brackets".into(),
        ),
        (
            "[::ffff:192.0.2.1]:443:8443",
            1,
            "::ffff:192.0.2.1 is an IPv4 address in IPv6 form; write 192.0.2.1".into(),
        ),
        (
            "[fe80::1]:443:8443",
            1,
            "fe80::1 is a link-local address: it means nothing without an interface; name a global \
             or unique local address"
                .into(),
        ),
    ];
    for (spec, offset, message) in rows {
        assert_eq!(parse_spec(spec), Err(SpecError { offset, message }), "{spec}");
    }
}

proptest! {
    #[test]
    fn nothing_panics(spec in r"[\[\]0-9a-f:./tcpud€ -]{0,24}") {
        if let Err(error) = parse_spec(&spec) {
            prop_assert!(spec.is_char_boundary(error.offset), "{error:?}");
        }
    }

    #[test]
    fn a_name_says_the_same_as_its_entry(
        port in 1_u16..,
        local_port in 1_u16..,
        address in proptest::option::of(any::<u32>()),
        udp in any::<bool>(),
    ) {
        let address = address.map_or_else(String::new, |bits| {
            format!("{}:", std::net::Ipv4Addr::from(bits % 0x6000_0000 + 0x0a00_0000))
        });
        let suffix = if udp { "/udp" } else { "" };
        let spec = format!("{address}{port}:{local_port}{suffix}");
        let services = parse_spec(&spec).unwrap();
        prop_assert_eq!(&parse_spec(&services[0].key.name).unwrap(), &services);
    }
}
