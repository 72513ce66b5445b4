//! Runs in front of every program that is measured: restores the packet, which the program before
//! rewrote, as one of the next flow.

use aya_ebpf::bindings::{TC_ACT_SHOT, xdp_action};
use aya_ebpf::helpers::generated::bpf_xdp_adjust_head;
use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};

use crate::layout::{V4_FRAME, V6_FRAME};
use crate::maps::{JUMP, JUMP_TC, PLAN};

#[xdp(frags)]
pub fn f_vary(ctx: XdpContext) -> u32 {
    // SAFETY: the context is valid while the program runs.
    let bounds = || unsafe { ((*ctx.ctx).data as usize, (*ctx.ctx).data_end as usize) };
    let (mut start, mut end) = bounds();
    // The program before has put a header in front.
    let len = PLAN.get(0).map_or(0, |plan| plan.len as usize);
    if end - start > len {
        // SAFETY: the context is valid while the program runs.
        unsafe { bpf_xdp_adjust_head(ctx.ctx, (end - start - len) as i32) };
        (start, end) = bounds();
    }
    if vary(start, end).is_some() {
        // SAFETY: the benchmark put a program there.
        unsafe { JUMP.tail_call(&ctx, 0) };
    }
    xdp_action::XDP_ABORTED
}

#[classifier]
pub fn f_vary_tc(ctx: TcContext) -> i32 {
    // SAFETY: the context is valid while the program runs.
    let (start, end) = unsafe { ((*ctx.skb.skb).data as usize, (*ctx.skb.skb).data_end as usize) };
    if vary(start, end).is_some() {
        // SAFETY: the benchmark put a program there.
        unsafe { JUMP_TC.tail_call(&ctx, 0) };
    }
    TC_ACT_SHOT
}

/// Writes the next flow's packet. The checksums do not change: the words that vary are balanced
/// by their complements, in IPv4's identification and in the TCP sequence number or payload.
#[inline(always)]
pub(crate) fn vary(start: usize, end: usize) -> Option<()> {
    // SAFETY: the benchmark runs packets on one CPU, one after the other.
    let plan = unsafe { &mut *PLAN.get_ptr_mut(0)? };
    plan.state = plan.state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
    let flow = plan.state & plan.flow_mask;
    let source = plan.source + (flow & plan.source_mask);
    let source_port = plan.source_port + (flow >> (plan.source_port_shift & 31));
    let destination_port = plan.destination_port
        + (flow >> (plan.destination_port_shift & 31))
        + flow.checked_rem(plan.services).unwrap_or(0);
    let sum = source + source_port + destination_port;
    let sum = (sum & 0xffff) + (sum >> 16);
    let balance = !((sum & 0xffff) + (sum >> 16));
    let udp = plan.udp != 0;
    if plan.len == V4_FRAME as u32 {
        if start + V4_FRAME > end {
            return None;
        }
        // SAFETY: as checked; offsets of an IPv4 frame without options.
        unsafe {
            let words = plan.frame.as_ptr().cast::<[u64; V4_FRAME / 8]>().read();
            (start as *mut [u64; V4_FRAME / 8]).write_unaligned(words);
            put(start, 18, !source);
            put(start, 28, source);
            put(start, 34, source_port);
            put(start, 36, destination_port);
            put(start, if udp { 42 } else { 40 }, balance);
        }
    } else {
        if start + V6_FRAME > end {
            return None;
        }
        // SAFETY: as checked; offsets of an IPv6 frame without extension headers.
        unsafe {
            (start as *mut [u64; V6_FRAME / 8]).write_unaligned(plan.frame);
            put(start, 36, source);
            put(start, 54, source_port);
            put(start, 56, destination_port);
            put(start, if udp { 62 } else { 60 }, balance);
        }
    }
    Some(())
}

/// # Safety
///
/// There are two bytes at `start + offset`.
#[inline(always)]
unsafe fn put(start: usize, offset: usize, value: u32) {
    // SAFETY: the caller's promise.
    unsafe { ((start + offset) as *mut u16).write_unaligned((value as u16).to_be()) }
}
