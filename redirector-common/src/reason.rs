//! Why a packet got its verdict.

/// What becomes of a packet. Made by [`packet::decide`](crate::packet) alone and consumed by the
/// programs' entry points alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verdict {
    /// To the kernel, unchanged.
    Pass,
    /// Gone.
    Drop,
    /// Translated, into this host's own stack.
    Deliver,
    /// Translated, out of an interface.
    Forward,
}

impl Verdict {
    /// The word in metrics and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Drop => "drop",
            Self::Deliver => "deliver",
            Self::Forward => "forward",
        }
    }
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $number:literal, $verdict:ident, $name:literal;)+) => {
        /// Why a packet got its verdict: the index of its counter, the label of its metric, the
        /// word that the CLI prints. Each Reason has exactly one verdict. Numbers are part of
        /// the pinned maps' layout: new ones are appended.
        ///
        /// A whole word: the compiler lays `Result<Packet, Reason>` over itself, and would access
        /// the program's stack misaligned, which the verifier refuses, if they were of bytes.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[must_use]
        pub enum Reason {
            $($(#[doc = $doc])+ $variant = $number,)+
        }

        impl From<Reason> for u32 {
            #[inline(always)]
            fn from(reason: Reason) -> Self {
                reason as Self
            }
        }

        impl Reason {
            /// Every Reason, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The verdict that goes with the Reason.
            #[inline(always)]
            #[must_use]
            pub const fn verdict(self) -> Verdict {
                match self { $(Self::$variant => Verdict::$verdict),+ }
            }

            /// The word in counters, metrics and events.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }

            /// One sentence for people.
            #[must_use]
            pub const fn description(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+)),+ }
            }
        }
    };
}

