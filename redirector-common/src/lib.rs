//! The contract between redirector's kernel side and user space.
//!
//! * the types that stand in BPF maps, each with one layout for both sides;
//! * [`packet`]: the pure packet code. The kernel programs, `redirector explain` and the host tests
//!   all run these same functions.
//!
//! Nothing here allocates, performs I/O or knows a clock.
#![no_std]

#[cfg(any(feature = "user", test))]
extern crate std;

pub mod address;
pub mod affinity;
pub mod backend;
pub mod cache;
pub mod event;
pub mod flow;
pub mod fragment;
pub mod frontend;
pub mod map_name;
pub mod node;
pub mod packet;
pub mod peer;
pub mod reason;
pub mod ring;
pub mod service;
pub mod socket;
pub mod source;
pub mod tuple;
pub mod watch;
pub mod words;

pub use address::{Address, Family, Port, Protocol};
pub use affinity::{Affinity, AffinityKey, Taker, TakerKey};
pub use backend::{Backend, BackendId};
pub use cache::{CacheSet, CachedFlow};
pub use event::Event;
pub use flow::{Direction, Flow, FlowState, Manner};
pub use fragment::{FirstFragment, FragmentKey};
pub use frontend::{Frontend, FrontendKey, SteeredKey};
pub use node::{Interface, NodeConfig, PortFlags, SnatAddressKey};
pub use peer::Peer;
pub use reason::{Reason, Verdict};
pub use ring::RingSlot;
pub use service::{Origin, Service, ServiceId, ServiceInfo, SlotKey, SlotValue};
pub use socket::{Endpoint, SocketKey};
pub use source::{SourceBits, SourceRange};
pub use tuple::Tuple;
pub use watch::Watch;

/// Marks types for aya's map accessors, in user space only.
#[cfg(feature = "user")]
macro_rules! pod {
    ($($ty:ty),+ $(,)?) => {
        // SAFETY: each type is `repr(C)`, `Copy`, without padding (asserted next to its
        // definition) and valid for every bit pattern.
        $(unsafe impl aya::Pod for $ty {})+
    };
}

#[cfg(feature = "user")]
pod!(
    Address,
    Affinity,
    AffinityKey,
    Port,
    Tuple,
    Flow,
    CachedFlow,
    CacheSet,
    FragmentKey,
    FirstFragment,
    FrontendKey,
    Frontend,
    Backend,
    Service,
    ServiceInfo,
    SlotKey,
    SlotValue,
    SnatAddressKey,
    SourceBits,
    SourceRange,
    Taker,
    TakerKey,
    Peer,
    Endpoint,
    Event,
    Watch,
    RingSlot,
    SocketKey,
    SteeredKey,
    Interface,
    NodeConfig,
    node::PortBlock,
    node::Counter,
    node::CounterBlock,
    node::Text,
    node::SysctlKey,
    node::SysctlValue,
    service::MaglevLine,
);
