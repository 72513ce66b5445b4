//! Watching packets: what `monitor` and `capture` share. Which packets, and until when.

mod args;
mod follow;
mod story;

pub(super) use args::{Usual, WatchArgs};
pub(super) use follow::{Limits, Listener, follow};
#[cfg(test)]
pub(super) use story::tests::story;
pub(super) use story::{Story, Teller};
