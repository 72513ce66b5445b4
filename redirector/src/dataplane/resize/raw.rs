//! Copying maps whatever they hold, in large pieces (`BPF_MAP_LOOKUP_BATCH` and its opposite,
//! kernel 5.6; for tries 5.13).

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use aya::maps::{MapData, MapError};

use super::super::table::io_error;

const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;
const BPF_MAP_UPDATE_BATCH: libc::c_int = 26;

/// Only where there is none yet.
const BPF_NOEXIST: u64 = 1;

/// Entries asked for at once.
const BATCH: u32 = 4096;

/// The longest key of a map: where a batch ended is told by one.
const MAX_KEY: usize = 64;

#[repr(C)]
#[derive(Default)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct ElementAttr {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Entries as they stand in a map, one behind the other.
struct Piece {
    keys: Vec<u8>,
    values: Vec<u8>,
    count: u32,
}

/// Which entries are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    /// All.
    All,
    /// Those that are not there yet.
    Missing,
}

/// Copies what `from` holds to `to`, a map with keys and values of the same sizes.
pub(super) fn copy(from: &MapData, to: &MapData, which: Which) -> io::Result<()> {
    let info = from.info().map_err(io_error)?;
    let (key, value) = (info.key_size() as usize, info.value_size() as usize);
    read(from, (key, value), info.max_entries(), &mut |piece| match which {
        Which::All => write(to, piece),
        Which::Missing => piece
            .keys
            .chunks_exact(key)
            .zip(piece.values.chunks_exact(value))
            .take(piece.count as usize)
            .try_for_each(|(key, value)| add(to, key, value)),
    })
}

fn read(
    map: &MapData,
    (key, value): (usize, usize),
    entries: u32,
    each: &mut dyn FnMut(&Piece) -> io::Result<()>,
) -> io::Result<()> {
    let mut batch = BATCH.min(entries).max(1);
    let (mut position, mut is_first) = ([0_u8; MAX_KEY], true);
    loop {
        let mut piece = Piece {
            keys: vec![0; key * batch as usize],
            values: vec![0; value * batch as usize],
            count: 0,
        };
        let mut next = [0_u8; MAX_KEY];
        let mut attr = BatchAttr {
            in_batch: if is_first { 0 } else { position.as_ptr() as u64 },
            out_batch: next.as_mut_ptr() as u64,
            keys: piece.keys.as_mut_ptr() as u64,
            values: piece.values.as_mut_ptr() as u64,
            count: batch,
            map_fd: fd(map),
            ..BatchAttr::default()
        };
        let outcome = bpf(BPF_MAP_LOOKUP_BATCH, &mut attr);
        piece.count = attr.count;
        match outcome {
            Ok(()) => each(&piece)?,
            // There is nothing behind what was read.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return each(&piece),
            // A bucket has more entries than there is room for.
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && batch < entries => {
                batch = batch.saturating_mul(2).min(entries);
                continue;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        }
        (position, is_first) = (next, false);
    }
}

fn write(map: &MapData, piece: &Piece) -> io::Result<()> {
    if piece.count == 0 {
        return Ok(());
    }
    let mut attr = BatchAttr {
        keys: piece.keys.as_ptr() as u64,
        values: piece.values.as_ptr() as u64,
        count: piece.count,
        map_fd: fd(map),
        ..BatchAttr::default()
    };
    bpf(BPF_MAP_UPDATE_BATCH, &mut attr)
}

/// Adds an entry unless there is one with its key.
fn add(map: &MapData, key: &[u8], value: &[u8]) -> io::Result<()> {
    let mut attr = ElementAttr {
        map_fd: fd(map),
        key: key.as_ptr() as u64,
        value: value.as_ptr() as u64,
        flags: BPF_NOEXIST,
        ..ElementAttr::default()
    };
    match bpf(BPF_MAP_UPDATE_ELEM, &mut attr) {
        Err(error) if error.raw_os_error() != Some(libc::EEXIST) => Err(error),
        _ => Ok(()),
    }
}

/// The map that is pinned at `path`.
pub(super) fn open(path: &std::path::Path) -> Result<Option<MapData>, MapError> {
    match MapData::from_pin(path) {
        Ok(map) => Ok(Some(map)),
        Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn fd(map: &MapData) -> u32 {
    // An open descriptor is never negative.
    u32::try_from(map.fd().as_fd().as_raw_fd()).unwrap_or(u32::MAX)
}

fn bpf<A>(command: libc::c_int, attr: &mut A) -> io::Result<()> {
    // SAFETY: the attribute is as long as said and lives through the call, and so do the buffers
    // that it points to, which have room for as many keys and values of the map's sizes as it says.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attr, size_of::<A>()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
