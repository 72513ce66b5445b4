//! Taking packets out of packets of other nodes, for backends of this host.
//!
//! Rare on most nodes, so in functions of its own; see [`related`](crate::related).

use aya_ebpf::bindings::bpf_adj_room_mode::BPF_ADJ_ROOM_MAC;
use aya_ebpf::bindings::{__sk_buff, BPF_F_ADJ_ROOM_FIXED_GSO, xdp_md};
use aya_ebpf::helpers::generated::{bpf_skb_adjust_room, bpf_xdp_adjust_head};
use redirector_common::Reason;
use redirector_common::packet::tunnel::{
    find_inner, header_len, is_accepted, parse_inner, parse_inner_related,
};
use redirector_common::packet::{Kind, PacketBuf};

use crate::context::{Frame, Skb};
use crate::environment::Kernel;
use crate::related::{ERROR, FRAGMENT, related_find_first, related_parse_quoted};

/// Header bytes that are made directly accessible: those outside, and what is inside.
const PULLED: u32 = 256;

/// What is inside: none of ours.
const STRANGE: u32 = 0;
/// A TCP or UDP packet.
const PACKET: u32 = 1;
/// A later fragment or an ICMP error.
const RELATED: u32 = 2;

/// Takes out what a peer has put in for a backend of this host's. 0: the packet stays as it is.
#[inline(always)]
pub(crate) fn uncover_skb(ctx: *mut __sk_buff) -> u32 {
    if uncover_find(ctx) == 0 {
        return 0;
    }
    let may_open = match uncover_parse(ctx) {
        PACKET => 1,
        RELATED if is_ours(ctx) => 0,
        _ => return 0,
    };
    if uncover_accept(ctx, may_open) == 0 {
        return 0;
    }
    uncover_strip(ctx)
}

/// Whether the later fragment or ICMP error inside belongs to packets that have a tuple.
#[inline(always)]
fn is_ours(ctx: *mut __sk_buff) -> bool {
    let found = match uncover_parse_related(ctx) {
        FRAGMENT => related_find_first(ctx),
        ERROR => related_parse_quoted(ctx),
        _ => 0,
    };
    found != 0
}

/// Finds the packet inside. 0: it is none of ours.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn uncover_find(ctx: *mut __sk_buff) -> u32 {
    let mut skb = Skb::from_raw(ctx);
    skb.pull(PULLED);
    let Some((environment, _, _)) = Kernel::new(ctx.cast()) else {
        return 0;
    };
    u32::from(find_inner(&environment, &skb, environment.tunnelled()).is_some())
}

/// Finds the headers of the packet inside, and says what it is. 0: it is none of ours.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn uncover_parse(ctx: *mut __sk_buff) -> u32 {
    let skb = Skb::from_raw(ctx);
    let Some((environment, packet, _)) = Kernel::new(ctx.cast()) else {
        return STRANGE;
    };
    match parse_inner(&skb, environment.tunnelled(), packet) {
        Ok(()) => PACKET,
        Err(Reason::Fragment | Reason::Icmp) => RELATED,
        Err(_) => STRANGE,
    }
}

/// Finds the headers of the later fragment or ICMP error inside, and says which it is. 0: it is
/// none of ours.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn uncover_parse_related(ctx: *mut __sk_buff) -> u32 {
    let skb = Skb::from_raw(ctx);
    let Some((environment, packet, _)) = Kernel::new(ctx.cast()) else {
        return 0;
    };
    match parse_inner_related(&skb, environment.tunnelled(), packet) {
        Ok(Kind::Fragment) => FRAGMENT,
        Ok(Kind::Error) => ERROR,
        Err(_) => 0,
    }
}

/// Whether the packet inside is for a backend of this host. 0: it is none of ours.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn uncover_accept(ctx: *mut __sk_buff, may_open: u32) -> u32 {
    let Some((environment, packet, _)) = Kernel::new(ctx.cast()) else {
        return 0;
    };
    u32::from(is_accepted(&environment, packet, environment.tunnelled(), may_open != 0))
}

/// Takes the outer header off. 0: the kernel refused.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn uncover_strip(ctx: *mut __sk_buff) -> u32 {
    let Some((_, packet, _)) = Kernel::new(ctx.cast()) else {
        return 0;
    };
    let len = i32::from(header_len(packet.family()));
    // SAFETY: the context is valid; the helper checks lengths.
    let done = unsafe {
        bpf_skb_adjust_room(ctx, -len, BPF_ADJ_ROOM_MAC, u64::from(BPF_F_ADJ_ROOM_FIXED_GSO))
    };
    u32::from(done == 0)
}

/// As [`uncover_skb`], in XDP: of TCP and UDP packets. 0: it is none of ours, or for TC.
#[inline(always)]
pub(crate) fn uncover_frame(ctx: *mut xdp_md) -> u32 {
    if uncover_frame_find(ctx) == 0 || uncover_frame_parse(ctx) == 0 {
        return 0;
    }
    uncover_frame_accept(ctx)
}

/// Finds the packet inside. 0: it is none of ours.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn uncover_frame_find(ctx: *mut xdp_md) -> u32 {
    let Some((environment, _, _)) = Kernel::new(ctx.cast()) else {
        return 0;
    };
    let frame = Frame::from_raw(ctx);
    u32::from(find_inner(&environment, &frame, environment.tunnelled()).is_some())
}

/// Finds the headers of the packet inside. 0: it is none of ours.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn uncover_frame_parse(ctx: *mut xdp_md) -> u32 {
    let Some((environment, packet, _)) = Kernel::new(ctx.cast()) else {
        return 0;
    };
    let frame = Frame::from_raw(ctx);
    u32::from(parse_inner(&frame, environment.tunnelled(), packet).is_ok())
}

/// Takes the outer header off, if the packet inside is for a backend of this host.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn uncover_frame_accept(ctx: *mut xdp_md) -> u32 {
    let Some((environment, packet, _)) = Kernel::new(ctx.cast()) else {
        return 0;
    };
    if !is_accepted(&environment, packet, environment.tunnelled(), true) {
        return 0;
    }
    u32::from(strip(&Frame::from_raw(ctx), header_len(packet.family())).is_some())
}

/// Moves the Ethernet header over the outer one.
#[inline(always)]
fn strip(frame: &Frame, len: u16) -> Option<()> {
    let link: [u16; 7] = frame.read(0)?;
    // SAFETY: the context is valid; the helper checks the length.
    if unsafe { bpf_xdp_adjust_head(frame.raw(), i32::from(len)) } != 0 {
        return None;
    }
    let at: *mut [u16; 7] = frame.at(0)?;
    // SAFETY: `at` checked the bounds.
    unsafe { at.write_unaligned(link) };
    Some(())
}
