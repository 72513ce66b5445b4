//! Interfaces that come, go, change their names and come back, while connections live.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use redirector::dataplane::netlink;
use redirector_common::Family;
use redirector_tests::{
    agent::Lab,
    client::{self, Pulse},
    namespace::Namespace,
    server::{Server, Service},
    site::{CONFIG, PLACES, check_answers_at, serve_echo, serve_names},
    topology::{Addresses, FAMILIES, NODE1, link},
    wait,
};
use serde_json::Value;

/// Node 1 and the client on the cable that comes and goes.
const NODE: Addresses = Addresses::new(4, 1);
const FAR: Addresses = Addresses::new(4, 2);

/// A lab whose agent works on these interfaces besides the usual ones.
fn run_on(names: &[&str], test: impl FnOnce(&mut Lab) -> Result<()>) -> Result<()> {
    let mut options = vec!["--interface", "eth0", "--interface", "eth1"];
    options.extend(names.iter().flat_map(|name| ["--interface", name]));
    Lab::run_with_options(CONFIG, &options, test)
}

fn plug_in(lab: &Lab) -> Result<()> {
    link((&lab.net.node1, "eth2", NODE), (&lab.net.client, "eth2", FAR))
}

/// What `status` says of an interface.
fn status(lab: &Lab, name: &str) -> Result<Value> {
    let status = lab.cli().json(&["status"])?;
    let interfaces = status["interfaces"].as_array().context("no interfaces")?;
    let found = interfaces.iter().find(|interface| interface["name"] == name);
    Ok(found.cloned().unwrap_or(Value::Null))
}

fn wait_attached(lab: &Lab, name: &str) -> Result<()> {
    let index = lab.net.node1.ifindex(name)?;
    wait::until_true(&format!("programs on {name}"), wait::SOON, || {
        let said = status(lab, name)?;
        let programs = said["programs"].as_array().map_or(0, Vec::len);
        Ok(said["ifindex"] == index && said["xdp"] == "native" && programs == 3)
    })?;
    // Frontends are there, and the other end can send frames for XDP.
    wait::until_true(&format!("frontends on {name}"), wait::SOON, || {
        let frontends = lab.cli().json(&["service", "list"])?.to_string();
        Ok(FAMILIES.iter().all(|family| frontends.contains(&NODE.of(*family).to_string())))
    })
}

fn wait_absent(lab: &Lab, name: &str) -> Result<()> {
    wait::until_true(&format!("{name} to be missed"), wait::SOON, || {
        let said = status(lab, name)?;
        let error = said["error"].as_str().unwrap_or_default();
        let programs = said["programs"].as_array().map_or(0, Vec::len);
        Ok(error.contains("does not exist") && programs == 0)
    })
}

/// Nothing of ours is on the interface.
fn check_clean(host: &Namespace, name: &str) -> Result<()> {
    let shown = host.ip(&format!("-details link show dev {name}"))?;
    ensure!(!shown.contains("xdp"), "XDP is still on {name}: {shown}");
    let qdiscs = host.run("tc", ["qdisc", "show", "dev", name])?;
    ensure!(!qdiscs.contains("clsact"), "a qdisc is still on {name}: {qdiscs}");
    Ok(())
}

/// It is named in the file, but comes only later; others work before, meanwhile and after.
#[test]
fn one_that_comes_later() -> Result<()> {
    run_on(&["eth2"], |lab| {
        wait_absent(lab, "eth2")?;
        let _servers = serve_names(lab)?;
        check_answers_at(lab, NODE1)?;
        plug_in(lab)?;
        wait_attached(lab, "eth2")?;
        check_answers_at(lab, NODE)?;
        check_answers_at(lab, NODE1)
    })
}

/// Nobody named interfaces: it gets a default route.
#[test]
fn one_that_gets_a_default_route() -> Result<()> {
    Lab::run(|lab| {
        lab.net.node1.ip(&format!("route add default via {}", Addresses::new(1, 2).v4))?;
        lab.write_config(CONFIG)?;
        let command = lab.run_command()?;
        lab.start_command(command)?;
        lab.wait_ready()?;
        ensure!(status(lab, "eth2")?.is_null(), "eth2 does not exist yet");
        plug_in(lab)?;
        lab.net.node1.ip(&format!("route add default via {} metric 2000", FAR.v4))?;
        wait_attached(lab, "eth2")?;
        let _server = Server::tcp(&lab.net.node1, 8080, Service::Whoami("node1"))?;
        for family in FAMILIES {
            let frontend = std::net::SocketAddr::new(NODE.of(family), 80);
            let answer = client::whoami(&lab.net.client, frontend)?;
            ensure!(answer.server == "node1", "{answer:?}");
        }
        Ok(())
    })
}

