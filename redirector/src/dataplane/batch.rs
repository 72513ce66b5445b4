//! Reading and writing many entries in a few system calls (`BPF_MAP_LOOKUP_BATCH`,
//! `BPF_MAP_UPDATE_BATCH`, kernel 5.6; for tries 5.13).
//!
//! aya reads one entry at a time, two system calls for each of a hash map; and when the entry
//! that it stands at is deleted meanwhile, it starts again from the first. The batch call walks
//! buckets, so a busy flow table is read once, in milliseconds.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use aya::Pod;
use aya::maps::{MapData, MapError, MapInfo};

const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;
const BPF_MAP_UPDATE_BATCH: libc::c_int = 26;

/// Entries asked for at once; more than any bucket of a hash map has in practice.
const BATCH: u32 = 4096;

/// The longest key of a map that tells by a key where a batch ended (a trie); others need less.
const MAX_KEY: usize = 64;

/// Why a map could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum BatchError {
    /// The kernel's description of the map could not be had.
    #[error(transparent)]
    Info(#[from] MapError),
    /// The map's layout is not the one that we would read it with.
    #[error(
        "its keys have {key} bytes and its values {value}, not {expected_key} and {expected_value}"
    )]
    Layout {
        /// Bytes of a key in the kernel.
        key: u32,
        /// Bytes of a value in the kernel.
        value: u32,
        /// Bytes of our type for keys.
        expected_key: usize,
        /// Bytes of our type for values.
        expected_value: usize,
    },
    /// The system call failed.
    #[error("{call}: {source}")]
    Call {
        /// Its name.
        call: &'static str,
        /// What the kernel says.
        source: io::Error,
    },
}

/// Every entry of a hash map or an array that is not per-CPU, in the kernel's order.
///
/// # Errors
///
/// If the map's layout is another one, or the kernel refuses.
pub fn read_all<K: Pod, V: Pod>(map: &MapData) -> Result<Vec<(K, V)>, BatchError> {
    let mut entries = Vec::new();
    read_chunks(map, |chunk| entries.extend(chunk))?;
    Ok(entries)
}

/// As [`read_all`], a chunk at a time: for maps that are large and go on changing. What comes or
/// goes meanwhile may be missed.
///
/// # Errors
///
/// If the map's layout is another one, or the kernel refuses.
pub fn read_chunks<K: Pod, V: Pod>(
    map: &MapData,
    mut each: impl FnMut(&mut dyn Iterator<Item = (K, V)>),
) -> Result<(), BatchError> {
    let info = checked_info::<K, V>(map)?;
    read_pieces(map, &info, &mut |piece| {
        each(&mut piece.entries(&info).map(|(key, value)| (value_of(key), value_of(value))));
        Ok(())
    })
    .map_err(|source| BatchError::Call { call: "BPF_MAP_LOOKUP_BATCH", source })
}

/// So many elements of an array from `first` on, fewer where it ends.
///
/// # Errors
///
/// If the map's layout is another one, or the kernel refuses.
pub fn read_range<V: Pod>(map: &MapData, first: u32, count: u32) -> Result<Vec<V>, BatchError> {
    let info = checked_info::<u32, V>(map)?;
    let count = count.min(info.max_entries().saturating_sub(first));
    if count == 0 {
        return Ok(Vec::new());
    }
    // A batch goes on behind the element that the one before it ended with.
    let before = first.checked_sub(1).map(|before| {
        let mut position = [0; MAX_KEY];
        position[..size_of::<u32>()].copy_from_slice(&before.to_ne_bytes());
        position
    });
    let (piece, _, outcome) = read_batch(map, &info, before.as_ref(), count);
    match outcome {
        // With its last element the array ends.
        Err(source) if source.raw_os_error() != Some(libc::ENOENT) => {
            Err(BatchError::Call { call: "BPF_MAP_LOOKUP_BATCH", source })
        }
        Ok(()) | Err(_) => Ok(piece.entries(&info).map(|(_, value)| value_of(value)).collect()),
    }
}

/// Writes entries of a hash map or an array, each as a single write would. An array has room for
/// each of its elements, so that all are written unless an index is beyond its end; of a hash map
/// that becomes full, those before are.
///
/// # Errors
///
/// If the map's layout is another one, or the kernel refuses.
pub fn write_all<K: Pod, V: Pod>(map: &MapData, entries: &[(K, V)]) -> Result<(), BatchError> {
    checked_info::<K, V>(map)?;
    let keys: Vec<K> = entries.iter().map(|(key, _)| *key).collect();
    let values: Vec<V> = entries.iter().map(|(_, value)| *value).collect();
    let count = u32::try_from(entries.len()).unwrap_or(u32::MAX);
    // SAFETY: as many of each as there are entries, of the sizes that the map was found to have.
    unsafe { update_batch(map, keys.as_ptr() as u64, values.as_ptr() as u64, count) }
        .map_err(|source| BatchError::Call { call: "BPF_MAP_UPDATE_BATCH", source })
}

