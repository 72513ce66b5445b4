//! Watching: asking the data path to tell of packets, and reading what it tells.
//!
//! One at a time: the kernel keeps the lock, and the data path believes what it was asked for a few
//! seconds only. So nothing is left of a watcher that was killed.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::PathBuf;
use std::time::Duration;

use aya::maps::{Array, MapData, MapError, MapInfo, RingBuf};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use redirector_common::map_name::MapName;
use redirector_common::{Event, Watch};

use super::gc::now;
use super::lock::{find_holder, lock};
use super::pinned::{Pinned, PinnedError};

/// For how long the data path believes that somebody watches.
pub const LEASE: Duration = Duration::from_secs(4);

/// How often a watcher says that it still does.
pub const RENEWAL: Duration = Duration::from_secs(1);

/// Why nothing can be watched.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// Somebody else watches.
    #[error(
        "another 'redirector monitor' or 'capture' ({}) watches already, and only one can at a \
         time: end that first", holder(*.pid)
    )]
    Held {
        /// Who, where the kernel tells.
        pid: Option<u32>,
    },
    /// The directory of the pins cannot be locked.
    #[error("cannot lock {}: {source}", .path.display())]
    Lock {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The maps went meanwhile.
    #[error("nothing is installed under {} any more: it was detached", dir.display())]
    Gone {
        /// The directory of the pins.
        dir: PathBuf,
    },
    /// A map cannot be opened.
    #[error(transparent)]
    Map(#[from] PinnedError),
    /// The data path cannot be asked.
    #[error("cannot write map {name}: {source}")]
    Ask {
        /// The map.
        name: &'static str,
        /// What the kernel said.
        source: MapError,
    },
}

fn holder(pid: Option<u32>) -> String {
    pid.map_or_else(|| "pid unknown".to_owned(), |pid| format!("pid {pid}"))
}

/// Somebody who watches, until dropped.
pub struct Watcher {
    maps: Pinned,
    wish: Watch,
    control: Array<MapData, Watch>,
    /// The kernel's number of that map: another agent may have made others.
    control_id: Option<u32>,
    events: RingBuf<MapData>,
    /// When it began: what was told before is not for us.
    since: u64,
    lost_before: u64,
    /// Released last.
    _held: Flock<File>,
}

impl Watcher {
    /// Asks for what `wish` says.
    ///
    /// # Errors
    ///
    /// If somebody else watches, or the maps cannot be used.
    pub fn begin(maps: &Pinned, wish: Watch) -> Result<Self, WatchError> {
        let held = hold(maps)?;
        let control_id = installed(maps);
        let mut control = maps.control()?;
        // Somebody who was killed may have left a wish, and events: they are not read here.
        ask(&mut control, Watch::NONE)?;
        let mut events = maps.event_ring()?;
        while events.next().is_some() {}
        let lost_before = maps.events_lost()?;
        let mut watcher = Self {
            maps: maps.clone(),
            wish,
            control,
            control_id,
            events,
            since: now(),
            lost_before,
            _held: held,
        };
        watcher.renew()?;
        Ok(watcher)
    }

    /// Says that somebody still watches; to be called every [`RENEWAL`].
    ///
    /// # Errors
    ///
    /// If the map cannot be written, or programs that tell anything are no longer there.
    pub fn renew(&mut self) -> Result<(), WatchError> {
        let pins = self.maps.pins();
        if self.control_id.is_none() || installed(&self.maps) != self.control_id {
            return Err(WatchError::Gone { dir: pins.dir().to_owned() });
        }
        let lease = u64::try_from(LEASE.as_nanos()).unwrap_or(u64::MAX);
        self.wish.until = now().saturating_add(lease);
        ask(&mut self.control, self.wish)
    }

    /// Tells the data path that nobody watches any more. Events that were told before may still be
    /// read.
    ///
    /// # Errors
    ///
    /// If the map cannot be written.
    pub fn stop(&mut self) -> Result<(), WatchError> {
        ask(&mut self.control, Watch::NONE)
    }

    /// Hands the next event, if there is one, to `read`, with the bytes of the packet that came with
    /// it.
    pub fn read_next<T>(&mut self, read: impl FnOnce(&Event, &[u8]) -> T) -> Option<T> {
        loop {
            let item = self.events.next()?;
            if let Some((event, bytes)) = parse(&item)
                && event.time >= self.since
            {
                return Some(read(&event, bytes));
            }
        }
    }

    /// Events for which there was no room, since this began.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn lost(&self) -> Result<u64, PinnedError> {
        Ok(self.maps.events_lost()?.saturating_sub(self.lost_before))
    }
}

impl AsFd for Watcher {
    /// Readable when there are events.
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is the ring's own, which lives as long as `self`.
        unsafe { BorrowedFd::borrow_raw(self.events.as_raw_fd()) }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            tracing::debug!(%error, "the data path finds out by itself, within seconds");
        }
    }
}

fn ask(control: &mut Array<MapData, Watch>, wish: Watch) -> Result<(), WatchError> {
    let name = MapName::Watch.name();
    control.set(0, wish, 0).map_err(|source| WatchError::Ask { name, source })
}

/// The kernel's number of the map that asks the data path, as it is pinned now.
fn installed(maps: &Pinned) -> Option<u32> {
    MapInfo::from_pin(maps.pins().map(MapName::Watch)).ok().map(|info| info.id())
}

/// The lock of those who watch: on the directory of links, which nobody locks for anything else.
fn hold(maps: &Pinned) -> Result<Flock<File>, WatchError> {
    let path = maps.pins().links();
    match lock(&path, FlockArg::LockExclusiveNonblock) {
        Ok(held) => Ok(held),
        Err(Errno::EWOULDBLOCK) => Err(WatchError::Held { pid: find_holder(&path) }),
        Err(error) => Err(WatchError::Lock { path, source: error.into() }),
    }
}

/// An event and the bytes of the packet after it, as they stand in a record of the ring; `None`: the
/// programs are of another version.
#[must_use]
pub fn parse(record: &[u8]) -> Option<(Event, &[u8])> {
    let (head, rest) = record.split_at_checked(size_of::<Event>())?;
    // SAFETY: as many bytes as an event has, which is made of integers; the read is unaligned.
    let event = unsafe { head.as_ptr().cast::<Event>().read_unaligned() };
    let bytes = rest.get(..usize::try_from(event.captured).ok()?)?;
    Some((event, bytes))
}
