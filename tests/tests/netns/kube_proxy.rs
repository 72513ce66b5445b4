//! Kube-proxy's rules are seen, whichever of its modes wrote them.

use anyhow::{Result, ensure};
use redirector::dataplane::kube_proxy::has_rules;
use redirector_tests::namespace::Namespace;

const WAYS: [&str; 5] = [
    "nft add table ip kube-proxy ; add chain ip kube-proxy services",
    "iptables-nft -t nat -N KUBE-SERVICES",
    "ip6tables-nft -t nat -N KUBE-SERVICES",
    "iptables-legacy -t nat -N KUBE-SERVICES",
    "ip6tables-legacy -t nat -N KUBE-SERVICES",
];

/// Rules of others.
const OTHERS: [&str; 3] = [
    "nft add table ip proxy ; add chain ip proxy services",
    "iptables-nft -t nat -N DOCKER",
    "iptables-legacy -t nat -N DOCKER",
];

fn run(host: &Namespace, command: &str) -> Result<()> {
    let mut words = command.split_whitespace();
    host.run(words.next().unwrap_or_default(), words).map(drop)
}

#[test]
fn its_rules_are_seen_in_every_mode() -> Result<()> {
    for way in WAYS {
        let host = Namespace::new("rules")?;
        for other in OTHERS {
            run(&host, other)?;
        }
        ensure!(!host.enter(|| Ok(has_rules()?))?, "seen before {way}");
        run(&host, way)?;
        ensure!(host.enter(|| Ok(has_rules()?))?, "not seen after {way}");
    }
    Ok(())
}

#[test]
fn a_host_without_rules_has_none() -> Result<()> {
    let host = Namespace::new("rules")?;
    ensure!(!host.enter(|| Ok(has_rules()?))?);
    // Asking makes no table.
    let tables =
        host.enter(|| Ok(std::fs::read_to_string("/proc/thread-self/net/ip_tables_names")));
    ensure!(tables?.unwrap_or_default().trim().is_empty());
    Ok(())
}