/// A default route that is gone for a moment takes nothing off, even if the agent begins anew then.
#[test]
fn one_that_loses_its_default_route() -> Result<()> {
    Lab::run(|lab| {
        let config = |flows| format!("tables: {{flows: {flows}}}\n{CONFIG}");
        lab.net.node1.ip(&format!("route add default via {}", Addresses::new(1, 2).v4))?;
        lab.write_config(&config(1024))?;
        let command = lab.run_command()?;
        lab.start_command(command)?;
        lab.wait_ready()?;
        let _server = Server::tcp(&lab.net.node1, 8080, Service::Whoami("node1"))?;
        lab.net.node1.ip("route del default")?;
        lab.write_config(&config(2048))?;
        wait::until_true("the agent to begin anew", wait::SOON, || {
            Ok(lab.log().matches("the data path is up").count() == 2)
        })?;
        ensure!(status(lab, "eth0")?["xdp"] == "native", "{}", status(lab, "eth0")?);
        for family in FAMILIES {
            let frontend = std::net::SocketAddr::new(NODE1.of(family), 80);
            let answer = client::whoami(&lab.net.client, frontend)?;
            ensure!(answer.server == "node1", "{answer:?}");
        }
        Ok(())
    })
}

/// A bare cable is plugged in and its other end moved in later.
#[test]
fn one_that_moves_in_and_out() -> Result<()> {
    run_on(&["eth2"], |lab| {
        let _servers = serve_names(lab)?;
        let elsewhere = Namespace::new("elsewhere")?;
        link((&elsewhere, "eth2", NODE), (&lab.net.client, "eth2", FAR))?;
        let node = lab.net.node1.name();
        let move_to = |from: &Namespace, to: &Namespace| -> Result<()> {
            from.ip(&format!("link set eth2 netns {}", to.name()))?;
            to.ip(&format!(
                "link set eth2 up
                 address replace {}/24 dev eth2
                 address replace {}/64 dev eth2 nodad",
                NODE.v4, NODE.v6
            ))?;
            to.set_offloads("eth2", "tx off gro on")
        };
        for _ in 0..2 {
            move_to(&elsewhere, &lab.net.node1)?;
            wait_attached(lab, "eth2").with_context(|| format!("in {node}"))?;
            check_answers_at(lab, NODE)?;
            move_to(&lab.net.node1, &elsewhere)?;
            wait_absent(lab, "eth2")?;
            check_clean(&elsewhere, "eth2")?;
            check_answers_at(lab, NODE1)?;
        }
        Ok(())
    })
}

/// Its new name is none of ours, or is: then connections notice nothing.
#[test]
fn one_that_is_renamed() -> Result<()> {
    run_on(&["eth2", "eth3"], |lab| {
        let _servers = serve_echo(lab)?;
        plug_in(lab)?;
        wait_attached(lab, "eth2")?;
        let mut streams = Vec::new();
        let mut pulses = Vec::new();
        for family in FAMILIES {
            for place in PLACES {
                let at = |mut frontend: std::net::SocketAddr| {
                    frontend.set_ip(NODE.of(family));
                    frontend
                };
                streams.push(client::tcp(&lab.net.client, at(place.tcp(family)))?);
                let socket = client::udp(&lab.net.client, at(place.udp(family)))?;
                client::round_trip(&socket, b"hello")?;
                pulses.push(Pulse::start(socket, Duration::from_millis(5))?);
            }
        }
        let echo = |what: &'static [u8]| streams.iter().try_for_each(|it| client::echo(it, what));
        echo(b"under the old name")?;
        for name in ["eth3", "eth2", "eth3"] {
            let old = if name == "eth3" { "eth2" } else { "eth3" };
            lab.net.node1.ip(&format!("link set {old} name {name}"))?;
            wait_attached(lab, name)?;
            wait_absent(lab, old)?;
            echo(b"under the new name")?;
        }
        for pulse in pulses {
            pulse.finish()?;
        }
        lab.net.node1.ip("link set eth3 name other0")?;
        wait_absent(lab, "eth3")?;
        check_clean(&lab.net.node1, "other0")?;
        lab.net.node1.ip("link set other0 name eth2")?;
        wait_attached(lab, "eth2")?;
        // Those that are steered, or wait for what was lost meanwhile, go on.
        echo(b"under the first name")
    })
}

