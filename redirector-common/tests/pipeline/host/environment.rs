//! The node as the packet code sees it.

use std::cell::UnsafeCell;
use std::ptr::NonNull;

use redirector_common::node::NodeConfig;
use redirector_common::packet::environment::Inserted;
use redirector_common::packet::{Environment, FlowEntry, NextHop, Packet, Route, Scratch, Socket};
use redirector_common::{
    Address, Affinity, AffinityKey, Backend, BackendId, CacheSet, FirstFragment, Flow, FragmentKey,
    Frontend, FrontendKey, Interface, Peer, Port, PortFlags, Protocol, Reason, RingSlot, Service,
    ServiceId, SnatAddressKey, SteeredKey, Taker, TakerKey, Tuple,
};

use super::{CACHE_SETS, Host, IFINDEX, SECOND};

impl Environment for Host {
    fn now(&self) -> u64 {
        self.now.get()
    }

    fn random(&self) -> u32 {
        self.random.set(self.random.get().wrapping_mul(1_664_525).wrapping_add(1_013_904_223));
        self.random.get()
    }

    fn node(&self) -> NodeConfig {
        self.node
    }

    fn port_flags(&self, protocol: Protocol, port: Port) -> PortFlags {
        let first = self.node.snat_first;
        let everywhere = if self.vips.is_empty() { PortFlags(0) } else { PortFlags::VIPS };
        if (first..first + self.node.snat_count).contains(&port.number()) {
            return PortFlags::SNAT.union(everywhere);
        }
        let ports = self.ports.borrow();
        let flags = ports.get(&(protocol.number(), port.number())).copied().unwrap_or_default();
        flags.union(everywhere)
    }

    fn flow(&self, key: &Tuple) -> Option<FlowEntry> {
        self.flow_look_ups.set(self.flow_look_ups.get() + 1);
        let flows = self.flows.borrow();
        let flow = NonNull::new(flows.get(key)?.get())?;
        // SAFETY: boxed, and removed only between packets or by the packet that holds it.
        Some(unsafe { FlowEntry::new(flow) })
    }

    fn insert_flow(&self, key: &Tuple, flow: &Flow) -> Inserted {
        let mut flows = self.flows.borrow_mut();
        if flows.contains_key(key) {
            return Inserted::Exists;
        }
        if flows.len() >= self.flow_capacity.get() {
            return Inserted::Full;
        }
        flows.insert(*key, Box::new(UnsafeCell::new(*flow)));
        Inserted::Done
    }

    fn remove_flow(&self, key: &Tuple) {
        self.flows.borrow_mut().remove(key);
    }

    fn hold(&self, key: &Tuple) -> &Tuple {
        // SAFETY: the packet code holds one at a time.
        unsafe { self.memory.hold(key) }
    }

    fn next_admitted(&self) -> u32 {
        self.admitted.replace(self.admitted.get().wrapping_add(1))
    }

    fn next_reclaimed(&self) -> u32 {
        self.reclaimed.replace(self.reclaimed.get().wrapping_add(1))
    }

    fn ring_slot(&self, index: u32) -> Option<NonNull<RingSlot>> {
        self.ring.get(index as usize).and_then(|slot| NonNull::new(slot.get()))
    }

    fn count(&self, reason: Reason) {
        *self.counted.borrow_mut().entry(reason).or_default() += 1;
    }

    fn ticks(&self) -> u32 {
        (self.now.get() * 250 / SECOND) as u32
    }

    fn cache_set(&self, hash: u32) -> Option<NonNull<CacheSet>> {
        let set = self.caches.then(|| self.cache[hash as usize % CACHE_SETS].get());
        set.and_then(NonNull::new)
    }

    fn epoch(&self, hash: u32) -> u32 {
        self.epochs[(hash >> 24) as usize].get()
    }

    fn raise_epoch(&self, hash: u32) {
        let epoch = &self.epochs[(hash >> 24) as usize];
        epoch.set(epoch.get() + 1);
    }

    fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        self.frontends.get(key).copied()
    }

    fn service(&self, id: ServiceId) -> Option<Service> {
        self.services.get(&id).copied()
    }

    fn source_allowed(&self, service: ServiceId, client: &Address) -> bool {
        let limits = self.services.get(&service).is_some_and(Service::limits_sources);
        assert!(limits, "asked about a service that admits everyone");
        self.sources.iter().any(|range| range.admits(service, client))
    }

    fn table_entry(&self, index: u32) -> Option<BackendId> {
        self.table.get(index as usize).copied()
    }

    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        self.affinities.borrow().get(key).copied()
    }

    fn set_affinity(&self, key: &AffinityKey, affinity: &Affinity) {
        self.affinities.borrow_mut().insert(*key, *affinity);
    }

    fn taker(&self, key: &TakerKey) -> Taker {
        self.takers.get(key).copied().unwrap_or_default()
    }

    fn is_vip(&self, address: &Address) -> bool {
        assert!(!self.vips.is_empty(), "asked for nothing");
        self.vips.contains(address)
    }

    fn peer(&self, address: &Address) -> Peer {
        self.peers.get(address).copied().unwrap_or_default()
    }

    fn may_answer(&self) -> bool {
        let left = self.errors.get();
        self.errors.set(left.saturating_sub(1));
        left > 0
    }

    fn backend(&self, id: BackendId) -> Option<Backend> {
        self.backends.get(&id).copied()
    }

    fn interface(&self, ifindex: u32) -> Option<Interface> {
        self.interface.filter(|_| ifindex == IFINDEX)
    }

    fn snat_address(&self, key: &SnatAddressKey) -> Option<Address> {
        self.snat_addresses.get(key).copied()
    }

    fn fragment(&self, key: &FragmentKey) -> Option<FirstFragment> {
        self.fragments.borrow().get(key).copied()
    }

    fn note_fragment(&self, key: &FragmentKey, first: &FirstFragment) {
        self.fragments.borrow_mut().insert(*key, *first);
    }

    fn route(&self, _: &Packet, to: &Tuple, _: u16, next_hop: &mut NextHop) -> Route {
        self.asked.set(self.asked.get() + 1);
        self.gateway.set(self.router.get().unwrap_or(to.destination));
        next_hop.ifindex = IFINDEX;
        next_hop.mtu = 1280;
        self.route.get()
    }

    fn gateway(&self) -> Address {
        self.gateway.get()
    }

    fn socket(&self, packet: &Packet) -> Socket {
        self.socket_look_ups.set(self.socket_look_ups.get() + 1);
        self.sockets.borrow().get(&packet.tuple).copied().unwrap_or(Socket::None)
    }

    fn count_steered(&self, packet: &Packet, service: ServiceId) {
        let tuple = &packet.tuple;
        let frontend =
            FrontendKey::new(tuple.destination, tuple.destination_port, tuple.protocol());
        *self.steered.borrow_mut().entry(SteeredKey { service, frontend }).or_default() += 1;
    }

    fn clamp_mss(&self, _: &Packet) {
        self.clamped.set(self.clamped.get() + 1);
    }

    fn assign(&self, packet: &Packet, to: &Tuple) -> bool {
        let listener = (to.destination, to.destination_port.number());
        self.listeners.borrow().contains(&listener) && (packet.flags.opens() || self.cookies.get())
    }

    fn scratch(&self) -> Option<NonNull<Scratch>> {
        self.memory.scratch()
    }
}
