//! Telling whoever watches of packets.
//!
//! While nobody watches, a packet that is counted pays for one look at `WATCH` and two tests of what it
//! found: before the packet is changed, and when it is final. What the first found is kept in the
//! workspace: there the verifier knows nothing of it, and so does not walk all that comes between
//! twice. Everything else stands in functions of its own; see [`related`](crate::related).

use core::ptr;

use aya_ebpf::bindings::{__sk_buff, xdp_md};
use aya_ebpf::helpers::generated::{
    bpf_get_smp_processor_id, bpf_ktime_get_ns, bpf_skb_load_bytes, bpf_xdp_load_bytes,
};
use redirector_common::event::{MAX_SNAP, Phase};
use redirector_common::packet::{Hook, PacketBuf};
use redirector_common::{Event, Reason};

use crate::context::{Frame, Skb, opaque};
use crate::environment::Kernel;
use crate::maps::{EVENT_SPACE, EVENTS, EVENTS_LOST, WATCH};

/// Nobody watches.
const NOBODY: u32 = 0;
/// Somebody watches, and it is not known yet whether this packet is wanted.
const UNTOLD: u32 = 1;
/// The packet is wanted, and the watcher knows how it came.
const TOLD: u32 = 2;
/// The packet is not wanted.
const UNWANTED: u32 = 3;

/// Where an event is put together.
#[repr(C)]
pub(crate) struct Record {
    event: Event,
    bytes: [u8; MAX_SNAP as usize],
    /// Packets since the last that was taken as a sample.
    seen: u32,
    /// Packets that this CPU has told of.
    number: u32,
}

/// Finds out whether somebody watches: once for each packet, before it is told of.
#[inline(always)]
pub(crate) fn look(environment: &Kernel) {
    // SAFETY: a map's element stays allocated until the program has ended. Volatile, as others write.
    let until =
        WATCH.get_ptr(0).map_or(0, |watch| unsafe { (&raw const (*watch).until).read_volatile() });
    environment.set_watched(if until == 0 { NOBODY } else { UNTOLD });
}

/// Tells how the packet came, in XDP, if somebody watches.
#[inline(always)]
pub(crate) fn tell_frame_before(ctx: *mut xdp_md, environment: &Kernel, reason: Reason) {
    if environment.watched() != NOBODY {
        event_frame(ctx, reason as u32, 0);
    }
}

/// Tells how the packet leaves XDP, if somebody watches.
#[inline(always)]
pub(crate) fn tell_frame(ctx: *mut xdp_md, environment: &Kernel, reason: Reason) {
    if environment.watched() != NOBODY {
        event_frame(ctx, reason as u32, 1);
    }
}

/// Tells how the packet came, at TC, if somebody watches.
#[inline(always)]
pub(crate) fn tell_skb_before(
    ctx: *mut __sk_buff,
    environment: &Kernel,
    reason: impl Into<u32>,
    hook: Hook,
) {
    if environment.watched() != NOBODY {
        event_skb(ctx, reason.into(), hook as u32, 0);
    }
}

/// Tells how the packet leaves TC, if somebody watches.
#[inline(always)]
pub(crate) fn tell_skb(
    ctx: *mut __sk_buff,
    environment: &Kernel,
    reason: impl Into<u32>,
    hook: Hook,
) {
    if environment.watched() != NOBODY {
        event_skb(ctx, reason.into(), hook as u32, 1);
    }
}

/// Tells of a packet in XDP: how it came, or, if this is the last event, how it leaves.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn event_frame(ctx: *mut xdp_md, reason: u32, is_last: u32) -> u32 {
    let Some((environment, ..)) = Kernel::new(ctx.cast()) else {
        return 0;
    };
    let Some((record, snap)) = begin(&environment, reason, Hook::Xdp as u32, is_last != 0) else {
        return 0;
    };
    let frame = Frame::from_raw(ctx);
    record.event.ifindex = frame.ifindex();
    let last = last_byte(&mut record.event, frame.size(), snap);
    let bytes = record.bytes.as_mut_ptr().cast();
    let is_copied = last < MAX_SNAP as usize
        // SAFETY: the context is valid, the destination as large as checked; the helper checks the
        // frame's end.
        && unsafe { bpf_xdp_load_bytes(ctx, 0, bytes, last as u32 + 1) } == 0;
    send(record, if is_copied { last + 1 } else { 0 });
    0
}

