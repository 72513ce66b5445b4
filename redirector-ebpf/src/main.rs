//! redirector's programs: XDP, TC ingress, TC egress.
//!
//! Each entry point is the whole table from an [`Action`] to the kernel's verdict. What a packet
//! is and what becomes of it is decided by the functions of `redirector_common::packet`.
#![no_std]
#![no_main]
#![expect(unreachable_pub, reason = "the attribute macros of aya want public functions")]

mod context;
mod counters;
mod environment;
mod maps;
mod redirect;
mod reject;

use aya_ebpf::bindings::{TC_ACT_OK, TC_ACT_SHOT, xdp_action};
use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use redirector_common::Reason;
use redirector_common::packet::{Action, Hook, PacketBuf, decide, decide_reply, parse, rewrite};

use crate::context::{Frame, Skb};
use crate::environment::Kernel;

/// Forwards what leaves this host again; everything else goes on to TC ingress, unchanged.
#[xdp(frags)]
pub fn redirector_xdp(ctx: XdpContext) -> u32 {
    let mut frame = Frame::new(&ctx);
    let Ok(packet) = parse(&frame) else {
        return xdp_action::XDP_PASS;
    };
    let environment = Kernel::new(ctx.ctx.cast());
    match decide(&environment, &packet, Hook::Xdp, packet.ip_len) {
        Action::Pass(_) | Action::HandOver | Action::Reject(..) | Action::Deliver(..) => {
            xdp_action::XDP_PASS
        }
        Action::Drop(reason) => {
            counters::count(frame.ifindex(), reason, frame.size());
            xdp_action::XDP_DROP
        }
        Action::Forward(reason, translation, next_hop) => {
            let size = frame.size();
            let Some(()) = rewrite(&mut frame, &packet, translation.tuple(), true) else {
                counters::count(frame.ifindex(), Reason::RewriteFailed, size);
                return xdp_action::XDP_DROP;
            };
            counters::count(frame.ifindex(), reason, size);
            redirect::send_frame(&frame, next_hop)
        }
    }
}

/// Complete by itself: forwards, delivers to this host's stack, answers with errors.
#[classifier]
pub fn redirector_in(ctx: TcContext) -> i32 {
    let mut skb = Skb::new(&ctx);
    skb.pull_headers();
    let size = skb.size();
    let ifindex = skb.ifindex();
    let packet = match parse(&skb) {
        Ok(packet) => packet,
        Err(reason) => {
            counters::count(ifindex, reason, size);
            return TC_ACT_OK;
        }
    };
    let len = skb.segment_len(&packet);
    let environment = Kernel::new(ctx.skb.skb.cast());
    match decide(&environment, &packet, Hook::Ingress, len) {
        Action::Pass(reason) => {
            counters::count(ifindex, reason, size);
            TC_ACT_OK
        }
        // Only XDP hands over.
        Action::HandOver => TC_ACT_OK,
        Action::Drop(reason) => {
            counters::count(ifindex, reason, size);
            TC_ACT_SHOT
        }
        Action::Reject(reason, error) => {
            counters::count(ifindex, reason, size);
            reject::answer(&mut skb, &packet, error)
        }
        Action::Deliver(reason, translation) => {
            let Some(()) = rewrite(&mut skb, &packet, translation.tuple(), false) else {
                counters::count(ifindex, Reason::RewriteFailed, size);
                return TC_ACT_SHOT;
            };
            counters::count(ifindex, reason, size);
            TC_ACT_OK
        }
        Action::Forward(reason, translation, next_hop) => {
            let sent = redirect::untag(&mut skb, packet).and_then(|packet| {
                rewrite(&mut skb, &packet, translation.tuple(), true)?;
                redirect::send_skb(&skb, next_hop)
            });
            let Some(verdict) = sent else {
                counters::count(ifindex, Reason::RewriteFailed, size);
                return TC_ACT_SHOT;
            };
            counters::count(ifindex, reason, size);
            verdict
        }
    }
}

/// Gives replies of local backends the frontend's address and port back.
#[classifier]
pub fn redirector_out(ctx: TcContext) -> i32 {
    let mut skb = Skb::new(&ctx);
    if skb.came_from_outside() {
        // Forwarded or redirected, perhaps by us: no local program's reply.
        return TC_ACT_OK;
    }
    skb.pull_headers();
    let Ok(packet) = parse(&skb) else {
        return TC_ACT_OK;
    };
    let size = skb.size();
    let environment = Kernel::new(ctx.skb.skb.cast());
    match decide_reply(&environment, &packet) {
        Action::Deliver(reason, translation) => {
            let Some(()) = rewrite(&mut skb, &packet, translation.tuple(), false) else {
                counters::count(skb.ifindex(), Reason::RewriteFailed, size);
                return TC_ACT_SHOT;
            };
            counters::count(skb.ifindex(), reason, size);
            TC_ACT_OK
        }
        Action::Pass(_)
        | Action::HandOver
        | Action::Drop(_)
        | Action::Reject(..)
        | Action::Forward(..) => TC_ACT_OK,
    }
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
