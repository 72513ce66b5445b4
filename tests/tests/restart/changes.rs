//! The file changes with traffic running: flows that are there go on.

use anyhow::{Context as _, Result, ensure};
use redirector_tests::{
    agent::Lab,
    client,
    site::{CONFIG, PLACES},
    topology::FAMILIES,
};

use crate::load::{Load, await_services};

const NAMES: [&str; 4] = ["80:8080/tcp", "53:5353/udp", "web", "dns"];

/// Services come and go beside those in use.
#[test]
fn other_services() -> Result<()> {
    Lab::run_with(CONFIG, |lab| {
        let load = Load::start(lab)?;
        for round in 0..5 {
            let others: String = (0..20)
                .map(|i| format!("  - {}:{}\n", 10_000 + round * 100 + i, 20_000 + i))
                .collect();
            lab.write_config(&CONFIG.replace("publish:\n", &format!("publish:\n{others}")))?;
            let names: Vec<String> = (0..20)
                .map(|i| format!("{}:{}/tcp", 10_000 + round * 100 + i, 20_000 + i))
                .collect();
            let names: Vec<&str> = names.iter().map(String::as_str).chain(NAMES).collect();
            await_services(lab, &names)?;
            load.beat()?;
        }
        lab.write_config(CONFIG)?;
        await_services(lab, &NAMES)?;
        load.finish()
    })
}

/// A backend joins: new flows may choose it, those that are there keep theirs.
#[test]
fn another_backend() -> Result<()> {
    Lab::run_with(CONFIG, |lab| {
        let load = Load::start(lab)?;
        for backend in ["198.18.2.77", "198.18.2.78"] {
            let more = format!("backends:\n      - {{address: {backend}, port: 9999}}\n");
            lab.write_config(&CONFIG.replace("backends:\n", &more))?;
            redirector_tests::wait::until_true(
                "the backend",
                redirector_tests::wait::SOON,
                || {
                    let web = lab.cli().json(&["service", "get", "web"])?;
                    Ok(web.to_string().contains(backend))
                },
            )?;
            load.beat()?;
        }
        load.finish()
    })
}

/// Services in use are taken out of the file: no new connections, but TCP connections live on.
#[test]
fn services_in_use() -> Result<()> {
    Lab::run_with(CONFIG, |lab| {
        let _servers = redirector_tests::site::serve_echo(lab)?;
        let mut streams = Vec::new();
        for family in FAMILIES {
            for place in PLACES {
                let stream = client::tcp(&lab.net.client, place.tcp(family))?;
                client::echo(&stream, b"before")?;
                streams.push((place, family, stream));
            }
        }
        lab.write_config("publish:\n  - 9999:9999\n")?;
        await_services(lab, &["9999:9999/tcp"])?;
        for (place, family, stream) in &streams {
            let what = || format!("{place:?} over {family:?}");
            client::echo(stream, &[7; 100_000]).with_context(what)?;
            let refused = client::tcp(&lab.net.client, place.tcp(*family)).is_err();
            ensure!(refused, "{}: a new connection after the service went", what());
        }
        for (_, _, stream) in &streams {
            client::finish(stream)?;
        }
        Ok(())
    })
}
