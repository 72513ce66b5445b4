//! Netns tier: real clients and servers through the agent's data path, between network
//! namespaces. Needs root and the program: see `redirector_tests::cli::program`.

mod affinity;
mod check;
mod choosing;
mod connections;
mod counting;
mod deployed;
mod dsr;
mod edges;
mod explain;
mod fragments;
mod hotplug;
mod kube_proxy;
mod local_clients;
mod matrix;
mod modes;
mod pods;
mod policies;
mod ports;
mod pressure;
mod quoted;
mod refusals;
mod reload;
mod services;
mod shapes;
mod snat_addresses;
mod sources;
mod steering;
mod takeover;
mod watching;
mod wires;
