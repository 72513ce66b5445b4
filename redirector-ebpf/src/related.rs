//! Packets that are ours but have no ports of their own: later fragments, and ICMP errors.
//!
//! They are rare, so what they take stands in functions of its own. The verifier walks a function
//! that the object exports once and by itself, where it would walk any other again for every path
//! that leads to its call. The functions tell each other what they found through the workspace.

use aya_ebpf::bindings::{__sk_buff, TC_ACT_OK, TC_ACT_SHOT};
use redirector_common::Reason;
use redirector_common::packet::quoted::Quoted;
use redirector_common::packet::related::{
    complete, decide_related, decide_related_reply, parse_related, rewrite_related,
};
use redirector_common::packet::{Kind, PacketBuf, Step, fragment};

use crate::context::Skb;
use crate::counters;
use crate::environment::Kernel;
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

/// Handles a later fragment or ICMP message that came in from outside.
#[inline(always)]
pub(crate) fn handle_in(ctx: *mut __sk_buff) -> i32 {
    let size = Skb::from_raw(ctx).size();
    let found = related_parse(ctx) != 0 && related_complete(ctx) != 0;
    let step = if found { related_decide(ctx, 0) } else { PASS };
    let verdict = match step {
        PASS => TC_ACT_OK,
        DROP => TC_ACT_SHOT,
        _ => related_rewrite(ctx, step),
    };
    count(ctx, size);
    verdict
}

/// Handles a later fragment or ICMP message of this host's own.
#[inline(always)]
pub(crate) fn handle_out(ctx: *mut __sk_buff) -> i32 {
    let ours =
        related_parse(ctx) != 0 && related_complete(ctx) != 0 && related_decide(ctx, 1) != PASS;
    if !ours {
        return TC_ACT_OK;
    }
    let size = Skb::from_raw(ctx).size();
    let verdict = related_rewrite(ctx, DELIVER);
    count(ctx, size);
    verdict
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

/// Finds the packet's own headers. 0: it is none of ours.
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
        Ok(kind) => {
            notes.is_error = u32::from(matches!(kind, Kind::Error));
            1
        }
        Err(reason) => {
            notes.reason = reason as u32;
            0
        }
    }
}

/// Finds out which flow's tuple it would have. 0: it is none of ours.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn related_complete(ctx: *mut __sk_buff) -> u32 {
    let skb = Skb::from_raw(ctx);
    let Some((environment, packet, _)) = Kernel::new(ctx.cast()) else {
        return 0;
    };
    let notes = environment.related();
    match complete(&environment, &skb, packet, notes.kind(), &mut notes.quoted) {
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

/// Translates the packet and sends it on.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn related_rewrite(ctx: *mut __sk_buff, step: u32) -> i32 {
    let step = match step {
        FORWARD => Step::Forward,
        FORWARD_UNRESOLVED => Step::ForwardUnresolved,
        _ => Step::Deliver,
    };
    let mut skb = Skb::from_raw(ctx);
    let Some((environment, packet, outcome)) = Kernel::new(ctx.cast()) else {
        return TC_ACT_SHOT;
    };
    let notes = environment.related();
    let forwards = !matches!(step, Step::Deliver);
    let ready = !forwards || redirect::untag(&mut skb, packet).is_some();
    let to = &outcome.translated;
    let done = if ready {
        rewrite_related(&mut skb, packet, notes.kind(), &notes.quoted, to, forwards)
    } else {
        None
    };
    match done.and_then(|()| redirect::finish(&skb, &outcome.next_hop, step)) {
        Some(verdict) => verdict,
        None => {
            notes.reason = Reason::RewriteFailed as u32;
            TC_ACT_SHOT
        }
    }
}

/// Counts the packet, of which that was the size when it came.
#[inline(always)]
fn count(ctx: *mut __sk_buff, size: usize) {
    let ifindex = Skb::from_raw(ctx).ifindex();
    if let Some((environment, _, _)) = Kernel::new(ctx.cast()) {
        counters::count_number(ifindex, environment.related().reason, size);
    }
}
