//! Events: what the data path tells whoever watches, and who watches what.
//!
//! Somebody watches while [`Watch::until`] lies ahead, and has to say so again before it is over:
//! a watcher that was killed costs nothing any more when its time is up.

use crate::packet::{Environment, Hook, Outcome, Packet};
use crate::{
    Address, Direction, FrontendKey, Port, Protocol, Reason, ServiceId, Tuple, Verdict, words,
};

/// Bytes of a packet that an event has room for.
pub const MAX_SNAP: u32 = 9216;

/// Bytes of the `EVENTS` ring buffer.
pub const RING_BYTES: u32 = 1 << 21;

/// Services that a watcher can ask for at once.
pub const MAX_SERVICES: usize = 16;

/// Which of a packet's moments an event is about.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// As it came; another event tells how it left.
    Before = 0,
    /// As it leaves, translated or turned into an error.
    After = 1,
    /// It is not changed: the only event.
    Only = 2,
}

impl Phase {
    /// From the number that stands in an event; an unknown one reads as `Only`.
    #[inline(always)]
    #[must_use]
    pub const fn from_number(number: u8) -> Self {
        match number {
            0 => Self::Before,
            1 => Self::After,
            _ => Self::Only,
        }
    }

    /// The phase's bit in [`Watch::phases`].
    #[inline(always)]
    #[must_use]
    pub const fn bit(self) -> u32 {
        1 << self as u32
    }
}

/// The bit of a Reason, in words that hold one for each.
#[inline(always)]
#[must_use]
pub const fn bit(reason: Reason) -> u64 {
    1 << reason as u32
}

const fn bits(reasons: &[Reason]) -> u64 {
    let (mut bits, mut at) = (0, 0);
    while at < reasons.len() {
        bits |= bit(reasons[at]);
        at += 1;
    }
    bits
}

/// Reasons of packets whose headers were not all found, or are not looked at.
const WITHOUT_TUPLE: u64 = bits(&[
    Reason::NotIp,
    Reason::NotTcpUdp,
    Reason::Malformed,
    Reason::Fragment,
    Reason::FragmentWithoutFirst,
    Reason::ExtensionHeaders,
    Reason::Icmp,
    Reason::IpInIp,
]);

/// Reasons of packets that no flow has anything to do with.
const WITHOUT_FLOW: u64 = bits(&[Reason::SteeredNew, Reason::SteeredEstablished]);

/// Reasons of packets of which an [`Outcome`] says where they go.
const TRANSLATED: u64 = {
    let (mut bits, mut at) = (bit(Reason::SteeredNew), 0);
    while at < Reason::ALL.len() {
        let reason = Reason::ALL[at];
        let goes_on = matches!(reason.verdict(), Verdict::Deliver | Verdict::Forward);
        if goes_on && !matches!(reason, Reason::SteeredEstablished) {
            bits |= bit(reason);
        }
        at += 1;
    }
    bits
};

/// Reasons of packets that are sent out of another interface than they came by.
const FORWARDED: u64 = {
    let (mut bits, mut at) = (0, 0);
    while at < Reason::ALL.len() {
        if matches!(Reason::ALL[at].verdict(), Verdict::Forward) {
            bits |= bit(Reason::ALL[at]);
        }
        at += 1;
    }
    bits
};

#[inline(always)]
const fn has(bits: u64, reason: u32) -> bool {
    bits >> (reason & 63) & 1 != 0
}

/// Begins every record of the `EVENTS` ring buffer; as many bytes of the packet follow as
/// [`Self::captured`] says, from its Ethernet header on.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// When, `CLOCK_MONOTONIC` nanoseconds.
    pub time: u64,
    /// The packet's tuple as it came. Of a later fragment or an ICMP error, that of its flow.
    pub claimed: Tuple,
    /// The tuple that it leaves with, where [`Self::translated`] says that there is one. Of a
    /// packet that another node gets as it came, the tuple that has the backend.
    pub translated: Tuple,
    /// The CPU that handled it.
    pub cpu: u32,
    /// Number of the packet among those that the CPU has told of.
    pub number: u32,
    /// The interface whose hook it is.
    pub ifindex: u32,
    /// The interface that it leaves by, where it is sent out of one; else 0.
    pub out_ifindex: u32,
    /// Number of its Reason.
    pub reason: u32,
    /// The service; 0: of none, or of one that is not known.
    pub service: ServiceId,
    /// Bytes of the frame at this moment.
    pub len: u32,
    /// Bytes of it that follow.
    pub captured: u32,
    hook: u8,
    phase: u8,
    flags: u8,
    /// Reserved, zero.
    pub reserved: [u8; 5],
}

const _: () = assert!(size_of::<Event>() == 128);

