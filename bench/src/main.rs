//! redirector's benchmarks; run by `cargo xtask bench`.

mod cluster;
mod connections;
mod conntrack;
mod floor;
mod forward;
mod frame;
mod harness;
#[path = "../floors/src/layout.rs"]
#[expect(unreachable_pub, reason = "included by the programs, too")]
mod layout;
mod node;
mod ours;
mod packet;
mod report;
mod rules;
mod sampling;
mod scene;
mod stage;
mod steer;
mod veth;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Measures redirector beside programs that do less, all in one run.
#[derive(Parser)]
#[command(bin_name = "cargo xtask bench")]
struct Arguments {
    #[command(subcommand)]
    benchmark: Benchmark,
}

#[derive(Subcommand)]
enum Benchmark {
    Packet(packet::Arguments),
    Veth(veth::Arguments),
    Connections(connections::Arguments),
    /// Following a cluster: CPU, memory and writes
    Cluster(cluster::Arguments),
    /// A part of `packet`: keeps connections open
    #[command(hide = true)]
    HoldConnections,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().benchmark {
        Benchmark::Packet(arguments) => packet::run(&arguments),
        Benchmark::Veth(arguments) => veth::run(&arguments),
        Benchmark::Connections(arguments) => connections::run(&arguments),
        Benchmark::HoldConnections => steer::hold(),
        Benchmark::Cluster(arguments) => cluster::run(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
