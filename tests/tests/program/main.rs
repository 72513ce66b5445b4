//! Program tier: every program loads, and tables of packets go through each. Needs root.

mod case;
mod checksums;
mod choosing;
mod collisions;
mod errors;
mod events;
mod flows;
mod fragments;
mod given;
mod handover;
mod handover_related;
mod headers;
mod loading;
mod quoted;
mod refused;
mod segments;
mod several_addresses;
mod sources;
mod states;
mod steering;
mod world;
