//! Larger tables on a living node.
//!
//! ```text
//! 1. FLOWS:new   a larger map, and programs that use it
//! 2. copy        everything, while packets come and flows are opened
//! 3. hold        no flow is opened for a moment: what belongs to none will be sent again
//! 4. copy        flows that came or moved on meanwhile
//! 5. FLOWS:next  the same map under another name: from here there is no way back
//! 6. links       run the new programs, one after the other
//! 7. copy        flows that moved on meanwhile
//! 8. FLOWS       the new map takes the old one's name, and flows are opened again
//! ```
//!
//! Whoever comes after a death in between removes what is `:new`, and goes on from 6 with what is
//! `:next`, together with what is still `:new` then: of several maps the first is renamed when all
//! are complete. Tables other than the flow table need no hold.

mod flows;
mod hold;
mod links;
mod raw;
mod turn;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;
use std::{fs, io};

use aya::maps::{MapData, MapError};
use redirector_common::map_name::MapName;

use super::epochs::Epochs;
use super::gc;
use super::loader::{LoadError, Programs};
use super::maps;
use super::pins::{Pins, Stage};
use super::sizes::{self, Sizes};
use super::syscall;
use super::table::{TableError, io_error};
use hold::Hold;
use raw::Which;

pub use hold::release;
pub use turn::Turn;

/// Between the time that a program takes for a packet's, and its writing it, is less.
const MARGIN: u64 = 100_000_000;

