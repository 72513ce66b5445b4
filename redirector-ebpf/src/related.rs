//! Packets that are ours but have no ports of their own: later fragments, and ICMP errors.
//!
//! They are rare, so what they take stands in functions of its own. The verifier walks a function
//! that the object exports once and by itself, where it would walk any other again for every path
//! that leads to its call. The functions tell each other what they found through the workspace.
//! They are many, because the 512 bytes of stack are for the program and the functions that it calls
//! together.

use aya_ebpf::bindings::{__sk_buff, TC_ACT_OK, TC_ACT_SHOT};
use redirector_common::packet::quoted::{Quoted, parse_quoted, rewrite_error_v4, rewrite_error_v6};
use redirector_common::packet::related::{decide_related, decide_related_reply, parse_related};
use redirector_common::packet::{Hook, Kind, PacketBuf, Step, fragment};
use redirector_common::{Family, Reason};

use crate::context::Skb;
use crate::counters;
use crate::environment::Kernel;
use crate::event;
use crate::handover::{handover_related, handover_send};
use crate::redirect;

/// Header bytes that are made directly accessible: those of an error, and of what it quotes.
const PULLED: u32 = 256;

/// What is known of the packet, beyond what a `Packet` and an `Outcome` hold. Plain words: of an
/// enum the compiler would take the range for granted, where the verifier does not know it.
#[repr(C)]
pub(crate) struct Notes {
    quoted: Quoted,
    reserved: u16,
    is_error: u32,
    reason: u32,
}

impl Notes {
    #[inline(always)]
    const fn kind(&self) -> Kind {
        if self.is_error != 0 { Kind::Error } else { Kind::Fragment }
    }
}

/// What a packet is: a later fragment.
pub(crate) const FRAGMENT: u32 = 1;
/// An ICMP error.
pub(crate) const ERROR: u32 = 2;
/// One of IPv4.
const ERROR_V4: u32 = 3;
/// One of IPv6.
const ERROR_V6: u32 = 4;
/// Either of them, of a flow that another node gets as it is.
const HANDED_OVER: u32 = 5;

/// The packet is none of ours.
const PASS: u32 = 0;
/// The packet is dropped.
const DROP: u32 = 1;
/// The packet is translated, and goes on through this host's own stack.
const DELIVER: u32 = 2;
/// The packet is translated and sent.
const FORWARD: u32 = 3;
/// The same, but the kernel must find the neighbour.
const FORWARD_UNRESOLVED: u32 = 4;

/// Handles a later fragment or ICMP message that came in from outside, in a frame of `size` bytes.
#[inline(always)]
pub(crate) fn handle_in(ctx: *mut __sk_buff, size: usize) -> i32 {
    let step = if is_ours(ctx) { related_decide(ctx, 0) } else { PASS };
    let is_changed = !matches!(step, PASS | DROP);
    tell_before(ctx, Hook::Ingress, is_changed);
    let verdict = match step {
        PASS => TC_ACT_OK,
        DROP => TC_ACT_SHOT,
        _ => translate(ctx, step),
    };
    count(ctx, size, Hook::Ingress);
    verdict
}

/// Handles a later fragment or ICMP message of this host's own.
#[inline(always)]
pub(crate) fn handle_out(ctx: *mut __sk_buff) -> i32 {
    if !is_ours(ctx) || related_decide(ctx, 1) == PASS {
        return TC_ACT_OK;
    }
    let size = Skb::from_raw(ctx).size();
    tell_before(ctx, Hook::Egress, true);
    let verdict = translate(ctx, DELIVER);
    count(ctx, size, Hook::Egress);
    verdict
}

/// Whether the packet has, or quotes, a tuple that a flow could have.
#[inline(always)]
fn is_ours(ctx: *mut __sk_buff) -> bool {
    let found = match related_parse(ctx) {
        FRAGMENT => related_find_first(ctx),
        ERROR => related_parse_quoted(ctx),
        _ => 0,
    };
    found != 0
}

