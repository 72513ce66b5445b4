//! Watching: who wants to be told of which packets.
//!
//! Somebody watches while [`Watch::until`] lies ahead, and has to say so again before it is over:
//! a watcher that was killed costs nothing any more when its time is up.

use crate::event::{Event, MAX_SNAP, Phase, has};
use crate::{Address, Port, Protocol, ServiceId, Tuple};

/// Services that a watcher can ask for at once.
pub const MAX_SERVICES: usize = 16;

/// One end of the packets that are wanted.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// Its address; unspecified: any.
    pub address: Address,
    /// Its port; zero: any.
    pub port: Port,
    /// Reserved, zero.
    pub reserved: u16,
}

const _: () = assert!(size_of::<End>() == 20);

impl End {
    /// Any.
    pub const ANY: Self = Self { address: Address::UNSPECIFIED, port: Port::ZERO, reserved: 0 };

    #[inline(always)]
    fn matches(&self, end: Option<(Address, Port)>) -> bool {
        let any_address = self.address.is_unspecified();
        let any_port = self.port.raw() == 0;
        match end {
            Some((address, port)) => {
                (any_address || address == self.address)
                    && (any_port || port.raw() == self.port.raw())
            }
            None => any_address && any_port,
        }
    }
}

/// Value of the one-element `WATCH` array: what somebody wants to be told, and for how long.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watch {
    /// Until when, `CLOCK_MONOTONIC` nanoseconds; 0: nobody watches.
    pub until: u64,
    /// [`bit`](crate::event::bit)s of the Reasons that are wanted.
    pub reasons: u64,
    /// Those of the Reasons of which every packet is told, not only a sample.
    pub unsampled: u64,
    /// Of other packets one in so many is told, on each CPU; 0 is as 1.
    pub sample: u32,
    /// Bytes of each packet that are wanted, at most [`MAX_SNAP`].
    pub snap: u32,
    /// [`Phase::bit`]s of the moments that are wanted.
    pub phases: u32,
    /// IANA number of the protocol; 0: any.
    pub protocol: u32,
    /// The client.
    pub client: End,
    /// The frontend.
    pub frontend: End,
    /// The backend.
    pub backend: End,
    /// Reserved, zero.
    pub reserved: u32,
    /// The services; none: any.
    pub services: [ServiceId; MAX_SERVICES],
}

const _: () = assert!(size_of::<Watch>() == 168);

impl Watch {
    /// Nobody watches; of everything, whole, if somebody did.
    pub const NONE: Self = Self {
        until: 0,
        reasons: u64::MAX,
        unsampled: 0,
        sample: 1,
        snap: MAX_SNAP,
        phases: Phase::Before.bit() | Phase::After.bit() | Phase::Only.bit(),
        protocol: 0,
        client: End::ANY,
        frontend: End::ANY,
        backend: End::ANY,
        reserved: 0,
        services: [0; MAX_SERVICES],
    };

    /// Whether packets with this Reason are wanted.
    #[inline(always)]
    #[must_use]
    pub const fn wants(&self, reason: u32) -> bool {
        has(self.reasons, reason)
    }

    /// Whether events of the moment are wanted.
    #[inline(always)]
    #[must_use]
    pub const fn wants_phase(&self, phase: Phase) -> bool {
        self.phases & phase.bit() != 0
    }

    /// Whether the packet that is described is between those that are wanted.
    #[inline(always)]
    #[must_use]
    pub fn matches(&self, event: &Event) -> bool {
        self.matches_protocol(event.claimed().map(Tuple::protocol))
            && self.client.matches(event.client())
            && self.frontend.matches(event.frontend())
            && self.backend.matches(event.backend())
            && self.matches_service(event.service)
    }

    #[inline(always)]
    const fn matches_protocol(&self, protocol: Option<Protocol>) -> bool {
        self.protocol == 0
            || match protocol {
                Some(protocol) => protocol.number() as u32 == self.protocol,
                None => false,
            }
    }

    #[inline(always)]
    fn matches_service(&self, service: ServiceId) -> bool {
        if self.services[0] == 0 {
            return true;
        }
        for wanted in &self.services {
            // Volatile, or the compiler would compare them all and join the answers, and the verifier
            // walk every combination of those.
            // SAFETY: a reference.
            let wanted = unsafe { core::ptr::from_ref(wanted).read_volatile() };
            if wanted == service {
                return service != 0;
            }
        }
        false
    }

    /// Whether a packet that matches is told: one in so many of those that are sampled. `seen`
    /// counts them.
    #[inline(always)]
    #[must_use]
    pub const fn takes(&self, reason: u32, seen: &mut u32) -> bool {
        if self.sample <= 1 || has(self.unsampled, reason) {
            return true;
        }
        *seen = seen.wrapping_add(1);
        if *seen < self.sample {
            return false;
        }
        *seen = 0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Reason;
    use crate::event::bit;

    #[test]
    fn one_in_so_many_is_told_and_all_that_matter() {
        let watch = Watch { sample: 3, unsampled: bit(Reason::NoBackend), ..Watch::NONE };
        let mut seen = 0;
        let taken = (0..9).filter(|_| watch.takes(Reason::RemoteReply as u32, &mut seen)).count();
        assert_eq!(taken, 3);
        let taken = (0..9).filter(|_| watch.takes(Reason::NoBackend as u32, &mut seen)).count();
        assert_eq!(taken, 9);
    }

    #[test]
    fn an_end_matches_by_what_it_names() {
        let address = Address::from_v4([192, 0, 2, 1]);
        let end = Some((address, Port::new(80)));
        for (wanted, port, matches) in [
            (Address::UNSPECIFIED, 0, true),
            (address, 0, true),
            (address, 80, true),
            (Address::UNSPECIFIED, 80, true),
            (address, 81, false),
            (Address::from_v4([192, 0, 2, 2]), 80, false),
        ] {
            let wanted = End { address: wanted, port: Port::new(port), reserved: 0 };
            assert_eq!(wanted.matches(end), matches, "{wanted:?}");
            assert_eq!(wanted.matches(None), wanted == End::ANY, "{wanted:?}");
        }
    }
}
