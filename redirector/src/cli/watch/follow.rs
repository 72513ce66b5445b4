//! Reading events until somebody or something ends it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use redirector_common::event::Phase;
use redirector_common::{Event, Watch};

use crate::cli::render;
use crate::dataplane::pinned::Pinned;
use crate::dataplane::watcher::{RENEWAL, Watcher};

/// When to end.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::cli) struct Limits {
    /// After so many packets.
    pub(in crate::cli) count: Option<u64>,
    /// After so long.
    pub(in crate::cli) duration: Option<Duration>,
}

/// Whoever is told.
pub(in crate::cli) trait Listener {
    /// From here on events are told.
    fn begin(&mut self) -> Result<()>;

    /// One event, with the bytes of the packet.
    fn hear(&mut self, event: &Event, bytes: &[u8]) -> Result<()>;

    /// No more events are waiting for the moment.
    fn rest(&mut self) -> Result<()>;
}

/// Hands events to `listener` until a limit is reached, a signal comes, or the `reader`, a pipe, is
/// closed at its other end; says then what was lost.
///
/// # Errors
///
/// If nothing can be watched, or the listener fails.
pub(in crate::cli) fn follow(
    maps: &Pinned,
    wish: Watch,
    limits: Limits,
    reader: Option<BorrowedFd<'_>>,
    listener: &mut impl Listener,
) -> Result<()> {
    // Before anything is asked for: from here on a signal ends the loop, and not the process.
    let signals = catch_signals().context("cannot wait for signals")?;
    let mut watcher = Watcher::begin(maps, wish)?;
    listener.begin()?;
    render::say("watching, until Ctrl-C");
    let begun = Instant::now();
    let mut renewed = begun;
    let mut left = limits.count;
    let ended_by_reader = loop {
        if !drain(&mut watcher, &mut left, listener)? {
            break false;
        }
        listener.rest()?;
        if renewed.elapsed() >= RENEWAL {
            watcher.renew()?;
            renewed = Instant::now();
        }
        let mut wait = RENEWAL.saturating_sub(renewed.elapsed());
        if let Some(duration) = limits.duration {
            let remaining = duration.saturating_sub(begun.elapsed());
            if remaining.is_zero() {
                break false;
            }
            wait = wait.min(remaining);
        }
        match pause(&watcher, &signals, reader, wait)? {
            Woken::Events => {}
            Woken::Signal => break false,
            Woken::ReaderGone => break true,
        }
    };
    watcher.stop()?;
    if !ended_by_reader {
        // What was told before that.
        drain(&mut watcher, &mut left, listener)?;
        listener.rest()?;
    }
    match watcher.lost()? {
        0 => {}
        1 => render::say("1 event was lost: there were more than could be read in time"),
        lost => {
            render::say(&format!(
                "{lost} events were lost: there were more than could be read in time"
            ));
        }
    }
    Ok(())
}

/// Hands over the events that wait, and says whether there may be more.
fn drain(
    watcher: &mut Watcher,
    left: &mut Option<u64>,
    listener: &mut impl Listener,
) -> Result<bool> {
    // So many at most, so that a flood keeps nobody from renewing, or from ending this.
    for _ in 0..10_000 {
        if *left == Some(0) {
            return Ok(false);
        }
        let heard = watcher.read_next(|event, bytes| {
            (event.phase() != Phase::Before, listener.hear(event, bytes))
        });
        let Some((is_last, heard)) = heard else {
            return Ok(true);
        };
        heard?;
        if is_last {
            *left = left.map(|left| left - 1);
        }
    }
    Ok(true)
}

enum Woken {
    /// There may be events.
    Events,
    /// Somebody wants this to end.
    Signal,
    /// Nobody reads what is written any more.
    ReaderGone,
}

/// Waits until something happens, or for so long.
fn pause(
    watcher: &Watcher,
    signals: &SignalFd,
    reader: Option<BorrowedFd<'_>>,
    wait: Duration,
) -> Result<Woken> {
    let mut ready = vec![
        PollFd::new(signals.as_fd(), PollFlags::POLLIN),
        PollFd::new(watcher.as_fd(), PollFlags::POLLIN),
    ];
    // A pipe that is closed says so without being asked.
    ready.extend(reader.map(|reader| PollFd::new(reader, PollFlags::empty())));
    // Rounded up, or the last millisecond would be waited for without a pause.
    let wait = PollTimeout::try_from(wait + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
    match poll(&mut ready, wait) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(error) => return Err(io::Error::from(error)).context("cannot wait for events"),
    }
    let woken = |nth: usize| ready.get(nth).and_then(PollFd::any) == Some(true);
    Ok(if woken(0) {
        Woken::Signal
    } else if woken(2) {
        Woken::ReaderGone
    } else {
        Woken::Events
    })
}

/// Signals that ask a program to end, as something that can be waited for.
fn catch_signals() -> io::Result<SignalFd> {
    let mut asked = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        asked.add(signal);
    }
    asked.thread_block()?;
    Ok(SignalFd::with_flags(&asked, SfdFlags::SFD_CLOEXEC)?)
}
