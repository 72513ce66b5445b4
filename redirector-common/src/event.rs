//! Events: what the data path tells whoever [watches](crate::watch).

use crate::packet::{Environment, Hook, Outcome, Packet};
use crate::{Address, Direction, FrontendKey, Port, Reason, ServiceId, Tuple, Verdict, words};

/// Bytes of a packet that an event has room for.
pub const MAX_SNAP: u32 = 9216;

/// Bytes of the `EVENTS` ring buffer.
pub const RING_BYTES: u32 = 1 << 21;

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

    /// The phase's bit in [`Watch::phases`](crate::Watch::phases).
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

/// Whether the Reason with the number is among them.
#[inline(always)]
pub(crate) const fn has(bits: u64, reason: u32) -> bool {
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
    /// Of nothing yet.
    pub const EMPTY: Self = Self {
        time: 0,
        claimed: Packet::EMPTY.tuple,
        translated: Packet::EMPTY.tuple,
        cpu: 0,
        number: 0,
        ifindex: 0,
        out_ifindex: 0,
        reason: 0,
        service: 0,
        len: 0,
        captured: 0,
        hook: 0,
        phase: 0,
        flags: 0,
        reserved: [0; 5],
    };

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
