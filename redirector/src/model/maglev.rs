//! Maglev consistent hashing: which backend answers for which hash.
//!
//! "Maglev: A Fast and Reliable Software Network Load Balancer" (NSDI 2016), §3.4. Every backend
//! walks the table in an order of its own, and in turn takes the next entry that is still free.
//! The order depends on the backend's [`identity`] alone, never on ids, positions or a random
//! seed: every node, and the same node after a restart, computes the same table, so a client that
//! comes in through another node still reaches the same backend.

use std::net::IpAddr;

use super::BackendAddress;

/// Sizes that a table may have. Primes, so that every walk visits every entry; each a little below
/// a power of two, so that tables fill the lines of their map.
pub const SIZES: [u32; 7] = [13, 61, 251, 1021, 4093, 16381, 65521];

/// How large tables are: less dense ones take less memory, and share less evenly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Density {
    divisor: u32,
}

impl Density {
    /// Shares of equal backends differ by 1 % at most.
    pub const FULL: Self = Self { divisor: 1 };

    /// From the densest on: each takes about a fourth of the memory of the one before, and shares
    /// of equal backends differ by four times as much.
    pub const ALL: [Self; 4] =
        [Self::FULL, Self { divisor: 4 }, Self { divisor: 16 }, Self { divisor: 64 }];

    fn of(self, entries: u32) -> u64 {
        u64::from((entries / self.divisor).max(1))
    }
}

/// Entries for each backend that [`table_size`] aims at: shares differ by one entry at most, 1 %.
const ENTRIES_PER_BACKEND: u32 = 100;

/// Entries that [`table_size`] aims at for the backend of the smallest weight, so that rounding
/// moves its share by a tenth at most.
const ENTRIES_OF_SMALLEST: u32 = 10;

/// Number of entries of a table over backends of these weights; weights of 0 do not count.
///
/// 0 without a backend, 1 with a single one; else, at full density, the smallest of [`SIZES`] that
/// has 100 entries for each backend and 10 for the one of the smallest weight, or the largest
/// there is. At any density each backend has an entry as long as the largest has as many.
#[must_use]
pub fn table_size(weights: &[u16], density: Density) -> u32 {
    let weights = || weights.iter().filter(|weight| **weight > 0);
    let Some(smallest) = weights().min() else {
        return 0;
    };
    let count = u64::try_from(weights().count()).unwrap_or(u64::MAX);
    if count == 1 {
        return 1;
    }
    let total: u64 = weights().map(|weight| u64::from(*weight)).sum();
    let smallest_share = total.div_ceil(u64::from(*smallest));
    let wanted = count
        .saturating_mul(density.of(ENTRIES_PER_BACKEND))
        .max(smallest_share.saturating_mul(density.of(ENTRIES_OF_SMALLEST)));
    let [.., largest] = SIZES;
    SIZES.into_iter().find(|size| u64::from(*size) >= wanted).unwrap_or(largest)
}

/// Fills a table of `size` entries with indices into `backends`, which are pairs of
/// [`identity`] and weight.
///
/// Every entry is filled, unless no backend has a weight above 0: then the table is empty. The
/// order of `backends` does not matter, except among equal identities. Backends past index 65535
/// are left out, as an entry cannot name them.
#[must_use]
pub fn build(backends: &[(u64, u16)], size: u32) -> Vec<u16> {
    let mut walks = walks(backends, size);
    let Some(largest) = walks.iter().map(|walk| walk.weight).max() else {
        return Vec::new();
    };
    let mut table = vec![None; size as usize];
    let mut free = table.len();
    let mut round = 0;
    // In each round a backend of the largest weight takes one entry; others sit out rounds in
    // proportion. All take part in the first, so each gets an entry while there are any.
    while free > 0 {
        round += 1;
        for walk in &mut walks {
            if free == 0 {
                break;
            }
            if round * walk.weight < walk.due {
                continue;
            }
            walk.due += largest;
            walk.take_free(&mut table);
            free -= 1;
        }
    }
    table.into_iter().flatten().collect()
}

fn walks(backends: &[(u64, u16)], size: u32) -> Vec<Walk> {
    let mut walks: Vec<(u64, Walk)> = backends
        .iter()
        .zip(0..=u16::MAX)
        .filter(|((_, weight), _)| *weight > 0)
        .map(|(&(identity, weight), index)| (identity, Walk::new(identity, weight, index, size)))
        .collect();
    walks.sort_by_key(|(identity, _)| *identity);
    walks.into_iter().map(|(_, walk)| walk).collect()
}

/// A backend's walk over the table.
struct Walk {
    index: u16,
    weight: u64,
    /// The backend takes part in a round once round × weight has reached this.
    due: u64,
    position: u32,
    skip: u32,
    steps: u32,
}

impl Walk {
    fn new(identity: u64, weight: u16, index: u16, size: u32) -> Self {
        // Less than `size`, which is 32 bits wide.
        let below = |hash: u64, size: u32| (hash % u64::from(size.max(1))) as u32;
        Self {
            index,
            weight: u64::from(weight),
            due: 0,
            position: below(mix(identity), size),
            // From a second, independent hash; 1 ≤ skip < size.
            skip: below(mix(!identity), size.saturating_sub(1)) + 1,
            steps: 0,
        }
    }

    /// Takes the next free entry of the walk. There must be one.
    fn take_free(&mut self, table: &mut [Option<u16>]) {
        // No table has more entries than fit into 31 bits.
        let size = table.len() as u32;
        while self.steps < 2 * size {
            let position = self.position;
            self.steps += 1;
            if self.steps == size {
                // Every entry has been visited once if the size is prime. If it is not, a walk in
                // single steps still finds what is left.
                self.skip = 1;
            }
            self.position += self.skip;
            if self.position >= size {
                self.position -= size;
            }
            if let Some(entry @ None) = table.get_mut(position as usize) {
                *entry = Some(self.index);
                return;
            }
        }
    }
}

/// A backend's identity: the same on every node and after every restart.
#[must_use]
pub fn identity(address: BackendAddress, port: u16) -> u64 {
    let bytes = match address {
        BackendAddress::Local => [0; 16],
        BackendAddress::At(IpAddr::V4(v4)) => v4.to_ipv6_mapped().octets(),
        BackendAddress::At(IpAddr::V6(v6)) => v6.octets(),
    };
    mix(fnv1a(bytes.into_iter().chain(port.to_be_bytes())))
}

/// FNV-1a, 64 bits (draft-eastlake-fnv §2).
fn fnv1a(bytes: impl IntoIterator<Item = u8>) -> u64 {
    bytes.into_iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// One output of SplitMix64 (Steele, Lea, Flood 2014): FNV alone leaves similar addresses with
/// similar hashes.
const fn mix(state: u64) -> u64 {
    let z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests;
