//! The same traffic in every XDP mode, with offloads on and off.

use anyhow::{Context as _, Result, ensure};
use redirector_tests::{
    agent::Lab,
    client,
    frame::Tap,
    server::Service,
    site::{CONFIG, PLACES, Place, check_answers, serve_names},
    topology::FAMILIES,
    transfer,
};

/// Bytes in each direction: a sample.
const SAMPLE: u64 = 8 << 20;

/// Segmentation and merging in the sender's and receiver's "hardware", and checksums too, as veths
/// have it of themselves: they never compute any.
const OFFLOADS: [&str; 4] = [
    "tx off tso on gso on gro on",
    "tx off tso off gso off gro off",
    "tx on tso on gso on gro on",
    "tx on tso off gso off gro on",
];

fn check(lab: &Lab, offloads: &str) -> Result<()> {
    // Who is sent to from XDP has to poll: GRO stays.
    let beyond = offloads.replace("gro off", "gro on");
    lab.net.client.set_offloads("eth0", offloads)?;
    lab.net.node2.set_offloads("eth0", &beyond)?;
    for interface in ["eth0", "eth1"] {
        lab.net.node1.set_offloads(interface, &beyond)?;
    }
    for place in PLACES {
        let _servers = (place.serve_tcp(lab, Service::Bulk)?, place.serve_udp(lab, Service::Echo)?);
        for family in FAMILIES {
            let what = || format!("{place:?} over {family:?}, {offloads}");
            let stream = client::tcp(&lab.net.client, place.tcp(family))?;
            transfer::exchange(&stream, SAMPLE, SAMPLE).with_context(what)?;
            let socket = client::udp(&lab.net.client, place.udp(family))?;
            for len in [1, 1400, 4000] {
                let datagram = vec![7; len];
                let answer = client::round_trip(&socket, &datagram).with_context(what)?;
                ensure!(answer == datagram, "{}: another answer", what());
            }
        }
    }
    Ok(())
}

fn check_mode(mode: &str) -> Result<()> {
    Lab::run(|lab| {
        lab.write_config(CONFIG)?;
        lab.start(&["--xdp-mode", mode])?;
        let status = lab.cli().json(&["status"])?;
        ensure!(status.to_string().contains(mode), "status does not say {mode}: {status}");
        {
            let _servers = serve_names(lab)?;
            check_answers(lab)?;
        }
        for offloads in OFFLOADS {
            check(lab, offloads)?;
        }
        Ok(())
    })
}

#[test]
fn native() -> Result<()> {
    check_mode("native")
}

#[test]
fn generic() -> Result<()> {
    check_mode("generic")
}

#[test]
fn off() -> Result<()> {
    check_mode("off")
}

/// With XDP, what is forwarded never reaches the host's stack; without, TC forwards it.
#[test]
fn who_forwards() -> Result<()> {
    for (mode, in_stack) in [("native", false), ("generic", false), ("off", true)] {
        Lab::run_with_options(CONFIG, &["--xdp-mode", mode], |lab| {
            let _server = Place::Remote.serve_tcp(lab, Service::Echo)?;
            for family in FAMILIES {
                let frontend = Place::Remote.tcp(family);
                let stream = client::tcp(&lab.net.client, frontend)?;
                client::echo(&stream, b"the neighbours are known now")?;
                let mut tap = Tap::new(&lab.net.node1, "eth0")?;
                for _ in 0..20 {
                    client::echo(&stream, b"there and back")?;
                }
                let seen = tap.seen(frontend)?;
                ensure!(
                    (seen > 0) == in_stack,
                    "XDP {mode}: the stack saw {seen} packets over {family:?}"
                );
                client::finish(&stream)?;
            }
            Ok(())
        })?;
    }
    Ok(())
}
