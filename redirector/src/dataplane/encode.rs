//! The desired state in the form of the maps.

use std::ops::RangeInclusive;

use redirector_common::service::{MAGLEV_LINE, MaglevLine};
use redirector_common::{
    Address, BackendId, Family, Frontend, Port, PortFlags, Protocol, Service, ServiceId, SlotKey,
    SlotValue, SourceRange,
};

use super::contents::{Contents, lines_of};
use super::ids::{Cursors, Ids};
use super::info::{Info, TooLong};
use super::regions::Regions;
use crate::model::desired::{Desired, DesiredBackend, DesiredService};
use crate::model::{BackendState, ServiceKey};

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
        "map SERVICES is full: it has room for {0} services (a name counts once for each address family)"
    )]
    Services(u32),
    /// Too many backends.
    #[error("map BACKENDS is full: it has room for {0} backends")]
    Backends(u32),
    /// Too many or too large tables.
    #[error("map MAGLEV is full: no room for the {entries} entries of service {service}")]
    Maglev {
        /// The service whose table does not fit.
        service: String,
        /// The size of its table.
        entries: u32,
    },
    /// A name is too long.
    #[error(transparent)]
    Info(#[from] TooLong),
}

/// What the maps should hold, given what they do hold: numbers stay, tables that are right stay
/// where they are, and new tables go to lines that no service points to.
///
/// # Errors
///
/// If it does not fit.
pub fn encode(
    desired: &Desired,
    actual: &Contents,
    snat: RangeInclusive<u16>,
    capacity: Capacity,
    cursors: &mut Cursors,
) -> Result<Contents, EncodeError> {
    let mut encoder = Encoder {
        actual,
        capacity,
        ids: Ids::read(actual, (capacity.services, capacity.backends), *cursors),
        regions: Regions::new(capacity.lines),
        contents: Contents::default(),
    };
    for service in actual.services.values() {
        for service in [*service, service.internal()] {
            let (first, lines) = lines_of(&service);
            encoder.regions.take(first, lines);
        }
    }
    for (key, service) in &desired.services {
        encoder.add_service(key, service)?;
    }
    for port in snat {
        for protocol in Protocol::ALL {
            let ports = &mut encoder.contents.ports;
            ports.add(protocol, Port::new(port), PortFlags::SNAT);
        }
    }
    *cursors = encoder.ids.cursors();
    Ok(encoder.contents)
}

struct Encoder<'a> {
    actual: &'a Contents,
    capacity: Capacity,
    ids: Ids,
    regions: Regions,
    contents: Contents,
}

impl Encoder<'_> {
    fn add_service(
        &mut self,
        key: &(ServiceKey, Family),
        service: &DesiredService,
    ) -> Result<(), EncodeError> {
        let id = self.ids.service(key).ok_or(EncodeError::Services(self.capacity.services))?;
        let backends = self.add_backends(id, &service.backends)?;
        self.add_table(id, key, service, &backends)?;
        self.add_ranges(id, service);
        self.add_frontends(id, service);
        let info = Info {
            key: key.0.clone(),
            family: key.1,
            policy: service.policy,
            forwarding: service.forwarding,
            affinity: service.affinity_seconds,
            conflicts: service.conflicts.iter().copied().collect(),
            omitted: 0,
        };
        self.contents.infos.insert(id, info.encode()?);
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
            self.contents.backends.insert(id, desired.backend);
            let value = SlotValue {
                backend: id,
                weight: desired.weight,
                state: match desired.state {
                    BackendState::Active => SlotValue::ACTIVE,
                    BackendState::Terminating => SlotValue::TERMINATING,
                },
            };
            self.contents.slots.insert(SlotKey { service, slot }, value);
            ids.push(id);
        }
        Ok(ids)
    }

    /// Both tables, which mostly are one.
    fn add_table(
        &mut self,
        id: ServiceId,
        key: &(ServiceKey, Family),
        service: &DesiredService,
        backends: &[BackendId],
    ) -> Result<(), EncodeError> {
        let old = self.actual.services.get(&id).copied();
        let name = &key.0.name;
        let external = self.place(old, name, &service.table(), backends)?;
        let internal = match service.internal_table() {
            Some(table) => self.place(old.map(|it| it.internal()), name, &table, backends)?,
            None => external,
        };
        let value = Service {
            table_offset: external.0,
            table_size: external.1,
            flags: flags(service),
            reserved: 0,
            internal_offset: internal.0,
            internal_size: internal.1,
        };
        self.contents.services.insert(id, value);
        Ok(())
    }

    /// Finds a place for a table, the old one if it holds the same; says where it begins, and its
    /// size.
    fn place(
        &mut self,
        old: Option<Service>,
        name: &str,
        table: &[u16],
        backends: &[BackendId],
    ) -> Result<(u32, u32), EncodeError> {
        let entries: Vec<BackendId> =
            table.iter().filter_map(|index| backends.get(usize::from(*index)).copied()).collect();
        let size = u32::try_from(entries.len()).unwrap_or(u32::MAX);
        let offset = match old {
            Some(old) if old.table_size == size && self.holds(&old, &entries) => old.table_offset,
            _ if size == 0 => 0,
            _ => {
                let first = self.regions.allocate(size.div_ceil(MAGLEV_LINE));
                first.ok_or_else(|| EncodeError::Maglev {
                    service: name.to_owned(),
                    entries: size,
                })? * MAGLEV_LINE
            }
        };
        for (line, chunk) in (offset / MAGLEV_LINE..).zip(entries.chunks(MAGLEV_LINE as usize)) {
            let mut value = MaglevLine { entries: [0; MAGLEV_LINE as usize] };
            value.entries[..chunk.len()].copy_from_slice(chunk);
            self.contents.maglev.insert(line, value);
        }
        Ok((offset, size))
    }

    /// Whether a service's table already is what it should be.
    fn holds(&self, old: &Service, entries: &[BackendId]) -> bool {
        old.table_offset.is_multiple_of(MAGLEV_LINE)
            && self.actual.table(old).as_deref() == Some(entries)
    }

    fn add_ranges(&mut self, id: ServiceId, service: &DesiredService) {
        for network in service.source_ranges.iter().flatten() {
            let range = SourceRange::new(id, network.addr().into(), network.prefix_len());
            self.contents.ranges.insert(range, SourceRange::ADMITTED);
        }
    }

    fn add_frontends(&mut self, id: ServiceId, service: &DesiredService) {
        for key in &service.localhost {
            let local_address = Address::loopback(key.address.family());
            let value = Frontend { service: id, reserved: 0, local_address };
            self.contents.frontends.insert(*key, value);
            self.contents.ports.add(key.protocol(), key.port, PortFlags::FRONTEND);
        }
        let remote = service
            .backends
            .iter()
            .any(|backend| backend.takes_new_flows && !backend.backend.is_local());
        let flags =
            if remote { PortFlags::FRONTEND.union(PortFlags::REMOTE) } else { PortFlags::FRONTEND };
        for (key, local_address) in &service.frontends {
            let value = Frontend { service: id, reserved: 0, local_address: *local_address };
            self.contents.frontends.insert(*key, value);
            let ports = &mut self.contents.ports;
            ports.add(key.protocol(), key.port, flags);
            for backend in service.backends.iter().map(|backend| backend.backend) {
                if backend.is_local() {
                    ports.add(key.protocol(), backend.port, PortFlags::LOCAL_BACKEND);
                }
            }
        }
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
    flags
}
