//! Tables are made larger while packets flow.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::sys::signal::Signal;
use redirector_tests::{
    agent::Lab,
    client,
    site::{CONFIG, PLACES, check_answers, serve_names},
    topology::FAMILIES,
    wait,
};

use crate::load::{Load, flows};

const CONNECTIONS: usize = 300;

/// How long it may take an agent to begin anew on a busy machine.
const BEGINNING: Duration = Duration::from_secs(120);

fn config(flows: u32) -> String {
    format!("snatPorts: 20000-49999\ntables: {{flows: {flows}, affinity: 128}}\n{CONFIG}")
}

fn connect(lab: &Lab, number: usize) -> Result<TcpStream> {
    let place = PLACES[number % 2];
    client::tcp(&lab.net.client, place.tcp(FAMILIES[number / 2 % 2]))
}

fn check(streams: &[TcpStream]) -> Result<()> {
    streams.iter().try_for_each(|stream| client::echo(stream, &[7; 2000]))
}

fn capacity(lab: &Lab, name: &str) -> Result<u64> {
    let rows = lab.cli().rows(&["map", "list"])?;
    let row = rows.iter().find(|row| row["name"] == name).context("no such map")?;
    row["capacity"].as_u64().context("no capacity")
}

/// Runs `disturb` while connections are used and made: none is lost.
fn withstand(lab: &Lab, disturb: impl FnOnce(&Lab) -> Result<()>) -> Result<()> {
    let load = Load::start(lab)?;
    let old = (0..CONNECTIONS).map(|number| connect(lab, number)).collect::<Result<Vec<_>>>()?;
    check(&old).context("before")?;
    let before = flows(lab)?;
    let ended = AtomicBool::new(false);
    let new = std::thread::scope(|scope| -> Result<Vec<TcpStream>> {
        let connecting = scope.spawn(|| -> Result<Vec<TcpStream>> {
            let mut new = Vec::new();
            while !ended.load(Ordering::Relaxed) || new.len() < 10 {
                if new.len() == 20 {
                    // Servers hang up on those that say nothing for long.
                    check(&new).context("new connections")?;
                    new.drain(..).try_for_each(|stream| client::finish(&stream))?;
                }
                new.push(connect(lab, new.len()).context("a new connection")?);
                check(&new[new.len() - 1..]).context("a new connection")?;
            }
            Ok(new)
        });
        let using = scope.spawn(|| -> Result<()> {
            while !ended.load(Ordering::Relaxed) {
                check(&old).context("an old connection")?;
            }
            Ok(())
        });
        // An agent that looks at everything again and again.
        let changing = scope.spawn(|| -> Result<()> {
            for address in ["192.0.2.77/32", "192.0.2.78/32"].iter().cycle() {
                if ended.load(Ordering::Relaxed) {
                    break;
                }
                for action in ["add", "del"] {
                    lab.net.node1.run("ip", ["address", action, *address, "dev", "lo"])?;
                }
            }
            Ok(())
        });
        let disturbed = disturb(lab);
        ended.store(true, Ordering::Relaxed);
        changing.join().map_err(|_| anyhow!("a thread panicked"))??;
        using.join().map_err(|_| anyhow!("a thread panicked"))??;
        let new = connecting.join().map_err(|_| anyhow!("a thread panicked"))??;
        disturbed.map(|()| new)
    })?;
    check(&old).context("an old connection afterwards")?;
    check(&new).context("a new connection afterwards")?;
    let after = flows(lab)?;
    let lost: Vec<_> = before.difference(&after).collect();
    ensure!(lost.is_empty(), "flows were lost: {lost:?}");
    load.beat()?;
    load.finish()
}

fn resize(lab: &Lab, name: &str, entries: u32) -> Result<()> {
    let size = entries.to_string();
    lab.cli().output(&["map", "resize", name, &size]).and_then(|output| {
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "map resize {name} {size}: {said}");
        ensure!(said.contains(&format!(": room for {size} entries")), "{said}");
        let waits = name.eq_ignore_ascii_case("flows");
        ensure!(said.contains("new flows waited for") == waits, "{said}");
        Ok(())
    })
}

