//! Flows: one client 5-tuple including the frontend it used, and its translation.
//!
//! A flow has two halves in the `FLOWS` map. Each half is keyed by the tuple of the packets that
//! it matches and holds the tuple that they leave with:
//!
//! ```text
//! forward   key   client → frontend          packets leave as   translated source → backend
//! reply     key   backend → translated source  packets leave as   frontend → client
//! ```
//!
//! So the reply's key is the forward translation reversed, and the forward key the reply's
//! translation reversed: either half finds the other.

use crate::packet::NextHop;
use crate::{BackendId, Protocol, ServiceId, Tuple};

/// Which half of a flow an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Client to backend.
    Forward,
    /// Backend to client.
    Reply,
}

/// How packets of a flow get to a backend elsewhere.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Translated; answers come back this way.
    Translate,
    /// As they are, to the Ethernet address of a node on this segment, which answers by itself.
    Layer2,
    /// In a packet of this host's own to the backend, whose node answers by itself.
    Tunnel,
}

impl Manner {
    /// Whether another node gets the packets as they came, and answers the client itself.
    #[inline(always)]
    #[must_use]
    pub const fn hands_over(self) -> bool {
        !matches!(self, Self::Translate)
    }
}

/// Where a flow stands. Timeouts are those of the kernel's connection tracking as kube-proxy sets
/// it up, so that nothing lives shorter here than it does there.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FlowState {
    /// TCP: the client's SYN was seen.
    SynSent = 0,
    /// TCP: the backend answered SYN+ACK.
    SynReceived = 1,
    /// TCP: the handshake is complete.
    Established = 2,
    /// TCP: one side has sent FIN.
    HalfClosed = 3,
    /// TCP: both sides have sent FIN.
    TimeWait = 4,
    /// TCP: a RST was seen. Whether its receiver took it for one nobody here can tell.
    Closed = 5,
    /// UDP: no answer yet.
    Unreplied = 6,
    /// UDP: the backend has answered.
    Replied = 7,
}

impl FlowState {
    /// Every state, in the order of their numbers.
    pub const ALL: [Self; 8] = [
        Self::SynSent,
        Self::SynReceived,
        Self::Established,
        Self::HalfClosed,
        Self::TimeWait,
        Self::Closed,
        Self::Unreplied,
        Self::Replied,
    ];

    /// From the number that stands in a map; an unknown one reads as `Closed`.
    #[inline(always)]
    #[must_use]
    pub const fn from_number(number: u8) -> Self {
        match number {
            0 => Self::SynSent,
            1 => Self::SynReceived,
            2 => Self::Established,
            3 => Self::HalfClosed,
            4 => Self::TimeWait,
            6 => Self::Unreplied,
            7 => Self::Replied,
            _ => Self::Closed,
        }
    }

    /// Idle time after which the flow is over, in seconds (`nf_conntrack_tcp_timeout_*`,
    /// `nf_conntrack_udp_timeout*`). Of a half-closed one kube-proxy's: a server may take its time
    /// to answer a client that has said all it had to say. Of a closed one no less than of one that
    /// waits: a RST with a wrong number closes nothing, and both ends may go on.
    #[inline(always)]
    #[must_use]
    pub const fn timeout_seconds(self) -> u32 {
        match self {
            Self::SynSent | Self::TimeWait | Self::Closed | Self::Replied => 120,
            Self::SynReceived => 60,
            Self::Established => 432_000,
            Self::HalfClosed => 3600,
            Self::Unreplied => 30,
        }
    }

    /// Whether the backend has yet to answer, or the client to confirm: a flow that anyone can
    /// open in another's name.
    #[inline(always)]
    #[must_use]
    pub const fn is_half_open(self) -> bool {
        matches!(self, Self::SynSent | Self::SynReceived | Self::Unreplied)
    }

    /// Whether nothing more is to be expected but what is late.
    #[inline(always)]
    #[must_use]
    pub const fn is_finished(self) -> bool {
        matches!(self, Self::TimeWait | Self::Closed)
    }

