//! Choosing a backend for a new flow.

use super::Environment;
use crate::{BackendId, Service, Tuple};

/// What choosing asks of its surroundings. Less than an [`Environment`], so that whoever has no
/// packet can choose too.
pub trait Tables {
    /// An entry of the Maglev tables.
    fn table_entry(&self, index: u32) -> Option<BackendId>;
}

impl<E: Environment> Tables for E {
    #[inline(always)]
    fn table_entry(&self, index: u32) -> Option<BackendId> {
        Environment::table_entry(self, index)
    }
}

/// A hash of a client's tuple, the same on every node and every CPU architecture.
///
/// Six rounds of multiply and fold over the tuple's words; 2^64 divided by the golden ratio is
/// the multiplier.
#[inline(always)]
#[must_use]
pub fn hash(tuple: &Tuple) -> u32 {
    const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
    #[inline(always)]
    const fn mix(hash: u64, high: u32, low: u32) -> u64 {
        let hash = (hash ^ ((high as u64) << 32 | low as u64)).wrapping_mul(MULTIPLIER);
        hash ^ (hash >> 32)
    }
    let source = tuple.source.words();
    let destination = tuple.destination.words();
    let ports =
        u32::from(tuple.source_port.number()) << 16 | u32::from(tuple.destination_port.number());
    let mut hash = mix(0, u32::from_be(source[0]), u32::from_be(source[1]));
    hash = mix(hash, u32::from_be(source[2]), u32::from_be(source[3]));
    hash = mix(hash, u32::from_be(destination[0]), u32::from_be(destination[1]));
    hash = mix(hash, u32::from_be(destination[2]), u32::from_be(destination[3]));
    hash = mix(hash, ports, u32::from(tuple.protocol().number()));
    // One round more, so that the last word reaches every bit; the upper half is the better mixed.
    (mix(hash, 0, 0) >> 32) as u32
}

/// The backend that a service's Maglev table gives for `tuple`; `None` if the table is empty.
#[inline(always)]
pub fn select<T: Tables>(tables: &T, service: &Service, tuple: &Tuple) -> Option<BackendId> {
    if service.table_size == 0 {
        return None;
    }
    // Scales the hash to the table: no division, and no bias that a table of this size could show.
    let index = (u64::from(hash(tuple)) * u64::from(service.table_size)) >> 32;
    tables.table_entry(service.table_offset + index as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Address, Port, Protocol};

    #[test]
    fn hash_spreads_ports_and_addresses() {
        let mut buckets = [0u32; 64];
        for host in 0..32u8 {
            for port in 0..1000u16 {
                let tuple = Tuple::new(
                    Protocol::Tcp,
                    (Address::from_v4([10, 0, 0, host]), Port::new(32768 + port)),
                    (Address::from_v4([192, 0, 2, 1]), Port::new(80)),
                );
                buckets[(hash(&tuple) >> 26) as usize] += 1;
            }
        }
        // 500 expected in each; six standard deviations are about 134.
        assert!(buckets.iter().all(|&n| (366..=634).contains(&n)), "{buckets:?}");
    }
}
