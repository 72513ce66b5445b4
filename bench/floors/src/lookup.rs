//! Parsing, one look-up, and back.

use aya_ebpf::bindings::{BPF_NOEXIST, xdp_action};
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;

use crate::cache;
use crate::candidate::WideKey;
use crate::frame::{Frame, Key};
use crate::layout::{MISSES, Target};
use crate::maps::{HASH40, LAZY, LRU, LRU_SMALL, PORT_ARRAY, PORT_HASH, READY, TALLY, TARGET};

/// Notes that a look-up did not end as it should.
#[inline(always)]
pub(crate) fn miss() {
    if let Some(misses) = TALLY.get_ptr_mut(MISSES) {
        // SAFETY: a map's element.
        unsafe { *misses += 1 };
    }
}

/// Whether the port is a service's, from the array.
#[inline(always)]
pub(crate) fn is_service(key: &Key) -> bool {
    PORT_ARRAY.get(key.destination_port()).is_some_and(|&flags| flags != 0)
}

/// The same from the hash map.
#[inline(always)]
pub(crate) fn is_service_by_hash(key: &Key) -> bool {
    // SAFETY: copied at once.
    unsafe { PORT_HASH.get(&(key.ports >> 16)) }.is_some()
}

#[inline(always)]
fn run(ctx: &XdpContext, look_up: impl FnOnce(&Key) -> bool) -> u32 {
    let frame = Frame::new(ctx);
    let Some(key) = frame.parse_v4() else {
        return xdp_action::XDP_ABORTED;
    };
    if !look_up(&key) {
        miss();
    }
    frame.send_back()
}

#[xdp(frags)]
pub fn f_array(ctx: XdpContext) -> u32 {
    run(&ctx, is_service)
}

#[xdp(frags)]
pub fn f_hash(ctx: XdpContext) -> u32 {
    run(&ctx, is_service_by_hash)
}

#[xdp(frags)]
pub fn f_lru_hit(ctx: XdpContext) -> u32 {
    // SAFETY: copied at once.
    run(&ctx, |key| unsafe { LRU.get(key) }.is_some())
}

/// A destination port that no flow has.
#[xdp(frags)]
pub fn f_lru_miss(ctx: XdpContext) -> u32 {
    run(&ctx, |key| {
        let key = Key { protocol: 1, ..*key };
        // SAFETY: copied at once.
        unsafe { LRU.get(&key) }.is_none()
    })
}

/// Each key has been evicted before its turn comes again.
#[xdp(frags)]
pub fn f_lru_insert(ctx: XdpContext) -> u32 {
    run(&ctx, |key| {
        TARGET.get(0).is_some_and(|target: &Target| LRU_SMALL.insert(key, target, 0).is_ok())
    })
}

/// Puts the flow where the other programs look for it.
#[xdp(frags)]
pub fn f_fill(ctx: XdpContext) -> u32 {
    run(&ctx, |key| {
        TARGET.get(0).is_some_and(|target: &Target| {
            crate::candidate::fill(key, target) && LRU.insert(key, target, 0).is_ok()
        })
    })
}

#[xdp(frags)]
pub fn f_hash40(ctx: XdpContext) -> u32 {
    run(&ctx, |key| {
        let key = WideKey::of(key);
        // SAFETY: copied at once.
        unsafe { HASH40.get(&key) }.is_some()
    })
}

#[xdp(frags)]
pub fn f_cache(ctx: XdpContext) -> u32 {
    run(&ctx, |key| cache::find(key).is_some_and(|target| target.ifindex != 0))
}

/// An insert into a map whose elements are allocated when they are needed.
#[xdp(frags)]
pub fn f_insert_lazy(ctx: XdpContext) -> u32 {
    run(&ctx, |key| LAZY.insert(WideKey::of(key), [1; 11], BPF_NOEXIST.into()).is_ok())
}

/// The same where all were allocated before.
#[xdp(frags)]
pub fn f_insert_ready(ctx: XdpContext) -> u32 {
    run(&ctx, |key| READY.insert(WideKey::of(key), [1; 11], BPF_NOEXIST.into()).is_ok())
}

/// Undoes either.
#[xdp(frags)]
pub fn f_remove(ctx: XdpContext) -> u32 {
    run(&ctx, |key| {
        let key = WideKey::of(key);
        // Only one of the two has it.
        LAZY.remove(key).is_ok() || READY.remove(key).is_ok()
    })
}
