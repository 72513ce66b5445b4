//! Everything at once: objects change at random while the API server has its worst day, and with
//! traffic running. `REDIRECTOR_CHAOS_SECONDS` makes it longer, `REDIRECTOR_CHAOS_SEED` repeats it.

use std::{
    env,
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use redirector_common::Protocol::{Tcp, Udp};
use redirector_tests::{
    client::{self, Pulse},
    cluster::Cluster,
    server::Service,
    topology::FAMILIES,
    wait,
};
use serde_json::Value;

use crate::{
    chaos_objects::{Dice, Objects},
    chaos_server::disturb,
    on_host, own,
};

/// How long it takes, unless told otherwise.
const SECONDS: u64 = 60;

/// Between two changes.
const PAUSE: Duration = Duration::from_millis(20);

/// Ports of nodes with backends that live throughout.
pub(crate) const STEADY: [(&str, redirector_common::Protocol, u16); 2] =
    [("steady-tcp", Tcp, 30080), ("steady-udp", Udp, 30053)];

/// At the end the maps are what an agent makes of the objects that has seen nothing of all this,
/// and no connection to a backend that lived throughout was lost.
#[test]
fn chaos() -> Result<()> {
    let number = |name: &str| env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let seconds = number("REDIRECTOR_CHAOS_SECONDS").unwrap_or(SECONDS);
    let clock = || std::time::UNIX_EPOCH.elapsed().map_or(1, |since| since.as_secs());
    let seed = number("REDIRECTOR_CHAOS_SEED").unwrap_or_else(clock);
    Cluster::run(2, |cluster| {
        let pods = [
            cluster.start_pod_with(own("remote", "steady", 2), &Service::Echo)?,
            cluster.start_pod_with(on_host("local", "steady", 1), &Service::Echo)?,
        ];
        let mut objects = Objects::new(Dice::new(seed), &pods);
        objects.put_steady(cluster)?;
        let traffic = Traffic::start(cluster)?;
        let end = Instant::now() + Duration::from_secs(seconds);
        while Instant::now() < end {
            if objects.dice.one_in(8) {
                disturb(cluster, &mut objects.dice)?;
            } else {
                objects.change(cluster)?;
            }
            // The pace of the changes, not a condition.
            thread::sleep(PAUSE);
        }
        cluster.api.faults().heal();
        objects.settle(cluster)?;
        traffic.finish()?;
        let asked = cluster.api.access().asked();
        let watches = asked.iter().filter(|asked| asked.verb == "watch").count();
        ensure!(watches > 20, "the agents have hardly noticed: {watches} watches");
        drop(pods);
        compare(cluster)
    })
    .with_context(|| format!("REDIRECTOR_CHAOS_SEED={seed} repeats this"))
}

/// Connections and flows to backends that live throughout.
struct Traffic {
    stop: Arc<AtomicBool>,
    echoes: Vec<JoinHandle<Result<u64>>>,
    pulses: Vec<Pulse>,
}

impl Traffic {
    fn start(cluster: &Cluster) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (mut echoes, mut pulses) = (Vec::new(), Vec::new());
        for family in FAMILIES {
            for [tcp, udp] in [STEADY.map(|(_, _, port)| cluster.at(1, family, port)); 4] {
                let stream = wait::until("a connection", wait::SOON, || {
                    let patience = Duration::from_secs(2);
                    Ok(client::tcp_within(&cluster.net.client, tcp, patience).ok())
                })?;
                let stop = stop.clone();
                echoes.push(thread::spawn(move || echo(&stream, &stop)));
                let socket = client::udp(&cluster.net.client, udp)?;
                wait::until_true("the first echo", wait::SOON, || {
                    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
                    Ok(client::round_trip(&socket, &[0; 8]).is_ok())
                })?;
                pulses.push(Pulse::start(socket, Duration::from_millis(10))?);
            }
        }
        Ok(Self { stop, echoes, pulses })
    }

    fn finish(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        for echo in self.echoes {
            let count = echo.join().map_err(|_| anyhow!("a client panicked"))??;
            ensure!(count > 0, "nothing was sent");
        }
        for pulse in self.pulses {
            pulse.finish().context("UDP")?;
        }
        Ok(())
    }
}

/// Sends over a connection to an echo server until told to stop; returns how often.
pub(crate) fn echo(stream: &TcpStream, stop: &AtomicBool) -> Result<u64> {
    stream.set_read_timeout(Some(client::PATIENCE))?;
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        client::echo(stream, &[7; 1000]).with_context(|| format!("TCP, echo {count}"))?;
        count += 1;
        // The pace of the traffic.
        thread::sleep(Duration::from_millis(10));
    }
    client::finish(stream)?;
    Ok(count)
}

/// Compares what node 1's maps hold with what a new agent makes of the same objects.
fn compare(cluster: &mut Cluster) -> Result<()> {
    let before = contents(cluster)?;
    cluster.node(1).kill()?;
    cluster.detach(1)?;
    cluster.start_agent(1)?;
    let after = contents(cluster)?;
    for (found, expected) in before.iter().zip(&after) {
        ensure!(found == expected, "the maps hold {found:#}, a new agent makes {expected:#}");
    }
    ensure!(before.len() == after.len(), "{} rows, not {}", before.len(), after.len());
    Ok(())
}

/// What the maps hold, apart from counts of packets, and from ids, which depend on history.
fn contents(cluster: &Cluster) -> Result<Vec<Value>> {
    let mut rows = cluster.rows(1, &["service", "list"])?;
    for row in &mut rows {
        for frontend in row["frontends"].as_array_mut().into_iter().flatten() {
            frontend["packets"].take();
            frontend["bytes"].take();
            frontend["steered"].take();
        }
    }
    let maps = cluster.rows(1, &["map", "list"])?;
    let sizes = ["FRONTENDS", "SERVICE_INFO", "BACKENDS", "SLOTS", "SOURCE_RANGES", "PORTS"];
    let wanted = |map: &Value| sizes.iter().any(|name| map["name"] == **name);
    let found: Vec<Value> = maps.into_iter().filter(wanted).collect();
    ensure!(found.len() == sizes.len(), "not all of {sizes:?}: {found:?}");
    // The steady services and the last one; of the others chance leaves any number.
    ensure!(rows.len() >= 3, "{rows:?}");
    rows.extend(found);
    Ok(rows)
}