/// Waits until the agent works on the maps that programs use.
fn await_new_beginning(lab: &Lab, times: usize) -> Result<()> {
    wait::until_true("the agent to begin anew", BEGINNING, || {
        let log = lab.log();
        let ups = log.matches("the data path is up").count();
        Ok(log.matches("beginning anew").count() >= times && ups > times)
    })
}

#[test]
fn by_command() -> Result<()> {
    for mode in ["native", "off"] {
        Lab::run_with_options(&config(4096), &["--xdp-mode", mode], |lab| {
            let id = lab.agent_id();
            withstand(lab, |lab| {
                resize(lab, "FLOWS", 16384)?;
                ensure!(capacity(lab, "FLOWS")? == 16384 && capacity(lab, "FLOW_RING")? == 8192);
                resize(lab, "AFFINITY", 4096)?;
                resize(lab, "BACKENDS", 300_000)?;
                await_new_beginning(lab, 1)
            })?;
            ensure!(lab.agent_id() == id, "the agent is another process");
            let status = lab.cli().json(&["status"])?;
            ensure!(status["halfOpen"]["budget"] == 4096, "{}", status["halfOpen"]);
            lab.kill()?;
            withstand(lab, |lab| {
                resize(lab, "flows", 32768)?;
                resize(lab, "SERVICES", 70_000)
            })?;
            lab.start(&["--xdp-mode", mode])?;
            ensure!(capacity(lab, "FLOWS")? == 32768, "it shrank");
            Ok(())
        })
        .with_context(|| format!("XDP {mode}"))?;
    }
    Ok(())
}

#[test]
fn by_the_file() -> Result<()> {
    Lab::run_with(&config(4096), |lab| {
        withstand(lab, |lab| {
            lab.write_config(&config(8192))?;
            await_new_beginning(lab, 1)
        })?;
        ensure!(capacity(lab, "FLOWS")? == 8192, "it is as it was");
        // Smaller: they stay.
        lab.kill()?;
        lab.write_config(&config(1024))?;
        lab.start(&[])?;
        ensure!(capacity(lab, "FLOWS")? == 8192, "it shrank");
        lab.kill()?;
        lab.write_config(&config(65536))?;
        lab.start(&[])?;
        ensure!(capacity(lab, "FLOWS")? == 65536, "it is as it was");
        Ok(())
    })
}

/// Whatever is left half done, the next one finishes or takes back.
#[test]
fn killed_on_the_way() -> Result<()> {
    Lab::run_with(&config(1024), |lab| {
        lab.kill()?;
        withstand(lab, |lab| {
            for (number, delay) in [20, 100, 200, 300, 400, 500, 700, 900].into_iter().enumerate() {
                let size = (2048 + number * 100).to_string();
                let mut resizing =
                    lab.cli().command(&["map", "resize", "FLOWS", &size])?.spawn()?;
                // Not for a condition: to end it at different points.
                std::thread::sleep(Duration::from_millis(delay));
                resizing.kill()?;
                resizing.wait()?;
            }
            resize(lab, "FLOWS", 8192)
        })?;
        lab.start(&[])?;
        ensure!(capacity(lab, "FLOWS")? == 8192, "it is as it was");
        Ok(())
    })
}

#[test]
fn what_is_refused() -> Result<()> {
    Lab::run_with(&config(4096), |lab| {
        let rows = [
            (["FLOWS", "4096"], "FLOWS has room for 4096 entries already"),
            (["FLOWS", "1000"], "FLOWS can have from 1024 to 16777216 entries, not 1000"),
            (["PORTS", "1000"], "PORTS's size cannot be chosen; those that can: AFFINITY"),
        ];
        for ([name, size], expected) in rows {
            let refusal = lab.cli().refusal(&["map", "resize", name, size])?;
            ensure!(refusal.contains(expected), "{refusal}");
        }
        Ok(())
    })
}

/// The pin of a table that is being made larger, if one is.
fn is_growing(lab: &Lab) -> Result<bool> {
    let pins = std::fs::read_dir(lab.bpffs.pins().join("maps"))?;
    let names = pins.map(|pin| Ok(pin?.file_name())).collect::<Result<Vec<_>>>()?;
    Ok(names.iter().any(|name| name.to_string_lossy().contains(':')))
}

