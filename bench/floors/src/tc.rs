//! At the TC hook.

use aya_ebpf::bindings::{TC_ACT_OK, TC_ACT_SHOT, bpf_sock_tuple};
use aya_ebpf::helpers::generated::{bpf_sk_release, bpf_skc_lookup_tcp};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;

use crate::frame::Frame;
use crate::lookup::miss;
use crate::maps::LISTENER;

/// Nothing.
#[classifier]
pub fn f_return_tc(_: TcContext) -> i32 {
    TC_ACT_OK
}

/// Finds the headers.
#[classifier]
pub fn f_parse_tc(ctx: TcContext) -> i32 {
    match frame(&ctx).parse_any() {
        Some(ports) if ports != 0 => TC_ACT_OK,
        _ => TC_ACT_SHOT,
    }
}

/// Finds the headers, and the listening socket.
#[classifier]
pub fn f_skc_lookup(ctx: TcContext) -> i32 {
    let (Some(key), Some(listener)) = (frame(&ctx).parse_v4(), LISTENER.get(0)) else {
        return TC_ACT_SHOT;
    };
    const CURRENT_NETNS: u64 = u64::MAX;
    // SAFETY: integers, for all of which zero is a value.
    let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
    tuple.__bindgen_anon_1.ipv4.saddr = key.source;
    tuple.__bindgen_anon_1.ipv4.sport = key.ports as u16;
    tuple.__bindgen_anon_1.ipv4.daddr = listener.address;
    tuple.__bindgen_anon_1.ipv4.dport = listener.port;
    // SAFETY: the context is valid, the tuple as large as said; what is found is released.
    unsafe {
        let socket = bpf_skc_lookup_tcp(ctx.skb.skb.cast(), &raw mut tuple, 12, CURRENT_NETNS, 0);
        if socket.is_null() {
            miss();
        } else {
            bpf_sk_release(socket.cast());
        }
    }
    TC_ACT_OK
}

/// Finds the headers of either family, and the packet's own connection.
#[classifier]
pub fn f_skc_connection(ctx: TcContext) -> i32 {
    const CURRENT_NETNS: u64 = u64::MAX;
    let frame = frame(&ctx);
    // SAFETY: integers, for all of which zero is a value.
    let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
    let len = if let Some([source, destination]) = frame.v6_addresses() {
        let Some(ports) = frame.parse_any() else {
            return TC_ACT_SHOT;
        };
        tuple.__bindgen_anon_1.ipv6.saddr = source;
        tuple.__bindgen_anon_1.ipv6.daddr = destination;
        tuple.__bindgen_anon_1.ipv6.sport = ports as u16;
        tuple.__bindgen_anon_1.ipv6.dport = (ports >> 16) as u16;
        36
    } else if let Some(key) = frame.parse_v4() {
        tuple.__bindgen_anon_1.ipv4.saddr = key.source;
        tuple.__bindgen_anon_1.ipv4.daddr = key.destination;
        tuple.__bindgen_anon_1.ipv4.sport = key.ports as u16;
        tuple.__bindgen_anon_1.ipv4.dport = (key.ports >> 16) as u16;
        12
    } else {
        return TC_ACT_SHOT;
    };
    // SAFETY: the context is valid, the tuple as large as said; what is found is released.
    unsafe {
        let socket = bpf_skc_lookup_tcp(ctx.skb.skb.cast(), &raw mut tuple, len, CURRENT_NETNS, 0);
        if socket.is_null() {
            miss();
        } else {
            bpf_sk_release(socket.cast());
        }
    }
    TC_ACT_OK
}

#[inline(always)]
fn frame(ctx: &TcContext) -> Frame {
    // SAFETY: the context is valid while the program runs.
    let (start, end) = unsafe { ((*ctx.skb.skb).data as usize, (*ctx.skb.skb).data_end as usize) };
    Frame::bounds(start, end)
}
