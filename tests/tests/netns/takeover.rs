//! Connections that began before redirector did, under rules of the kernel's own.

use anyhow::{Context as _, Result, ensure};
use redirector_tests::{
    agent::Lab,
    client,
    site::{CONFIG, PLACES, serve_echo},
    topology::{FAMILIES, make_router},
};

/// What kube-proxy makes of the same services, in essence.
const RULES: &str = "
table inet proxy {
    chain services {
        type nat hook prerouting priority dstnat; policy accept;
        iifname eth0 tcp dport 80 redirect to :8080
        iifname eth0 meta nfproto ipv4 tcp dport 81 dnat ip to 198.18.2.2:8080
        iifname eth0 meta nfproto ipv6 tcp dport 81 dnat ip6 to [2001:db8:2::2]:8080
    }
    chain sources {
        type nat hook postrouting priority srcnat; policy accept;
        oifname eth1 masquerade
    }
}
";

/// They go on as they began, packet by packet passed to the kernel; new ones are redirector's.
#[test]
fn connections_of_the_kernels_go_on() -> Result<()> {
    for mode in ["native", "generic", "off"] {
        Lab::run(|lab| {
            let node = &lab.net.node1;
            make_router(node)?;
            let rules = tempfile::NamedTempFile::new()?;
            std::fs::write(rules.path(), RULES)?;
            node.run("nft", ["-f".as_ref(), rules.path().as_os_str()])?;
            let _servers = serve_echo(lab)?;
            let mut old = Vec::new();
            for family in FAMILIES {
                for place in PLACES {
                    let stream = client::tcp(&lab.net.client, place.tcp(family))?;
                    client::echo(&stream, b"by the kernel")?;
                    old.push((format!("{place:?} over {family:?}"), stream));
                }
            }
            lab.write_config(CONFIG)?;
            lab.start(&["--xdp-mode", mode])?;
            for (what, stream) in &old {
                let what = || format!("{what}, XDP {mode}");
                client::echo(stream, &[7; 100_000]).with_context(what)?;
            }
            let passed = lab.cli().packets("no-flow")?;
            ensure!(passed >= old.len() as u64, "{passed} packets without a flow");
            ensure!(lab.cli().rows(&["flow", "list"])?.is_empty(), "flows out of the middle");
            for family in FAMILIES {
                for place in PLACES {
                    let stream = client::tcp(&lab.net.client, place.tcp(family))?;
                    client::echo(&stream, b"by redirector")?;
                    client::finish(&stream)?;
                }
            }
            ensure!(lab.cli().packets("steered-new")? >= 2, "the kernel took new connections");
            ensure!(lab.cli().packets("remote-new")? >= 2, "the kernel took new connections");
            for (what, stream) in &old {
                client::echo(stream, b"still by the kernel").with_context(|| what.clone())?;
                client::finish(stream).with_context(|| what.clone())?;
            }
            Ok(())
        })?;
    }
    Ok(())
}
