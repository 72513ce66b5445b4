//! Addresses that packets to endpoints on other nodes come from.

use std::io::Write as _;

use anyhow::{Context as _, Result};
use redirector_common::Protocol::Tcp;
use redirector_tests::{
    cluster::{
        Cluster,
        build::{balance, mk_port, mk_service, spec},
    },
    wait,
};

/// Further addresses of node 1.
const KEPT: &str = "198.18.50.1";
const EXTERNAL: &str = "198.18.50.2";
const BALANCED: &str = "198.18.50.3";

/// An address that a Service names may leave the node: it is not used for as long as one does.
#[test]
fn addresses_that_services_name() -> Result<()> {
    let mut file = tempfile::NamedTempFile::new()?;
    writeln!(file, "snatAddresses: all")?;
    let path = file.path().to_str().context("a path")?;
    Cluster::run_with_options(1, &["--config", path], |cluster| {
        let follow = |expected: &[&str]| {
            wait::until_true("the map to follow", wait::SOON, || {
                let rows = cluster.rows(1, &["map", "dump", "SNAT_ADDRESSES"])?;
                let found: Vec<_> = rows.iter().filter_map(|row| row["address"].as_str()).collect();
                Ok(found == expected)
            })
            .with_context(|| format!("{expected:?}"))
        };
        let ports = |port| vec![mk_port(Tcp, 80, 8080, port)];
        let mut web = mk_service("web", ports(30080));
        spec(&mut web).external_ips = Some(vec![EXTERNAL.to_owned()]);
        cluster.put_service(web)?;
        for address in [EXTERNAL, KEPT, BALANCED] {
            cluster.host(1).ip(&format!("address add {address}/32 dev eth0"))?;
        }
        follow(&[KEPT, BALANCED])?;
        let mut mail = mk_service("mail", ports(30081));
        balance(&mut mail, &[BALANCED.parse()?]);
        cluster.put_service(mail)?;
        follow(&[KEPT])?;
        cluster.remove_service("web")?;
        follow(&[EXTERNAL, KEPT])?;
        cluster.remove_service("mail")?;
        follow(&[EXTERNAL, KEPT, BALANCED])
    })
}
