//! Copying maps whatever they hold.

use std::io;

use aya::maps::{MapData, MapError};

use super::super::batch;
use super::super::table::io_error;

const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;

/// Only where there is none yet.
const BPF_NOEXIST: u64 = 1;

#[repr(C)]
#[derive(Default)]
struct ElementAttr {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
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
    batch::read_pieces(from, &info, &mut |piece| match which {
        Which::All => batch::write_piece(to, piece),
        Which::Missing => piece.entries(&info).try_for_each(|(key, value)| add(to, key, value)),
    })
}

/// Adds an entry unless there is one with its key.
fn add(map: &MapData, key: &[u8], value: &[u8]) -> io::Result<()> {
    let mut attr = ElementAttr {
        map_fd: batch::raw_fd(map),
        key: key.as_ptr() as u64,
        value: value.as_ptr() as u64,
        flags: BPF_NOEXIST,
        ..ElementAttr::default()
    };
    // SAFETY: a key and a value of a map with the same sizes.
    match unsafe { batch::call(BPF_MAP_UPDATE_ELEM, &mut attr) } {
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
