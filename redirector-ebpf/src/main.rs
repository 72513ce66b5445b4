//! redirector's programs: XDP, TC ingress, TC egress; those for sockets are in [`clients`].
//!
//! Each entry point is the whole table from a [`Step`] to the kernel's verdict. What a packet
//! is and what becomes of it is decided by the functions of `redirector_common::packet`.
#![no_std]
#![no_main]
#![expect(clippy::needless_pass_by_value, reason = "aya's macros pass the context by value")]
// Inline assembly for BPF, for one optimisation barrier; see `context`.
#![feature(asm_experimental_arch)]
#![expect(unreachable_pub, missing_docs, reason = "made by aya's attribute macros")]

mod clients;
mod context;
mod counters;
mod environment;
mod event;
mod handover;
mod maps;
mod redirect;
mod reject;
mod related;
mod steer;
mod uncover;

use aya_ebpf::bindings::{TC_ACT_OK, TC_ACT_SHOT, xdp_action};
use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use redirector_common::packet::checksum::is_partial;
use redirector_common::packet::{
    Environment, Hook, Outcome, Packet, PacketBuf, Step, decide, decide_claimed, decide_reply,
    parse, parse_claimed, rewrite,
};
use redirector_common::{Manner, PortFlags, Reason};

use crate::context::{Frame, Skb};
use crate::environment::Kernel;
use crate::handover::handover_send;
use crate::related::{handle_in, handle_out, related_note};
use crate::uncover::{uncover_frame, uncover_skb};

/// XDP in the driver.
#[xdp(frags)]
pub fn redirector_xdp(ctx: XdpContext) -> u32 {
    accelerate(&ctx)
}

/// XDP in its generic form. Without `frags`: for a program that takes packets in several buffers,
/// generic XDP copies the packet and forgets the length of its Ethernet header (seen on 6.18), so
/// that TC ingress would see it without.
#[xdp]
pub fn redirector_gen(ctx: XdpContext) -> u32 {
    accelerate(&ctx)
}

/// Forwards what leaves this host again; everything else goes on to TC ingress, unchanged.
#[inline(always)]
fn accelerate(ctx: &XdpContext) -> u32 {
    let mut frame = Frame::new(ctx);
    let Some((environment, packet, outcome)) = Kernel::new(ctx.ctx.cast()) else {
        return xdp_action::XDP_PASS;
    };
    let size = frame.size();
    // At most twice: what is taken out of another node's packet is parsed as if it had come alone.
    let mut tunnelled = 0;
    let mut flags = PortFlags::default();
    let mut is_claimed = |protocol, port| {
        flags = environment.port_flags(protocol, port);
        flags.intersects(PortFlags::CLAIMED)
    };
    while let Err(reason) = parse_claimed(&frame, packet, &mut is_claimed) {
        if tunnelled != 0 || !matches!(reason, Reason::IpInIp) || uncover_frame(ctx.ctx) == 0 {
            return xdp_action::XDP_PASS;
        }
        tunnelled = 1;
    }
    packet.tunnelled = tunnelled;
    if tunnelled == 0 && is_partial(packet) {
        // A frame that is sent from here has nothing beside it that says so. What was in another
        // node's packet stays on this host.
        return xdp_action::XDP_PASS;
    }
    let decision = decide_claimed(&environment, packet, flags, Hook::Xdp, packet.ip_len, outcome);
    let (reason, verdict) = match decision.step {
        Step::Forward => {
            event::look(&environment);
            event::tell_frame_before(ctx.ctx, &environment, decision.reason);
            match handover::prepare(&mut frame, packet, outcome) {
                Some(()) => (decision.reason, redirect::send_frame(&frame, &outcome.next_hop)),
                None => (Reason::RewriteFailed, xdp_action::XDP_DROP),
            }
        }
        Step::Drop => {
            event::look(&environment);
            (decision.reason, xdp_action::XDP_DROP)
        }
        // TC ingress sees it next, decides again with more means, and counts.
        Step::Pass | Step::HandOver | Step::Reject | Step::Deliver | Step::ForwardUnresolved => {
            return xdp_action::XDP_PASS;
        }
    };
    counters::count(frame.ifindex(), reason, size);
    event::tell_frame(ctx.ctx, &environment, reason);
    verdict
}