/// Why a table could not be made larger. What was there is there, and works.
#[derive(Debug, thiserror::Error)]
pub enum ResizeError {
    /// The map is as it is.
    #[error("{0}'s size cannot be chosen; those that can: {1}")]
    Fixed(&'static str, String),
    /// Too many or too few.
    #[error("{name} can have from {from} to {to} entries, not {asked}")]
    Range {
        /// The map.
        name: &'static str,
        /// What was asked for.
        asked: u32,
        /// Fewest entries.
        from: u32,
        /// Most.
        to: u32,
    },
    /// It would have to lose entries.
    #[error(
        "{name} has room for {capacity} entries already, and tables do not shrink while they are \
         there: `redirector detach` removes them, with all flows"
    )]
    NotLarger {
        /// The map.
        name: &'static str,
        /// Its size.
        capacity: u32,
    },
    /// The programs or maps cannot be had.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A map cannot be read or written.
    #[error(transparent)]
    Table(#[from] TableError),
    /// A pin or link.
    #[error("{}: {source}", .path.display())]
    Pin {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Makes a map larger, and those that go with it, while packets flow. Whoever has the maps open
/// must open them again. Returns how long flows could not be opened; zero, unless it is their table.
///
/// # Errors
///
/// If the size is not one that the map can have, or the kernel refuses.
pub fn resize(pins: &Pins, name: MapName, entries: u32) -> Result<Duration, ResizeError> {
    check(name, entries)?;
    let _turn =
        Turn::take(pins).map_err(|source| ResizeError::Pin { path: pins.maps(), source })?;
    settle(pins)?;
    let capacity = maps::capacity(pins, name)?;
    if entries <= capacity {
        return Err(ResizeError::NotLarger { name: name.name(), capacity });
    }
    grow(pins, &BTreeMap::from([(name, entries)]))
}

/// Finishes or takes back what someone else has begun, and makes those tables larger that have less
/// room than was chosen for them.
///
/// # Errors
///
/// If the kernel refuses.
pub fn keep_up(
    pins: &Pins,
    _turn: &Turn,
    chosen: &BTreeMap<MapName, u32>,
) -> Result<(), ResizeError> {
    settle(pins)?;
    let small = outgrown(pins, chosen)?;
    if small.is_empty() {
        return Ok(());
    }
    let held = grow(pins, &small)?;
    let names: Vec<&str> = small.keys().map(|name| name.name()).collect();
    tracing::info!("made larger: {}; new flows waited for {held:?}", names.join(", "));
    Ok(())
}

/// Whether a map can have so many entries.
///
/// # Errors
///
/// If not, with what is allowed.
pub fn check(name: MapName, entries: u32) -> Result<(), ResizeError> {
    let Some((_, _, range)) = sizes::CHOSEN.into_iter().find(|(known, ..)| *known == name) else {
        let known = sizes::CHOSEN.map(|(name, ..)| name.name());
        return Err(ResizeError::Fixed(name.name(), known.join(", ")));
    };
    if range.contains(&entries) {
        return Ok(());
    }
    let (from, to) = range.into_inner();
    Err(ResizeError::Range { name: name.name(), asked: entries, from, to })
}

/// Those of the tables that are there and have less room than was chosen for them.
///
/// # Errors
///
/// If a map cannot be opened.
pub fn outgrown(
    pins: &Pins,
    chosen: &BTreeMap<MapName, u32>,
) -> Result<BTreeMap<MapName, u32>, TableError> {
    let mut small = BTreeMap::new();
    for (name, entries) in chosen {
        if pins.map(*name).exists() && maps::capacity(pins, *name)? < *entries {
            small.insert(*name, *entries);
        }
    }
    Ok(small)
}

/// Makes tables larger: see the module.
fn grow(pins: &Pins, tables: &BTreeMap<MapName, u32>) -> Result<Duration, ResizeError> {
    let names = together(tables);
    let mut sizes = Sizes::chosen(tables);
    if !tables.contains_key(&MapName::Flows) {
        // The ring stays as it is too.
        sizes.flows = maps::capacity(pins, MapName::Flows)?;
    }
    let moment = || gc::now().saturating_sub(MARGIN);
    let prepared =
        load(pins, &names, Stage::New, &sizes).map_err(Into::into).and_then(|programs| {
            let copied = moment();
            copy(pins, &names, Stage::New, Which::All)?;
            let hold = hold(pins, &names)?;
            let merged = moment();
            merge(pins, &names, Stage::New, copied)?;
            for name in &names {
                rename(pins.staged(*name, Stage::New), pins.staged(*name, Stage::Next))?;
            }
            Ok((programs, hold, merged))
        });
    match prepared {
        Ok((programs, hold, merged)) => finish(pins, &names, programs, hold, merged),
        Err(error) => {
            if unfinished(pins).is_empty() {
                remove_new(pins)?;
                release(pins)?;
            }
            Err(error)
        }
    }
}

/// Gives all links the programs that use the new maps, and these their names.
fn finish(
    pins: &Pins,
    names: &BTreeSet<MapName>,
    mut programs: Programs,
    hold: Option<Hold>,
    since: u64,
) -> Result<Duration, ResizeError> {
    links::replace(pins, &mut programs)?;
    // What still ran on the old maps when the last link was given another program.
    syscall::wait_for_programs();
    copy(pins, names, Stage::Next, Which::Missing)?;
    merge(pins, names, Stage::Next, since)?;
    for name in names {
        rename(pins.staged(*name, Stage::Next), pins.map(*name))?;
    }
    if let Ok(mut epochs) = Epochs::open(pins) {
        epochs.raise_all()?;
    }
    match hold {
        Some(hold) => Ok(hold.end(maps::ring_slots(pins)?)?),
        None => Ok(Duration::ZERO),
    }
}

/// Finishes what someone else has begun, or takes it back.
fn settle(pins: &Pins) -> Result<(), ResizeError> {
    if unfinished(pins).is_empty() {
        return remove_new(pins);
    }
    for name in staged(pins, Stage::New) {
        rename(pins.staged(name, Stage::New), pins.staged(name, Stage::Next))?;
    }
    let names = unfinished(pins);
    let programs = load(pins, &names, Stage::Next, &Sizes::of_machine())?;
    let hold = hold(pins, &names)?;
    // It is not known when it was begun.
    finish(pins, &names, programs, hold, 0).map(drop)
}

/// Maps that have been made larger, and for which there is no way back, but not all was done.
#[must_use]
pub fn unfinished(pins: &Pins) -> BTreeSet<MapName> {
    staged(pins, Stage::Next)
}

fn staged(pins: &Pins, stage: Stage) -> BTreeSet<MapName> {
    let is_there = |name: &MapName| pins.staged(*name, stage).exists();
    MapName::ALL.iter().copied().filter(is_there).collect()
}

/// The maps, and those that have to have the size of one of them.
fn together(tables: &BTreeMap<MapName, u32>) -> BTreeSet<MapName> {
    let mut names: BTreeSet<MapName> = tables.keys().copied().collect();
    if names.contains(&MapName::Flows) {
        names.insert(MapName::FlowRing);
    }
    if names.contains(&MapName::Services) {
        names.insert(MapName::ServiceInfo);
    }
    names
}

/// Makes those of the larger maps that are not there yet, and programs that use them.
fn load(
    pins: &Pins,
    names: &BTreeSet<MapName>,
    stage: Stage,
    sizes: &Sizes,
) -> Result<Programs, LoadError> {
    Programs::load_with(sizes, |name| {
        if names.contains(&name) { pins.staged(name, stage) } else { pins.map(name) }
    })
}

/// Copies maps. Of what is missing, flows are not for this; and the ring can do without those that
/// were opened meanwhile, which the agent collects.
fn copy(
    pins: &Pins,
    names: &BTreeSet<MapName>,
    stage: Stage,
    which: Which,
) -> Result<(), ResizeError> {
    for name in names {
        if which == Which::Missing && matches!(name, MapName::Flows | MapName::FlowRing) {
            continue;
        }
        if let (Some(from), Some(to)) = both(pins, *name, stage)? {
            raw::copy(&from, &to, which)
                .map_err(|source| TableError::new(*name, "copying", source))?;
        }
    }
    Ok(())
}

/// Brings over flows that came, or moved on, since then.
fn merge(
    pins: &Pins,
    names: &BTreeSet<MapName>,
    stage: Stage,
    since: u64,
) -> Result<(), ResizeError> {
    if names.contains(&MapName::Flows)
        && let (Some(from), Some(to)) = both(pins, MapName::Flows, stage)?
    {
        flows::merge(&from, &to, since)
            .map_err(|source| TableError::new(MapName::Flows, "copying", source))?;
    }
    Ok(())
}

/// The old map and the new one, those of them that are there: whoever died may have renamed one.
fn both(
    pins: &Pins,
    name: MapName,
    stage: Stage,
) -> Result<(Option<MapData>, Option<MapData>), ResizeError> {
    Ok((open(&pins.map(name))?, open(&pins.staged(name, stage))?))
}

/// Keeps flows from being opened, if it is their table that is made larger.
fn hold(pins: &Pins, names: &BTreeSet<MapName>) -> Result<Option<Hold>, TableError> {
    let moves_flows = [MapName::Flows, MapName::FlowRing].iter().any(|name| names.contains(name));
    moves_flows.then(|| Hold::begin(pins)).transpose()
}

fn remove_new(pins: &Pins) -> Result<(), ResizeError> {
    for name in MapName::ALL {
        let path = pins.staged(*name, Stage::New);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(ResizeError::Pin { path, source });
            }
            _ => {}
        }
    }
    Ok(())
}

fn rename(from: PathBuf, to: PathBuf) -> Result<(), ResizeError> {
    fs::rename(&from, to).map_err(|source| ResizeError::Pin { path: from, source })
}

fn open(path: &std::path::Path) -> Result<Option<MapData>, ResizeError> {
    raw::open(path).map_err(|error: MapError| ResizeError::Pin {
        path: path.to_owned(),
        source: io_error(error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_checked_before_anything_is_done() {
        let refusal = |name, entries| check(name, entries).expect_err("refused").to_string();
        assert!(check(MapName::Flows, 1 << 20).is_ok());
        assert_eq!(
            refusal(MapName::Flows, 1),
            "FLOWS can have from 1024 to 16777216 entries, not 1"
        );
        let fixed = refusal(MapName::Ports, 1);
        assert!(fixed.starts_with("PORTS's size cannot be chosen; those that can: AFFINITY, "));
    }

    #[test]
    fn what_belongs_together_grows_together() {
        let names = |name| together(&BTreeMap::from([(name, 1)]));
        let flows = BTreeSet::from([MapName::Flows, MapName::FlowRing]);
        assert_eq!(names(MapName::Flows), flows);
        assert_eq!(names(MapName::Vips), BTreeSet::from([MapName::Vips]));
    }
}
