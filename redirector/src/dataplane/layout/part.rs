//! What of one service cannot be found in the maps by its number.

use redirector_common::{Address, FrontendKey, ServiceId, SourceRange};

use crate::dataplane::contents::Ports;
use crate::dataplane::encode::{Encoder, lines_of_tables};
use crate::model::desired::DesiredService;
use crate::model::maglev::Density;
use crate::model::state::State;

/// One flag of one port: block of the map, position in it, bit.
pub(super) type PortBit = (u32, usize, u8);

/// Lines of tables that services would take at each density.
pub(super) type Lines = [u64; Density::ALL.len()];

/// A service's part of what the maps hold.
#[derive(Debug, Default)]
pub(super) struct Part {
    pub(super) id: ServiceId,
    pub(super) frontends: Box<[FrontendKey]>,
    pub(super) ranges: Box<[SourceRange]>,
    pub(super) vips: Box<[Address]>,
    pub(super) ports: Box<[PortBit]>,
    pub(super) lines: Lines,
}

impl Part {
    pub(super) fn new(id: ServiceId, state: &State, service: &DesiredService) -> Self {
        let mut vips: Vec<Address> = state.vips(service).collect();
        vips.sort_unstable();
        vips.dedup();
        let ranges = service.source_ranges.iter().flatten();
        Self {
            id,
            frontends: service
                .frontends
                .keys()
                .chain(service.foreign.keys())
                .chain(&service.localhost)
                .copied()
                .collect(),
            ranges: ranges
                .map(|range| SourceRange::new(id, range.addr().into(), range.prefix_len()))
                .collect(),
            vips: vips.into(),
            ports: port_bits(service),
            lines: Density::ALL.map(|density| lines_of_tables(service, density)),
        }
    }

    /// Blocks of ports in which the service has flags.
    pub(super) fn blocks(&self) -> impl Iterator<Item = u32> {
        self.ports.iter().map(|(block, ..)| *block)
    }
}

/// The flags of ports that a service needs.
fn port_bits(service: &DesiredService) -> Box<[PortBit]> {
    let mut ports = Ports::default();
    Encoder::add_ports(&mut ports, service);
    let mut bits = Vec::new();
    for (block, value) in ports.blocks {
        for (position, flags) in value.flags.into_iter().enumerate() {
            let set = (0..u8::BITS).map(|bit| 1 << bit).filter(|bit| flags & bit != 0);
            bits.extend(set.map(|bit| (block, position, bit)));
        }
    }
    bits.into()
}
