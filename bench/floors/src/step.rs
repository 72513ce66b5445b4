//! Single steps on top of parsing and sending back.

use aya_ebpf::bindings::{bpf_fib_lookup as FibLookup, xdp_action};
use aya_ebpf::helpers::generated::{
    bpf_fib_lookup, bpf_jiffies64, bpf_ktime_get_coarse_ns, bpf_redirect, bpf_xdp_adjust_head,
};
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;

use crate::frame::{Frame, Key};
use crate::lookup::miss;
use crate::maps::{DEVICES, TARGET};

#[inline(always)]
fn run(ctx: &XdpContext, step: impl FnOnce(&Key) -> Option<()>) -> u32 {
    let frame = Frame::new(ctx);
    let Some(key) = frame.parse_v4() else {
        return xdp_action::XDP_ABORTED;
    };
    if step(&key).is_none() {
        miss();
    }
    frame.send_back()
}

/// `bpf_ktime_get_coarse_ns`.
#[xdp(frags)]
pub fn f_clock(ctx: XdpContext) -> u32 {
    // SAFETY: takes nothing, touches nothing.
    run(&ctx, |_| (unsafe { bpf_ktime_get_coarse_ns() } != 0).then_some(()))
}

/// `bpf_jiffies64`, which the kernel's compiler puts in line.
#[xdp(frags)]
pub fn f_jiffies(ctx: XdpContext) -> u32 {
    // SAFETY: takes nothing, touches nothing.
    run(&ctx, |_| (unsafe { bpf_jiffies64() } != 0).then_some(()))
}

/// `bpf_fib_lookup` from the loopback device: IPv4 to where translated packets go, IPv6 back to
/// where the packet came from.
#[xdp(frags)]
pub fn f_fib(ctx: XdpContext) -> u32 {
    // SAFETY: integers and byte arrays, for all of which zero is a value.
    let mut query: FibLookup = unsafe { core::mem::zeroed() };
    let frame = Frame::new(&ctx);
    if let Some([source, destination]) = frame.v6_addresses() {
        query.family = 10;
        query.__bindgen_anon_3.ipv6_src = destination;
        query.__bindgen_anon_4.ipv6_dst = source;
    } else if let (Some(_), Some(target)) = (frame.parse_v4(), TARGET.get(0)) {
        query.family = 2;
        query.__bindgen_anon_3.ipv4_src = target.source;
        query.__bindgen_anon_4.ipv4_dst = target.destination;
    }
    query.l4_protocol = 6;
    query.__bindgen_anon_1.tot_len = 50;
    query.ifindex = 1;
    let size = size_of::<FibLookup>() as i32;
    // SAFETY: the context is valid, the query as large as said.
    if unsafe { bpf_fib_lookup(ctx.ctx.cast(), &raw mut query, size, 0) } != 0 {
        miss();
    }
    frame.send_back()
}

/// `bpf_redirect` in the place of sending back.
#[xdp(frags)]
pub fn f_redirect(ctx: XdpContext) -> u32 {
    let frame = Frame::new(&ctx);
    match (frame.parse_v4(), frame.swap_link(), TARGET.get(0)) {
        // SAFETY: takes integers.
        (Some(_), Some(()), Some(target)) => unsafe { bpf_redirect(target.ifindex, 0) as u32 },
        _ => xdp_action::XDP_ABORTED,
    }
}

/// Room for another header, 20 bytes long for IPv4 and 40 for IPv6, which stays empty.
#[xdp(frags)]
pub fn f_grow(ctx: XdpContext) -> u32 {
    let len = if Frame::new(&ctx).v6_addresses().is_some() { 40 } else { 20 };
    // SAFETY: the context is valid while the program runs.
    match unsafe { bpf_xdp_adjust_head(ctx.ctx, -len) } {
        0 => xdp_action::XDP_PASS,
        _ => xdp_action::XDP_ABORTED,
    }
}

/// `bpf_redirect_map` in the place of sending back.
#[xdp(frags)]
pub fn f_redirect_map(ctx: XdpContext) -> u32 {
    let frame = Frame::new(&ctx);
    match (frame.parse_v4(), frame.swap_link(), TARGET.get(0)) {
        (Some(_), Some(()), Some(target)) => match DEVICES.redirect(target.ifindex & 63, 0) {
            Ok(verdict) | Err(verdict) => verdict,
        },
        _ => xdp_action::XDP_ABORTED,
    }
}