impl Event {
    const TUPLE: u8 = 1;
    const TRANSLATED: u8 = 2;
    const REPLY: u8 = 4;
    const FLOW: u8 = 8;

    /// Notes what is to be told of a packet, but for its bytes and when.
    #[inline(always)]
    pub fn describe<E: Environment>(
        &mut self,
        environment: &E,
        packet: &Packet,
        outcome: &Outcome,
        reason: u32,
        hook: Hook,
    ) {
        self.reason = reason;
        self.service = 0;
        self.out_ifindex = 0;
        self.hook = hook as u8;
        self.flags = 0;
        self.reserved = [0; 5];
        if has(WITHOUT_TUPLE, reason) {
            return;
        }
        let tuple = &packet.tuple;
        let mut flags = Self::TUPLE;
        words::copy(tuple, &mut self.claimed);
        let flow = if has(WITHOUT_FLOW, reason) { None } else { environment.flow(tuple) };
        if let Some(flow) = flow {
            flags |= Self::FLOW | Self::TRANSLATED;
            if flow.is_reply() {
                flags |= Self::REPLY;
            }
            words::copy(flow.translated(), &mut self.translated);
            self.service = flow.service();
        } else {
            if has(TRANSLATED, reason) {
                flags |= Self::TRANSLATED;
                words::copy(&outcome.translated, &mut self.translated);
            }
            let key = FrontendKey::new(tuple.destination, tuple.destination_port, tuple.protocol());
            if let Some(frontend) = environment.frontend(&key) {
                self.service = frontend.service;
            }
        }
        if has(FORWARDED, reason) && !matches!(hook, Hook::Egress) {
            self.out_ifindex = outcome.next_hop.ifindex;
        }
        self.flags = flags;
    }

    /// Notes the moment.
    #[inline(always)]
    pub const fn set_phase(&mut self, phase: Phase) {
        self.phase = phase as u8;
    }

    /// The moment.
    #[must_use]
    pub const fn phase(&self) -> Phase {
        Phase::from_number(self.phase)
    }

    /// The program's hook.
    #[must_use]
    pub const fn hook(&self) -> Hook {
        match self.hook {
            0 => Hook::Xdp,
            1 => Hook::Ingress,
            _ => Hook::Egress,
        }
    }

    /// Its Reason; `None` where the programs are of a version that knows more of them.
    #[must_use]
    pub fn reason(&self) -> Option<Reason> {
        Reason::ALL.iter().copied().find(|reason| *reason as u32 == self.reason)
    }

    /// The tuple as it came, where the packet has one.
    #[inline(always)]
    #[must_use]
    pub const fn claimed(&self) -> Option<&Tuple> {
        if self.flags & Self::TUPLE != 0 { Some(&self.claimed) } else { None }
    }

    /// What it is translated to, or would be, where that is known.
    #[inline(always)]
    #[must_use]
    pub const fn translated(&self) -> Option<&Tuple> {
        if self.flags & Self::TRANSLATED != 0 { Some(&self.translated) } else { None }
    }

    /// Whether the packet is of a flow, and in which direction.
    #[must_use]
    pub const fn direction(&self) -> Option<Direction> {
        if self.flags & Self::FLOW == 0 {
            None
        } else if self.is_reply() {
            Some(Direction::Reply)
        } else {
            Some(Direction::Forward)
        }
    }

    #[inline(always)]
    const fn is_reply(&self) -> bool {
        self.flags & Self::REPLY != 0
    }

    /// The client.
    #[inline(always)]
    #[must_use]
    pub const fn client(&self) -> Option<(Address, Port)> {
        if self.is_reply() { destination(self.translated()) } else { source(self.claimed()) }
    }

    /// The frontend, or what was asked for in place of one.
    #[inline(always)]
    #[must_use]
    pub const fn frontend(&self) -> Option<(Address, Port)> {
        if self.is_reply() { source(self.translated()) } else { destination(self.claimed()) }
    }

    /// The backend.
    #[inline(always)]
    #[must_use]
    pub const fn backend(&self) -> Option<(Address, Port)> {
        if self.is_reply() { source(self.claimed()) } else { destination(self.translated()) }
    }
}

#[inline(always)]
const fn source(tuple: Option<&Tuple>) -> Option<(Address, Port)> {
    match tuple {
        Some(tuple) => Some((tuple.source, tuple.source_port)),
        None => None,
    }
}

#[inline(always)]
const fn destination(tuple: Option<&Tuple>) -> Option<(Address, Port)> {
    match tuple {
        Some(tuple) => Some((tuple.destination, tuple.destination_port)),
        None => None,
    }
}

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
    /// [`bit`]s of the Reasons that are wanted.
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
