//! Services that only some clients may use.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Result, ensure};
use redirector_common::Family;
use redirector_tests::{
    agent::Lab,
    client::{self, PATIENCE, Pulse},
    site::{PLACES, Place, serve_echo},
    topology::{FAMILIES, NODE1},
    wait,
};

/// Networks that the client is in, those that it is beside, and one of each.
const INSIDE: &str = "[198.18.1.0/30, '2001:db8:1::/64']";
const OUTSIDE: &str = "[198.18.1.4/30, 198.18.2.0/24, '2001:db8:1:0:1::/80']";
const ONLY_V4: &str = "[198.18.0.0/15]";
const ONLY_V6: &str = "['::/0']";

/// A service here and one on node 2, each over TCP and UDP, for clients in these networks.
fn config(ranges: Option<&str>) -> String {
    let ranges = ranges.map(|ranges| format!("sourceRanges: {ranges}, ")).unwrap_or_default();
    format!(
        "
services:
  - {{name: here, {ranges}frontends: [{{port: 80}}], backends: [{{address: local, port: 8080}}]}}
  - {{name: here-udp, {ranges}frontends: [{{port: 53, protocol: UDP}}],
     backends: [{{address: local, port: 5353}}]}}
  - {{name: there, {ranges}frontends: [{{port: 81}}],
     backends: [{{address: 198.18.2.2, port: 8080}}, {{address: '2001:db8:2::2', port: 8080}}]}}
  - {{name: there-udp, {ranges}frontends: [{{port: 54, protocol: UDP}}],
     backends: [{{address: 198.18.2.2, port: 5353}}, {{address: '2001:db8:2::2', port: 5353}}]}}
"
    )
}

/// How long nobody has to answer to count as silent.
const SILENCE: Duration = Duration::from_millis(700);

fn admits_tcp(lab: &Lab, frontend: SocketAddr, patience: Duration) -> bool {
    client::tcp_within(&lab.net.client, frontend, patience).is_ok()
}

fn admits_udp(lab: &Lab, frontend: SocketAddr, patience: Duration) -> Result<bool> {
    let socket = client::udp(&lab.net.client, frontend)?;
    socket.set_read_timeout(Some(patience))?;
    Ok(client::round_trip(&socket, b"hello").is_ok())
}

/// Waits for the agent to have read the file, then tries everything.
fn check(lab: &Lab, ranges: Option<&str>, admitted: [bool; 2]) -> Result<()> {
    lab.write_config(&config(ranges))?;
    wait::until_true("the ranges to be listed", wait::SOON, || {
        let listed = &lab.cli().json(&["service", "get", "there-udp"])?["sourceRanges"];
        Ok(match (ranges, listed.as_array()) {
            (None, None) => true,
            (Some(ranges), Some(listed)) => {
                listed.len() == ranges.split(',').count()
                    && listed.iter().all(|it| it.as_str().is_some_and(|it| ranges.contains(it)))
            }
            (None, Some(_)) | (Some(_), None) => false,
        })
    })?;
    for (family, admitted) in FAMILIES.into_iter().zip(admitted) {
        for place in PLACES {
            let before = lab.cli().packets("source-denied")?;
            let patience = if admitted { PATIENCE } else { SILENCE };
            ensure!(
                admits_tcp(lab, place.tcp(family), patience) == admitted
                    && admits_udp(lab, place.udp(family), patience)? == admitted,
                "{place:?} over {family:?} with {ranges:?}: expected {admitted}"
            );
            let denied = lab.cli().packets("source-denied")? - before;
            ensure!((denied >= 2) != admitted, "{denied} packets denied with {ranges:?}");
        }
    }
    Ok(())
}

/// The ranges change, clients come or do not; what is open goes on all the while.
#[test]
fn ranges_change_under_open_connections() -> Result<()> {
    Lab::run_with(&config(Some(INSIDE)), |lab| {
        let _servers = serve_echo(lab)?;
        let mut streams = Vec::new();
        let mut pulses = Vec::new();
        for family in FAMILIES {
            for place in PLACES {
                let stream = client::tcp(&lab.net.client, place.tcp(family))?;
                client::echo(&stream, b"at first")?;
                streams.push(stream);
                let socket = client::udp(&lab.net.client, place.udp(family))?;
                pulses.push(Pulse::start(socket, Duration::from_millis(5))?);
            }
        }
        for pulse in &pulses {
            pulse.beat(1)?;
        }
        let steps = [
            (Some(INSIDE), [true, true]),
            (Some(OUTSIDE), [false, false]),
            (Some(ONLY_V4), [true, false]),
            (Some(ONLY_V6), [false, true]),
            (None, [true, true]),
            (Some(OUTSIDE), [false, false]),
        ];
        for (ranges, admitted) in steps {
            check(lab, ranges, admitted)?;
            for stream in &streams {
                client::echo(stream, b"and on")?;
            }
        }
        for pulse in pulses {
            pulse.finish()?;
        }
        for stream in &streams {
            client::finish(stream)?;
        }
        Ok(())
    })
}

/// The ranges outlive the agent, and another takes them up; once no service has any, none is left.
#[test]
fn ranges_survive_the_agent() -> Result<()> {
    Lab::run_with(&config(Some(OUTSIDE)), |lab| {
        let _servers = serve_echo(lab)?;
        let frontend = Place::Local.tcp(Family::V4);
        let ranges = |lab: &Lab| lab.cli().rows(&["map", "dump", "SOURCE_RANGES"]);
        let before = ranges(lab)?;
        ensure!(before.len() == 12 && !admits_tcp(lab, frontend, SILENCE), "{before:?}");
        lab.kill()?;
        ensure!(!admits_tcp(lab, frontend, SILENCE) && ranges(lab)? == before);
        lab.start(&[])?;
        ensure!(!admits_tcp(lab, frontend, SILENCE) && ranges(lab)? == before);
        lab.write_config("publish: ['80:8080']")?;
        let frontend = SocketAddr::new(NODE1.of(Family::V6), 80);
        wait::until_true("everyone to be admitted", wait::SOON, || {
            Ok(admits_tcp(lab, frontend, SILENCE) && ranges(lab)?.is_empty())
        })
    })
}
