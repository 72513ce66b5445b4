//! Published ports and static services, from outside.

use anyhow::{Result, ensure};
use redirector_tests::{
    agent::Lab,
    client,
    site::{CONFIG, PLACES, Place, check_answers, serve_names},
    topology::{CLIENT, FAMILIES, NODE1_INSIDE},
};

/// Nothing answers before the agent runs; then every frontend does, and a local backend sees the
/// client itself, one elsewhere the node.
#[test]
fn answers_come_from_the_right_backend() -> Result<()> {
    Lab::run(|lab| {
        let _servers = serve_names(lab)?;
        for family in FAMILIES {
            for place in PLACES {
                let refused = client::whoami(&lab.net.client, place.tcp(family)).is_err();
                ensure!(refused, "{place:?} over {family:?} answers before the agent runs");
            }
        }
        lab.write_config(CONFIG)?;
        lab.start(&[])?;
        check_answers(lab)
    })
}

#[test]
fn curl() -> Result<()> {
    Lab::run_with(CONFIG, |lab| {
        let _servers = serve_names(lab)?;
        for family in FAMILIES {
            for place in PLACES {
                let page = client::curl(&lab.net.client, place.tcp(family))?;
                let seen = match place {
                    Place::Local => CLIENT.of(family),
                    Place::Remote => NODE1_INSIDE.of(family),
                };
                let seen = std::net::SocketAddr::new(seen, 0).to_string();
                let seen = seen.trim_end_matches('0');
                ensure!(
                    page.starts_with(&format!("server={} client={seen}", place.name())),
                    "{place:?} over {family:?}: {page}, expected {seen}"
                );
            }
        }
        Ok(())
    })
}

/// Nobody listens on the backend's port: the client hears of it at once.
#[test]
fn nobody_listens() -> Result<()> {
    Lab::run_with(CONFIG, |lab| {
        for family in FAMILIES {
            for place in PLACES {
                let error = client::tcp(&lab.net.client, place.tcp(family)).err();
                let kind = error
                    .as_ref()
                    .and_then(|error| error.downcast_ref::<std::io::Error>())
                    .map(std::io::Error::kind);
                ensure!(
                    kind == Some(std::io::ErrorKind::ConnectionRefused),
                    "{place:?} over {family:?}: {error:?}"
                );
            }
        }
        Ok(())
    })
}
