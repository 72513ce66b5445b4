//! Cluster tier: agents on nodes of a cluster, against an API server. Most tests carry the name of
//! the test of Kubernetes (`test/e2e/network`) whose behaviour they show. Needs root and the
//! program: see `redirector_tests::cli::program`.

mod chaos;
mod chaos_objects;
mod chaos_server;
mod conntrack;
mod direct;
mod endpoints;
mod first_sync;
mod flows;
mod frontends;
mod health;
mod leases;
mod load_balancers;
mod lockout;
mod machine;
mod networking;
mod policies;
mod publishing;
mod services;
mod told;
mod topology;
mod translation;
mod watches;

use redirector_common::Protocol::{self, Tcp, Udp};
use redirector_tests::cluster::pod::{Net, Plan};

/// What pods of most scenarios listen on.
const PORTS: [(&str, Protocol, u16); 2] = [("http", Tcp, 8080), ("dns", Udp, 8081)];

/// A pod of an app in the node's network. There can be but one such on a node: its ports are the
/// node's.
const fn on_host<'a>(name: &'static str, app: &'a str, node: u8) -> Plan<'a> {
    Plan { name, app, node, net: Net::Host, ports: &PORTS }
}

/// A pod of an app with a network of its own.
const fn own<'a>(name: &'static str, app: &'a str, node: u8) -> Plan<'a> {
    Plan { name, app, node, net: Net::Own, ports: &PORTS }
}
