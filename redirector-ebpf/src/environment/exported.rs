//! Functions that the verifier walks once and by themselves. What they work on stands in the
//! workspace; arguments and answers are numbers.

use core::ptr;

use aya_ebpf::bindings::{__sk_buff, BPF_NOEXIST};
use redirector_common::packet::environment::Recorded;
use redirector_common::packet::pressure::Slot;
use redirector_common::packet::{
    Environment, Route, handover, mss, new_flow, pressure, renewal, track,
};
use redirector_common::{FrontendKey, Protocol, SteeredKey};

use super::{EEXIST, Kernel};
use crate::context::Skb;
use crate::maps::{STEERED, add_one};

/// Decides in which manner a packet is handed over, and says by which way; by numbers, so that one
/// function serves XDP and TC.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn handover_settle(len: u32, is_first: u32, route: u32) -> u32 {
    let Some((environment, packet, outcome)) = Kernel::new(ptr::null_mut()) else {
        return Route::Unreachable as u32;
    };
    let route = Route::from_number(route);
    handover::settle(&environment, packet, len as u16, is_first != 0, route, outcome) as u32
}

/// Lowers the largest segment that an answer to a SYN announces, as the interface by which it leaves
/// has it: the client's packets come by a tunnel, as a rule over the same link.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn reply_clamp(ctx: *mut __sk_buff) -> u32 {
    let mut skb = Skb::from_raw(ctx);
    let Some((environment, packet, _)) = Kernel::new(ctx.cast()) else {
        return 0;
    };
    let Some(limit) = skb.mtu().and_then(|mtu| mss::limit(packet.family(), mtu)) else {
        return 0;
    };
    // SAFETY: this CPU's element, as in `Kernel::new`; nothing else refers to the field.
    let cursor = unsafe { &mut (*environment.workspace).option };
    mss::lower(&mut skb, packet, cursor, limit);
    0
}

/// Follows the state of the flow of the packet in the workspace.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn flow_follow() -> u32 {
    if let Some((environment, packet, _)) = Kernel::new(ptr::null_mut())
        && let Some(entry) = environment.flow(&packet.tuple)
    {
        track::follow(&environment, packet, entry);
    }
    0
}

/// Removes the flow of the packet in the workspace if it is over. 0: it is not.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn flow_remove_over() -> u32 {
    let Some((environment, packet, _)) = Kernel::new(ptr::null_mut()) else {
        return 0;
    };
    // Where another CPU has removed it, it is as well.
    let entry = environment.flow(&packet.tuple);
    entry.is_none_or(|entry| renewal::remove_over(&environment, packet, entry)).into()
}

/// Makes room for the flow that is put together in the workspace. A function of its own, so that
/// the verifier walks it once.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn flow_admit() -> u32 {
    let Some((environment, packet, _)) = Kernel::new(ptr::null_mut()) else {
        return 0;
    };
    // SAFETY: this CPU's element, as in `Kernel::new`; read while nothing else writes it.
    let born = unsafe { (*environment.workspace).scratch.forward.born() };
    pressure::admit(&environment, &packet.tuple, born);
    0
}

/// Adds the halves that are put together in the workspace: see [`Recorded`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn flow_record(keep_port: u32) -> u32 {
    let Some((environment, packet, _)) = Kernel::new(ptr::null_mut()) else {
        return Recorded::Full as u32;
    };
    // SAFETY: this CPU's element, as in `Kernel::new`; the caller does not use it meanwhile.
    let scratch = unsafe { &mut (*environment.workspace).scratch };
    new_flow::record(&environment, packet, scratch, keep_port != 0) as u32
}

/// Adds them with a port of the translation block for the source address that they have.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn flow_try_ports(attempts: u32, takes: u32) -> u32 {
    let Some((environment, packet, _)) = Kernel::new(ptr::null_mut()) else {
        return Recorded::Full as u32;
    };
    // SAFETY: this CPU's element, as in `Kernel::new`; the caller does not use it meanwhile.
    let scratch = unsafe { &mut (*environment.workspace).scratch };
    new_flow::try_ports(&environment, packet, scratch, attempts, takes != 0) as u32
}

/// Makes room in a flow table that is full. 0: there is none.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn flow_reclaim() -> u32 {
    Kernel::new(ptr::null_mut())
        .is_some_and(|(environment, _, _)| pressure::reclaim(&environment))
        .into()
}

/// Removes the flow that a slot of the ring names, if it has to make room: see [`Slot`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn flow_clear(index: u32, is_full: u32) -> u32 {
    let Some((environment, _, _)) = Kernel::new(ptr::null_mut()) else {
        return Slot::Taken as u32;
    };
    pressure::clear(&environment, index, is_full != 0) as u32
}

/// Takes the reply half's key of the flow that is put together in the workspace from a flow that
/// can go. 0: it can't.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn flow_vacate() -> u32 {
    let Some((environment, _, _)) = Kernel::new(ptr::null_mut()) else {
        return 0;
    };
    // SAFETY: this CPU's element, as in `Kernel::new`; read while nothing else writes it.
    let reply_key = unsafe { &(*environment.workspace).scratch.reply_key };
    pressure::vacate(&environment, reply_key).into()
}

/// Counts one connection to a service that was handed to a listener: the packet's.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn steer_count(service: u32) -> u32 {
    let Some((_, packet, _)) = Kernel::new(ptr::null_mut()) else {
        return 0;
    };
    let tuple = &packet.tuple;
    let frontend = FrontendKey::new(tuple.destination, tuple.destination_port, Protocol::Tcp);
    let key = SteeredKey { service, frontend };
    // Another CPU may add the same key in between.
    for _ in 0..2 {
        if let Some(count) = STEERED.get_ptr_mut(key) {
            add_one(count);
            break;
        }
        if STEERED.insert(key, 1_u64, u64::from(BPF_NOEXIST)) != Err(-EEXIST) {
            break;
        }
    }
    0
}
