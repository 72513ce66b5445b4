//! The programs that ours are measured against.

use crate::harness::Hook;

macro_rules! floors {
    ($($variant:ident = $program:literal, $hook:ident, $kind:ident, $name:literal;)+) => {
        /// One of them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub(crate) enum Floor {
            $($variant,)+
        }

        impl Floor {
            /// From the one that does least.
            pub(crate) const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// Its name in the object file.
            pub(crate) const fn program(self) -> &'static str {
                match self { $(Self::$variant => $program,)+ }
            }

            /// Where it runs.
            pub(crate) const fn hook(self) -> Hook {
                match self { $(Self::$variant => Hook::$hook,)+ }
            }

            /// What it does to a packet.
            pub(crate) const fn kind(self) -> Kind {
                match self { $(Self::$variant => Kind::$kind,)+ }
            }

            /// What it is called in results.
            pub(crate) const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
        }
    };
}

/// What a floor does to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Passes it unchanged.
    Pass,
    /// Passes it with room for another header in front.
    Grow,
    /// Sends it back unchanged but for the hardware addresses.
    Back,
    /// Translates it, and swaps the hardware addresses.
    Translate,
    /// Sends it out of an interface.
    Redirect,
    /// Translates it and sends it out of an interface.
    Forward,
    /// The same with hardware addresses of its own.
    ForwardRouted,
}

floors! {
    Return = "f_return", Xdp, Pass, "return";
    Parse = "f_parse", Xdp, Pass, "parse";
    ParseTx = "f_parse_tx", Xdp, Back, "parse, TX";
    Array = "f_array", Xdp, Back, "parse, port array, TX";
    Hash = "f_hash", Xdp, Back, "parse, port hash, TX";
    LruHit = "f_lru_hit", Xdp, Back, "parse, LRU hit, TX";
    LruMiss = "f_lru_miss", Xdp, Back, "parse, LRU miss, TX";
    LruInsert = "f_lru_insert", Xdp, Back, "parse, LRU insert under eviction, TX";
    InsertLazy = "f_insert_lazy", Xdp, Back, "parse, insert of 40-byte key, TX";
    InsertReady = "f_insert_ready", Xdp, Back, "parse, the same preallocated, TX";
    Hash40 = "f_hash40", Xdp, Back, "parse, hash of 40-byte keys, TX";
    Cache = "f_cache", Xdp, Back, "parse, flow cache, TX";
    Clock = "f_clock", Xdp, Back, "parse, coarse clock, TX";
    Jiffies = "f_jiffies", Xdp, Back, "parse, jiffies, TX";
    Fib = "f_fib", Xdp, Back, "parse, fib_lookup, TX";
    Rewrite = "f_rewrite", Xdp, Translate, "parse, translate, TX";
    Grow = "f_grow", Xdp, Grow, "room for a header";
    Redirect = "f_redirect", Xdp, Redirect, "parse, redirect";
    RedirectMap = "f_redirect_map", Xdp, Redirect, "parse, redirect_map";
    PathMaps = "f_path_maps", Xdp, Forward, "whole path, ordinary maps";
    PathCache = "f_path_cache", Xdp, Forward, "whole path, flow cache";
    FlowHash = "f_flow_hash", Xdp, ForwardRouted, "candidate: hash with next hop, jiffies";
    FlowSets = "f_flow_sets", Xdp, ForwardRouted, "candidate: sets of four in an array";
    ReturnTc = "f_return_tc", Tc, Pass, "return, TC";
    ParseTc = "f_parse_tc", Tc, Pass, "parse, TC";
    SkcLookup = "f_skc_lookup", Tc, Pass, "parse, one bpf_skc_lookup_tcp, TC";
    SkcConnection = "f_skc_connection", Tc, Pass, "parse, bpf_skc_lookup_tcp of connection, TC";
}

impl Floor {
    /// Whether it handles IPv6, too.
    pub(crate) const fn takes_ipv6(self) -> bool {
        matches!(
            self,
            Self::Return
                | Self::Parse
                | Self::ParseTx
                | Self::Fib
                | Self::Grow
                | Self::ReturnTc
                | Self::ParseTc
                | Self::SkcConnection
        )
    }

    /// Whether it takes each flow once only, until `f_remove` has run.
    pub(crate) const fn inserts(self) -> bool {
        matches!(self, Self::InsertLazy | Self::InsertReady)
    }

    /// Whether something of ours is compared with it.
    pub(crate) const fn is_compared(self) -> bool {
        matches!(
            self,
            Self::Return
                | Self::Parse
                | Self::Grow
                | Self::LruInsert
                | Self::PathMaps
                | Self::PathCache
                | Self::ReturnTc
        )
    }

    /// Whether it counts packets.
    pub(crate) const fn counts(self) -> bool {
        matches!(self.kind(), Kind::Forward | Kind::ForwardRouted)
    }

    /// The largest part of packets that may find nothing where there should be something: tables
    /// of sets have flows for which there is no room.
    pub(crate) const fn tolerated_misses(self, flows: u32) -> f64 {
        if matches!(self, Self::Cache | Self::PathCache) && flows > 65536 {
            return 1.0;
        }
        if matches!(self, Self::Cache | Self::PathCache | Self::FlowSets) { 0.06 } else { 0.0 }
    }
}
