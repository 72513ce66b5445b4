//! Choosing a backend for a new flow.

use super::Environment;
use crate::{
    Address, Affinity, AffinityKey, BackendId, Origin, Service, ServiceId, Taker, TakerKey, Tuple,
};

/// How many nanoseconds, as a power of two, a choice at random stays the same for a tuple: 69 s. XDP
/// and TC ingress choose alike, and so does the acknowledgement of a SYN cookie, before which nothing
/// is remembered of the connection.
const SALT_BITS: u32 = 36;

/// What choosing asks of its surroundings. Less than an [`Environment`], so that whoever has no
/// packet can choose too.
pub trait Tables {
    /// `CLOCK_MONOTONIC` in nanoseconds; coarse is good enough.
    fn now(&self) -> u64;

    /// What a choice at random goes by besides the tuple: the same for all that is asked about one
    /// connection.
    fn salt(&self) -> u32;

    /// An entry of the Maglev tables.
    fn table_entry(&self, index: u32) -> Option<BackendId>;

    /// What is remembered of a client.
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity>;

    /// Remembers a client.
    fn set_affinity(&self, key: &AffinityKey, affinity: &Affinity);

    /// From where a backend of a service takes new flows.
    fn taker(&self, key: &TakerKey) -> Taker;
}

impl<E: Environment> Tables for E {
    #[inline(always)]
    fn now(&self) -> u64 {
        Environment::now(self)
    }

    #[inline(always)]
    fn salt(&self) -> u32 {
        (Environment::now(self) >> SALT_BITS) as u32
    }

    #[inline(always)]
    fn table_entry(&self, index: u32) -> Option<BackendId> {
        Environment::table_entry(self, index)
    }

    #[inline(always)]
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        Environment::affinity(self, key)
    }

    #[inline(always)]
    fn set_affinity(&self, key: &AffinityKey, affinity: &Affinity) {
        Environment::set_affinity(self, key, affinity);
    }

    #[inline(always)]
    fn taker(&self, key: &TakerKey) -> Taker {
        Environment::taker(self, key)
    }
}

/// 2^64 divided by the golden ratio.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// A hash of a client's tuple, the same on every node and every CPU architecture.
///
/// The sum of the tuple's long words, each times an odd number of its own, which a processor can
/// multiply at once; then a round of fold and multiply, after which every bit reaches the upper
/// half. The numbers are the first digits of the golden ratio's fraction and of square roots.
#[inline(always)]
#[must_use]
pub fn hash(tuple: &Tuple) -> u32 {
    const MULTIPLIERS: [u64; 5] = [
        GOLDEN,
        0x6a09_e667_f3bc_c909,
        0xbb67_ae85_84ca_a73b,
        0x3c6e_f372_fe94_f82b,
        0xa54f_f53a_5f1d_36f1,
    ];
    let mut sum = 0u64;
    for (word, multiplier) in tuple.long_words().iter().zip(MULTIPLIERS) {
        sum = sum.wrapping_add(u64::from_le(*word).wrapping_mul(multiplier));
    }
    fold(sum)
}

/// Folds and multiplies: every bit reaches the upper half.
#[inline(always)]
const fn fold(sum: u64) -> u32 {
    ((sum ^ (sum >> 32)).wrapping_mul(GOLDEN) >> 32) as u32
}

/// The backend for a new flow of a client from `origin`: the one that the client stays with, where
/// the service wants that and the backend still takes new flows, else what [`select`] says.
///
/// Once the flow is there, [`remember`] has to be told of it.
#[inline(always)]
pub fn choose<T: Tables>(
    tables: &T,
    id: ServiceId,
    service: &Service,
    origin: Origin,
    tuple: &Tuple,
) -> Option<BackendId> {
    let mut backend = select(tables, service, origin, tuple)?;
    if service.has_affinity()
        && let Some(kept) = recall(tables, id, service, origin, &tuple.source)
    {
        backend = kept;
    }
    Some(backend)
}

/// The backend that a client stays with.
#[inline(always)]
fn recall<T: Tables>(
    tables: &T,
    id: ServiceId,
    service: &Service,
    origin: Origin,
    client: &Address,
) -> Option<BackendId> {
    let key = AffinityKey { group: service.affinity_group, client: *client };
    let affinity = tables.affinity(&key)?;
    if !affinity.is_current(tables.now(), service.affinity_seconds) {
        return None;
    }
    let key = TakerKey { service: id, backend: affinity.backend };
    tables.taker(&key).takes_from(origin).then_some(affinity.backend)
}

/// Notes that `client` has opened a flow to `backend` of a service of this affinity group.
#[inline(always)]
pub fn remember<T: Tables>(tables: &T, group: u32, client: &Address, backend: BackendId) {
    if group != 0 {
        let key = AffinityKey { group, client: *client };
        let affinity = Affinity { backend, reserved: 0, last_seen: tables.now() };
        tables.set_affinity(&key, &affinity);
    }
}

/// The backend that a service's table gives for `tuple` of a client from `origin`; `None` if the
/// table is empty.
#[inline(always)]
pub fn select<T: Tables>(
    tables: &T,
    service: &Service,
    origin: Origin,
    tuple: &Tuple,
) -> Option<BackendId> {
    let (offset, size) = service.table(origin);
    if size == 0 {
        return None;
    }
    let mut hash = hash(tuple);
    if service.is_random() {
        hash = fold(u64::from(hash ^ tables.salt()));
    }
    // Scales the hash to the table: no division, and no bias that a table of this size could show.
    let index = (u64::from(hash) * u64::from(size)) >> 32;
    tables.table_entry(offset + index as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Address, Port, Protocol};

    #[test]
    fn hash_spreads_ports_and_addresses() {
        let by_high_bits = |hash: u32| hash >> 26;
        let by_low_bits = |hash: u32| hash & 63;
        let by_middle_bits = |hash: u32| hash >> 12 & 63;
        for bucket_of in [by_high_bits, by_low_bits, by_middle_bits] {
            for reversed in [false, true] {
                let mut buckets = [0u32; 64];
                for host in 0..32u8 {
                    for port in 0..1000u16 {
                        let tuple = Tuple::new(
                            Protocol::Tcp,
                            (Address::from_v4([10, 0, 0, host]), Port::new(32768 + port)),
                            (Address::from_v4([192, 0, 2, 1]), Port::new(80)),
                        );
                        let tuple = if reversed { tuple.reversed() } else { tuple };
                        buckets[bucket_of(hash(&tuple)) as usize] += 1;
                    }
                }
                // 500 expected in each; six standard deviations are about 134.
                assert!(buckets.iter().all(|&n| (366..=634).contains(&n)), "{buckets:?}");
            }
        }
    }
}
