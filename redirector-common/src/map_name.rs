//! Names of the maps. At most fifteen characters: the kernel cuts the rest.

macro_rules! maps {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal, $layout:literal;)+) => {
        /// A map, with its name in the object file and the version of its layout.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum MapName {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl MapName {
            /// Every map, in the order in which people are shown them.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The name in the object file, in `map list` and in metrics.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }

            /// Version of the layout of keys and values. It stands in the name of the pin, so
            /// that an agent never opens a map whose entries it would misread.
            #[must_use]
            pub const fn layout(self) -> u32 {
                match self { $(Self::$variant => $layout),+ }
            }

            /// What the map is for.
            #[must_use]
            pub const fn description(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+)),+ }
            }
        }

        $(const _: () = assert!($name.len() <= 15);)+
    };
}

maps! {
    /// Which ports of each protocol concern us; the cheap filter in front of every look-up.
    Ports = "PORTS", 1;
    /// Frontend to service.
    Frontends = "FRONTENDS", 2;
    /// Service to Maglev table and policy.
    Services = "SERVICES", 3;
    /// Maglev tables: hash to backend.
    Maglev = "MAGLEV", 1;
    /// Backends.
    Backends = "BACKENDS", 1;
    /// Both halves of every flow.
    Flows = "FLOWS", 2;
    /// Which flow was opened when, for making room.
    FlowRing = "FLOW_RING", 1;
    /// What packets of established flows need, for each CPU.
    FlowCache = "FLOW_CACHE", 3;
    /// Raised when what the flow cache repeats has changed.
    Epochs = "EPOCHS", 1;
    /// Interfaces by index: addresses to translate to, counter slots.
    Interfaces = "INTERFACES", 1;
    /// Further addresses of interfaces that sources may be translated to.
    SnatAddresses = "SNAT_ADDRESSES", 1;
    /// Settings of the node.
    Node = "NODE", 4;
    /// Packets and bytes by interface and Reason.
    Counters = "COUNTERS", 1;
    /// Backends of each service with weight and state, for showing.
    Slots = "SLOTS", 1;
    /// Names and policies of services, for showing.
    ServiceInfo = "SERVICE_INFO", 1;
    /// What the agent last said of itself.
    Status = "STATUS", 1;
    /// Kernel settings as they were before the agent changed them.
    Sysctls = "SYSCTLS", 1;
    /// Prefixes that clients of a service may come from, where it limits them.
    SourceRanges = "SOURCE_RANGES", 1;
    /// Clients of services with session affinity, and the backend that each stays with.
    Affinity = "AFFINITY", 1;
    /// Backends that clients of services with session affinity may stay with.
    Takers = "TAKERS", 1;
    /// Addresses that are frontends' and not this host's: what is sent to other ports of them goes
    /// nowhere.
    Vips = "VIPS", 1;
    /// Addresses of the other nodes, and whether they take flows: what they hand over is taken.
    Peers = "PEERS", 1;
    /// Ports of the first fragments of packets, for the fragments after them.
    Fragments = "FRAGMENTS", 1;
    /// What programs on this machine asked for, by socket and the backend that they got instead.
    Sockets = "SOCKETS", 1;
    /// Connections that were handed to listening sockets, by service and frontend.
    Steered = "STEERED", 1;
    /// What somebody who watches wants to be told, and until when.
    Watch = "WATCH", 1;
    /// Events on their way to whoever watches.
    Events = "EVENTS", 1;
    /// Events for which there was no room.
    EventsLost = "EVENTS_LOST", 1;
}
