//! Flows where they stand.

use core::ptr::NonNull;
use core::sync::atomic::{Ordering, compiler_fence};

use super::NextHop;
use crate::flow::moment;
use crate::{CachedFlow, Flow, FlowState, Manner, ServiceId, Tuple, words};

/// A half of a flow where it stands in its map, shared with other CPUs.
///
/// Fields are read and written one by one, unsynchronised: counters may lose a packet when two
/// CPUs handle one flow at once, which is worth more than an atomic operation for every packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowEntry(NonNull<Flow>);

impl FlowEntry {
    /// # Safety
    ///
    /// `entry` stays valid for as long as this packet is handled.
    #[inline(always)]
    #[must_use]
    pub const unsafe fn new(entry: NonNull<Flow>) -> Self {
        Self(entry)
    }

    #[inline(always)]
    const fn view(&self) -> &Flow {
        // SAFETY: valid, by the promise made to `new`; see the type about sharing.
        unsafe { self.0.as_ref() }
    }

    /// What packets leave with.
    #[inline(always)]
    #[must_use]
    pub const fn translated(&self) -> &Tuple {
        &self.view().translated
    }

    /// The service.
    #[inline(always)]
    #[must_use]
    pub const fn service(&self) -> ServiceId {
        self.view().service
    }

    /// Whether this is the reply half.
    #[inline(always)]
    #[must_use]
    pub const fn is_reply(&self) -> bool {
        matches!(self.view().direction(), crate::Direction::Reply)
    }

    /// Whether the backend is in this host's own stack.
    #[inline(always)]
    #[must_use]
    pub const fn is_local(&self) -> bool {
        self.view().is_local()
    }

    /// Where the flow stands.
    #[inline(always)]
    #[must_use]
    pub const fn state(&self) -> FlowState {
        self.view().state()
    }

    /// Whether the sender of this half's packets has sent FIN.
    #[inline(always)]
    #[must_use]
    pub const fn fin_seen(&self) -> bool {
        self.view().fin_seen()
    }

    /// How the flow's packets get to a backend elsewhere.
    #[inline(always)]
    #[must_use]
    pub const fn manner(&self) -> Manner {
        self.view().manner()
    }

    /// Whether the client is to be told of segments that fit into a tunnel.
    #[inline(always)]
    #[must_use]
    pub const fn clamps_mss(&self) -> bool {
        self.view().clamps_mss()
    }

    /// Packets that this half has counted.
    #[inline(always)]
    #[must_use]
    pub const fn packets(&self) -> u64 {
        self.view().packets
    }

    /// Whether this half has seen no packet for so many milliseconds.
    #[inline(always)]
    #[must_use]
    pub const fn is_idle(&self, now: u64, milliseconds: u64) -> bool {
        now.saturating_sub(self.view().last_seen) > milliseconds * 1_000_000
    }

    /// Sets how packets of this half get to a backend elsewhere.
    #[inline(always)]
    pub const fn set_manner(self, manner: Manner) {
        // SAFETY: as for `count`.
        unsafe { &mut *self.0.as_ptr() }.set_manner(manner);
    }

    /// Whether this half alone is past its timeout.
    #[inline(always)]
    #[must_use]
    pub const fn is_expired(&self, now: u64) -> bool {
        self.view().is_expired(now)
    }

    /// Whether nothing but the passing of time will change the flow's state.
    #[inline(always)]
    #[must_use]
    pub const fn is_settled(&self) -> bool {
        self.view().is_settled()
    }

    /// Whether this is of UDP that has yet to be answered, and saw no packet in the current second:
    /// once in each is often enough for a closer look.
    #[inline(always)]
    #[must_use]
    pub const fn is_unanswered_since(&self, now: u64) -> bool {
        matches!(self.state(), FlowState::Unreplied) && moment(self.view().last_seen) != moment(now)
    }

    /// Nanoseconds since the flow began.
    #[inline(always)]
    #[must_use]
    pub const fn age(&self, now: u64) -> u64 {
        now.saturating_sub(self.view().created)
    }

    /// Nanoseconds since this half last saw a packet.
    #[inline(always)]
    #[must_use]
    pub const fn idle(&self, now: u64) -> u64 {
        now.saturating_sub(self.view().last_seen)
    }

    /// Counts a packet of `bytes` bytes.
    #[inline(always)]
    pub const fn count(self, now: u64, bytes: u16) {
        // SAFETY: as for `view`; plain stores of aligned words.
        let flow = unsafe { &mut *self.0.as_ptr() };
        flow.last_seen = now;
        flow.packets += 1;
        flow.bytes += bytes as u64;
    }

    /// Which of the flows that have had this key.
    #[inline(always)]
    #[must_use]
    pub const fn born(&self) -> u32 {
        self.view().born()
    }

    /// Adds packets that the flow cache has counted.
    #[inline(always)]
    pub const fn add_cached(self, entry: &CachedFlow) {
        // SAFETY: as for `count`.
        let flow = unsafe { &mut *self.0.as_ptr() };
        let (packets, bytes) = entry.pending(flow);
        flow.packets += packets;
        flow.bytes += bytes;
    }

    /// The next hop, if it still holds; see [`Flow::is_routed`].
    #[inline(always)]
    #[must_use]
    pub const fn next_hop(&self, epoch: u32, now: u64) -> Option<&NextHop> {
        if self.view().is_routed(epoch, now) { Some(&self.view().next_hop) } else { None }
    }

    /// Notes the next hop. Void while it is written, so that another CPU does not use half of it.
    #[inline(always)]
    pub fn set_next_hop(self, next_hop: &NextHop, epoch: u32, now: u64) {
        // SAFETY: as for `count`.
        let flow = unsafe { &mut *self.0.as_ptr() };
        flow.epoch = 0;
        compiler_fence(Ordering::SeqCst);
        words::copy(next_hop, &mut flow.next_hop);
        flow.routed = moment(now);
        compiler_fence(Ordering::SeqCst);
        flow.epoch = epoch;
    }

    /// Moves this half to `state`.
    #[inline(always)]
    pub const fn set_state(self, state: FlowState) {
        // SAFETY: as for `count`.
        unsafe { &mut *self.0.as_ptr() }.set_state(state);
    }

    /// Whether the sender of this half's packets has gone on after a RST.
    #[inline(always)]
    #[must_use]
    pub const fn is_alive(&self) -> bool {
        self.view().is_alive()
    }

    /// Notes that the sender of this half's packets has gone on after a RST.
    #[inline(always)]
    pub const fn set_alive(self) {
        // SAFETY: as for `count`.
        unsafe { &mut *self.0.as_ptr() }.set_alive();
    }

    /// Forgets whether there was anything after a RST.
    #[inline(always)]
    pub const fn forget_alive(self) {
        // SAFETY: as for `count`.
        unsafe { &mut *self.0.as_ptr() }.forget_alive();
    }

    /// Forgets a FIN.
    #[inline(always)]
    pub const fn forget_fin(self) {
        // SAFETY: as for `count`.
        unsafe { &mut *self.0.as_ptr() }.forget_fin();
    }

    /// Notes a FIN from the sender of this half's packets.
    #[inline(always)]
    pub const fn set_fin_seen(self) {
        // SAFETY: as for `count`.
        unsafe { &mut *self.0.as_ptr() }.set_fin_seen();
    }
}
