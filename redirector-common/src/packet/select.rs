//! Choosing a backend for a new flow.

use super::Environment;
use crate::{
    Address, Affinity, AffinityKey, BackendId, Origin, Service, ServiceId, TakerKey, Tuple,
};

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

/// The backend for a new flow of a client from `origin`: the one that the client stays with, where
/// the service wants that and the backend still takes new flows, else what [`select`] says.
///
/// Once the flow is there, [`remember`] has to be told of it.
#[inline(always)]
pub fn choose<E: Environment>(
    environment: &E,
    id: ServiceId,
    service: &Service,
    origin: Origin,
    tuple: &Tuple,
) -> Option<BackendId> {
    let mut backend = select(environment, service, origin, tuple)?;
    if service.has_affinity()
        && let Some(kept) = recall(environment, id, service, origin, &tuple.source)
    {
        backend = kept;
    }
    Some(backend)
}

/// The backend that a client stays with.
#[inline(always)]
fn recall<E: Environment>(
    environment: &E,
    id: ServiceId,
    service: &Service,
    origin: Origin,
    client: &Address,
) -> Option<BackendId> {
    let key = AffinityKey { group: service.affinity_group, client: *client };
    let affinity = environment.affinity(&key)?;
    if !affinity.is_current(environment.now(), service.affinity_seconds) {
        return None;
    }
    let key = TakerKey { service: id, backend: affinity.backend };
    environment.taker(&key).takes_from(origin).then_some(affinity.backend)
}

/// Notes that `client` has opened a flow to `backend` of a service of this affinity group.
#[inline(always)]
pub fn remember<E: Environment>(environment: &E, group: u32, client: &Address, backend: BackendId) {
    if group != 0 {
        let key = AffinityKey { group, client: *client };
        let affinity = Affinity { backend, reserved: 0, last_seen: environment.now() };
        environment.set_affinity(&key, &affinity);
    }
}

/// The backend that a service's table gives for `tuple` of a client from `origin`; `None` if the
/// table is empty.
#[inline(always)]
pub fn select<E: Environment>(
    environment: &E,
    service: &Service,
    origin: Origin,
    tuple: &Tuple,
) -> Option<BackendId> {
    let (offset, size) = service.table(origin);
    if size == 0 {
        return None;
    }
    let hash = if service.is_random() { environment.random() } else { hash(tuple) };
    // Scales the hash to the table: no division, and no bias that a table of this size could show.
    let index = (u64::from(hash) * u64::from(size)) >> 32;
    environment.table_entry(offset + index as u32)
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
