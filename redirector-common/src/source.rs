//! Source ranges: the prefixes that clients of a service may come from.

use crate::{Address, Family, ServiceId};

/// Bits of a service's number, which every range begins with.
const SERVICE_BITS: u32 = ServiceId::BITS;
/// Bits of an address.
const ADDRESS_BITS: u32 = 128;
/// Bits in front of the IPv4 address in an IPv4-mapped one.
const MAPPED_BITS: u32 = 96;

/// What a range is of. Bits of the number and then of the address are compared, in the order in
/// which they stand in memory: so ranges of one service never match clients of another.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceBits {
    /// The service.
    pub service: ServiceId,
    /// The network's address, or a client's.
    pub address: Address,
}

/// Key of the `SOURCE_RANGES` map, a longest-prefix-match trie.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceRange {
    /// How many bits of `bits` are compared.
    pub prefix_len: u32,
    /// The bits.
    pub bits: SourceBits,
}

const _: () = assert!(size_of::<SourceRange>() == 24 && align_of::<SourceRange>() == 4);

impl SourceRange {
    /// Value of every entry: that it is there says all.
    pub const ADMITTED: u32 = 1;

    /// The key that finds the range which a client of a service is in.
    #[inline(always)]
    #[must_use]
    pub const fn of_client(service: ServiceId, client: Address) -> Self {
        let bits = SourceBits { service, address: client };
        Self { prefix_len: SERVICE_BITS + ADDRESS_BITS, bits }
    }

    /// The network `network/prefix` of a service. `prefix` counts as people write it: from the
    /// first bit of an IPv4 address, too.
    #[must_use]
    pub fn new(service: ServiceId, network: Address, prefix: u8) -> Self {
        let before = match network.family() {
            Family::V4 => SERVICE_BITS + MAPPED_BITS,
            Family::V6 => SERVICE_BITS,
        };
        let prefix_len = before + u32::from(prefix);
        Self { prefix_len, bits: SourceBits { service, address: network } }
    }

    /// The prefix length as people write it.
    #[must_use]
    pub fn prefix(&self) -> u8 {
        let before = match self.bits.address.family() {
            Family::V4 => SERVICE_BITS + MAPPED_BITS,
            Family::V6 => SERVICE_BITS,
        };
        u8::try_from(self.prefix_len.saturating_sub(before)).unwrap_or(u8::MAX)
    }

    /// Whether a client of a service is in this range: what the kernel's trie answers.
    #[must_use]
    pub fn admits(&self, service: ServiceId, client: &Address) -> bool {
        let compared = self.prefix_len.saturating_sub(SERVICE_BITS).min(ADDRESS_BITS);
        let mask = u128::MAX.checked_shl(ADDRESS_BITS - compared).unwrap_or(0);
        let [network, client] = [&self.bits.address, client]
            .map(|address| u128::from_be_bytes(address.v6_bytes()) & mask);
        self.bits.service == service && network == client
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::IpAddr;

    fn ip(text: &str) -> Address {
        text.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn prefixes_count_from_the_family_s_first_bit() {
        let rows = [("0.0.0.0", 0, 128), ("198.51.100.0", 24, 152), ("192.0.2.1", 32, 160)];
        for (network, prefix, bits) in rows {
            let range = SourceRange::new(7, ip(network), prefix);
            assert_eq!((range.prefix_len, range.prefix()), (bits, prefix), "{network}/{prefix}");
        }
        for (network, prefix, bits) in [("::", 0, 32), ("2001:db8::", 32, 64), ("::1", 128, 160)] {
            let range = SourceRange::new(7, ip(network), prefix);
            assert_eq!((range.prefix_len, range.prefix()), (bits, prefix), "{network}/{prefix}");
        }
    }

    #[test]
    fn clients_inside_are_admitted() {
        let rows = [
            ("198.51.100.128", 25, "198.51.100.128", true),
            ("198.51.100.128", 25, "198.51.100.255", true),
            ("198.51.100.128", 25, "198.51.100.127", false),
            ("0.0.0.0", 0, "203.0.113.1", true),
            ("0.0.0.0", 0, "2001:db8::1", false),
            ("2001:db8::", 33, "2001:db8:7fff::1", true),
            ("2001:db8::", 33, "2001:db8:8000::1", false),
            ("::", 0, "2001:db8::1", true),
            ("192.0.2.1", 32, "192.0.2.1", true),
            ("192.0.2.1", 32, "192.0.2.0", false),
        ];
        for (network, prefix, client, admitted) in rows {
            let range = SourceRange::new(7, ip(network), prefix);
            assert_eq!(range.admits(7, &ip(client)), admitted, "{client} in {network}/{prefix}");
            assert!(!range.admits(8, &ip(client)), "of another service");
        }
    }
}
