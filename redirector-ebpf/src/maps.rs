//! The maps. Sizes here are placeholders where the loader chooses them.

use core::arch::asm;

use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf};
use redirector_common::event::RING_BYTES;
use redirector_common::node::{
    CounterBlock, MAX_IFINDEX, MAX_PEERS, MAX_SLOTS, MAX_SNAT_ENTRIES, PORT_BLOCKS, PortBlock,
    SysctlKey, SysctlValue, Text, port_index,
};
use redirector_common::packet::limit::ErrorBudget;
use redirector_common::service::{MAGLEV_LINE, MaglevLine};
use redirector_common::{
    Address, Affinity, AffinityKey, Backend, BackendId, CacheSet, Endpoint, FirstFragment, Flow,
    FragmentKey, Frontend, FrontendKey, Interface, NodeConfig, Peer, Port, PortFlags, Protocol,
    RingSlot, Service, ServiceInfo, SlotKey, SlotValue, SnatAddressKey, SocketKey, SourceBits,
    SteeredKey, Taker, TakerKey, Tuple, Watch, cache,
};

use crate::environment::Workspace;
use crate::event::Record;

#[map]
pub(crate) static PORTS: Array<PortBlock> = Array::with_max_entries(PORT_BLOCKS, 0);
#[map]
pub(crate) static FRONTENDS: HashMap<FrontendKey, Frontend> =
    HashMap::with_max_entries(65536, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static SERVICES: Array<Service> = Array::with_max_entries(65536, 0);
#[map]
pub(crate) static SOURCE_RANGES: LpmTrie<SourceBits, u32> =
    LpmTrie::with_max_entries(65536, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static AFFINITY: LruHashMap<AffinityKey, Affinity> =
    LruHashMap::with_max_entries(65536, 0);
#[map]
pub(crate) static TAKERS: HashMap<TakerKey, Taker> =
    HashMap::with_max_entries(262_144, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static VIPS: HashMap<Address, u32> = HashMap::with_max_entries(65536, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static PEERS: HashMap<Address, Peer> =
    HashMap::with_max_entries(MAX_PEERS, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static MAGLEV: Array<MaglevLine> = Array::with_max_entries(65536, 0);
#[map]
pub(crate) static BACKENDS: Array<Backend> = Array::with_max_entries(65536, 0);
/// Allocated when it is made: a new flow then costs less than half of what the allocation of its
/// halves would, and the memory is there when it is needed.
#[map]
pub(crate) static FLOWS: HashMap<Tuple, Flow> = HashMap::with_max_entries(262_144, 0);
#[map]
pub(crate) static FLOW_RING: Array<RingSlot> = Array::with_max_entries(131_072, 0);
/// Mappable only because the kernel begins the elements of such an array on a page of their own:
/// an entry is two cache lines then, not parts of three.
#[map]
pub(crate) static FLOW_CACHE: Array<CacheSet> = Array::with_max_entries(65536, BPF_F_MMAPABLE);
#[map]
pub(crate) static EPOCHS: Array<u32> = Array::with_max_entries(cache::EPOCHS, 0);
#[map]
pub(crate) static FRAGMENTS: LruHashMap<FragmentKey, FirstFragment> =
    LruHashMap::with_max_entries(8192, 0);
#[map]
pub(crate) static INTERFACES: Array<Interface> = Array::with_max_entries(MAX_IFINDEX, 0);
#[map]
pub(crate) static SNAT_ADDRESSES: HashMap<SnatAddressKey, Address> =
    HashMap::with_max_entries(MAX_SNAT_ENTRIES, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static NODE: Array<NodeConfig> = Array::with_max_entries(1, 0);
#[map]
pub(crate) static COUNTERS: PerCpuArray<CounterBlock> = PerCpuArray::with_max_entries(MAX_SLOTS, 0);
#[map]
pub(crate) static SOCKETS: LruHashMap<SocketKey, Endpoint> = LruHashMap::with_max_entries(65536, 0);
#[map]
pub(crate) static STEERED: LruHashMap<SteeredKey, u64> = LruHashMap::with_max_entries(16384, 0);
#[map]
pub(crate) static WATCH: Array<Watch> = Array::with_max_entries(1, 0);
#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(RING_BYTES, 0);
#[map]
pub(crate) static EVENTS_LOST: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);
/// Memory for handling one packet; not pinned, holds nothing between packets.
#[map]
pub(crate) static WORKSPACE: PerCpuArray<Workspace> = PerCpuArray::with_max_entries(1, 0);
/// Memory for telling of one packet; not pinned.
#[map]
pub(crate) static EVENT_SPACE: PerCpuArray<Record> = PerCpuArray::with_max_entries(1, 0);
/// What may be sent of errors; not pinned: a new program begins anew.
#[map]
pub(crate) static ERROR_BUDGET: PerCpuArray<ErrorBudget> = PerCpuArray::with_max_entries(1, 0);
/// Where the ring's hands are: of new flows, and of what looks for room; not pinned: it does not
/// matter where they begin.
#[map]
pub(crate) static RING_HANDS: Array<u64> = Array::with_max_entries(2, 0);

// What follows is never read by a program; it is declared here so that one object makes all maps.
#[map]
pub(crate) static SLOTS: HashMap<SlotKey, SlotValue> =
    HashMap::with_max_entries(262_144, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static SERVICE_INFO: HashMap<u32, ServiceInfo> =
    HashMap::with_max_entries(65536, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static STATUS: Array<Text> = Array::with_max_entries(1, 0);
#[map]
pub(crate) static SYSCTLS: HashMap<SysctlKey, SysctlValue> =
    HashMap::with_max_entries(64, BPF_F_NO_PREALLOC);

/// What a port is used for.
#[inline(always)]
pub(crate) fn port_flags(protocol: Protocol, port: Port) -> PortFlags {
    let (block, byte) = port_index(protocol, port);
    PORTS
        .get(block)
        .and_then(|block| block.flags.get(byte))
        .map_or_else(PortFlags::default, |&flags| PortFlags(flags))
}

/// An entry of the Maglev tables.
#[inline(always)]
pub(crate) fn table_entry(index: u32) -> Option<BackendId> {
    let line = MAGLEV.get(index / MAGLEV_LINE)?;
    line.entries.get((index % MAGLEV_LINE) as usize).copied()
}

/// Adds two to an aligned word of a map's element. At once: a number that another CPU has raised
/// meanwhile must not come back.
#[inline(always)]
pub(crate) fn add_two(word: *mut u32) {
    // SAFETY: as below.
    unsafe {
        asm!(
            "lock *(u32*)({0} + 0) += {1}",
            in(reg) word,
            in(wreg) 2_u32,
            options(nostack),
        );
    }
}

/// Adds one to an aligned word of a map's element that is only ever changed like this, and says what
/// it was.
#[inline(always)]
pub(crate) fn add_one(word: *mut u64) -> u64 {
    let mut was: u64 = 1;
    // The target has no atomic types.
    // SAFETY: a map's element stays allocated until the program has ended.
    unsafe {
        asm!(
            "{0} = atomic_fetch_add((u64*)({1} + 0), {0})",
            inout(reg) was,
            in(reg) word,
            options(nostack),
        );
    }
    was
}
