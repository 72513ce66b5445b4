//! The maps, the clock and the routing table, as the packet code asks for them.

use core::ffi::c_void;
use core::ptr::NonNull;

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_ktime_get_coarse_ns};
use redirector_common::node::port_index;
use redirector_common::packet::environment::InsertError;
use redirector_common::packet::{Environment, FlowEntry, Packet, Route, Scratch};
use redirector_common::service::MAGLEV_LINE;
use redirector_common::{
    Backend, BackendId, Flow, Frontend, FrontendKey, Interface, NodeConfig, Port, PortFlags,
    Protocol, Service, ServiceId, Tuple,
};

use crate::maps::{BACKENDS, FLOWS, FRONTENDS, INTERFACES, MAGLEV, NODE, PORTS, SCRATCH, SERVICES};
use crate::redirect;

const EEXIST: i32 = 17;

/// The kernel, seen from a program with this context.
pub(crate) struct Kernel {
    ctx: *mut c_void,
}

impl Kernel {
    #[inline(always)]
    pub(crate) const fn new(ctx: *mut c_void) -> Self {
        Self { ctx }
    }
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
        let (block, byte) = port_index(protocol, port);
        PORTS
            .get(block)
            .and_then(|block| block.flags.get(byte))
            .map_or_else(PortFlags::default, |&flags| PortFlags(flags))
    }

    #[inline(always)]
    fn flow(&self, key: &Tuple) -> Option<FlowEntry> {
        let entry = NonNull::new(FLOWS.get_ptr_mut(key)?)?;
        // SAFETY: a map's element stays allocated until the program has ended.
        Some(unsafe { FlowEntry::new(entry) })
    }

    #[inline(always)]
    fn insert_flow(&self, key: &Tuple, flow: &Flow) -> Result<(), InsertError> {
        FLOWS
            .insert(key, flow, u64::from(BPF_NOEXIST))
            .map_err(|error| if error == -EEXIST { InsertError::Exists } else { InsertError::Full })
    }

    #[inline(always)]
    fn remove_flow(&self, key: &Tuple) {
        // That it was not there is what the caller wants.
        let _ = FLOWS.remove(key);
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
    fn table_entry(&self, index: u32) -> Option<BackendId> {
        let line = MAGLEV.get(index / MAGLEV_LINE)?;
        line.entries.get((index % MAGLEV_LINE) as usize).copied()
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
    fn route(&self, packet: &Packet, to: &Tuple, len: u16) -> Route {
        redirect::route(self.ctx, packet, to, len, self.node().lookup_ifindex)
    }

    #[inline(always)]
    fn scratch(&self) -> Option<NonNull<Scratch>> {
        NonNull::new(SCRATCH.get_ptr_mut(0)?)
    }
}
