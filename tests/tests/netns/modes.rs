//! The same traffic in every XDP mode, with the client's offloads on and off.

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

/// Segmentation and merging in the sender's and receiver's "hardware".
const MERGING: [&str; 2] = ["tso on gso on gro on", "tso off gso off gro off"];

/// With checksums left to the sender's "hardware". A veth never computes them, so XDP, which sees
/// frames before the receiver's stack forgives that, can't be in between.
const CHECKSUMS: [&str; 2] = ["tx on tso on gso on gro on", "tx on tso off gso off gro on"];

fn check(lab: &Lab, offloads: &str) -> Result<()> {
    lab.net.client.set_offloads("eth0", offloads)?;
    for place in PLACES {
        let _server = place.serve_tcp(lab, Service::Bulk)?;
        for family in FAMILIES {
            let stream = client::tcp(&lab.net.client, place.tcp(family))?;
            transfer::exchange(&stream, SAMPLE, SAMPLE)
                .with_context(|| format!("{place:?} over {family:?}, client's {offloads}"))?;
        }
    }
    Ok(())
}

fn check_mode(mode: &str, offloads: &[&str]) -> Result<()> {
    Lab::run(|lab| {
        lab.write_config(CONFIG)?;
        lab.start(&["--xdp-mode", mode])?;
        let status = lab.cli().json(&["status"])?;
        ensure!(status.to_string().contains(mode), "status does not say {mode}: {status}");
        {
            let _servers = serve_names(lab)?;
            check_answers(lab)?;
        }
        for offloads in offloads {
            check(lab, offloads)?;
        }
        Ok(())
    })
}

#[test]
fn native() -> Result<()> {
    check_mode("native", &MERGING)
}

#[test]
fn generic() -> Result<()> {
    check_mode("generic", &MERGING)
}

#[test]
fn off() -> Result<()> {
    check_mode("off", &[MERGING.as_slice(), &CHECKSUMS].concat())
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
