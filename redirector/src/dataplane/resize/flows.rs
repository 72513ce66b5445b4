//! What became of flows while they were copied.

use std::collections::HashSet;
use std::io;
use std::os::fd::AsFd;

use aya::maps::{HashMap, Map, MapData, MapError};
use redirector_common::{Direction, Flow, Tuple};

use super::super::batch;
use super::super::table::io_error;

/// Brings over flows that came, or moved on, at `since` or later, both halves together. Of two that
/// have a key the younger has it, and of one that both tables know, what has seen more.
pub(super) fn merge(from: &MapData, to: &MapData, since: u64) -> io::Result<()> {
    let mut recent = HashSet::new();
    batch::read_chunks(from, |chunk: &mut dyn Iterator<Item = (Tuple, Flow)>| {
        let chunk = chunk.filter(|(_, half)| half.last_seen >= since);
        recent.extend(chunk.map(|(key, half)| match half.direction() {
            Direction::Forward => key,
            Direction::Reply => half.translated.reversed(),
        }));
    })
    .map_err(|error| io::Error::other(error.to_string()))?;
    let (old, mut new) = (open(from)?, open(to)?);
    recent.iter().try_for_each(|key| bring(&old, &mut new, key))
}

/// Halves of flows.
trait Halves {
    fn get(&self, key: &Tuple) -> io::Result<Option<Flow>>;
    fn put(&mut self, key: &Tuple, half: &Flow) -> io::Result<()>;
    fn remove(&mut self, key: &Tuple) -> io::Result<()>;
}

/// Brings over the flow whose forward half has the key.
fn bring(old: &impl Halves, new: &mut impl Halves, key: &Tuple) -> io::Result<()> {
    let Some(there) = old.get(key)? else {
        return Ok(());
    };
    let back_key = there.translated.reversed();
    let Some(back) = old.get(&back_key)? else {
        return Ok(());
    };
    if there.direction() != Direction::Forward || back.translated.reversed() != *key {
        return Ok(());
    }
    let is_younger = |known: Option<Flow>| known.is_some_and(|it| it.created > there.created);
    if is_younger(new.get(key)?) || is_younger(new.get(&back_key)?) {
        return Ok(());
    }
    // The reply half first, as programs do.
    give(new, &back_key, &back)?;
    give(new, key, &there)
}

/// Gives a half its place, unless the one that is there knows as much.
fn give(table: &mut impl Halves, key: &Tuple, half: &Flow) -> io::Result<()> {
    match table.get(key)? {
        Some(known) if known.created == half.created && !has_moved_on(half, &known) => {
            return Ok(());
        }
        Some(known) if known.created != half.created => {
            // A flow that was over, and has given its key to this one. Its other half goes too.
            let partner = known.translated.reversed();
            if table.get(&partner)?.is_some_and(|it| it.created == known.created) {
                table.remove(&partner)?;
            }
        }
        Some(_) | None => {}
    }
    table.put(key, half)
}

/// Whether the old table knows more of a half than the new one.
fn has_moved_on(old: &Flow, new: &Flow) -> bool {
    (old.state() as u8, old.packets) > (new.state() as u8, new.packets)
}

fn open(map: &MapData) -> io::Result<HashMap<MapData, Tuple, Flow>> {
    let data = MapData::from_fd(map.fd().as_fd().try_clone_to_owned()?).map_err(io_error)?;
    let map = Map::from_map_data(data).map_err(io_error)?;
    HashMap::try_from(map).map_err(io_error)
}

impl Halves for HashMap<MapData, Tuple, Flow> {
    fn get(&self, key: &Tuple) -> io::Result<Option<Flow>> {
        match Self::get(self, key, 0) {
            Ok(half) => Ok(Some(half)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(io_error(error)),
        }
    }

    fn put(&mut self, key: &Tuple, half: &Flow) -> io::Result<()> {
        self.insert(key, half, 0).map_err(io_error)
    }

    fn remove(&mut self, key: &Tuple) -> io::Result<()> {
        match Self::remove(self, key) {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(error) => Err(io_error(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::net::IpAddr;

    use redirector_common::{Address, FlowState, Port, Protocol};

    use super::*;

    type Copy = HashMap<Tuple, Flow>;

    impl Halves for Copy {
        fn get(&self, key: &Tuple) -> io::Result<Option<Flow>> {
            Ok(HashMap::get(self, key).copied())
        }

        fn put(&mut self, key: &Tuple, half: &Flow) -> io::Result<()> {
            self.insert(*key, *half);
            Ok(())
        }

        fn remove(&mut self, key: &Tuple) -> io::Result<()> {
            HashMap::remove(self, key);
            Ok(())
        }
    }

    fn address(last: u8) -> Address {
        IpAddr::from([192, 0, 2, last]).into()
    }

    /// A flow from a port of the client's by a port of the translation block: key and half,
    /// forward and back.
    fn flow(client: u16, source: u16, created: u64) -> [(Tuple, Flow); 2] {
        let tuple = |from: (u8, u16), to: (u8, u16)| {
            let end = |(last, port)| (address(last), Port::new(port));
            Tuple::new(Protocol::Tcp, end(from), end(to))
        };
        let key = tuple((1, client), (2, 80));
        let translated = tuple((2, source), (3, 8080));
        let half = |direction, translated| Flow::new(direction, translated, 1, 1, false, created);
        [
            (key, half(Direction::Forward, translated)),
            (translated.reversed(), half(Direction::Reply, key.reversed())),
        ]
    }

    fn merged(old: &Copy, mut new: Copy) -> Copy {
        for (key, half) in old {
            if half.direction() == Direction::Forward {
                bring(old, &mut new, key).expect("no kernel that refuses");
            }
        }
        new
    }

    #[test]
    fn a_flow_that_was_copied_by_half() {
        let old = Copy::from(flow(1, 100, 7));
        for half in flow(1, 100, 7) {
            assert_eq!(merged(&old, Copy::from([half])), old);
        }
        assert_eq!(merged(&old, Copy::new()), old);
    }

    #[test]
    fn a_flow_that_moved_on() {
        let [(key, mut there), back] = flow(1, 100, 7);
        let new = Copy::from([(key, there), back]);
        there.set_state(FlowState::Established);
        there.packets = 2;
        let old = Copy::from([(key, there), back]);
        assert_eq!(merged(&old, new.clone()), old);
        assert_eq!(merged(&new, old.clone()), old, "backwards");
    }

    #[test]
    fn a_port_that_another_flow_has_by_now() {
        let old = Copy::from(flow(2, 100, 9));
        assert_eq!(merged(&old, Copy::from(flow(1, 100, 7))), old, "nothing is left of it");
        // Only programs that run already can have opened it.
        let new = Copy::from(flow(1, 100, 11));
        assert_eq!(merged(&old, new.clone()), new);
    }

    #[test]
    fn a_client_that_opened_another_flow() {
        let old = Copy::from(flow(1, 200, 9));
        assert_eq!(merged(&old, Copy::from(flow(1, 100, 7))), old, "nothing is left of it");
        let new = Copy::from(flow(1, 100, 11));
        assert_eq!(merged(&old, new.clone()), new);
    }

    #[test]
    fn a_half_without_another_is_no_flow() {
        let [forward, _] = flow(1, 100, 7);
        assert_eq!(merged(&Copy::from([forward]), Copy::new()), Copy::new());
    }
}
