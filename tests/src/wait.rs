//! Awaiting conditions.

use std::{
    io::{self, ErrorKind},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// How long a condition that should hold soon may take on a busy machine.
pub const SOON: Duration = Duration::from_secs(30);

/// How long copies of a closed socket may last.
const FREE: Duration = Duration::from_secs(5);

/// Between two looks at a condition.
const INTERVAL: Duration = Duration::from_millis(10);

/// Waits until `probe` yields something and returns that.
///
/// # Errors
///
/// If `probe` fails, or has yielded nothing for `timeout`: the message names `what`.
pub fn until<T>(
    what: &str,
    timeout: Duration,
    mut probe: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(found) = probe()? {
            return Ok(found);
        }
        if Instant::now() >= deadline {
            bail!("waited {timeout:?} in vain for {what}");
        }
        thread::sleep(INTERVAL);
    }
}

/// Waits until `condition` holds.
///
/// # Errors
///
/// As [`until`].
pub fn until_true(
    what: &str,
    timeout: Duration,
    mut condition: impl FnMut() -> Result<bool>,
) -> Result<()> {
    until(what, timeout, || Ok(condition()?.then_some(())))
}

/// What `attempt` gives once it is not interrupted by a signal. The kernel does not begin a socket
/// call with a time limit again by itself, as it does others.
///
/// # Errors
///
/// Those of `attempt`, but for interruptions.
pub fn uninterrupted<T>(mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match attempt() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// What `attempt` gives once its address is free. A program that another test is just starting has
/// copies of all sockets between `fork` and `exec`: what was closed is in use a little longer.
///
/// # Errors
///
/// Those of `attempt`; that the address is in use, if it is for long.
pub fn until_free<T>(mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let deadline = Instant::now() + FREE;
    loop {
        match attempt() {
            Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < deadline => {
                thread::sleep(INTERVAL);
            }
            result => return result,
        }
    }
}
