//! `monitor` and `capture`: what is told of real traffic while somebody watches.

mod captured;

use std::{
    fs,
    io::{BufRead, BufReader, ErrorKind, Read},
    net::SocketAddr,
    process::{Child, ChildStderr, ChildStdout, ExitStatus, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use redirector_common::Family;
use redirector_tests::{
    agent::Lab,
    client,
    site::{CONFIG, Place, serve_echo},
    topology::{CLIENT, FAMILIES, NODE1, NODE1_INSIDE, NODE2},
    wait,
};
use serde_json::Value;

use captured::{Captured, lengths};

/// A frontend without backends.
const NOBODY: &str = "
  - name: nobody
    frontends:
      - {port: 90, protocol: TCP}
    backends: []
";

/// A command that watches. Ends with the test.
struct Watching {
    child: Child,
    output: BufReader<ChildStdout>,
    errors: BufReader<ChildStderr>,
}

impl Watching {
    /// Starts it, and waits until it does watch.
    fn start(lab: &Lab, arguments: &[&str]) -> Result<Self> {
        let mut command = lab.cli().command(arguments)?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let output = BufReader::new(child.stdout.take().context("no stdout")?);
        let errors = BufReader::new(child.stderr.take().context("no stderr")?);
        let mut watching = Self { child, output, errors };
        let mut line = String::new();
        watching.errors.read_line(&mut line)?;
        ensure!(line.starts_with("watching"), "{line}");
        Ok(watching)
    }

    /// The next event.
    fn next(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        serde_json::from_str(&line).with_context(|| format!("no JSON: {line}"))
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(i32::try_from(self.child.id())?), signal)?)
    }

    /// Waits for its end; returns what it said last on both channels.
    fn finish(&mut self) -> Result<(ExitStatus, String, String)> {
        let status =
            wait::until("the watcher to end", wait::SOON, || Ok(self.child.try_wait()?))?;
        let (mut output, mut errors) = (String::new(), String::new());
        self.output.read_to_string(&mut output)?;
        self.errors.read_to_string(&mut errors)?;
        Ok((status, output, errors))
    }

    /// The same, of one that must end well.
    fn finish_well(&mut self) -> Result<(String, String)> {
        let (status, output, errors) = self.finish()?;
        ensure!(status.success(), "{status}: {errors}");
        Ok((output, errors))
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn nobody(family: Family) -> SocketAddr {
    SocketAddr::new(NODE1.of(family), 90)
}

fn talk(lab: &Lab, port: u16, to: SocketAddr) -> Result<()> {
    let stream = client::tcp_from(&lab.net.client, port, to)?;
    client::echo(&stream, b"hello")?;
    client::reset(stream)
}

fn talk_udp(lab: &Lab, port: u16, to: SocketAddr) -> Result<()> {
    client::round_trip(&client::udp_from(&lab.net.client, port, to)?, b"hello").map(drop)
}

fn be_refused(lab: &Lab, port: u16, to: SocketAddr) -> Result<()> {
    let refused = client::tcp_from(&lab.net.client, port, to);
    let kind = refused.as_ref().err().and_then(|error| error.downcast_ref::<std::io::Error>());
    let kind = kind.map(std::io::Error::kind);
    ensure!(kind == Some(ErrorKind::ConnectionRefused), "{refused:?}");
    Ok(())
}

/// New flows of every kind and a drop, also with the agent dead: who, where to, and why.
#[test]
fn new_flows_and_drops() -> Result<()> {
    Lab::run_with(&format!("{CONFIG}{NOBODY}"), |lab| {
        let _servers = serve_echo(lab)?;
        lab.kill()?;
        for family in FAMILIES {
            let mut monitor = Watching::start(lab, &["monitor", "-o", "json"])?;
            let (tcp, udp) = (Place::Remote.tcp(family), Place::Remote.udp(family));
            let (local, local_udp) = (Place::Local.tcp(family), Place::Local.udp(family));
            talk(lab, 41_001, tcp)?;
            talk_udp(lab, 41_002, udp)?;
            talk(lab, 41_003, local)?;
            talk_udp(lab, 41_004, local_udp)?;
            be_refused(lab, 41_005, nobody(family))?;
            let at = |host: std::net::IpAddr, port| SocketAddr::new(host, port).to_string();
            let (node1, node2) = (NODE1.of(family), NODE2.of(family));
            let rows = [
                ("remote-new", "TCP", 41_001, tcp, Some(at(node2, 8080)), "web"),
                ("remote-new", "UDP", 41_002, udp, Some(at(node2, 5353)), "dns"),
                ("steered-new", "TCP", 41_003, local, Some(at(node1, 8080)), "80:8080/tcp"),
                ("local-new", "UDP", 41_004, local_udp, Some(at(node1, 5353)), "53:5353/udp"),
                ("no-backend", "TCP", 41_005, nobody(family), None, "nobody"),
            ];
            for (reason, protocol, port, frontend, backend, service) in rows {
                let event = monitor.next()?;
                ensure!(
                    event["reason"] == reason
                        && event["protocol"] == protocol
                        && event["newFlow"] == (reason != "no-backend")
                        && event["client"] == at(CLIENT.of(family), port)
                        && event["frontend"] == frontend.to_string()
                        && event["backend"].as_str() == backend.as_deref()
                        && event["interface"] == "eth0",
                    "expected {reason} of {port}: {event}"
                );
                ensure!(event["service"] == service, "{service}: {event}");
            }
            monitor.signal(Signal::SIGINT)?;
            let (more, said) = monitor.finish_well()?;
            // A client may miss the first answer, and try again.
            ensure!(more.lines().all(|line| line.contains("no-backend")), "{more}");
            ensure!(said.is_empty(), "{said}");
        }
        Ok(())
    })
}

/// Filters leave nothing else, limits end it, and what is asked for wrongly is said.
#[test]
fn filters_and_limits() -> Result<()> {
    Lab::run_with(&format!("{CONFIG}{NOBODY}"), |lab| {
        let _servers = serve_echo(lab)?;
        for family in FAMILIES {
            let (web, local) = (Place::Remote.tcp(family), Place::Local.tcp(family));
            let client = SocketAddr::new(CLIENT.of(family), 42_002).to_string();
            let backend = SocketAddr::new(NODE2.of(family), 8080).to_string();
            let nobody = nobody(family);
            let frontend = nobody.to_string();
            for (filters, expected) in [
                (vec!["--service", "web", "--client", &client], ["remote-new", "42002"]),
                (
                    vec!["--backend", &backend, "--reason", "remote-reply"],
                    ["remote-reply", "42001"],
                ),
                (vec!["--frontend", &frontend], ["no-backend", "42003"]),
                (vec!["--drops", "--protocol", "tcp"], ["no-backend", "42003"]),
                (vec!["--verdict", "deliver"], ["steered-new", "42004"]),
            ] {
                let mut command = vec!["monitor", "-o", "json", "--count", "1"];
                command.extend(filters.iter().map(|word| &**word));
                let mut monitor = Watching::start(lab, &command)?;
                talk(lab, 42_001, web)?;
                talk(lab, 42_002, web)?;
                be_refused(lab, 42_003, nobody)?;
                talk(lab, 42_004, local)?;
                let event = monitor.next()?;
                let [reason, port] = expected;
                ensure!(
                    event["reason"] == reason
                        && event["client"].as_str().is_some_and(|it| it.ends_with(port)),
                    "{filters:?}: {event}"
                );
                let (more, _) = monitor.finish_well()?;
                ensure!(more.is_empty(), "{filters:?}: {more}");
            }
        }
        let text = lab.cli().text(&["monitor", "--duration", "1"])?;
        ensure!(text.lines().count() == 1 && text.contains("FRONTEND"), "{text}");
        let refusal = lab.cli().refusal(&["monitor", "--service", "no-such"])?;
        ensure!(refusal.contains("no service no-such"), "{refusal}");
        Ok(())
    })
}

/// One watches at a time; of one that is killed nothing is left after its lease, and one whose reader
/// goes away ends.
#[test]
fn one_at_a_time_and_not_for_ever() -> Result<()> {
    Lab::run_with(CONFIG, |lab| {
        let _servers = serve_echo(lab)?;
        let watch = || lab.cli().rows(&["map", "dump", "WATCH"]);
        let first = Watching::start(lab, &["monitor", "-o", "json"])?;
        let pid = format!("pid {}", first.child.id());
        for second in [vec!["monitor"], vec!["capture", "-"]] {
            let refusal = lab.cli().refusal(&second)?;
            ensure!(refusal.contains(&pid) && refusal.contains("one can"), "{refusal}");
        }
        ensure!(watch()?.len() == 1, "nobody watches");
        first.signal(Signal::SIGKILL)?;
        wait::until_true("the lease to run out", wait::SOON, || {
            talk(lab, 43_001, Place::Remote.tcp(Family::V4))?;
            Ok(watch()?.is_empty())
        })?;
        drop(first);
        // What the dead one left is not for the next.
        let mut next = Watching::start(lab, &["monitor", "-o", "json"])?;
        talk(lab, 43_002, Place::Remote.tcp(Family::V4))?;
        let event = next.next()?;
        ensure!(event["client"].as_str().is_some_and(|it| it.ends_with(":43002")), "{event}");
        next.signal(Signal::SIGTERM)?;
        next.finish_well()?;
        ensure!(watch()?.is_empty(), "it still watches");

        let mut command = lab.cli().command(&["monitor"])?;
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        drop(child.stdout.take());
        let ended = wait::until("it to end", wait::SOON, || Ok(child.try_wait()?));
        // It may have ended.
        let _ = child.kill();
        ensure!(ended?.success());
        Ok(())
    })
}

/// A watcher that does not keep up says how much it missed, and one whose maps go ends.
#[test]
fn what_is_lost_is_said() -> Result<()> {
    Lab::run_with(CONFIG, |lab| {
        let _servers = serve_echo(lab)?;
        let file = lab.config_path().with_extension("pcapng");
        let name = file.to_str().context("no text")?;
        let mut capture = Watching::start(lab, &["capture", name])?;
        capture.signal(Signal::SIGSTOP)?;
        // More than the ring has room for, before its time is up.
        let stream = client::tcp(&lab.net.client, Place::Remote.tcp(Family::V4))?;
        for _ in 0..16 {
            client::echo(&stream, &[7; 128 * 1024])?;
        }
        capture.signal(Signal::SIGCONT)?;
        capture.signal(Signal::SIGTERM)?;
        let (_, said) = capture.finish_well()?;
        ensure!(said.contains("events were lost") && said.contains("packets captured"), "{said}");

        let mut monitor = Watching::start(lab, &["monitor"])?;
        // It sees nothing of what happens to the maps, and then others by the same names.
        monitor.signal(Signal::SIGSTOP)?;
        lab.stop()?;
        lab.cli().text(&["detach"])?;
        lab.start(&[])?;
        monitor.signal(Signal::SIGCONT)?;
        let (status, _, said) = monitor.finish()?;
        ensure!(status.code() == Some(1) && said.contains("it was detached"), "{said}");
        Ok(())
    })
}

/// Before and after translation, in either mode: addresses, checksums, names and verdicts.
#[test]
fn before_and_after() -> Result<()> {
    for mode in ["native", "off"] {
        Lab::run_with_options(CONFIG, &["--xdp-mode", mode], |lab| {
            let _servers = serve_echo(lab)?;
            let dir = tempfile::tempdir()?;
            for family in FAMILIES {
                let web = Place::Remote.tcp(family);
                // Neighbours are known from here on.
                talk(lab, 44_000, web)?;
                let file = dir.path().join(format!("{family:?}.pcapng"));
                let name = file.to_str().context("no text")?;
                let mut capture = Watching::start(lab, &["capture", name, "--service", "web"])?;
                talk(lab, 44_001, web)?;
                talk_udp(lab, 44_002, Place::Remote.udp(family))?;
                capture.signal(Signal::SIGINT)?;
                let (_, said) = capture.finish_well()?;
                let packets = Captured::parse(&fs::read(&file)?)?;
                let told = format!("{} packets captured", packets.len() / 2);
                ensure!(said.trim() == told, "{said}, of {}", packets.len());
                check_pairs(&packets, family, mode, web)?;

                let refusal = lab.cli().refusal(&["capture", name])?;
                ensure!(refusal.contains("--force"), "{refusal}");
                let overwrite = ["capture", name, "--force", "--duration", "1"];
                lab.cli().text(&overwrite)?;
                ensure!(Captured::parse(&fs::read(&file)?)?.is_empty(), "not overwritten");
            }
            let mut piped =
                Watching::start(lab, &["capture", "-", "--count", "1", "--snaplen", "60"])?;
            talk(lab, 44_003, Place::Remote.tcp(Family::V4))?;
            let mut bytes = Vec::new();
            piped.output.read_to_end(&mut bytes)?;
            piped.finish_well()?;
            let lengths = lengths(&bytes)?;
            ensure!(
                lengths.len() == 2 && lengths.iter().all(|(kept, all)| *kept == 60 && *all > 60),
                "{lengths:?}"
            );
            Ok(())
        })?;
    }
    Ok(())
}

/// Every packet of the connection, twice: by two interfaces, with two tuples.
fn check_pairs(packets: &[Captured], family: Family, mode: &str, web: SocketAddr) -> Result<()> {
    let client = SocketAddr::new(CLIENT.of(family), 44_001);
    let backend = SocketAddr::new(NODE2.of(family), 8080);
    let hook = if mode == "off" { "ingress" } else { "xdp" };
    let [first, second, ..] = packets else {
        anyhow::bail!("{packets:?}");
    };
    let source = second.source;
    ensure!(source.ip() == NODE1_INSIDE.of(family), "{second:?}");
    let comment = |moment, reason| {
        format!(
            "{moment}, {hook} on eth0, {reason}: forward, {client} > {web} becomes {source} > \
             {backend}, service web"
        )
    };
    ensure!(
        first.comment == comment("before", "remote-new")
            && second.comment == comment("after", "remote-new"),
        "{first:?}\n{second:?}"
    );
    let mut replies = 0;
    for pair in packets.chunks(2) {
        let [before, after] = pair else {
            anyhow::bail!("{pair:?}");
        };
        let is_reply = before.interface == "eth1";
        replies += u64::from(is_reply);
        let expected = if is_reply {
            [("eth1", backend, source), ("eth0", web, client)]
        } else {
            [("eth0", client, web), ("eth1", source, backend)]
        };
        for (packet, (interface, source, destination)) in pair.iter().zip(expected) {
            ensure!(
                packet.interface == interface
                    && packet.source == source
                    && packet.destination == destination
                    && packet.has_right_checksums,
                "expected {source} > {destination} on {interface}: {packet:?}"
            );
            ensure!(packet.age()?.as_secs() < 60, "{packet:?}");
        }
        ensure!(before.payload == after.payload && before.time <= after.time, "{pair:?}");
    }
    ensure!(replies >= 2, "{replies} replies");
    Ok(())
}
