//! Session affinity: clients that stay with their backend.

use crate::{Address, BackendId, Origin, ServiceId};

/// Key of the `AFFINITY` map: a client, as a group of services knows it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AffinityKey {
    /// The group ([`Service::affinity_group`](crate::Service::affinity_group)).
    pub group: u32,
    /// The client's address, without a port.
    pub client: Address,
}

const _: () = assert!(size_of::<AffinityKey>() == 20);

/// Value of the `AFFINITY` map: what is remembered of a client.
///
/// The map forgets those that were not seen for longest when it is full. What stands in it may be
/// past its time, or name a backend that takes no new flows: that is found out when it is used.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Affinity {
    /// The backend of the client's last new flow.
    pub backend: BackendId,
    /// Reserved, zero.
    pub reserved: u32,
    /// When the client last opened a flow, `CLOCK_MONOTONIC` nanoseconds.
    pub last_seen: u64,
}

const _: () = assert!(size_of::<Affinity>() == 16);

impl Affinity {
    /// Nothing.
    pub const NONE: Self = Self { backend: 0, reserved: 0, last_seen: 0 };

    /// Whether the client is still remembered at `now`, with a timeout of `seconds`.
    #[inline(always)]
    #[must_use]
    pub const fn is_current(&self, now: u64, seconds: u32) -> bool {
        now.saturating_sub(self.last_seen) < seconds as u64 * 1_000_000_000
    }
}

/// Key of the `TAKERS` map: a backend of a service with affinity that takes new flows.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TakerKey {
    /// The service.
    pub service: ServiceId,
    /// The backend.
    pub backend: BackendId,
}

const _: () = assert!(size_of::<TakerKey>() == 8);

/// Value of the `TAKERS` map: from where a backend takes new flows.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taker {
    origins: u32,
}

impl Taker {
    /// A backend that takes new flows from nowhere: what is not in the map.
    pub const NONE: Self = Self { origins: 0 };

    /// The same, and from `origin` too.
    #[must_use]
    pub const fn and(self, origin: Origin) -> Self {
        Self { origins: self.origins | Self::bit(origin) }
    }

    /// Whether it takes new flows of clients from `origin`.
    #[inline(always)]
    #[must_use]
    pub const fn takes_from(self, origin: Origin) -> bool {
        self.origins & Self::bit(origin) != 0
    }

    #[inline(always)]
    const fn bit(origin: Origin) -> u32 {
        match origin {
            Origin::Outside => 1,
            Origin::Node => 2,
            Origin::Peer => 4,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_remembered_for_as_long_as_said() {
        let seen = Affinity { backend: 1, reserved: 0, last_seen: 5_000_000_000 };
        let rows = [(5, true), (7, true), (8, false), (1_000_000, false)];
        for (second, current) in rows {
            assert_eq!(seen.is_current(second * 1_000_000_000, 3), current, "{second}");
        }
        // Clocks of two CPUs may differ by a little.
        assert!(seen.is_current(4_999_999_999, 1));
    }

    #[test]
    fn origins_are_told_apart() {
        let outside = Taker::NONE.and(Origin::Outside);
        assert!(outside.takes_from(Origin::Outside) && !outside.takes_from(Origin::Node));
        assert!(outside.and(Origin::Node).takes_from(Origin::Node));
        assert!(!outside.and(Origin::Node).takes_from(Origin::Peer));
        assert!(outside.and(Origin::Peer).takes_from(Origin::Peer));
        assert!(!Taker::NONE.takes_from(Origin::Outside));
    }
}