/// Signals that come while tables are made larger, or just before or after, are answered.
#[test]
fn told_to_end_on_the_way() -> Result<()> {
    Lab::run_with(&config(1024), |lab| {
        for number in 1..=2 {
            lab.write_config(&config(1024 << number))?;
            wait::until_true("a larger table", BEGINNING, || is_growing(lab))?;
            if number % 2 == 0 {
                let log = lab.log();
                wait::until_true("the agent to begin anew", BEGINNING, || {
                    lab.signal(Signal::SIGHUP)?;
                    Ok(lab.log()[log.len()..].contains("goes on\n"))
                })?;
            }
            let status = lab.stop()?;
            ensure!(status.success(), "the agent ended with {status}");
            lab.start(&[])?;
            ensure!(capacity(lab, "FLOWS")? == 1024 << number, "it is as it was");
        }
        Ok(())
    })
}

/// While the agent begins anew the directory is still its own.
#[test]
fn not_detached_on_the_way() -> Result<()> {
    Lab::run_with(&config(1024), |lab| {
        lab.write_config(&config(2048))?;
        wait::until_true("the agent to begin anew", BEGINNING, || {
            let refusal = lab.cli().refusal(&["detach"])?;
            ensure!(refusal.contains("stop it first"), "{refusal}");
            Ok(lab.log().matches("the data path is up").count() == 2)
        })
    })
}

/// Has somebody make tables larger and leave it at that when programs go over to them.
fn leave_unfinished(lab: &Lab, size: &str) -> Result<()> {
    let links = lab.bpffs.pins().join("links");
    // A link of one kind takes no program of another.
    let odd = links.join("ingress-odd");
    std::fs::hard_link(links.join("xdp-eth0"), &odd)?;
    let refusal = lab.cli().refusal(&["map", "resize", "FLOWS", size])?;
    ensure!(refusal.contains("Invalid argument"), "{refusal}");
    Ok(std::fs::remove_file(odd)?)
}

/// The pin of a map that is to take another's place.
fn pin_of(pins: &Path, map: &str, stage: &str) -> Result<Option<PathBuf>> {
    for pin in std::fs::read_dir(pins)? {
        let path = pin?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        if name.is_some_and(|it| it.starts_with(&format!("{map}_v")) && it.ends_with(stage)) {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// Of two tables that belong together only one has got its new name.
#[test]
fn killed_between_two_names() -> Result<()> {
    Lab::run_with(&config(1024), |lab| {
        lab.kill()?;
        leave_unfinished(lab, "4096")?;
        let pins = lab.bpffs.pins().join("maps");
        let ring = pin_of(&pins, "FLOW_RING", ":next")?.context("the ring has its name already")?;
        std::fs::rename(&ring, ring.to_string_lossy().replace(":next", ":new"))?;
        lab.start(&[])?;
        let sizes = (capacity(lab, "FLOWS")?, capacity(lab, "FLOW_RING")?);
        ensure!(sizes == (4096, 2048), "{sizes:?}");
        let left = is_growing(lab)?;
        ensure!(!left, "something is left");
        let _servers = serve_names(lab)?;
        check_answers(lab)
    })
}

/// What cannot be finished keeps nobody from opening flows.
#[test]
fn what_cannot_be_finished() -> Result<()> {
    Lab::run_with(&config(1024), |lab| {
        let pins = lab.bpffs.pins().join("maps");
        let foreign = pin_of(&pins, "NODE", "")?.context("no settings")?;
        let flows = pin_of(&pins, "FLOWS", "")?.context("no flows")?;
        let next = PathBuf::from(flows.to_string_lossy().into_owned() + ":next");
        std::fs::hard_link(foreign, &next)?;
        wait::until_true("the agent to say so", BEGINNING, || {
            Ok(lab.log().contains("tables are not made larger"))
        })?;
        let _servers = serve_names(lab)?;
        check_answers(lab)?;
        let refusal = lab.cli().refusal(&["map", "resize", "FLOWS", "4096"])?;
        ensure!(refusal.contains(":next is not the map"), "{refusal}");
        std::fs::remove_file(next)?;
        resize(lab, "FLOWS", 4096)?;
        await_new_beginning(lab, 1)?;
        check_answers(lab)
    })
}
