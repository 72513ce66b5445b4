//! The maps. The benchmark chooses the sizes that depend on the number of flows.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, DevMap, HashMap, LruHashMap, PerCpuArray, ProgramArray};

use crate::cache::Bucket;
use crate::candidate::{Entry, Set, WideKey};
use crate::frame::Key;
use crate::layout::{Listener, Plan, Target};

#[map]
pub(crate) static PLAN: Array<Plan> = Array::with_max_entries(1, 0);
#[map]
pub(crate) static JUMP: ProgramArray = ProgramArray::with_max_entries(1, 0);
#[map]
pub(crate) static JUMP_TC: ProgramArray = ProgramArray::with_max_entries(1, 0);
#[map]
pub(crate) static TARGET: Array<Target> = Array::with_max_entries(1, 0);
#[map]
pub(crate) static LISTENER: Array<Listener> = Array::with_max_entries(1, 0);
/// What went otherwise than the benchmark means it to.
#[map]
pub(crate) static TALLY: Array<u64> = Array::with_max_entries(1, 0);

/// Whether a port is a service's, by number.
#[map]
pub(crate) static PORT_ARRAY: Array<u64> = Array::with_max_entries(65536, 0);
/// The same, by port as it stands in the packet.
#[map]
pub(crate) static PORT_HASH: HashMap<u32, u64> = HashMap::with_max_entries(16384, 0);
#[map]
pub(crate) static LRU: LruHashMap<Key, Target> = LruHashMap::with_max_entries(1024, 0);
/// Too small for all flows.
#[map]
pub(crate) static LRU_SMALL: LruHashMap<Key, Target> = LruHashMap::with_max_entries(512, 0);
#[map]
pub(crate) static HASH40: HashMap<WideKey, Entry> =
    HashMap::with_max_entries(1024, BPF_F_NO_PREALLOC);
/// Empty but for what is inserted and removed again, with values as large as a flow's half.
#[map]
pub(crate) static LAZY: HashMap<WideKey, [u64; 11]> =
    HashMap::with_max_entries(1024, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static READY: HashMap<WideKey, [u64; 11]> = HashMap::with_max_entries(1024, 0);
#[map]
pub(crate) static CACHE: Array<Bucket> = Array::with_max_entries(262_144, 0);
#[map]
pub(crate) static SETS: Array<Set> = Array::with_max_entries(1024, 0);
#[map]
pub(crate) static COUNTS: PerCpuArray<[u64; 2]> = PerCpuArray::with_max_entries(64, 0);
#[map]
pub(crate) static DEVICES: DevMap = DevMap::with_max_entries(64, 0);
