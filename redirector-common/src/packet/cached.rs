//! The short way of established flows' packets; see [`cache`](crate::cache).

use core::ptr::NonNull;

use super::decide::{Decision, Hook, Outcome, Step};
use super::select::hash;
use super::{Environment, FlowEntry, Packet};
use crate::cache::{LIFETIME, WAYS};
use crate::{CacheSet, CachedFlow, Tuple, words};

/// Where a packet's flow stands in the cache, and the epoch as it was before anything else was
/// looked up: what was found since may be filled in under it, never under a later one.
#[derive(Clone, Copy)]
pub(super) struct Place {
    hash: u32,
    /// The epoch of the flow's packets in this direction.
    pub(super) epoch: u32,
}

impl Place {
    #[inline(always)]
    pub(super) fn of<E: Environment>(environment: &E, key: &Tuple) -> Self {
        let hash = hash(key);
        Self { hash, epoch: environment.epoch(hash) }
    }
}

/// Decides about a plain packet whose flow is in the cache.
#[inline(always)]
pub(super) fn decide<E: Environment>(
    environment: &E,
    packet: &Packet,
    place: Place,
    hook: Hook,
    len: u16,
    outcome: &mut Outcome,
) -> Option<Decision> {
    if !packet.is_plain() {
        return None;
    }
    let mut set = environment.cache_set(place.hash)?;
    // SAFETY: this CPU's own, and nothing else refers to it while this packet is handled.
    let set = unsafe { set.as_mut() };
    let ticks = environment.ticks();
    for nth in 0..WAYS {
        let way = &mut set.ways[CacheSet::choice(place.hash, nth)];
        // A tuple means different things on its way in and out: what comes in with that of a local
        // backend's reply is somebody else's.
        if way.is_current(place.epoch, ticks)
            && way.key == packet.tuple
            && way.leaves() == matches!(hook, Hook::Egress)
        {
            return hit(packet, way, hook, len, outcome);
        }
    }
    None
}

#[inline(always)]
fn hit(
    packet: &Packet,
    entry: &mut CachedFlow,
    hook: Hook,
    len: u16,
    outcome: &mut Outcome,
) -> Option<Decision> {
    let step = if entry.is_forwarded() {
        if u32::from(len) > entry.next_hop.mtu || (matches!(hook, Hook::Xdp) && !entry.by_xdp()) {
            return None;
        }
        words::copy(&entry.next_hop, &mut outcome.next_hop);
        outcome.manner = entry.manner();
        Step::Forward
    } else if matches!(hook, Hook::Xdp) {
        return Some(Decision::new(Step::HandOver, entry.reason()));
    } else {
        Step::Deliver
    };
    entry.packets += 1;
    entry.bytes += u64::from(packet.ip_len);
    words::copy(&entry.translated, &mut outcome.translated);
    Some(Decision::new(step, entry.reason()))
}

/// Keeps what was decided about a packet of a flow, for those that follow.
#[inline(always)]
pub(super) fn keep<E: Environment>(
    environment: &E,
    packet: &Packet,
    place: Place,
    hook: Hook,
    flow: FlowEntry,
    decision: Decision,
    outcome: &Outcome,
) {
    let forwarded = match decision.step {
        Step::Forward => true,
        Step::Deliver => false,
        Step::Pass | Step::HandOver | Step::Drop | Step::Reject | Step::ForwardUnresolved => return,
    };
    if !flow.is_settled() || !packet.is_plain() {
        return;
    }
    let Some(set) = environment.cache_set(place.hash) else {
        return;
    };
    let ticks = environment.ticks();
    let Some(entry) = make_room(environment, set, packet, place, flow, ticks) else {
        return;
    };
    entry.epoch = 0;
    words::copy(&packet.tuple, &mut entry.key);
    words::copy(&outcome.translated, &mut entry.translated);
    words::copy(&outcome.next_hop, &mut entry.next_hop);
    entry.filled = ticks;
    entry.born = flow.born();
    entry.packets = 0;
    entry.bytes = 0;
    let by_xdp = forwarded
        && (matches!(hook, Hook::Xdp)
            || environment
                .interface(outcome.next_hop.ifindex)
                .is_some_and(|interface| interface.xdp_transmit()));
    entry.set_way(decision.reason, forwarded, by_xdp, outcome.manner);
    entry.epoch = place.epoch;
}

/// The entry to fill in: the flow's own, or else the first choice among those that nobody believes any
/// more, or else the oldest. What it counted goes where it belongs.
#[inline(always)]
fn make_room<'a, E: Environment>(
    environment: &E,
    mut set: NonNull<CacheSet>,
    packet: &Packet,
    place: Place,
    flow: FlowEntry,
    ticks: u32,
) -> Option<&'a mut CachedFlow> {
    // SAFETY: as in `decide`.
    let set = unsafe { set.as_mut() };
    let (mut chosen, mut longest) = (0, 0);
    for nth in 0..WAYS {
        let entry = &set.ways[CacheSet::choice(place.hash, nth)];
        let age = match ticks.wrapping_sub(entry.filled) {
            _ if entry.key == packet.tuple => u32::MAX,
            age if entry.epoch != 0 && age < LIFETIME => age,
            _ => LIFETIME,
        };
        if age > longest {
            (chosen, longest) = (nth, age);
        }
    }
    let entry = &mut set.ways[CacheSet::choice(place.hash, chosen)];
    if entry.packets != 0 {
        if entry.key == packet.tuple {
            flow.add_cached(entry);
        } else if let Some(other) = environment.flow(&entry.key) {
            other.add_cached(entry);
        }
    }
    Some(entry)
}

/// What the caches of all CPUs hold of a flow that is removed before its time.
#[derive(Clone, Copy)]
pub(super) struct Stale([u32; 2]);

impl Stale {
    /// Of both halves, while they are there.
    #[inline(always)]
    pub(super) fn of(key: &Tuple, flow: FlowEntry) -> Self {
        Self([hash(key), hash(&flow.translated().reversed())])
    }

    /// Makes it void. Once the flow is removed: another CPU might keep what it still found.
    #[inline(always)]
    pub(super) fn forget<E: Environment>(self, environment: &E) {
        self.0.into_iter().for_each(|hash| environment.raise_epoch(hash));
    }
}