/// Translates the packet and sends it on.
#[inline(always)]
fn translate(ctx: *mut __sk_buff, step: u32) -> i32 {
    let forwards = u32::from(step != DELIVER);
    let done = match related_untag(ctx, forwards) {
        HANDED_OVER => return hand_over(ctx, step),
        FRAGMENT => related_rewrite_fragment(ctx, forwards),
        ERROR_V4 => related_rewrite_v4(ctx, forwards),
        ERROR_V6 => related_rewrite_v6(ctx, forwards),
        _ => 0,
    };
    if done != 0 { related_send(ctx, step) } else { fail(ctx) }
}

/// Sends the packet to another node, as it is.
#[inline(always)]
fn hand_over(ctx: *mut __sk_buff, step: u32) -> i32 {
    if handover_related(ctx) == 0 {
        return fail(ctx);
    }
    let sent = handover_send(ctx, u32::from(step == FORWARD_UNRESOLVED));
    if sent < 0 { fail(ctx) } else { sent }
}

/// Notes the first fragment of a packet that is translated, for those after it.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn related_note(ctx: *mut __sk_buff) -> u32 {
    let skb = Skb::from_raw(ctx);
    if let Some((environment, packet, _)) = Kernel::new(ctx.cast()) {
        // A packet that ends too early is refused when it is rewritten.
        let _ = fragment::note(&environment, &skb, packet);
    }
    0
}

/// Finds the packet's own headers, and says what it is. 0: it is none of ours.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn related_parse(ctx: *mut __sk_buff) -> u32 {
    let mut skb = Skb::from_raw(ctx);
    skb.pull(PULLED);
    let Some((environment, packet, _)) = Kernel::new(ctx.cast()) else {
        return 0;
    };
    let notes = environment.related();
    match parse_related(&skb, packet) {
        Ok(Kind::Fragment) => {
            notes.is_error = 0;
            FRAGMENT
        }
        Ok(Kind::Error) => {
            notes.is_error = 1;
            ERROR
        }
        Err(reason) => {
            notes.reason = reason as u32;
            0
        }
    }
}

/// Finds the first fragment of the packet's. 0: it is none of ours.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn related_find_first(ctx: *mut __sk_buff) -> u32 {
    let skb = Skb::from_raw(ctx);
    let Some((environment, packet, _)) = Kernel::new(ctx.cast()) else {
        return 0;
    };
    let found = fragment::find_first(&environment, &skb, packet);
    note(environment.related(), found)
}

/// Finds the headers of the packet that is quoted. 0: it is none of ours.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn related_parse_quoted(ctx: *mut __sk_buff) -> u32 {
    let skb = Skb::from_raw(ctx);
    let Some((environment, packet, _)) = Kernel::new(ctx.cast()) else {
        return 0;
    };
    let notes = environment.related();
    let found = parse_quoted(&skb, packet, &mut notes.quoted);
    note(notes, found)
}

/// Whether something was found, and why not.
#[inline(always)]
fn note(notes: &mut Notes, found: Result<(), Reason>) -> u32 {
    match found {
        Ok(()) => 1,
        Err(reason) => {
            notes.reason = reason as u32;
            0
        }
    }
}

/// Decides about a packet: of this host's own, or from outside.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn related_decide(ctx: *mut __sk_buff, own: u32) -> u32 {
    let Some((environment, packet, outcome)) = Kernel::new(ctx.cast()) else {
        return PASS;
    };
    let notes = environment.related();
    let decision = if own != 0 {
        decide_related_reply(&environment, packet, notes.kind(), outcome)
    } else {
        decide_related(&environment, packet, notes.kind(), outcome)
    };
    notes.reason = decision.reason as u32;
    number(decision.step)
}

#[inline(always)]
const fn number(step: Step) -> u32 {
    match step {
        Step::Pass | Step::HandOver => PASS,
        Step::Drop | Step::Reject => DROP,
        Step::Deliver => DELIVER,
        Step::Forward => FORWARD,
        Step::ForwardUnresolved => FORWARD_UNRESOLVED,
    }
}

