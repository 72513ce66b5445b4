//! The kernel as a program sees it, and the memory that it has for a packet.

use core::ffi::c_void;

use aya_ebpf::bindings::bpf_fib_lookup as FibLookup;
use redirector_common::packet::icmp::Message;
use redirector_common::packet::tunnel::{MAX_WORDS, Tunnelled};
use redirector_common::packet::{FlowEntry, Outcome, Packet, Scratch};
use redirector_common::{Affinity, AffinityKey, SourceRange, Tuple};

use crate::maps::WORKSPACE;
use crate::related::Notes;
use crate::steer;

/// What handling a packet needs memory for, beyond the 512 bytes of a program's stack.
#[repr(C)]
pub(crate) struct Workspace {
    packet: Packet,
    outcome: Outcome,
    pub(super) scratch: Scratch,
    pub(super) query: FibLookup,
    partner_key: Tuple,
    pub(super) held: Tuple,
    pub(super) source: SourceRange,
    affinity_key: AffinityKey,
    pub(super) affinity: Affinity,
    message: Message,
    related: Notes,
    pub(super) sockets: steer::Query,
    pub(super) option: u16,
    tunnelled: Tunnelled,
    header: [u32; MAX_WORDS],
    watched: u32,
}

/// The kernel, seen from a program with this context.
pub(crate) struct Kernel {
    pub(super) ctx: *mut c_void,
    pub(super) workspace: *mut Workspace,
}

impl Kernel {
    /// The kernel, and where to note the packet's headers and what becomes of it.
    #[inline(always)]
    pub(crate) fn new(
        ctx: *mut c_void,
    ) -> Option<(Self, &'static mut Packet, &'static mut Outcome)> {
        let workspace = WORKSPACE.get_ptr_mut(0)?;
        // SAFETY: this CPU's element, which no other packet touches while this one is handled:
        // all hooks run with bottom halves disabled, and none runs inside another. Nothing else
        // refers to these fields.
        let (packet, outcome) = unsafe { (&mut (*workspace).packet, &mut (*workspace).outcome) };
        Some((Self { ctx, workspace }, packet, outcome))
    }

    /// Where to put an ICMP error together.
    #[inline(always)]
    pub(crate) fn message(&self) -> &'static mut Message {
        // SAFETY: as in `new`; called once for a packet.
        unsafe { &mut (*self.workspace).message }
    }

    /// What is known of a packet without ports.
    #[inline(always)]
    pub(crate) fn related(&self) -> &'static mut Notes {
        // SAFETY: as in `new`; called once by each of the functions that share it.
        unsafe { &mut (*self.workspace).related }
    }

    /// What is known of a packet that holds another.
    #[inline(always)]
    pub(crate) fn tunnelled(&self) -> &'static mut Tunnelled {
        // SAFETY: as in `new`; called once by each of the functions that share it.
        unsafe { &mut (*self.workspace).tunnelled }
    }

    /// Where to put a header together.
    #[inline(always)]
    pub(crate) fn header(&self) -> &'static mut [u32; MAX_WORDS] {
        // SAFETY: as in `new`; called once for a packet.
        unsafe { &mut (*self.workspace).header }
    }

    /// What was found out about whoever watches.
    #[inline(always)]
    pub(crate) fn watched(&self) -> u32 {
        // SAFETY: as in `new`. Volatile: functions of their own change it.
        unsafe { (&raw const (*self.workspace).watched).read_volatile() }
    }

    /// Notes what was found out about whoever watches.
    #[inline(always)]
    pub(crate) fn set_watched(&self, found: u32) {
        // SAFETY: as above.
        unsafe { (&raw mut (*self.workspace).watched).write_volatile(found) };
    }

    #[inline(always)]
    pub(super) fn partner_key(&self, entry: FlowEntry) -> &Tuple {
        // SAFETY: as in `new`; the reference is gone before the next call.
        let key = unsafe { &mut (*self.workspace).partner_key };
        *key = entry.translated().reversed();
        key
    }

    #[inline(always)]
    pub(super) fn affinity_key(&self, key: &AffinityKey) -> &AffinityKey {
        // SAFETY: as in `new`; the reference is gone before the next call.
        let place = unsafe { &mut (*self.workspace).affinity_key };
        *place = *key;
        place
    }
}