/// As [`event_frame`], at TC.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn event_skb(ctx: *mut __sk_buff, reason: u32, hook: u32, is_last: u32) -> u32 {
    let Some((environment, ..)) = Kernel::new(ctx.cast()) else {
        return 0;
    };
    let Some((record, snap)) = begin(&environment, reason, hook, is_last != 0) else {
        return 0;
    };
    let skb = Skb::from_raw(ctx);
    record.event.ifindex = skb.ifindex();
    let last = last_byte(&mut record.event, skb.size(), snap);
    let bytes = record.bytes.as_mut_ptr().cast();
    let is_copied = last < MAX_SNAP as usize
        // SAFETY: as above.
        && unsafe { bpf_skb_load_bytes(ctx.cast(), 0, bytes, last as u32 + 1) } == 0;
    send(record, if is_copied { last + 1 } else { 0 });
    0
}

/// Where the event stands and how many bytes of the packet are wanted, if it is to be told.
#[inline(always)]
fn begin(
    environment: &Kernel,
    reason: u32,
    hook: u32,
    is_last: bool,
) -> Option<(&'static mut Record, u32)> {
    let state = environment.watched();
    // Decided about for another Reason.
    let is_new = state == UNTOLD || (state == UNWANTED && reason == Reason::RewriteFailed as u32);
    if is_new {
        let is_chosen = event_choose(reason, hook) != 0;
        environment.set_watched(if is_chosen { TOLD } else { UNWANTED });
        if !is_chosen {
            return None;
        }
    } else if state != TOLD {
        return None;
    }
    let phase = match (is_last, state) {
        (false, _) => Phase::Before,
        (true, UNTOLD) => Phase::Only,
        (true, _) => Phase::After,
    };
    // SAFETY: copied at once.
    let watch = unsafe { &*WATCH.get_ptr(0)? };
    if !watch.wants_phase(phase) {
        return None;
    }
    let snap = watch.snap;
    // SAFETY: this CPU's element, which no other packet touches while this one is handled.
    let record = unsafe { &mut *EVENT_SPACE.get_ptr_mut(0)? };
    let event = &mut record.event;
    event.set_phase(phase);
    if event.reason != reason {
        event.reason = reason;
        event.out_ifindex = 0;
    }
    // SAFETY: takes nothing, touches nothing.
    event.time = unsafe { bpf_ktime_get_ns() };
    Some((record, snap))
}

/// Describes the packet, and says whether the watcher wants it. 0: no.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn event_choose(reason: u32, hook: u32) -> u32 {
    let Some((environment, packet, outcome)) = Kernel::new(ptr::null_mut()) else {
        return 0;
    };
    let (Some(watch), Some(record)) = (WATCH.get_ptr_mut(0), EVENT_SPACE.get_ptr_mut(0)) else {
        return 0;
    };
    // SAFETY: takes nothing, touches nothing.
    let now = unsafe { bpf_ktime_get_ns() };
    // SAFETY: a map's element; a watcher may renew it at the same time, and would again in a second.
    unsafe {
        if now >= (*watch).until {
            // From here on nobody pays for a watcher that went without a word.
            (*watch).until = 0;
            return 0;
        }
    }
    // SAFETY: as above; and this CPU's element, which no other packet touches meanwhile.
    let (watch, record) = unsafe { (&*watch, &mut *record) };
    if !watch.wants(reason) {
        return 0;
    }
    let hook = match hook {
        0 => Hook::Xdp,
        1 => Hook::Ingress,
        _ => Hook::Egress,
    };
    record.event.describe(&environment, packet, outcome, reason, hook);
    if !watch.matches(&record.event) || !watch.takes(reason, &mut record.seen) {
        return 0;
    }
    record.number = record.number.wrapping_add(1);
    record.event.number = record.number;
    // SAFETY: takes nothing, touches nothing.
    record.event.cpu = unsafe { bpf_get_smp_processor_id() };
    1
}

/// Notes the packet's length, and says which byte of it is the last to take; none: a number beyond
/// all that there may be. Not how many, of which 6.1's verifier would not see that they are not zero.
#[inline(always)]
fn last_byte(event: &mut Event, size: usize, snap: u32) -> usize {
    event.len = size as u32;
    opaque(size.min(snap as usize).wrapping_sub(1))
}

/// Sends the event with so many bytes of the packet.
#[inline(always)]
fn send(record: &mut Record, captured: usize) {
    record.event.captured = captured as u32;
    let start = (&raw const *record).cast::<u8>();
    // SAFETY: the event and the bytes that follow it, as many as there are.
    let bytes = unsafe { core::slice::from_raw_parts(start, size_of::<Event>() + captured) };
    if EVENTS.output::<[u8]>(bytes, 0).is_err()
        && let Some(lost) = EVENTS_LOST.get_ptr_mut(0)
    {
        // SAFETY: this CPU's element.
        unsafe { *lost += 1 };
    }
}