/// Entries as they stand in a map, one behind the other.
pub(super) struct Piece {
    keys: Vec<u8>,
    values: Vec<u8>,
    count: u32,
}

impl Piece {
    /// Its entries, of a map that is so.
    pub(super) fn entries(&self, info: &MapInfo) -> impl Iterator<Item = (&[u8], &[u8])> {
        let keys = self.keys.chunks_exact((info.key_size() as usize).max(1));
        let values = self.values.chunks_exact((info.value_size() as usize).max(1));
        keys.zip(values).take(self.count as usize)
    }
}

/// Every entry of a map, whatever it holds, some at a time.
pub(super) fn read_pieces(
    map: &MapData,
    info: &MapInfo,
    each: &mut dyn FnMut(&Piece) -> io::Result<()>,
) -> io::Result<()> {
    let entries = info.max_entries();
    let mut batch = BATCH.min(entries).max(1);
    let mut position = None;
    loop {
        let (piece, next, outcome) = read_batch(map, info, position.as_ref(), batch);
        match outcome {
            Ok(()) => each(&piece)?,
            // There is nothing behind what was read.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return each(&piece),
            // A bucket has more entries than we have room for: the position has not moved.
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && batch < entries => {
                batch = batch.saturating_mul(2).min(entries);
                continue;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        }
        position = Some(next);
    }
}

/// So many entries behind a position, or from the start; and the position that they end at.
fn read_batch(
    map: &MapData,
    info: &MapInfo,
    position: Option<&[u8; MAX_KEY]>,
    count: u32,
) -> (Piece, [u8; MAX_KEY], io::Result<()>) {
    let mut piece = Piece {
        keys: vec![0; info.key_size() as usize * count as usize],
        values: vec![0; info.value_size() as usize * count as usize],
        count: 0,
    };
    let mut next = [0_u8; MAX_KEY];
    let mut attr = BatchAttr {
        in_batch: position.map_or(0, |position| position.as_ptr() as u64),
        out_batch: next.as_mut_ptr() as u64,
        keys: piece.keys.as_mut_ptr() as u64,
        values: piece.values.as_mut_ptr() as u64,
        count,
        map_fd: raw_fd(map),
        ..BatchAttr::default()
    };
    // SAFETY: the buffers live through the call and have room for as many keys and values of the
    // map's sizes as said, and for a position, which is a key at most.
    let outcome = unsafe { call(BPF_MAP_LOOKUP_BATCH, &mut attr) };
    piece.count = attr.count;
    (piece, next, outcome)
}

/// Writes what was read from a map with keys and values of the same sizes.
pub(super) fn write_piece(map: &MapData, piece: &Piece) -> io::Result<()> {
    if piece.count == 0 {
        return Ok(());
    }
    // SAFETY: as many of each as were read.
    unsafe {
        update_batch(map, piece.keys.as_ptr() as u64, piece.values.as_ptr() as u64, piece.count)
    }
}

/// # Safety
///
/// At `keys` and `values` are as many of the map's sizes as `count` says.
unsafe fn update_batch(map: &MapData, keys: u64, values: u64, count: u32) -> io::Result<()> {
    let mut attr = BatchAttr { keys, values, count, map_fd: raw_fd(map), ..BatchAttr::default() };
    // SAFETY: the caller's promise; the kernel only reads there.
    unsafe { call(BPF_MAP_UPDATE_BATCH, &mut attr) }
}

/// What the kernel says of a map whose keys and values are as long as our types.
fn checked_info<K: Pod, V: Pod>(map: &MapData) -> Result<MapInfo, BatchError> {
    let info = map.info()?;
    if info.key_size() as usize != size_of::<K>() || info.value_size() as usize != size_of::<V>() {
        return Err(BatchError::Layout {
            key: info.key_size(),
            value: info.value_size(),
            expected_key: size_of::<K>(),
            expected_value: size_of::<V>(),
        });
    }
    Ok(info)
}

/// The part of the kernel's `union bpf_attr` that the batch commands use.
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

pub(super) fn raw_fd(map: &MapData) -> u32 {
    map.fd().as_fd().as_raw_fd().cast_unsigned()
}

/// # Safety
///
/// The attribute is the command's, and the buffers that it names are as long as the kernel takes
/// them to be.
pub(super) unsafe fn call<A>(command: libc::c_int, attr: &mut A) -> io::Result<()> {
    let attr = std::ptr::from_mut(attr);
    // SAFETY: the attribute is as long as said and lives through the call; for the rest, the
    // caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr, size_of::<A>()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The value whose bytes these are: as many as it has, which `checked_info` has seen to.
fn value_of<T: Pod>(bytes: &[u8]) -> T {
    assert_eq!(bytes.len(), size_of::<T>());
    // SAFETY: `Pod` promises that every bit pattern is a value, and there are as many bytes.
    unsafe { bytes.as_ptr().cast::<T>().read_unaligned() }
}
