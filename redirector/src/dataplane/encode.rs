//! The desired state in the form of the maps.

use std::ops::RangeInclusive;

use redirector_common::service::{MAGLEV_LINE, MaglevLine};
use redirector_common::{
    BackendId, Family, Origin, Port, PortFlags, Protocol, Service, ServiceId, SlotKey, SlotValue,
    Taker, TakerKey,
};

use super::contents::Contents;
use super::ids::{Cursors, Ids};
use super::info::{Info, TooLong};
use super::lines::{self, LineTable};
use super::regions::Regions;
use super::table::TableError;
use crate::model::desired::{Desired, DesiredBackend, DesiredService};
use crate::model::maglev::Density;
use crate::model::{Algorithm, BackendState, Forwarding, ServiceKey};

mod frontends;

/// Room in the maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Elements of `SERVICES`.
    pub services: u32,
    /// Elements of `BACKENDS`.
    pub backends: u32,
    /// Elements (lines) of `MAGLEV`.
    pub lines: u32,
}

/// The desired state does not fit into the maps.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// Too many services.
    #[error(
        "map SERVICES is full: it has room for {0} services (a name counts once for each address \
         family): make it larger with 'redirector map resize SERVICES NUMBER', or with 'tables' in \
         the file"
    )]
    Services(u32),
    /// Too many backends.
    #[error(
        "map BACKENDS is full: it has room for {0} backends: make it larger with 'redirector map \
         resize BACKENDS NUMBER', or with 'tables' in the file"
    )]
    Backends(u32),
    /// Too many or too large tables.
    #[error(
        "map MAGLEV is full: no room for the {entries} entries of service {service}: make it larger \
         with 'redirector map resize MAGLEV NUMBER', or with 'tables' in the file"
    )]
    Maglev {
        /// The service whose table does not fit.
        service: String,
        /// The size of its table.
        entries: u32,
    },
    /// A name is too long.
    #[error(transparent)]
    Info(#[from] TooLong),
    /// Tables that are there already could not be read.
    #[error(transparent)]
    Read(#[from] TableError),
}

/// What the maps should hold.
#[derive(Debug, Default)]
pub struct Encoded {
    /// All of it but tables.
    pub contents: Contents,
    /// Lines of tables that are not there yet, in regions that no service has.
    pub lines: Vec<(u32, MaglevLine)>,
}

/// What the maps should hold, given what they do hold: numbers stay, tables that are right in
/// `lines` stay where they are, and new tables go to lines that no service points to.
///
/// Tables are as dense as there is room for: dense ones share flows among backends more evenly, but
/// too many of them would not fit.
///
/// # Errors
///
/// If it does not fit.
pub fn encode(
    desired: &Desired,
    actual: &Contents,
    lines: &dyn LineTable,
    snat: RangeInclusive<u16>,
    capacity: Capacity,
    cursors: &mut Cursors,
) -> Result<Encoded, EncodeError> {
    let mut full = None;
    for density in Density::ALL {
        if lines_wanted(desired, density) > roomy(capacity) && Some(&density) != Density::ALL.last()
        {
            continue;
        }
        // Even so there may be no room while the old tables are still there.
        let encoder = Encoder {
            actual,
            lines,
            capacity,
            density,
            ids: &mut Ids::read(actual, (capacity.services, capacity.backends), *cursors),
            regions: &mut Regions::of(actual.services.values(), capacity.lines),
            encoded: Encoded::default(),
        };
        match encoder.encode(desired, snat.clone(), cursors) {
            Err(error @ EncodeError::Maglev { .. }) => full = full.or(Some(error)),
            done => {
                cursors.is_crowded = full.is_some();
                return done;
            }
        }
    }
    Err(full.unwrap_or(EncodeError::Maglev { service: String::new(), entries: 0 }))
}

/// Lines of `MAGLEV` that tables may take: an eighth stays free, for new ones to be written while
/// the old ones are in use.
pub(super) const fn roomy(capacity: Capacity) -> u64 {
    (capacity.lines - capacity.lines / 8) as u64
}

/// Lines of `MAGLEV` that every service's tables take together.
fn lines_wanted(desired: &Desired, density: Density) -> u64 {
    desired.services.values().map(|service| lines_of_tables(service, density)).sum()
}

/// Lines of `MAGLEV` that a service's tables take together.
pub(super) fn lines_of_tables(service: &DesiredService, density: Density) -> u64 {
    let lines = |origin| u64::from(service.table_size(origin, density).div_ceil(MAGLEV_LINE));
    let internal = if service.is_one_table() { 0 } else { lines(Origin::Node) };
    lines(Origin::Outside) + internal + lines(Origin::Peer)
}

/// Value of every entry of `VIPS`: that it is there says all.
pub(super) const VIP: u32 = 1;

pub(super) struct Encoder<'a> {
    /// What the maps hold of the services that are added.
    pub(super) actual: &'a Contents,
    pub(super) lines: &'a dyn LineTable,
    pub(super) capacity: Capacity,
    pub(super) density: Density,
    pub(super) ids: &'a mut Ids,
    pub(super) regions: &'a mut Regions,
    pub(super) encoded: Encoded,
}

