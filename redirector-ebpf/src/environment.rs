//! The maps, the clock and the routing table, as the packet code asks for them.

mod exported;
mod kernel;

use core::ptr::NonNull;

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::generated::{
    bpf_get_prandom_u32, bpf_get_smp_processor_id, bpf_jiffies64, bpf_ktime_get_coarse_ns,
};
use aya_ebpf::maps::lpm_trie::Key;
use redirector_common::cache::EPOCHS as EPOCH_COUNT;
use redirector_common::packet::environment::{Inserted, Recorded};
use redirector_common::packet::pressure::Slot;
use redirector_common::packet::{
    Environment, FlowEntry, NextHop, Outcome, Packet, Route, Scratch, Socket,
};
use redirector_common::{
    Address, Affinity, AffinityKey, Backend, BackendId, CacheSet, FirstFragment, Flow, FragmentKey,
    Frontend, FrontendKey, Interface, NodeConfig, Peer, Port, PortFlags, Protocol, Reason,
    RingSlot, Service, ServiceId, SnatAddressKey, SourceBits, SourceRange, Taker, TakerKey, Tuple,
    words,
};

use crate::context::exposed;
use crate::maps::{
    AFFINITY, BACKENDS, EPOCHS, ERROR_BUDGET, FLOW_CACHE, FLOW_RING, FLOWS, FRAGMENTS, FRONTENDS,
    INTERFACES, NODE, PEERS, RING_HANDS, SERVICES, SNAT_ADDRESSES, SOURCE_RANGES, TAKERS, VIPS,
    add_one, add_two,
};
use crate::{counters, maps, redirect, steer};
use exported::{
    flow_admit, flow_clear, flow_follow, flow_reclaim, flow_record, flow_remove_over,
    flow_try_ports, flow_vacate, handover_settle, reply_clamp, steer_count,
};

pub(crate) use kernel::{Kernel, Workspace};

const EEXIST: i32 = 17;

/// Whether our programs are on the interface.
#[inline(always)]
pub(crate) fn is_ours(ifindex: u32) -> bool {
    ifindex != 0 && INTERFACES.get(ifindex).is_some_and(Interface::is_ours)
}

