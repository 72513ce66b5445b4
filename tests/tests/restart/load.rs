//! Traffic of every kind that runs while things change.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context as _, Result, ensure};
use redirector_common::Family;
use redirector_tests::{
    agent::Lab,
    client::{self, Pulse},
    server::Server,
    site::{PLACES, Place, serve_echo},
    topology::FAMILIES,
    transfer::Stream,
    wait,
};

/// Between two datagrams of one flow.
const INTERVAL: Duration = Duration::from_millis(2);

/// In both families and to both kinds of backends: a flow of datagrams at a steady rate, and a
/// connection that is kept busy.
pub(crate) struct Load {
    pulses: Vec<(Place, Family, Pulse)>,
    streams: Vec<(Place, Family, Stream)>,
    _servers: Vec<Server>,
}

impl Load {
    /// Starts it, and waits until every flow is up and counted in the flow table.
    pub(crate) fn start(lab: &Lab) -> Result<Self> {
        let servers = serve_echo(lab)?;
        let (mut pulses, mut streams) = (Vec::new(), Vec::new());
        for family in FAMILIES {
            for place in PLACES {
                let socket = client::udp(&lab.net.client, place.udp(family))?;
                pulses.push((place, family, Pulse::start(socket, INTERVAL)?));
                let stream = client::tcp(&lab.net.client, place.tcp(family))?;
                let seed = streams.len() as u64;
                streams.push((place, family, Stream::start(stream, seed)?));
            }
        }
        let load = Self { pulses, streams, _servers: servers };
        load.beat()?;
        Ok(load)
    }

    /// Waits until more datagrams of every flow have made the round.
    pub(crate) fn beat(&self) -> Result<()> {
        for (place, family, pulse) in &self.pulses {
            pulse.beat(50).with_context(|| format!("UDP to {place:?} over {family:?}"))?;
        }
        Ok(())
    }

    /// Ends it, and fails if anything was lost.
    pub(crate) fn finish(self) -> Result<()> {
        for (place, family, pulse) in self.pulses {
            let sent =
                pulse.finish().with_context(|| format!("UDP to {place:?} over {family:?}"))?;
            ensure!(sent > 100, "only {sent} datagrams were sent");
        }
        for (place, family, stream) in self.streams {
            let sent =
                stream.finish().with_context(|| format!("TCP to {place:?} over {family:?}"))?;
            ensure!(sent > 0, "nothing was sent");
        }
        Ok(())
    }
}

/// Who talks to whom, with which translation: what must survive. What has ended goes by itself.
pub(crate) fn flows(lab: &Lab) -> Result<BTreeSet<String>> {
    let rows = lab.cli().rows(&["flow", "list"])?;
    let identity = |row: &serde_json::Value| {
        let keys = ["protocol", "client", "frontend", "backend", "service"];
        keys.map(|key| row[key].to_string()).join(" ")
    };
    Ok(rows.iter().filter(|row| row["state"] != "time-wait").map(identity).collect())
}

/// The numeric ids of all services, as they stand in the map.
pub(crate) fn service_ids(lab: &Lab) -> Result<BTreeSet<String>> {
    let rows = lab.cli().rows(&["map", "dump", "SERVICE_INFO"])?;
    ensure!(!rows.is_empty(), "no services in the map");
    Ok(rows.iter().map(ToString::to_string).collect())
}

/// Waits until every service of the file answers in `service list`.
pub(crate) fn await_services(lab: &Lab, names: &[&str]) -> Result<()> {
    wait::until_true(&format!("services {names:?}"), wait::SOON, || {
        let rows = lab.cli().rows(&["service", "list"])?;
        let listed: BTreeSet<&str> = rows.iter().filter_map(|row| row["name"].as_str()).collect();
        Ok(listed == names.iter().copied().collect())
    })
}
