//! What the packet code is told when it asks; every answer is noted.

use std::cell::UnsafeCell;
use std::net::SocketAddr;
use std::ptr::NonNull;

use redirector_common::packet::environment::Inserted;
use redirector_common::packet::pressure::{self, Slot};
use redirector_common::packet::{Environment, FlowEntry, NextHop, Packet, Route, Scratch, Socket};
use redirector_common::service::MAGLEV_LINE;
use redirector_common::{
    Address, Affinity, AffinityKey, Backend, BackendId, CacheSet, FirstFragment, Flow, FragmentKey,
    Frontend, FrontendKey, Interface, NodeConfig, Origin, Peer, Port, PortFlags, Protocol, Reason,
    RingSlot, Service, ServiceId, SnatAddressKey, Taker, TakerKey, Tuple,
};

use super::Copied;
use crate::cli::counters::interface_name;
use crate::cli::explain::sockets;
use crate::cli::map::flag_names;
use crate::dataplane::info::format_frontend;

impl Environment for Copied {
    fn now(&self) -> u64 {
        self.now
    }

    fn random(&self) -> u32 {
        let mut random = self.random.borrow_mut();
        *random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *random
    }

    fn node(&self) -> NodeConfig {
        self.node
    }

    fn port_flags(&self, protocol: Protocol, port: Port) -> PortFlags {
        let flags = self.ports.get(&(protocol, port.number().into())).copied();
        let flags = flags.unwrap_or_default();
        let names = flag_names(flags).join(", ");
        let found = if names.is_empty() { "not used by redirector".to_owned() } else { names };
        self.note("port", format!("{port}/{}: {found}", protocol.name().to_lowercase()));
        if self.vips.is_empty() { flags } else { flags.union(PortFlags::VIPS) }
    }

    fn flow(&self, key: &Tuple) -> Option<FlowEntry> {
        let Some(half) = self.half(key) else {
            self.note("flow", format!("none for {}", show(key)));
            return None;
        };
        // SAFETY: a copy of our own, which is removed only by the packet that holds it, and to
        // which nothing else refers at this moment.
        let flow = unsafe { half.read() };
        self.note(
            "flow",
            format!(
                "{} since {} s, of {}, to {}",
                flow.state().name(),
                self.now.saturating_sub(flow.created) / 1_000_000_000,
                self.service_name(flow.service),
                self.backend_name(flow.backend)
            ),
        );
        // SAFETY: as above.
        Some(unsafe { FlowEntry::new(half) })
    }

    fn insert_flow(&self, key: &Tuple, flow: &Flow) -> Inserted {
        if self.half(key).is_some() {
            return Inserted::Exists;
        }
        self.flows.borrow_mut().insert(*key, Some(Box::new(UnsafeCell::new(*flow))));
        Inserted::Done
    }

    fn remove_flow(&self, key: &Tuple) {
        self.flows.borrow_mut().insert(*key, None);
    }

    fn partner(&self, entry: FlowEntry) -> Option<FlowEntry> {
        let half = self.half(&entry.translated().reversed())?;
        // SAFETY: as in `flow`.
        Some(unsafe { FlowEntry::new(half) })
    }

    // The copy has no need of room.
    fn admit(&self, _: &Packet, _: &Scratch) {}

    fn reclaim(&self) -> bool {
        false
    }

    fn clear_slot(&self, _: u32, _: bool) -> Slot {
        Slot::Taken
    }

    fn vacate(&self, scratch: &Scratch) -> bool {
        // Of many ports each is looked at, which would be the most of what is said.
        let said = self.steps.borrow().len();
        let is_free = pressure::vacate(self, &scratch.reply_key);
        self.steps.borrow_mut().truncate(said);
        is_free
    }

    fn hold(&self, key: &Tuple) -> &Tuple {
        // SAFETY: the packet code holds one at a time.
        unsafe { self.memory.hold(key) }
    }

    fn next_admitted(&self) -> u32 {
        0
    }

    fn next_reclaimed(&self) -> u32 {
        0
    }

    fn ring_slot(&self, _: u32) -> Option<NonNull<RingSlot>> {
        None
    }

    fn count(&self, _: Reason) {}

    fn ticks(&self) -> u32 {
        0
    }

    fn cache_set(&self, _: u32) -> Option<NonNull<CacheSet>> {
        // What it says stands in the flow table too.
        None
    }

    fn epoch(&self, _: u32) -> u32 {
        // Of no flow: the way is asked for anew.
        u32::MAX
    }

    fn raise_epoch(&self, _: u32) {}

    fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        let frontend = self.frontends.get(key).copied();
        let found = frontend.map_or_else(
            || "none: no service has it".to_owned(),
            |frontend| self.service_name(frontend.service),
        );
        self.note("frontend", format!("{}: {found}", format_frontend(key)));
        frontend
    }

    fn service(&self, id: ServiceId) -> Option<Service> {
        let service = self.services.get(&id).copied();
        let found = service.map_or_else(
            || "not there".to_owned(),
            |service| {
                let (_, size) = service.table(Origin::Outside);
                let mut found = match size {
                    0 => "no backend takes new flows".to_owned(),
                    1 => "one backend".to_owned(),
                    size => format!("a table of {size} entries"),
                };
                if service.is_random() {
                    found += ", chosen from at random (the same for a connection for a minute)";
                }
                if service.has_affinity() {
                    found += &format!(", clients stay for {} s", service.affinity_seconds);
                }
                found
            },
        );
        self.note("service", format!("{}: {found}", self.service_name(id)));
        service
    }

    fn source_allowed(&self, service: ServiceId, client: &Address) -> bool {
        let allowed = self.ranges.iter().any(|range| range.admits(service, client));
        let found = if allowed { "in a source range" } else { "in no source range" };
        self.note("source", format!("{client} is {found} of the service"));
        allowed
    }

    fn table_entry(&self, index: u32) -> Option<BackendId> {
        let line = self.read(self.large.maglev_line(index / MAGLEV_LINE))?;
        let id = line.entries.get((index % MAGLEV_LINE) as usize).copied()?;
        self.note("table", format!("entry {index}: {}", self.backend_name(id)));
        Some(id)
    }

    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        let affinity = self.affinities.get(key).copied();
        let found = affinity.map_or_else(
            || "is not remembered".to_owned(),
            |affinity| {
                let age = self.now.saturating_sub(affinity.last_seen) / 1_000_000_000;
                format!("went to {} {age} s ago", self.backend_name(affinity.backend))
            },
        );
        self.note("affinity", format!("{} {found}", key.client));
        affinity
    }

    fn set_affinity(&self, _: &AffinityKey, _: &Affinity) {}

    fn taker(&self, key: &TakerKey) -> Taker {
        let taker = self.takers.get(key).copied().unwrap_or_default();
        let found = if taker.takes_from(Origin::Outside) { "stays" } else { "takes no new flows" };
        self.note("affinity", format!("{}: {found}", self.backend_name(key.backend)));
        taker
    }

    fn is_vip(&self, address: &Address) -> bool {
        let is_vip = self.vips.contains(address);
        if is_vip {
            self.note("address", format!("only frontends have {address}"));
        }
        is_vip
    }

    fn peer(&self, address: &Address) -> Peer {
        let peer = self.peers.get(address).copied().unwrap_or_default();
        let found = if peer.takes_flows() {
            "a node that runs redirector"
        } else if peer.is_known() {
            "a node that is not known to run redirector: it gets no new flows"
        } else {
            "no other node"
        };
        self.note("peer", format!("{address}: {found}"));
        peer
    }

    fn may_answer(&self) -> bool {
        true
    }

    fn backend(&self, id: BackendId) -> Option<Backend> {
        let backend = self.backends.get(&id).copied();
        let place = match backend {
            Some(backend) if backend.is_local() => "on this host",
            Some(_) => "elsewhere",
            None => "not there",
        };
        self.note("backend", format!("{}: {place}", self.backend_name(id)));
        // As the kernel's array has it.
        Some(backend.unwrap_or(Backend::NONE))
    }

    fn interface(&self, ifindex: u32) -> Option<Interface> {
        self.interfaces.get(&ifindex).copied()
    }

    fn snat_address(&self, key: &SnatAddressKey) -> Option<Address> {
        let address = self.snat_addresses.get(key).copied()?;
        let found = format!("{address}: no port of those before it is free");
        // Once more for ports that others may have to give up.
        if self.steps.borrow().iter().all(|step| step.found != found) {
            self.note("source", found);
        }
        Some(address)
    }

    fn fragment(&self, _: &FragmentKey) -> Option<FirstFragment> {
        None
    }

    fn note_fragment(&self, _: &FragmentKey, _: &FirstFragment) {}

    fn socket(&self, packet: &Packet) -> Socket {
        let socket = sockets::owner(&self.sockets, packet);
        let found = match socket {
            Socket::None => "none of this host's has this connection",
            Socket::TimeWait => "one of this host's has just closed this connection",
            Socket::Open => "one of this host's has this connection",
        };
        self.note("socket", found.to_owned());
        socket
    }

    fn count_steered(&self, _: &Packet, _: ServiceId) {}

    // Only of what leaves, which is not explained.
    fn clamp_mss(&self, _: &Packet) {}

    fn assign(&self, _: &Packet, to: &Tuple) -> bool {
        let listens = sockets::listens(&self.sockets, to);
        let found = if listens { "a program listens" } else { "no program listens" };
        self.note("socket", format!("{found} on port {}", to.destination_port));
        listens
    }

    fn route(&self, _: &Packet, to: &Tuple, len: u16, next_hop: &mut NextHop) -> Route {
        let (route, found) = match (self.find_way)(to.destination) {
            Err(error) => (Route::Unreachable, format!("the kernel does not say: {error}")),
            Ok(None) => (Route::Unreachable, "no way that leaves this host".to_owned()),
            Ok(Some(way)) => {
                self.gateway.set(way.gateway.map_or(to.destination, Address::from));
                next_hop.ifindex = way.ifindex;
                next_hop.mtu = way.mtu;
                let by = way.gateway.map(|gateway| format!(" by {gateway}")).unwrap_or_default();
                let out = format!("out of {}{by}", interface_name(way.ifindex));
                if u32::from(len) > way.mtu {
                    (Route::TooBig, format!("{out}, where at most {} bytes fit", way.mtu))
                } else if way.is_resolved {
                    (Route::Via, out)
                } else {
                    (Route::Unresolved, format!("{out}, to a neighbour yet to be found"))
                }
            }
        };
        self.note("route", format!("to {}: {found}", to.destination));
        route
    }

    fn gateway(&self) -> Address {
        self.gateway.get()
    }

    fn scratch(&self) -> Option<NonNull<Scratch>> {
        self.memory.scratch()
    }
}

fn show(tuple: &Tuple) -> String {
    let end = |address: Address, port: Port| SocketAddr::new(address.into(), port.number());
    let source = end(tuple.source, tuple.source_port);
    format!("{source} → {}", end(tuple.destination, tuple.destination_port))
}