impl Environment for Kernel {
    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: takes nothing, touches nothing.
        unsafe { bpf_ktime_get_coarse_ns() }
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: takes nothing, touches nothing.
        unsafe { bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn node(&self) -> NodeConfig {
        NODE.get(0).copied().unwrap_or_default()
    }

    #[inline(always)]
    fn port_flags(&self, protocol: Protocol, port: Port) -> PortFlags {
        maps::port_flags(protocol, port)
    }

    #[inline(always)]
    fn flow(&self, key: &Tuple) -> Option<FlowEntry> {
        let entry = NonNull::new(FLOWS.get_ptr_mut(key)?)?;
        // SAFETY: a map's element stays allocated until the program has ended.
        Some(unsafe { FlowEntry::new(entry) })
    }

    #[inline(always)]
    fn insert_flow(&self, key: &Tuple, flow: &Flow) -> Inserted {
        match FLOWS.insert(key, flow, u64::from(BPF_NOEXIST)) {
            Ok(()) => Inserted::Done,
            Err(error) if error == -EEXIST => Inserted::Exists,
            Err(_) => Inserted::Full,
        }
    }

    #[inline(always)]
    fn remove_flow(&self, key: &Tuple) {
        // That it was not there is what the caller wants.
        let _ = FLOWS.remove(key);
    }

    #[inline(always)]
    fn partner(&self, entry: FlowEntry) -> Option<FlowEntry> {
        self.flow(self.partner_key(entry))
    }

    #[inline(always)]
    fn remove_partner(&self, entry: FlowEntry) {
        self.remove_flow(self.partner_key(entry));
    }

    #[inline(always)]
    fn follow(&self, _: &Packet, _: FlowEntry) {
        // The packet stands in the workspace, and its flow is found again.
        flow_follow();
    }

    #[inline(always)]
    fn remove_over(&self, _: &Packet, _: FlowEntry) -> bool {
        flow_remove_over() != 0
    }

    #[inline(always)]
    fn admit(&self, _: &Packet, _: &Scratch) {
        // They stand in the workspace.
        flow_admit();
    }

    #[inline(always)]
    fn reclaim(&self) -> bool {
        flow_reclaim() != 0
    }

    #[inline(always)]
    fn clear_slot(&self, index: u32, is_full: bool) -> Slot {
        Slot::from_number(flow_clear(index, is_full.into()))
    }

    #[inline(always)]
    fn vacate(&self, _: &Scratch) -> bool {
        flow_vacate() != 0
    }

    #[inline(always)]
    fn record(&self, _: &Packet, _: &mut Scratch, keep_port: bool) -> Recorded {
        Recorded::from_number(flow_record(keep_port.into()))
    }

    #[inline(always)]
    fn try_ports(&self, _: &Packet, scratch: &mut Scratch, attempts: u32, takes: bool) -> Recorded {
        // The function finds the halves where they are, and changes them.
        exposed(scratch);
        let recorded = flow_try_ports(attempts, takes.into());
        exposed(scratch);
        Recorded::from_number(recorded)
    }

    #[inline(always)]
    fn hold(&self, key: &Tuple) -> &Tuple {
        // SAFETY: as in `Kernel::new`; the reference is gone before the next call.
        let held = unsafe { &mut (*self.workspace).held };
        words::copy(key, held);
        held
    }

    #[inline(always)]
    fn next_admitted(&self) -> u32 {
        next_position(0)
    }

    #[inline(always)]
    fn next_reclaimed(&self) -> u32 {
        next_position(1)
    }

    #[inline(always)]
    fn ring_slot(&self, index: u32) -> Option<NonNull<RingSlot>> {
        NonNull::new(FLOW_RING.get_ptr_mut(index)?)
    }

    #[inline(always)]
    fn count(&self, reason: Reason) {
        counters::count_event(reason);
    }

    #[inline(always)]
    fn ticks(&self) -> u32 {
        // SAFETY: takes nothing, touches nothing.
        unsafe { bpf_jiffies64() as u32 }
    }

    #[inline(always)]
    fn cache_set(&self, hash: u32) -> Option<NonNull<CacheSet>> {
        let sets = self.node().cache_sets;
        if sets == 0 {
            return None;
        }
        // SAFETY: takes nothing, touches nothing.
        let cpu = unsafe { bpf_get_smp_processor_id() };
        // A CPU that the agent did not count on is beyond the array, and does without.
        let index = cpu.wrapping_mul(sets).wrapping_add(hash & (sets - 1));
        NonNull::new(FLOW_CACHE.get_ptr_mut(index)?)
    }

    #[inline(always)]
    fn epoch(&self, hash: u32) -> u32 {
        // Never 0, which stands for an entry that is empty.
        EPOCHS.get(hash >> 24).map_or(1, |&epoch| epoch | 1)
    }

    #[inline(always)]
    fn raise_epoch(&self, hash: u32) {
        const _: () = assert!(EPOCH_COUNT == 1 << 8);
        if let Some(epoch) = EPOCHS.get_ptr_mut(hash >> 24) {
            add_two(epoch);
        }
    }

    #[inline(always)]
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        // SAFETY: copied at once.
        unsafe { FRONTENDS.get(key) }.copied()
    }

    #[inline(always)]
    fn service(&self, id: ServiceId) -> Option<Service> {
        SERVICES.get(id).copied()
    }

    #[inline(always)]
    fn source_allowed(&self, service: ServiceId, client: &Address) -> bool {
        // SAFETY: as in `Kernel::new`; the reference is gone before the next call.
        let source = unsafe { &mut (*self.workspace).source };
        *source = SourceRange::of_client(service, *client);
        // SAFETY: the same fields in the same order, four bytes and then the bits; without
        // padding, as `SourceRange` asserts.
        let key = unsafe { &*(&raw const *source).cast::<Key<SourceBits>>() };
        SOURCE_RANGES.get(key).is_some()
    }

    #[inline(always)]
    fn table_entry(&self, index: u32) -> Option<BackendId> {
        maps::table_entry(index)
    }

