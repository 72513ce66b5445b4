//! Reading and writing many entries in a few system calls (`BPF_MAP_LOOKUP_BATCH`,
//! `BPF_MAP_UPDATE_BATCH`, kernel 5.6).
//!
//! aya reads one entry at a time, two system calls for each of a hash map; and when the entry
//! that it stands at is deleted meanwhile, it starts again from the first. The batch call walks
//! buckets, so a busy flow table is read once, in milliseconds.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use aya::Pod;
use aya::maps::{MapData, MapError, MapInfo};

const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;
const BPF_MAP_UPDATE_BATCH: libc::c_int = 26;

/// Entries asked for at once; more than any bucket of a hash map has in practice.
const BATCH: u32 = 4096;

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
    let mut batch = BATCH.min(info.max_entries()).max(1);
    let mut position: Option<u32> = None;
    let mut keys = vec![zeroed::<K>(); batch as usize];
    let mut values = vec![zeroed::<V>(); batch as usize];
    loop {
        let mut next = 0;
        let outcome =
            lookup_batch(map.fd().as_fd(), position.as_ref(), &mut next, &mut keys, &mut values);
        match outcome {
            Ok(Batch { count, last }) => {
                let read = keys.iter().copied().zip(values.iter().copied());
                each(&mut read.take(count as usize));
                if last {
                    return Ok(());
                }
                position = Some(next);
            }
            // A bucket has more entries than we have room for: the position has not moved.
            Err(error)
                if error.raw_os_error() == Some(libc::ENOSPC) && batch < info.max_entries() =>
            {
                batch = batch.saturating_mul(2).min(info.max_entries());
                keys.resize(batch as usize, zeroed());
                values.resize(batch as usize, zeroed());
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => return Err(BatchError::Call { call: "BPF_MAP_LOOKUP_BATCH", source }),
        }
    }
}

/// Writes elements of an array, each in one store as a single write would. An array has room for
/// each of its elements, so that all are written unless an index is beyond its end.
///
/// # Errors
///
/// If the map's layout is another one, or the kernel refuses.
pub fn write_all<V: Pod>(map: &MapData, elements: &[(u32, V)]) -> Result<(), BatchError> {
    checked_info::<u32, V>(map)?;
    let keys: Vec<u32> = elements.iter().map(|(key, _)| *key).collect();
    let values: Vec<V> = elements.iter().map(|(_, value)| *value).collect();
    let mut done = 0;
    while let (Some(keys @ [_, ..]), Some(values)) = (keys.get(done..), values.get(done..)) {
        match update_batch(map.fd().as_fd(), keys, values) {
            Ok(count) => done += count as usize,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => return Err(BatchError::Call { call: "BPF_MAP_UPDATE_BATCH", source }),
        }
    }
    Ok(())
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

/// What one call has read.
struct Batch {
    count: u32,
    last: bool,
}

/// The part of the kernel's `union bpf_attr` that the batch commands use.
#[repr(C)]
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

fn lookup_batch<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    position: Option<&u32>,
    next: &mut u32,
    keys: &mut [K],
    values: &mut [V],
) -> io::Result<Batch> {
    let room = keys.len().min(values.len());
    let mut attr = BatchAttr {
        in_batch: position.map_or(0, |position| std::ptr::from_ref(position) as u64),
        out_batch: std::ptr::from_mut(next) as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: u32::try_from(room).unwrap_or(u32::MAX),
        map_fd: map.as_raw_fd().cast_unsigned(),
        elem_flags: 0,
        flags: 0,
    };
    // SAFETY: the attribute is as long as said and lives through the call, and so do the buffers
    // that it points to. The kernel writes at most `count` keys and values, of the sizes that
    // `checked_info` has compared with the types', and a position of four bytes.
    let result = unsafe { call(BPF_MAP_LOOKUP_BATCH, &mut attr) };
    match result {
        Ok(()) => Ok(Batch { count: attr.count, last: false }),
        // There is nothing behind what was read.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
            Ok(Batch { count: attr.count, last: true })
        }
        Err(error) => Err(error),
    }
}

/// Returns how many were written: at least one.
fn update_batch<V: Pod>(map: BorrowedFd<'_>, keys: &[u32], values: &[V]) -> io::Result<u32> {
    let room = keys.len().min(values.len());
    let mut attr = BatchAttr {
        in_batch: 0,
        out_batch: 0,
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count: u32::try_from(room).unwrap_or(u32::MAX),
        map_fd: map.as_raw_fd().cast_unsigned(),
        elem_flags: 0,
        flags: 0,
    };
    // SAFETY: as in `lookup_batch`, and the kernel only reads the buffers.
    unsafe { call(BPF_MAP_UPDATE_BATCH, &mut attr) }?;
    if attr.count == 0 {
        return Err(io::ErrorKind::WriteZero.into());
    }
    Ok(attr.count)
}

/// # Safety
///
/// The buffers that `attr` names are as long as the kernel takes them to be.
unsafe fn call(command: libc::c_int, attr: &mut BatchAttr) -> io::Result<()> {
    let attr = std::ptr::from_mut(attr);
    // SAFETY: the attribute is as long as said and lives through the call; for the rest, the
    // caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr, size_of::<BatchAttr>()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn zeroed<T: Pod>() -> T {
    // SAFETY: `Pod` promises that every bit pattern is a value.
    unsafe { std::mem::zeroed() }
}