    /// The word that `flow list` prints.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SynSent => "syn-sent",
            Self::SynReceived => "syn-received",
            Self::Established => "established",
            Self::HalfClosed => "half-closed",
            Self::TimeWait => "time-wait",
            Self::Closed => "closed",
            Self::Unreplied => "unreplied",
            Self::Replied => "replied",
        }
    }
}

/// Value of the `FLOWS` map: one half of a flow.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Packets leave with this tuple.
    pub translated: Tuple,
    /// The service, for showing.
    pub service: ServiceId,
    /// The backend, for showing and for removing flows of backends that went.
    pub backend: BackendId,
    /// When the flow began, `CLOCK_MONOTONIC` nanoseconds.
    pub created: u64,
    /// When this half last saw a packet, `CLOCK_MONOTONIC` nanoseconds.
    pub last_seen: u64,
    /// Packets that this half translated.
    pub packets: u64,
    /// Their IP bytes.
    pub bytes: u64,
    /// Where packets go, if they are forwarded; see [`Flow::is_routed`].
    pub next_hop: NextHop,
    /// Epoch of the flow when the way was looked up; 0: never.
    pub epoch: u32,
    /// When the way was looked up, in [`moment`]s.
    pub routed: u32,
    state: u8,
    flags: u8,
    /// Reserved, zero.
    pub reserved: [u8; 2],
}

const _: () = assert!(size_of::<Flow>() == 112);

/// A coarse clock that fits into a word: about seconds.
#[inline(always)]
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "only differences count")]
pub const fn moment(now: u64) -> u32 {
    (now >> 30) as u32
}

impl Flow {
    const REPLY: u8 = 1;
    const DELIVER: u8 = 2;
    const FIN: u8 = 4;
    const LAYER2: u8 = 8;
    const TUNNEL: u8 = 16;
    const CLAMP: u8 = 32;
    const ALIVE: u8 = 64;

    /// A new half that has seen no packet.
    #[inline(always)]
    #[must_use]
    pub const fn new(
        direction: Direction,
        translated: Tuple,
        service: ServiceId,
        backend: BackendId,
        local: bool,
        now: u64,
    ) -> Self {
        let mut flow = Self {
            translated,
            service: 0,
            backend: 0,
            created: 0,
            last_seen: 0,
            packets: 0,
            bytes: 0,
            next_hop: NextHop::NONE,
            epoch: 0,
            routed: 0,
            state: 0,
            flags: 0,
            reserved: [0; 2],
        };
        flow.start(direction, service, backend, local, now);
        flow
    }

    /// Makes this a half that has seen no packet, in place; `translated` is set already.
    #[inline(always)]
    pub const fn start(
        &mut self,
        direction: Direction,
        service: ServiceId,
        backend: BackendId,
        local: bool,
        now: u64,
    ) {
        let state = match self.translated.protocol() {
            Protocol::Tcp => FlowState::SynSent,
            Protocol::Udp => FlowState::Unreplied,
        };
        let mut flags = 0;
        if matches!(direction, Direction::Reply) {
            flags |= Self::REPLY;
        }
        if local {
            flags |= Self::DELIVER;
        }
        self.service = service;
        self.backend = backend;
        self.created = now;
        self.last_seen = now;
        self.packets = 0;
        self.bytes = 0;
        // Void with this, whatever the rest holds.
        self.epoch = 0;
        self.state = state as u8;
        self.flags = flags;
        self.reserved = [0; 2];
    }

    /// When the flow began, short: tells it from others that have had the same key.
    #[inline(always)]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "compared for equality only")]
    pub const fn born(&self) -> u32 {
        (self.created >> 20) as u32
    }

    /// Which half this is.
    #[inline(always)]
    #[must_use]
    pub const fn direction(&self) -> Direction {
        if self.flags & Self::REPLY != 0 { Direction::Reply } else { Direction::Forward }
    }