    #[inline(always)]
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        // SAFETY: copied at once.
        unsafe { AFFINITY.get(self.affinity_key(key)) }.copied()
    }

    #[inline(always)]
    fn set_affinity(&self, key: &AffinityKey, affinity: &Affinity) {
        // SAFETY: as in `Kernel::new`; the reference is gone before the next call.
        let value = unsafe { &mut (*self.workspace).affinity };
        *value = *affinity;
        // The map makes room for itself; where it can't, the client is only not remembered.
        let _ = AFFINITY.insert(self.affinity_key(key), *value, 0);
    }

    #[inline(always)]
    fn taker(&self, key: &TakerKey) -> Taker {
        // SAFETY: copied at once.
        unsafe { TAKERS.get(key) }.copied().unwrap_or_default()
    }

    #[inline(always)]
    fn is_vip(&self, address: &Address) -> bool {
        VIPS.get_ptr(address).is_some()
    }

    #[inline(always)]
    fn peer(&self, address: &Address) -> Peer {
        // SAFETY: copied at once.
        unsafe { PEERS.get(address) }.copied().unwrap_or_default()
    }

    #[inline(always)]
    fn may_answer(&self) -> bool {
        let Some(budget) = ERROR_BUDGET.get_ptr_mut(0) else {
            return false;
        };
        // SAFETY: this CPU's element, which no other packet touches while this one is handled.
        unsafe { &mut *budget }.take(self.now())
    }

    #[inline(always)]
    fn backend(&self, id: BackendId) -> Option<Backend> {
        BACKENDS.get(id).copied()
    }

    #[inline(always)]
    fn interface(&self, ifindex: u32) -> Option<Interface> {
        INTERFACES.get(ifindex).copied()
    }

    #[inline(always)]
    fn snat_address(&self, key: &SnatAddressKey) -> Option<Address> {
        // SAFETY: copied at once.
        unsafe { SNAT_ADDRESSES.get(key) }.copied()
    }

    #[inline(always)]
    fn fragment(&self, key: &FragmentKey) -> Option<FirstFragment> {
        // SAFETY: copied at once; a note that is replaced meanwhile is of the same packet, or of
        // one of 2^16 later.
        unsafe { FRAGMENTS.get(key) }.copied()
    }

    #[inline(always)]
    fn note_fragment(&self, key: &FragmentKey, first: &FirstFragment) {
        // The least recently used note makes room; without one, those after the first are lost.
        let _ = FRAGMENTS.insert(key, first, 0);
    }

    #[inline(always)]
    fn route(&self, packet: &Packet, to: &Tuple, len: u16, next_hop: &mut NextHop) -> Route {
        // SAFETY: as in `Kernel::new`; the reference is gone before the next call.
        let query = unsafe { &mut (*self.workspace).query };
        query.ifindex = self.node().lookup_ifindex;
        redirect::route(self.ctx, packet, to, len, query, next_hop)
    }

    #[inline(always)]
    fn settle(
        &self,
        _: &Packet,
        len: u16,
        is_first: bool,
        route: Route,
        outcome: &mut Outcome,
    ) -> Route {
        // The function finds the packet and the outcome where they are, and changes the latter.
        exposed(outcome);
        let route = handover_settle(len.into(), is_first.into(), route as u32);
        exposed(outcome);
        Route::from_number(route)
    }

    #[inline(always)]
    fn gateway(&self) -> Address {
        // SAFETY: as in `Kernel::new`; the reference is gone before the next call.
        redirect::gateway(unsafe { &(*self.workspace).query })
    }

    #[inline(always)]
    fn socket(&self, packet: &Packet) -> Socket {
        // SAFETY: as in `Kernel::new`; the reference is gone before the next call.
        steer::socket(self.ctx, packet, unsafe { &mut (*self.workspace).sockets })
    }

    #[inline(always)]
    fn assign(&self, packet: &Packet, to: &Tuple) -> bool {
        let to = (to.destination, to.destination_port);
        // SAFETY: as in `Kernel::new`; the reference is gone before the next call.
        steer::assign(self.ctx, packet, to, unsafe { &mut (*self.workspace).sockets })
    }

    #[inline(always)]
    fn count_steered(&self, _: &Packet, service: ServiceId) {
        // It stands in the workspace.
        steer_count(service);
    }

    #[inline(always)]
    fn clamp_mss(&self, _: &Packet) {
        // It stands in the workspace.
        reply_clamp(self.ctx.cast());
    }

    #[inline(always)]
    fn scratch(&self) -> Option<NonNull<Scratch>> {
        // SAFETY: a field of a valid element.
        NonNull::new(unsafe { &raw mut (*self.workspace).scratch })
    }
}

/// Moves one of the ring's hands on, and says where it was.
#[inline(always)]
fn next_position(hand: u32) -> u32 {
    // Two CPUs never get the same position.
    RING_HANDS.get_ptr_mut(hand).map_or(0, |position| add_one(position) as u32)
}