/// Takes the VLAN tags off a packet that is forwarded, and says what it is. 0: that failed.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn related_untag(ctx: *mut __sk_buff, forwards: u32) -> u32 {
    let mut skb = Skb::from_raw(ctx);
    let Some((environment, packet, outcome)) = Kernel::new(ctx.cast()) else {
        return 0;
    };
    if forwards != 0 {
        if redirect::untag(&mut skb, packet).is_none() {
            return 0;
        }
        if outcome.manner.hands_over() {
            return HANDED_OVER;
        }
    }
    match (environment.related().kind(), packet.family()) {
        (Kind::Fragment, _) => FRAGMENT,
        (Kind::Error, Family::V4) => ERROR_V4,
        (Kind::Error, Family::V6) => ERROR_V6,
    }
}

/// Translates a later fragment. 0: that failed.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn related_rewrite_fragment(ctx: *mut __sk_buff, forwards: u32) -> u32 {
    let mut skb = Skb::from_raw(ctx);
    let Some((_, packet, outcome)) = Kernel::new(ctx.cast()) else {
        return 0;
    };
    let done = fragment::rewrite_later(&mut skb, packet, &outcome.translated, forwards != 0);
    u32::from(done.is_some())
}

/// Translates an ICMP error. 0: that failed.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn related_rewrite_v4(ctx: *mut __sk_buff, forwards: u32) -> u32 {
    let mut skb = Skb::from_raw(ctx);
    let Some((environment, packet, outcome)) = Kernel::new(ctx.cast()) else {
        return 0;
    };
    let (quoted, to) = (&environment.related().quoted, &outcome.translated);
    u32::from(rewrite_error_v4(&mut skb, packet, quoted, to, forwards != 0).is_some())
}

/// Translates an ICMPv6 error. 0: that failed.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn related_rewrite_v6(ctx: *mut __sk_buff, forwards: u32) -> u32 {
    let mut skb = Skb::from_raw(ctx);
    let Some((environment, packet, outcome)) = Kernel::new(ctx.cast()) else {
        return 0;
    };
    let (quoted, to) = (&environment.related().quoted, &outcome.translated);
    u32::from(rewrite_error_v6(&mut skb, packet, quoted, to, forwards != 0).is_some())
}

/// Sends the packet on.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn related_send(ctx: *mut __sk_buff, step: u32) -> i32 {
    let step = match step {
        FORWARD => Step::Forward,
        FORWARD_UNRESOLVED => Step::ForwardUnresolved,
        _ => Step::Deliver,
    };
    let skb = Skb::from_raw(ctx);
    let Some((_, _, outcome)) = Kernel::new(ctx.cast()) else {
        return TC_ACT_SHOT;
    };
    match redirect::finish(&skb, &outcome.next_hop, step) {
        Some(verdict) => verdict,
        None => fail(ctx),
    }
}

/// The verdict on a packet that could not be translated.
#[inline(always)]
fn fail(ctx: *mut __sk_buff) -> i32 {
    if let Some((environment, _, _)) = Kernel::new(ctx.cast()) {
        environment.related().reason = Reason::RewriteFailed as u32;
    }
    TC_ACT_SHOT
}

/// Tells how a packet came that is going to be changed, if somebody watches.
#[inline(always)]
fn tell_before(ctx: *mut __sk_buff, hook: Hook, is_changed: bool) {
    if let Some((environment, _, _)) = Kernel::new(ctx.cast()) {
        event::look(&environment);
        if is_changed {
            event::tell_skb_before(ctx, &environment, environment.related().reason, hook);
        }
    }
}

/// Counts the packet, of which that was the size when it came, and tells of it.
#[inline(always)]
fn count(ctx: *mut __sk_buff, size: usize, hook: Hook) {
    let ifindex = Skb::from_raw(ctx).ifindex();
    if let Some((environment, _, _)) = Kernel::new(ctx.cast()) {
        let reason = environment.related().reason;
        counters::count_number(ifindex, reason, size);
        event::tell_skb(ctx, &environment, reason, hook);
    }
}