reasons! {
    /// Not IPv4 or IPv6: ARP and all else.
    NotIp = 0, Pass, "not-ip";
    /// IP, but neither TCP, UDP nor ICMP.
    NotTcpUdp = 1, Pass, "not-tcp-udp";
    /// No frontend and no translation uses this port.
    NotOurs = 2, Pass, "not-ours";
    /// Truncated, or a header contradicts itself: left to the kernel.
    Malformed = 3, Pass, "malformed";
    /// A later fragment of something other than TCP or UDP.
    Fragment = 4, Pass, "fragment";
    /// IPv6 with more extension headers than are walked, or with a routing header in use.
    ExtensionHeaders = 5, Pass, "extension-headers";
    /// TCP to a frontend, not a SYN, and no flow: began before redirector did, or is over.
    NoFlow = 6, Pass, "no-flow";
    /// To a port of the translation block, but no flow uses it.
    NoReplyFlow = 7, Pass, "no-reply-flow";
    /// New flow to a program in this host's own stack.
    LocalNew = 8, Deliver, "local-new";
    /// Established flow to a program in this host's own stack.
    LocalEstablished = 9, Deliver, "local-established";
    /// Reply of a program in this host's own stack.
    LocalReply = 10, Forward, "local-reply";
    /// New flow to a backend elsewhere.
    RemoteNew = 11, Forward, "remote-new";
    /// Established flow to a backend elsewhere.
    RemoteEstablished = 12, Forward, "remote-established";
    /// Reply of a backend elsewhere.
    RemoteReply = 13, Forward, "remote-reply";
    /// The service has no backend: answered with "port unreachable".
    NoBackend = 14, Drop, "no-backend";
    /// The service has backends, but none that its traffic policy allows here: dropped silently.
    NoLocalBackend = 15, Drop, "no-local-backend";
    /// Every port of the translation block is in use towards this backend.
    SnatExhausted = 16, Drop, "snat-exhausted";
    /// The flow table is full.
    FlowTableFull = 17, Drop, "flow-table-full";
    /// The routing table has no way to the destination.
    NoRoute = 18, Drop, "no-route";
    /// No address on the outgoing interface to translate the source to.
    NoSourceAddress = 19, Drop, "no-source-address";
    /// The TTL or hop limit ran out: answered with "time exceeded".
    TtlExceeded = 20, Drop, "ttl-exceeded";
    /// Larger than the way to the destination: answered with "fragmentation needed" or
    /// "packet too big".
    TooBig = 21, Drop, "too-big";
    /// A later fragment of ours that can't go on: its TTL ran out, or it is larger than the way.
    FragmentNotForwarded = 22, Drop, "fragment-not-forwarded";
    /// The maps contradict each other: a table names a backend that is not there.
    Inconsistent = 23, Drop, "inconsistent";
    /// The packet could not be written to, or the kernel refused to send it.
    RewriteFailed = 24, Drop, "rewrite-failed";
    /// New flow of a client outside of the service's source ranges.
    SourceDenied = 25, Drop, "source-denied";
    /// New connection handed to the listening socket of a program in this host's own stack.
    SteeredNew = 26, Deliver, "steered-new";
    /// To a frontend, for a connection that a program in this host's own stack has there.
    SteeredEstablished = 27, Deliver, "steered-established";
    /// To a frontend or the translation block, without a flow, while a table is made larger: for a
    /// moment flows may not be found and none is opened, and packets are sent again.
    TableMoves = 28, Drop, "table-moves";
    /// A later fragment whose first was not seen, or is not ours: left to the kernel.
    FragmentWithoutFirst = 30, Pass, "fragment-without-first";
    /// An ICMP error about a packet of ours, to the client or to a backend elsewhere.
    ErrorForwarded = 31, Forward, "icmp-error-forwarded";
    /// An ICMP error about a reply of a program in this host's own stack, to that program.
    ErrorDelivered = 32, Deliver, "icmp-error-delivered";
    /// An ICMP error of this host's own stack about a packet of ours, to the client.
    ErrorReply = 33, Forward, "icmp-error-reply";
    /// An ICMP error about a packet of ours that can't go on: its TTL ran out, or it is too large.
    ErrorNotForwarded = 34, Drop, "icmp-error-not-forwarded";
    /// ICMP that is about none of our flows.
    Icmp = 35, Pass, "icmp";
    /// More errors would have had to be sent than the node sends at a time: dropped silently.
    ErrorLimited = 36, Drop, "error-limited";
    /// To a port that no service defines, of an address that only frontends have.
    UndefinedPort = 37, Drop, "undefined-port";
    /// A flow that was not established in time, removed because as many newer ones wait: the budget
    /// of half-open flows is used up. Counted once for each flow, without bytes.
    HalfOpenDropped = 38, Drop, "half-open-dropped";
    /// A flow that was over, or finished where the flow table was full, removed to make room for a
    /// new one before the agent collected it. Counted once for each flow, without bytes.
    FlowReclaimed = 39, Drop, "flow-reclaimed";
    /// New flow to a backend on another node, which gets it as it came and answers by itself.
    DsrNew = 44, Forward, "dsr-new";
    /// Established flow to a backend on another node, which answers by itself.
    DsrEstablished = 45, Forward, "dsr-established";
    /// Handed over by another node in a packet of its own, but it opens nothing and no flow has it.
    TunnelNoFlow = 46, Drop, "tunnel-no-flow";
    /// Handed over by another node in a packet of its own, but no backend is here.
    TunnelNoBackend = 47, Drop, "tunnel-no-backend";
    /// A packet in a packet, of nobody who hands over what is ours.
    IpInIp = 48, Pass, "ip-in-ip";
    /// A program on this machine connected or sent to a frontend; a program in this host's own
    /// stack answers. Counted once for each connection or unconnected datagram, without bytes.
    ClientLocal = 50, Deliver, "client-local";
    /// A program on this machine connected or sent to a frontend; a backend elsewhere answers.
    /// Counted once for each connection or unconnected datagram, without bytes.
    ClientRemote = 51, Forward, "client-remote";
    /// A program on this machine connected or sent to a frontend whose service has no backend:
    /// "connection refused".
    ClientRefused = 52, Drop, "client-refused";
}

/// Number of Reasons that the counters have room for; more than there are, so that new ones do
/// not change the maps' layout.
pub const REASON_CAPACITY: u32 = 64;

const _: () = {
    let mut at = 0;
    while at < Reason::ALL.len() {
        assert!((Reason::ALL[at] as u32) < REASON_CAPACITY);
        at += 1;
    }
};
