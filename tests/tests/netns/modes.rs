//! The same traffic in every XDP mode, with the client's offloads on and off.

use anyhow::{Context as _, Result, ensure};
use redirector_tests::{agent::Lab, client, server::Service, topology::FAMILIES, transfer};

use redirector_tests::site::{CONFIG, PLACES, check_answers, serve_names};

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