/// Complete by itself: forwards, delivers to this host's stack, answers with errors.
#[classifier]
#[inline(always)]
pub fn redirector_in(ctx: TcContext) -> i32 {
    let mut skb = Skb::new(&ctx);
    skb.pull_headers();
    let Some((environment, packet, outcome)) = Kernel::new(ctx.skb.skb.cast()) else {
        return TC_ACT_OK;
    };
    let (size, ifindex) = (skb.size(), skb.ifindex());
    // At most twice, as in XDP.
    let mut tunnelled = 0;
    while let Err(reason) = parse(&skb, packet) {
        if matches!(reason, Reason::Fragment | Reason::Icmp) {
            return handle_in(skb.raw(), size);
        }
        if tunnelled != 0 || !matches!(reason, Reason::IpInIp) || uncover_skb(skb.raw()) == 0 {
            counters::count(ifindex, reason, size);
            event::look(&environment);
            event::tell_skb(skb.raw(), &environment, reason, Hook::Ingress);
            return TC_ACT_OK;
        }
        tunnelled = 1;
    }
    packet.tunnelled = tunnelled;
    let len = skb.segment_len(packet);
    let decision = decide(&environment, packet, Hook::Ingress, len, outcome);
    event::look(&environment);
    let done = match decision.step {
        // Nobody is left to hand over to: `decide` does it for XDP alone.
        Step::Pass | Step::HandOver => Some(TC_ACT_OK),
        Step::Drop => Some(TC_ACT_SHOT),
        Step::Reject => {
            event::tell_skb_before(skb.raw(), &environment, decision.reason, Hook::Ingress);
            Some(reject::answer(&mut skb, packet, environment.message(), outcome))
        }
        Step::Deliver | Step::Forward | Step::ForwardUnresolved => {
            event::tell_skb_before(skb.raw(), &environment, decision.reason, Hook::Ingress);
            translate(&mut skb, packet, outcome, decision.step)
        }
    };
    let (reason, verdict) = match done {
        Some(verdict) => (decision.reason, verdict),
        None => (Reason::RewriteFailed, TC_ACT_SHOT),
    };
    counters::count(ifindex, reason, size);
    event::tell_skb(skb.raw(), &environment, reason, Hook::Ingress);
    verdict
}

/// Translates and sends on. One path for all three ways, so that the verifier walks the rewriting
/// once.
#[inline(always)]
fn translate(skb: &mut Skb, packet: &mut Packet, outcome: &mut Outcome, step: Step) -> Option<i32> {
    if packet.is_first_fragment() {
        related_note(skb.raw());
    }
    let forwards = !matches!(step, Step::Deliver);
    if forwards {
        redirect::untag(skb, packet)?;
    }
    let hands_over = forwards && outcome.manner.hands_over();
    if forwards {
        handover::keep_tuple(packet, outcome);
    }
    let decrement_ttl = forwards && !matches!(outcome.manner, Manner::Layer2);
    rewrite(skb, packet, &outcome.translated, decrement_ttl)?;
    if hands_over {
        let sent = handover_send(skb.raw(), u32::from(matches!(step, Step::ForwardUnresolved)));
        return (sent >= 0).then_some(sent);
    }
    redirect::finish(skb, &outcome.next_hop, step)
}

/// Gives replies of local backends the frontend's address and port back.
#[classifier]
#[inline(always)]
pub fn redirector_out(ctx: TcContext) -> i32 {
    let mut skb = Skb::new(&ctx);
    if environment::is_ours(skb.ingress_ifindex()) {
        // Forwarded or redirected, perhaps by us: no reply of a backend on this host.
        return TC_ACT_OK;
    }
    skb.pull_headers();
    let Some((environment, packet, outcome)) = Kernel::new(ctx.skb.skb.cast()) else {
        return TC_ACT_OK;
    };
    if let Err(reason) = parse(&skb, packet) {
        if matches!(reason, Reason::Fragment | Reason::Icmp) {
            return handle_out(skb.raw());
        }
        return TC_ACT_OK;
    }
    let (size, ifindex) = (skb.size(), skb.ifindex());
    let decision = decide_reply(&environment, packet, outcome);
    let (reason, verdict) = match decision.step {
        Step::Deliver => {
            event::look(&environment);
            event::tell_skb_before(skb.raw(), &environment, decision.reason, Hook::Egress);
            match translate(&mut skb, packet, outcome, Step::Deliver) {
                Some(verdict) => (decision.reason, verdict),
                None => (Reason::RewriteFailed, TC_ACT_SHOT),
            }
        }
        Step::Drop => {
            event::look(&environment);
            (decision.reason, TC_ACT_SHOT)
        }
        // What this host sends of its own is counted only where it is ours.
        Step::Pass | Step::HandOver | Step::Reject | Step::Forward | Step::ForwardUnresolved => {
            return TC_ACT_OK;
        }
    };
    counters::count(ifindex, reason, size);
    event::tell_skb(skb.raw(), &environment, reason, Hook::Egress);
    verdict
}

/// The kernel gives GPL-only helpers to objects that declare a compatible licence.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// Never reached: an endless loop, so that the verifier refuses a program that could panic.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
