//! Connections of every kind, byte for byte.

use std::{io::Read as _, io::Write as _, thread, time::Duration};

use anyhow::{Result, ensure};
use redirector_tests::{
    agent::Lab,
    client,
    server::Service,
    site::{CONFIG, PLACES, serve_echo},
    topology::FAMILIES,
    transfer, wait,
};

/// Bytes in each direction of a bulk transfer.
const BULK: u64 = 64 << 20;

#[test]
fn bulk_transfers_both_ways() -> Result<()> {
    Lab::run_with(CONFIG, |lab| {
        for place in PLACES {
            let _server = place.serve_tcp(lab, Service::Bulk)?;
            for family in FAMILIES {
                let stream = client::tcp(&lab.net.client, place.tcp(family))?;
                transfer::exchange(&stream, BULK, BULK)?;
            }
        }
        Ok(())
    })
}

/// Datagrams of every size, up to those that fill a packet; larger ones are in `fragments`.
#[test]
fn datagrams_of_every_size() -> Result<()> {
    Lab::run_with(CONFIG, |lab| {
        let _servers = serve_echo(lab)?;
        for family in FAMILIES {
            for place in PLACES {
                let socket = client::udp(&lab.net.client, place.udp(family))?;
                for size in [1_u32, 2, 3, 512, 1000, 1400, 1452] {
                    let datagram: Vec<u8> = (0..size).map(|i| (i % 253) as u8).collect();
                    let answer = client::round_trip(&socket, &datagram)?;
                    ensure!(answer == datagram, "{size} bytes to {place:?} over {family:?}");
                }
            }
        }
        Ok(())
    })
}

#[test]
fn a_thousand_connections_at_once() -> Result<()> {
    Lab::run_with(CONFIG, |lab| {
        let _servers = serve_echo(lab)?;
        let mut streams = Vec::new();
        for number in 0..250_u32 {
            for family in FAMILIES {
                for place in PLACES {
                    let stream = client::tcp(&lab.net.client, place.tcp(family))?;
                    streams.push((number, stream));
                }
            }
        }
        ensure!(streams.len() == 1000);
        for (number, stream) in &streams {
            client::echo(stream, &number.to_be_bytes())?;
        }
        let flows = lab.cli().rows(&["flow", "list"])?;
        // The others are sockets of the node itself.
        ensure!(flows.len() == 500, "{} flows are listed", flows.len());
        for (number, stream) in &streams {
            client::echo(stream, &number.to_le_bytes())?;
            client::finish(stream)?;
        }
        Ok(())
    })
}

#[test]
fn a_server_resets() -> Result<()> {
    Lab::run_with(CONFIG, |lab| {
        for place in PLACES {
            let _server = place.serve_tcp(lab, Service::Reset)?;
            for family in FAMILIES {
                let mut stream = client::tcp(&lab.net.client, place.tcp(family))?;
                stream.write_all(b"x")?;
                let error = wait::uninterrupted(|| stream.read(&mut [0; 1]));
                let kind = error.as_ref().map_err(std::io::Error::kind);
                ensure!(kind == Err(std::io::ErrorKind::ConnectionReset), "{error:?}");
            }
        }
        Ok(())
    })
}

#[test]
fn a_client_resets() -> Result<()> {
    Lab::run_with(CONFIG, |lab| {
        for place in PLACES {
            let server = place.serve_tcp(lab, Service::Echo)?;
            for (count, family) in (1..).zip(FAMILIES) {
                let stream = client::tcp(&lab.net.client, place.tcp(family))?;
                client::echo(&stream, b"hello")?;
                client::reset(stream)?;
                wait::until_true("the server to see the reset", wait::SOON, || {
                    Ok(server.resets() == count)
                })?;
            }
            ensure!(server.failures() == 0);
        }
        Ok(())
    })
}

/// The client has said all; the server goes on.
#[test]
fn half_closed() -> Result<()> {
    Lab::run_with(CONFIG, |lab| {
        let _servers = serve_echo(lab)?;
        for place in PLACES {
            for family in FAMILIES {
                let mut stream = client::tcp(&lab.net.client, place.tcp(family))?;
                let data: Vec<u8> = (0..400_000_u32).map(|i| (i % 241) as u8).collect();
                let mut writer = stream.try_clone()?;
                let sent = data.clone();
                let sender = thread::spawn(move || -> Result<()> {
                    writer.write_all(&sent)?;
                    Ok(writer.shutdown(std::net::Shutdown::Write)?)
                });
                // What comes back comes after the client's end has been closed.
                redirector_tests::namespace::join(sender)?;
                let mut answer = Vec::new();
                stream.read_to_end(&mut answer)?;
                ensure!(answer == data, "{place:?} over {family:?}: {} bytes", answer.len());
            }
        }
        Ok(())
    })
}

/// A connection that is silent for longer than any timeout of a connection that is not
/// established, in so far as a test can wait.
#[test]
fn idle() -> Result<()> {
    Lab::run_with(CONFIG, |lab| {
        let _servers = serve_echo(lab)?;
        let mut streams = Vec::new();
        for place in PLACES {
            for family in FAMILIES {
                let stream = client::tcp(&lab.net.client, place.tcp(family))?;
                client::echo(&stream, b"before")?;
                streams.push(stream);
            }
        }
        // Longer than the collector's period and a closed flow's time.
        let silence = Duration::from_secs(15);
        wait::until_true("the flows to have been idle", silence * 2, || {
            let flows = lab.cli().rows(&["flow", "list"])?;
            // Those to backends elsewhere: the others are sockets of the node itself.
            ensure!(flows.len() == streams.len() / 2, "{} flows", flows.len());
            let idle = |flow: &serde_json::Value| flow["idleSeconds"].as_f64().unwrap_or(0.0);
            Ok(flows.iter().all(|flow| idle(flow) >= silence.as_secs_f64()))
        })?;
        for stream in &streams {
            client::echo(stream, b"after")?;
            client::finish(stream)?;
        }
        Ok(())
    })
}
