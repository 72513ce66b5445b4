//! What became of flows while they were copied.

use std::collections::HashMap as Entries;
use std::io;
use std::os::fd::AsFd;

use aya::maps::{HashMap, Map, MapData};
use redirector_common::{Direction, Flow, Tuple};

use super::super::batch;
use super::super::table::io_error;

/// Brings over flows that came, or moved on, after the old table was copied. Nobody writes the old
/// table any more; programs write the new one.
pub(super) fn merge(from: &MapData, to: &MapData) -> io::Result<()> {
    let old: Entries<Tuple, Flow> = read(from)?;
    let new: Entries<Tuple, Flow> = read(to)?;
    let data = MapData::from_fd(to.fd().as_fd().try_clone_to_owned()?).map_err(io_error)?;
    let map = Map::from_map_data(data).map_err(io_error)?;
    let mut table: HashMap<_, Tuple, Flow> = HashMap::try_from(map).map_err(io_error)?;
    for (key, there) in old.iter().filter(|(_, flow)| flow.direction() == Direction::Forward) {
        let back_key = there.translated.reversed();
        let Some(back) = old.get(&back_key) else {
            continue;
        };
        match new.get(key) {
            Some(known) if known.created == there.created => {
                for (key, flow) in [(key, there), (&back_key, back)] {
                    if new.get(key).is_none_or(|known| has_moved_on(flow, known)) {
                        put(&mut table, key, flow, 0)?;
                    }
                }
            }
            // Opened again since it was copied: by programs on the old table, or on the new one,
            // whose word goes.
            Some(known) if known.created > there.created => {}
            Some(known) => {
                let known_back = known.translated.reversed();
                for key in [key, &known_back] {
                    let _ = table.remove(key);
                }
                add(&mut table, (key, there), (&back_key, back))?;
            }
            None => add(&mut table, (key, there), (&back_key, back))?,
        }
    }
    Ok(())
}

/// Whether the old table knows more of a half than the new one.
fn has_moved_on(old: &Flow, new: &Flow) -> bool {
    (old.state() as u8, old.packets) > (new.state() as u8, new.packets)
}

type Table = HashMap<MapData, Tuple, Flow>;

/// Adds both halves, the reply half first: where another flow has its key by now, neither.
fn add(table: &mut Table, there: (&Tuple, &Flow), back: (&Tuple, &Flow)) -> io::Result<()> {
    const NOEXIST: u64 = 1;
    match put(table, back.0, back.1, NOEXIST) {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => return Ok(()),
        outcome => outcome?,
    }
    match put(table, there.0, there.1, NOEXIST) {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
            table.remove(back.0).map_err(io_error)
        }
        outcome => outcome,
    }
}

fn put(table: &mut Table, key: &Tuple, flow: &Flow, flags: u64) -> io::Result<()> {
    table.insert(key, flow, flags).map_err(io_error)
}

fn read(map: &MapData) -> io::Result<Entries<Tuple, Flow>> {
    let mut entries = Entries::new();
    batch::read_chunks(map, |chunk: &mut dyn Iterator<Item = (Tuple, Flow)>| {
        entries.extend(chunk);
    })
    .map_err(|error| io::Error::other(error.to_string()))?;
    Ok(entries)
}