    /// Whether the backend is in this host's own stack.
    #[inline(always)]
    #[must_use]
    pub const fn is_local(&self) -> bool {
        self.flags & Self::DELIVER != 0
    }

    /// How its packets get to a backend elsewhere.
    #[inline(always)]
    #[must_use]
    pub const fn manner(&self) -> Manner {
        if self.flags & Self::TUNNEL != 0 {
            Manner::Tunnel
        } else if self.flags & Self::LAYER2 != 0 {
            Manner::Layer2
        } else {
            Manner::Translate
        }
    }

    /// Sets how its packets get to a backend elsewhere.
    #[inline(always)]
    pub const fn set_manner(&mut self, manner: Manner) {
        let bit = match manner {
            Manner::Translate => 0,
            Manner::Layer2 => Self::LAYER2,
            Manner::Tunnel => Self::TUNNEL,
        };
        self.flags = self.flags & !(Self::LAYER2 | Self::TUNNEL) | bit;
    }

    /// Whether the client is to be told of segments that fit into a tunnel: its packets come by one.
    #[inline(always)]
    #[must_use]
    pub const fn clamps_mss(&self) -> bool {
        self.flags & Self::CLAMP != 0
    }

    /// Has the client told of segments that fit into a tunnel.
    #[inline(always)]
    pub const fn set_clamps_mss(&mut self) {
        self.flags |= Self::CLAMP;
    }

    /// Whether the sender of this half's packets has sent FIN.
    #[inline(always)]
    #[must_use]
    pub const fn fin_seen(&self) -> bool {
        self.flags & Self::FIN != 0
    }

    /// Notes that the sender of this half's packets has sent FIN.
    #[inline(always)]
    pub const fn set_fin_seen(&mut self) {
        self.flags |= Self::FIN;
    }

    /// Whether the sender of this half's packets has gone on after a RST.
    #[inline(always)]
    #[must_use]
    pub const fn is_alive(&self) -> bool {
        self.flags & Self::ALIVE != 0
    }

    /// Notes that the sender of this half's packets has gone on after a RST.
    #[inline(always)]
    pub const fn set_alive(&mut self) {
        self.flags |= Self::ALIVE;
    }

    /// Forgets whether there was anything after a RST.
    #[inline(always)]
    pub const fn forget_alive(&mut self) {
        self.flags &= !Self::ALIVE;
    }

    /// Forgets a FIN: of an earlier connection with the same ports.
    #[inline(always)]
    pub const fn forget_fin(&mut self) {
        self.flags &= !Self::FIN;
    }

    /// Where the flow stands.
    #[inline(always)]
    #[must_use]
    pub const fn state(&self) -> FlowState {
        FlowState::from_number(self.state)
    }

    /// Moves the flow to `state`.
    #[inline(always)]
    pub const fn set_state(&mut self, state: FlowState) {
        self.state = state as u8;
    }

    /// Whether the next hop still holds: nothing has changed since it was looked up, and it was
    /// looked up not long ago, in case nobody is there to tell of changes.
    #[inline(always)]
    #[must_use]
    pub const fn is_routed(&self, epoch: u32, now: u64) -> bool {
        self.epoch == epoch && moment(now).wrapping_sub(self.routed) <= 1
    }

    /// Whether nothing but the passing of time will change the flow's state: packets need not be
    /// looked at for it.
    #[inline(always)]
    #[must_use]
    pub const fn is_settled(&self) -> bool {
        matches!(self.state(), FlowState::Established | FlowState::Replied)
    }

    /// Whether this half, alone, has been idle for longer than its state allows.
    /// `now` is `CLOCK_MONOTONIC` nanoseconds.
    #[inline(always)]
    #[must_use]
    pub const fn is_expired(&self, now: u64) -> bool {
        let timeout = self.state().timeout_seconds() as u64 * 1_000_000_000;
        now.saturating_sub(self.last_seen) > timeout
    }
}
