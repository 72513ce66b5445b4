//! The file and the node change under a running agent.

use std::{
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use redirector_tests::{
    agent::Lab,
    client::{self, Whoami},
    server::{Server, Service},
    site::{CONFIG, check_answers, serve_names},
    topology::{FAMILIES, NODE1},
    wait,
};

fn answers(lab: &Lab, frontend: SocketAddr) -> bool {
    // Not longer: a connection that was begun too early is begun again.
    let patience = Duration::from_secs(1);
    client::tcp_within(&lab.net.client, frontend, patience).is_ok_and(|s| client::ask(&s).is_ok())
}

fn await_answer(lab: &Lab, frontend: SocketAddr, wanted: bool) -> Result<()> {
    let what = format!("{frontend} to answer: {wanted}");
    wait::until_true(&what, wait::SOON, || Ok(answers(lab, frontend) == wanted))
}

#[test]
fn the_file_changes() -> Result<()> {
    Lab::run_with("publish: ['80:8080']", |lab| {
        let _server = Server::tcp(&lab.net.node1, 8080, Service::Whoami("8080"))?;
        for family in FAMILIES {
            let [old, new] = [80, 82].map(|port| SocketAddr::new(NODE1.of(family), port));
            await_answer(lab, old, true)?;
            ensure!(!answers(lab, new));
            lab.write_config("publish: ['82:8080']")?;
            await_answer(lab, new, true)?;
            await_answer(lab, old, false)?;
            // Written over in place, as a shell does.
            std::fs::write(lab.config_path(), "publish: ['80:8080']")?;
            await_answer(lab, old, true)?;
            await_answer(lab, new, false)?;
        }
        Ok(())
    })
}

#[test]
fn hangup() -> Result<()> {
    Lab::run_with("publish: ['80:8080']", |lab| {
        let _server = Server::tcp(&lab.net.node1, 8080, Service::Whoami("8080"))?;
        for (port, family) in [82, 83].into_iter().zip(FAMILIES) {
            lab.write_config(&format!("publish: ['{port}:8080']"))?;
            lab.signal(Signal::SIGHUP)?;
            await_answer(lab, SocketAddr::new(NODE1.of(family), port), true)?;
        }
        Ok(())
    })
}

/// Two services exchange their ports: clients that keep their UDP socket come to the service that
/// has the port now, whose other clients keep theirs; connections stay where they are.
#[test]
fn ports_that_change_hands() -> Result<()> {
    let file = |ports: [[u16; 2]; 2]| -> String {
        let service = |(name, [tcp, udp], to): (&str, [u16; 2], u16)| {
            format!(
                "
  - name: {name}
    frontends: [{{port: {tcp}}}, {{port: {udp}, protocol: UDP}}, {{port: {}, protocol: UDP}}]
    backends:
      - {{address: 198.18.2.2, port: {to}}}
      - {{address: '2001:db8:2::2', port: {to}}}",
                to + 1
            )
        };
        let services = [("one", ports[0], 9001), ("two", ports[1], 9003)].map(service);
        format!("services:{}", services.concat())
    };
    Lab::run_with(&file([[81, 54], [82, 55]]), |lab| {
        let mut servers = Vec::new();
        for (name, port) in [("one", 9001), ("two", 9003)] {
            servers.push(Server::tcp(&lab.net.node2, port, Service::Echo)?);
            servers.push(Server::udp(&lab.net.node2, port, Service::Whoami(name))?);
        }
        for family in FAMILIES {
            let at = |port| SocketAddr::new(NODE1.of(family), port);
            lab.write_config(&file([[81, 54], [82, 55]]))?;
            let stream = client::tcp(&lab.net.client, at(81))?;
            client::echo(&stream, b"before")?;
            let (moves, stays) =
                (client::udp(&lab.net.client, at(54))?, client::udp(&lab.net.client, at(9002))?);
            moves.set_read_timeout(Some(Duration::from_millis(500)))?;
            let ask = |socket: &UdpSocket| -> Result<Whoami> {
                Whoami::parse(&String::from_utf8(client::round_trip(socket, b"who?")?)?)
            };
            let meets = |name: &str| {
                let what = format!("{name} to answer over {family:?}");
                wait::until_true(&what, wait::SOON, || {
                    Ok(ask(&moves).is_ok_and(|answer| answer.server == name))
                })
            };
            meets("one")?;
            let seen = ask(&stays)?;
            lab.write_config(&file([[82, 55], [81, 54]]))?;
            meets("two")?;
            ensure!(ask(&stays)? == seen, "it has another flow");
            client::echo(&stream, b"after")?;
            client::finish(&stream)?;
        }
        Ok(())
    })
}

/// A bad file changes nothing, is visible everywhere, and is forgotten once it is mended.
#[test]
fn a_bad_file() -> Result<()> {
    Lab::run_with(CONFIG, |lab| {
        let _servers = serve_names(lab)?;
        ensure!(lab.metric("redirector_config_stale")? == Some(0.0));
        for bad in ["publish: ['80:0']", "publish: [", "nonsense: 1", "publish: ['80:1', '80:2']"] {
            lab.write_config(bad)?;
            wait::until_true("the metric to tell", wait::SOON, || {
                Ok(lab.metric("redirector_config_stale")? == Some(1.0))
            })?;
            let status = lab.cli().json(&["status"])?.to_string();
            ensure!(status.contains("redirector.yaml"), "status of {bad:?}: {status}");
            ensure!(lab.log().contains("redirector.yaml"), "the log says nothing of {bad:?}");
            check_answers(lab)?;
            lab.write_config(CONFIG)?;
            wait::until_true("the metric to forget", wait::SOON, || {
                Ok(lab.metric("redirector_config_stale")? == Some(0.0))
            })?;
        }
        check_answers(lab)
    })
}

#[test]
fn a_new_address() -> Result<()> {
    Lab::run_with(CONFIG, |lab| {
        let _servers = serve_names(lab)?;
        let added = ["198.18.1.77", "2001:db8:1::77"];
        let node = &lab.net.node1;
        node.ip(
            "address add 198.18.1.77/24 dev eth0\naddress add 2001:db8:1::77/64 dev eth0 nodad",
        )?;
        for address in added {
            for port in [80, 81] {
                await_answer(lab, SocketAddr::new(address.parse()?, port), true)?;
            }
        }
        node.ip("address del 198.18.1.77/24 dev eth0\naddress del 2001:db8:1::77/64 dev eth0")?;
        wait::until_true("the frontends to go", wait::SOON, || {
            let listed = serde_json::to_string(&lab.cli().rows(&["service", "list"])?)?;
            Ok(added.iter().all(|address| !listed.contains(address)))
        })?;
        check_answers(lab)
    })
}

/// An interface that goes and comes back is served again.
#[test]
fn an_interface_returns() -> Result<()> {
    Lab::run_with(CONFIG, |lab| {
        let _servers = serve_names(lab)?;
        check_answers(lab)?;
        lab.net.node1.ip("link delete eth1")?;
        redirector_tests::topology::link(
            (&lab.net.node1, "eth1", redirector_tests::topology::NODE1_INSIDE),
            (&lab.net.node2, "eth0", redirector_tests::topology::NODE2),
        )?;
        for family in FAMILIES {
            await_answer(lab, SocketAddr::new(NODE1.of(family), 81), true)?;
        }
        check_answers(lab)
    })
}
