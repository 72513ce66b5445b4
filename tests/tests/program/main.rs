//! Program tier: every program loads, and tables of packets go through each. Needs root.

mod case;
mod checksums;
mod choosing;
mod collisions;
mod errors;
mod flows;
mod given;
mod headers;
mod loading;
mod refused;
mod sources;
mod states;
mod world;
