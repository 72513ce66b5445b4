//! What an established flow could cost with other tables.

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_redirect};
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;

use crate::frame::{Frame, Key};
use crate::layout::Target;
use crate::lookup::{is_service, miss};
use crate::maps::{HASH40, SETS};
use crate::path::count;

/// A flow's key as wide as both families need.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct WideKey {
    words: [u32; 10],
}

impl WideKey {
    /// IPv4 addresses as IPv4-mapped IPv6 addresses.
    #[inline(always)]
    pub(crate) fn of(key: &Key) -> Self {
        const MAPPED: u32 = 0xffff_0000;
        Self {
            words: [
                0,
                0,
                MAPPED,
                key.source,
                0,
                0,
                MAPPED,
                key.destination,
                key.ports,
                key.protocol,
            ],
        }
    }
}

/// A flow: what it is translated to, the way there, and what is counted.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub(crate) struct Entry {
    translated: WideKey,
    target: Target,
    link: [u32; 3],
    epoch: u32,
    last_seen: u64,
    packets: u64,
    bytes: u64,
}

impl Entry {
    #[inline(always)]
    fn new(key: &Key, target: &Target) -> Self {
        Self {
            translated: WideKey::of(key),
            target: *target,
            link: [0x0302_0100, 0x0100_0504, 0x0504_0302],
            epoch: 1,
            last_seen: 0,
            packets: 0,
            bytes: 0,
        }
    }
}

/// Four flows in eight bytes each, to find the right one, and the flows.
const WAYS: usize = 4;

#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub(crate) struct Set {
    tags: [u32; WAYS],
    reserved: [u32; 12],
    ways: [Way; WAYS],
}

/// Two cache lines.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub(crate) struct Way {
    key: WideKey,
    target: Target,
    link: [u32; 3],
    epoch: u32,
    last_seen: u64,
    packets: u64,
    bytes: u64,
    reserved: [u64; 4],
}

/// Puts a flow into both tables. `false`: there was no room.
#[inline(always)]
pub(crate) fn fill(key: &Key, target: &Target) -> bool {
    let hashed = HASH40.insert(WideKey::of(key), Entry::new(key, target), 0).is_ok();
    let Some(set) = set_of(key) else {
        return false;
    };
    let tag = key.hash() | 1;
    for way in 0..WAYS {
        if set.tags[way] == tag && set.ways[way].key == WideKey::of(key) {
            return hashed;
        }
        if set.tags[way] == 0 {
            set.tags[way] = tag;
            set.ways[way].key = WideKey::of(key);
            set.ways[way].target = *target;
            set.ways[way].link = [0x0302_0100, 0x0100_0504, 0x0504_0302];
            set.ways[way].epoch = 1;
            return hashed;
        }
    }
    // A real table would have another place for it.
    hashed
}

#[inline(always)]
fn set_of(key: &Key) -> Option<&'static mut Set> {
    // The size of the map is chosen when it is loaded: the first element says how many there are.
    let first = SETS.get_ptr_mut(0)?;
    // SAFETY: a map's element.
    let mask = unsafe { (*first).reserved[0] };
    let set = SETS.get_ptr_mut(key.hash().rotate_left(16) & mask)?;
    // SAFETY: a map's element, used on one CPU.
    Some(unsafe { &mut *set })
}

#[inline(always)]
fn leave(frame: &Frame, key: &Key, target: &Target, link: [u32; 3]) -> Option<u32> {
    frame.translate(key, target)?;
    frame.write_link(link)?;
    count(64)?;
    // SAFETY: takes integers.
    Some(unsafe { bpf_redirect(target.ifindex, 0) as u32 })
}

/// Ports in an array; flows in an ordinary hash map with the next hop in them; jiffies.
#[xdp(frags)]
pub fn f_flow_hash(ctx: XdpContext) -> u32 {
    let way = || {
        let frame = Frame::new(&ctx);
        let key = frame.parse_v4()?;
        if !is_service(&key) {
            return None;
        }
        let entry = HASH40.get_ptr_mut(WideKey::of(&key))?;
        // SAFETY: a map's element.
        let entry = unsafe { &mut *entry };
        if entry.epoch != 1 {
            return None;
        }
        // SAFETY: takes nothing, touches nothing.
        entry.last_seen = unsafe { bpf_jiffies64() };
        entry.packets += 1;
        entry.bytes += 50;
        leave(&frame, &key, &entry.target, entry.link)
    };
    way().unwrap_or_else(failed)
}

/// The same with flows in sets of four in an array.
#[xdp(frags)]
pub fn f_flow_sets(ctx: XdpContext) -> u32 {
    let way = || {
        let frame = Frame::new(&ctx);
        let key = frame.parse_v4()?;
        if !is_service(&key) {
            return None;
        }
        let set = set_of(&key)?;
        let tag = key.hash() | 1;
        let wide = WideKey::of(&key);
        for way in 0..WAYS {
            let entry = &mut set.ways[way];
            if set.tags[way] == tag && entry.key == wide {
                if entry.epoch != 1 {
                    return None;
                }
                // SAFETY: takes nothing, touches nothing.
                entry.last_seen = unsafe { bpf_jiffies64() };
                entry.packets += 1;
                entry.bytes += 50;
                return leave(&frame, &key, &entry.target, entry.link);
            }
        }
        None
    };
    way().unwrap_or_else(failed)
}

#[inline(always)]
fn failed() -> u32 {
    miss();
    xdp_action::XDP_ABORTED
}
