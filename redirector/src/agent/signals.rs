//! Signals to the agent, none of which is lost while it begins anew.

use std::io;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use tokio::io::unix::AsyncFd;

use super::events::Event;

const ANSWERED: [Signal; 3] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];

/// Signals that are waited for, and end nothing by themselves.
///
/// One that nobody has looked at yet stays with the process, also where it becomes another program:
/// so whoever begins anew hears of it.
#[derive(Debug)]
pub struct Signals {
    file: SignalFd,
}

impl Signals {
    /// To be called while the process has one thread, from which others inherit.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn hold() -> io::Result<Self> {
        let answered: SigSet = ANSWERED.into_iter().collect();
        answered.thread_block()?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        Ok(Self { file: SignalFd::with_flags(&answered, flags)? })
    }

    pub(super) fn listen(self) -> io::Result<Listener> {
        // SAFETY: it keeps its one descriptor for as long as it lives.
        let file = unsafe { AsyncFd::register(self.file) }?;
        Ok(Listener { file })
    }
}

/// Hears of signals.
#[derive(Debug)]
pub(super) struct Listener {
    file: AsyncFd<SignalFd>,
}

impl Listener {
    /// What the next signal asks for. None is lost where this is given up on the way.
    pub(super) async fn next(&self) -> io::Result<Event> {
        loop {
            let mut ready = self.file.readable().await?;
            match self.read()? {
                Some(event) => return Ok(event),
                None => ready.clear_ready(),
            }
        }
    }

    /// The same, if there is one already.
    pub(super) fn read(&self) -> io::Result<Option<Event>> {
        Ok(self.file.get_ref().read_signal()?.map(|signal| {
            let is_hangup = i32::try_from(signal.ssi_signo) == Ok(Signal::SIGHUP as i32);
            if is_hangup { Event::Reload } else { Event::Stop }
        }))
    }
}