/// Two that are ours exchange their names.
#[test]
fn two_that_exchange_names() -> Result<()> {
    run_on(&["eth2"], |lab| {
        let _servers = serve_names(lab)?;
        plug_in(lab)?;
        wait_attached(lab, "eth2")?;
        lab.net.node1.ip("link set eth0 name spare
             link set eth2 name eth0
             link set spare name eth2")?;
        for name in ["eth0", "eth2"] {
            wait_attached(lab, name)?;
        }
        check_answers_at(lab, NODE)?;
        check_answers_at(lab, NODE1)
    })
}

/// It has the same name and another index.
#[test]
fn one_that_is_made_again() -> Result<()> {
    run_on(&["eth2"], |lab| {
        let _servers = serve_names(lab)?;
        let _echo = Server::tcp(&lab.net.node2, 9090, Service::Echo)?;
        plug_in(lab)?;
        for round in 0..3 {
            wait_attached(lab, "eth2")?;
            check_answers_at(lab, NODE)?;
            lab.net.node1.ip("link del eth2")?;
            if round == 0 {
                wait_absent(lab, "eth2")?;
            }
            plug_in(lab)?;
        }
        wait_attached(lab, "eth2")?;
        check_answers_at(lab, NODE)
    })
}

/// A backend's cable is made again under a connection: it goes on.
#[test]
fn a_backends_cable_that_is_made_again() -> Result<()> {
    run_on(&[], |lab| {
        let _servers = serve_echo(lab)?;
        let mut streams = Vec::new();
        for family in FAMILIES {
            for place in PLACES {
                streams.push(client::tcp(&lab.net.client, place.tcp(family))?);
            }
        }
        let echo = |what: &'static [u8]| streams.iter().try_for_each(|it| client::echo(it, what));
        echo(b"before")?;
        lab.net.node1.ip("link del eth1")?;
        wait_absent(lab, "eth1")?;
        link(
            (&lab.net.node1, "eth1", redirector_tests::topology::NODE1_INSIDE),
            (&lab.net.node2, "eth0", redirector_tests::topology::NODE2),
        )?;
        echo(b"after")
    })
}

/// Down and up again: connections wait, and go on.
#[test]
fn one_that_goes_down_and_up() -> Result<()> {
    run_on(&[], |lab| {
        let _servers = serve_echo(lab)?;
        // The kernel takes IPv6 addresses off what goes down, unless it is told not to.
        for host in [&lab.net.client, &lab.net.node1, &lab.net.node2] {
            host.set_sysctl("net/ipv6/conf/all/keep_addr_on_down", "1")?;
        }
        for name in ["eth0", "eth1"] {
            let mut streams = Vec::new();
            for family in FAMILIES {
                for place in PLACES {
                    streams.push(client::tcp(&lab.net.client, place.tcp(family))?);
                }
            }
            let echo =
                |what: &'static [u8]| streams.iter().try_for_each(|it| client::echo(it, what));
            echo(b"before")?;
            lab.net.node1.ip(&format!("link set {name} down"))?;
            lab.net.node1.ip(&format!("link set {name} up"))?;
            echo(b"after").with_context(|| format!("{name} was down"))?;
        }
        for family in [Family::V4, Family::V6] {
            let answer = client::tcp(&lab.net.client, PLACES[1].tcp(family))?;
            client::echo(&answer, b"new ones too")?;
        }
        Ok(())
    })
}

/// The agent is away while names change: the next one finds what the one before it left.
#[test]
fn renamed_while_there_is_no_agent() -> Result<()> {
    run_on(&["eth2", "eth3"], |lab| {
        let _servers = serve_names(lab)?;
        plug_in(lab)?;
        wait_attached(lab, "eth2")?;
        lab.kill()?;
        lab.net.node1.ip("link set eth2 name eth3")?;
        check_answers_at(lab, NODE)?;
        let names = ["eth0", "eth1", "eth2", "eth3"];
        let options: Vec<_> = names.iter().flat_map(|name| ["--interface", name]).collect();
        lab.start(&options)?;
        wait_attached(lab, "eth3")?;
        wait_absent(lab, "eth2")?;
        check_answers_at(lab, NODE)?;
        lab.stop()?;
        lab.cli().text(&["detach"])?;
        check_clean(&lab.net.node1, "eth3")?;
        ensure!(!lab.has_pins(), "detach left pins");
        Ok(())
    })
}

/// Addresses go while the kernel tells of all: those that stay are told of all the same.
#[test]
fn read_while_others_go() -> Result<()> {
    let host = Namespace::new("churn")?;
    let address = |number: u16| {
        let [high, low] = number.to_be_bytes();
        IpAddr::from([198, 18, high, low])
    };
    let change = |action: &str, numbers: std::ops::Range<u16>| -> Result<()> {
        let file = tempfile::NamedTempFile::new()?;
        let line = |number: u16| format!("address {action} {} dev lo\n", address(number));
        std::fs::write(file.path(), numbers.map(line).collect::<String>())?;
        host.run("ip", [std::ffi::OsStr::new("-batch"), file.path().as_os_str()]).map(drop)
    };
    // More than the kernel tells of at once; the first go and come, so that others move up.
    change("add", 0..2000)?;
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let changing = scope.spawn(|| -> Result<()> {
            while !ended.load(Ordering::Relaxed) {
                change("del", 0..300)?;
                change("add", 0..300)?;
                // Not for a condition: nothing can be read whole that never stands still.
                std::thread::sleep(Duration::from_millis(50));
            }
            Ok(())
        });
        let read = host.enter(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let (connection, netlink, _changes) = netlink::connect()?;
                tokio::spawn(connection);
                for attempt in 0..20 {
                    let found = netlink.read().await?.addresses();
                    let missing = (300..2000).map(address).filter(|it| !found.contains(it)).count();
                    ensure!(missing == 0, "{missing} are missing, attempt {attempt}");
                }
                Ok(())
            })
        });
        ended.store(true, Ordering::Relaxed);
        changing.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        read
    })
}
