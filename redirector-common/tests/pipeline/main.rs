//! The packet code as a whole, run in user space against an independent library and a node made
//! of ordinary collections.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod addresses;
mod caching;
mod choosing;
mod connections;
mod datagrams;
mod deciding;
mod events;
mod handover;
mod host;
mod moving;
mod observed;
mod packets;
mod parsing;
mod pressure;
mod related;
mod rewriting;
mod segments;
mod sockets;
mod steering;
