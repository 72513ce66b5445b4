//! Whole ways of a packet through a translating data path.

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;

use crate::cache;
use crate::frame::Frame;
use crate::layout::Target;
use crate::lookup::{is_service, is_service_by_hash, miss};
use crate::maps::{COUNTS, DEVICES, LRU, TARGET};

/// Counts a packet on this CPU.
#[inline(always)]
pub(crate) fn count(frame_len: usize) -> Option<()> {
    let counts = COUNTS.get_ptr_mut(1)?;
    // SAFETY: this CPU's element.
    let [packets, bytes] = unsafe { &mut *counts };
    *packets += 1;
    *bytes += frame_len as u64;
    Some(())
}

#[inline(always)]
fn len(ctx: &XdpContext) -> usize {
    // SAFETY: the context is valid while the program runs.
    unsafe { ((*ctx.ctx).data_end - (*ctx.ctx).data) as usize }
}

#[inline(always)]
fn finish(ctx: &XdpContext, verdict: Option<u32>) -> u32 {
    match verdict {
        Some(verdict) => verdict,
        None => {
            let _ = ctx;
            miss();
            xdp_action::XDP_ABORTED
        }
    }
}

/// Parsing, translation, back: nothing is looked up but what to translate to.
#[xdp(frags)]
pub fn f_rewrite(ctx: XdpContext) -> u32 {
    let way = || {
        let frame = Frame::new(&ctx);
        let key = frame.parse_v4()?;
        let target: &Target = TARGET.get(0)?;
        frame.translate(&key, target)?;
        Some(frame.send_back())
    };
    finish(&ctx, way())
}

/// Ports in a hash map, flows in an LRU hash map, counters, `redirect_map`.
#[xdp(frags)]
pub fn f_path_maps(ctx: XdpContext) -> u32 {
    let way = || {
        let frame = Frame::new(&ctx);
        let key = frame.parse_v4()?;
        if !is_service_by_hash(&key) {
            return None;
        }
        // SAFETY: a map's element.
        let target = unsafe { LRU.get(&key) }?;
        frame.translate(&key, target)?;
        frame.swap_link()?;
        count(len(&ctx))?;
        DEVICES.redirect(target.ifindex & 63, 0).ok()
    };
    finish(&ctx, way())
}

/// Ports in an array, flows in a flow cache, counters, `redirect_map`.
#[xdp(frags)]
pub fn f_path_cache(ctx: XdpContext) -> u32 {
    let way = || {
        let frame = Frame::new(&ctx);
        let key = frame.parse_v4()?;
        if !is_service(&key) {
            return None;
        }
        let target = cache::find(&key)?;
        frame.translate(&key, target)?;
        frame.swap_link()?;
        count(len(&ctx))?;
        DEVICES.redirect(target.ifindex & 63, 0).ok()
    };
    finish(&ctx, way())
}