impl Encoder<'_> {
    fn encode(
        mut self,
        desired: &Desired,
        snat: RangeInclusive<u16>,
        cursors: &mut Cursors,
    ) -> Result<Encoded, EncodeError> {
        for (key, service) in &desired.services {
            self.add_service(key, service)?;
        }
        let contents = &mut self.encoded.contents;
        for port in snat {
            for protocol in Protocol::ALL {
                contents.ports.add(protocol, Port::new(port), PortFlags::SNAT);
            }
        }
        contents.peers.clone_from(&desired.peers);
        contents.vips = desired.vips.iter().map(|address| (*address, VIP)).collect();
        *cursors = self.ids.cursors();
        Ok(self.encoded)
    }

    pub(super) fn add_service(
        &mut self,
        key: &(ServiceKey, Family),
        service: &DesiredService,
    ) -> Result<(), EncodeError> {
        let id = self.ids.service(key).ok_or(EncodeError::Services(self.capacity.services))?;
        let backends = self.add_backends(id, &service.backends)?;
        self.add_service_value(id, key, service, &backends)?;
        self.add_ranges(id, service);
        self.add_frontends(id, service);
        let info = Info {
            key: key.0.clone(),
            family: key.1,
            policy: service.policy,
            forwarding: service.forwarding,
            affinity: service.affinity_seconds,
            group: service.affinity_group.clone(),
            algorithm: service.algorithm,
            conflicts: service.conflicts.iter().copied().collect(),
            omitted: 0,
        };
        self.encoded.contents.infos.insert(id, info.encode()?);
        Ok(())
    }

    fn add_backends(
        &mut self,
        service: ServiceId,
        backends: &[DesiredBackend],
    ) -> Result<Vec<BackendId>, EncodeError> {
        let mut ids = Vec::with_capacity(backends.len());
        for (slot, desired) in (0..).zip(backends) {
            let id = self
                .ids
                .backend(&desired.backend)
                .ok_or(EncodeError::Backends(self.capacity.backends))?;
            self.encoded.contents.backends.insert(id, desired.backend);
            let value = SlotValue {
                backend: id,
                weight: desired.weight,
                state: match desired.state {
                    BackendState::Active => SlotValue::ACTIVE,
                    BackendState::Terminating => SlotValue::TERMINATING,
                },
            };
            self.encoded.contents.slots.insert(SlotKey { service, slot }, value);
            ids.push(id);
        }
        Ok(ids)
    }

    /// Adds the service and its tables: one where clients on the node have the same backends to
    /// choose from as those outside, else two; and one for what peers hand over.
    fn add_service_value(
        &mut self,
        id: ServiceId,
        key: &(ServiceKey, Family),
        service: &DesiredService,
        backends: &[BackendId],
    ) -> Result<(), EncodeError> {
        let (table_offset, table_size) =
            self.add_table(id, key, Origin::Outside, service, backends)?;
        let (internal_offset, internal_size) = if service.is_one_table() {
            (table_offset, table_size)
        } else {
            self.add_table(id, key, Origin::Node, service, backends)?
        };
        let (peer_offset, peer_size) = self.add_table(id, key, Origin::Peer, service, backends)?;
        let affinity = self.add_affinity(id, key, service, backends)?;
        let value = Service {
            table_offset,
            table_size,
            internal_offset,
            internal_size,
            peer_offset,
            peer_size,
            flags: flags(service),
            affinity_group: affinity.map_or(0, |(group, _)| group),
            affinity_seconds: affinity.map_or(0, |(_, seconds)| seconds),
            reserved: 0,
        };
        self.encoded.contents.services.insert(id, value);
        Ok(())
    }

    /// The service's affinity group and timeout, with the backends that clients may stay with.
    fn add_affinity(
        &mut self,
        id: ServiceId,
        key: &(ServiceKey, Family),
        service: &DesiredService,
        backends: &[BackendId],
    ) -> Result<Option<(u32, u32)>, EncodeError> {
        let Some(seconds) = service.affinity_seconds else {
            return Ok(None);
        };
        for (desired, backend) in service.backends.iter().zip(backends) {
            let taker = Origin::ALL
                .into_iter()
                .filter(|origin| desired.takes_from(*origin))
                .fold(Taker::NONE, Taker::and);
            if taker != Taker::NONE {
                self.encoded
                    .contents
                    .takers
                    .insert(TakerKey { service: id, backend: *backend }, taker);
            }
        }
        let group = self.ids.group(&key.0, service.affinity_group.as_deref());
        let group = group.ok_or(EncodeError::Services(self.capacity.services))?;
        Ok(Some((group, seconds)))
    }

    /// Offset and size of the table for clients from `origin`.
    fn add_table(
        &mut self,
        id: ServiceId,
        key: &(ServiceKey, Family),
        origin: Origin,
        service: &DesiredService,
        backends: &[BackendId],
    ) -> Result<(u32, u32), EncodeError> {
        let entries: Vec<BackendId> = service
            .table(origin, self.density)
            .into_iter()
            .filter_map(|index| backends.get(usize::from(index)).copied())
            .collect();
        let size = u32::try_from(entries.len()).unwrap_or(u32::MAX);
        let offset = match self.place_of(id, origin, &entries)? {
            Some(offset) => offset,
            None if size == 0 => 0,
            None => {
                let first = self.regions.allocate(size.div_ceil(MAGLEV_LINE));
                let first = first.ok_or_else(|| EncodeError::Maglev {
                    service: key.0.name.clone(),
                    entries: size,
                })?;
                self.encoded.lines.extend(lines::split(first, &entries));
                first * MAGLEV_LINE
            }
        };
        Ok((offset, size))
    }

    /// Where a service's table stands already, if it is what it should be. A region that both
    /// kinds of clients shared stays with those outside.
    fn place_of(
        &self,
        id: ServiceId,
        origin: Origin,
        entries: &[BackendId],
    ) -> Result<Option<u32>, TableError> {
        let Some(old) = self.actual.services.get(&id) else {
            return Ok(None);
        };
        let (offset, _) = old.table(origin);
        let is_shared = offset == old.table_offset && old.table_size > 0;
        if origin == Origin::Node && is_shared {
            return Ok(None);
        }
        Ok(lines::holds(self.lines, old, origin, entries)?.then_some(offset))
    }
}

fn flags(service: &DesiredService) -> u32 {
    let mut flags = 0;
    if service.silent {
        flags |= Service::FLAG_SILENT;
    }
    if service.source_ranges.is_some() {
        flags |= Service::FLAG_SOURCE_RANGES;
    }
    if service.algorithm == Algorithm::Random {
        flags |= Service::FLAG_RANDOM;
    }
    if service.forwarding == Forwarding::Dsr {
        flags |= Service::FLAG_DSR;
    }
    flags
}
