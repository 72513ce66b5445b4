//! The routing table, and sending packets out.

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::bindings::{
    BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, TC_ACT_OK,
    bpf_fib_lookup as FibLookup, bpf_redir_neigh, xdp_action,
};
use aya_ebpf::helpers::generated::{
    bpf_fib_lookup, bpf_redirect, bpf_redirect_neigh, bpf_skb_vlan_pop,
};
use redirector_common::packet::{LinkAddresses, NextHop, Packet, PacketBuf, Route, Step};
use redirector_common::{Address, Family, Tuple};

use crate::context::{Frame, Skb};

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const ETHERNET_LEN: u16 = 14;
/// A tag that the driver took out, and two in the frame.
const MAX_POPS: u32 = 3;

/// Asks the routing table for the way to `to`'s destination, as for a packet of this host's own
/// that starts at the interface which `query` names.
#[inline(always)]
pub(crate) fn route(
    ctx: *mut c_void,
    packet: &Packet,
    to: &Tuple,
    len: u16,
    query: &mut FibLookup,
    next_hop: &mut NextHop,
) -> Route {
    query.l4_protocol = to.protocol().number();
    query.sport = to.source_port.raw();
    query.dport = to.destination_port.raw();
    query.__bindgen_anon_1.tot_len = len;
    match packet.family() {
        Family::V4 => {
            query.family = AF_INET;
            query.__bindgen_anon_2.flowinfo = 0;
            query.__bindgen_anon_2.tos = packet.traffic_class;
            query.__bindgen_anon_3.ipv4_src = to.source.words()[3];
            query.__bindgen_anon_4.ipv4_dst = to.destination.words()[3];
        }
        Family::V6 => {
            query.family = AF_INET6;
            query.__bindgen_anon_2.flowinfo = 0;
            query.__bindgen_anon_3.ipv6_src = *to.source.words();
            query.__bindgen_anon_4.ipv6_dst = *to.destination.words();
        }
    }
    const SIZE: i32 = {
        assert!(size_of::<FibLookup>() == 64);
        64
    };
    // SAFETY: the context is valid, the query as large as said.
    let code = unsafe { bpf_fib_lookup(ctx, &raw mut *query, SIZE, 0) };
    next_hop.ifindex = query.ifindex;
    if code == i64::from(BPF_FIB_LKUP_RET_SUCCESS) {
        next_hop.link = LinkAddresses::from_halves(halves(&query.dmac), halves(&query.smac));
        // SAFETY: filled in where a length was given.
        next_hop.mtu = unsafe { query.__bindgen_anon_1.mtu_result }.into();
        Route::Via
    } else if code == i64::from(BPF_FIB_LKUP_RET_NO_NEIGH) {
        Route::Unresolved
    } else if code == i64::from(BPF_FIB_LKUP_RET_FRAG_NEEDED) {
        // SAFETY: this code fills in the MTU.
        next_hop.mtu = unsafe { query.__bindgen_anon_1.mtu_result }.into();
        Route::TooBig
    } else {
        Route::Unreachable
    }
}

/// The neighbour that the look-up has found.
#[inline(always)]
pub(crate) fn gateway(query: &FibLookup) -> Address {
    if query.family == AF_INET {
        // SAFETY: integers, filled in for this family.
        Address::from_v4_word(unsafe { query.__bindgen_anon_4.ipv4_dst })
    } else {
        // SAFETY: as above.
        Address::from_words(unsafe { query.__bindgen_anon_4.ipv6_dst })
    }
}

/// An Ethernet address, loaded two bytes at a time: it stands at an even address.
#[inline(always)]
fn halves(address: &[u8; 6]) -> [u16; 3] {
    // SAFETY: as many bytes; the read is unaligned.
    unsafe { address.as_ptr().cast::<[u16; 3]>().read_unaligned() }
}

/// Sends a frame from XDP: also back where it came from by redirection, never by `XDP_TX`, whose
/// frames a veth leaves lying until others follow if only GRO, and no XDP program, is on its peer.
#[inline(always)]
#[expect(clippy::cast_sign_loss, reason = "an XDP action: helpers return all integers as longs")]
pub(crate) fn send_frame(frame: &Frame, next_hop: &NextHop) -> u32 {
    if write_link(frame, next_hop).is_none() {
        return xdp_action::XDP_DROP;
    }
    // SAFETY: takes integers.
    unsafe { bpf_redirect(next_hop.ifindex, 0) as u32 }
}

/// The verdict on a packet that was translated at TC: sends it, or lets it go on.
#[inline(always)]
pub(crate) fn finish(skb: &Skb, next_hop: &NextHop, step: Step) -> Option<i32> {
    match step {
        Step::Forward => send_skb(skb, next_hop),
        Step::ForwardUnresolved => send_skb_unresolved(next_hop),
        Step::Deliver | Step::Pass | Step::HandOver | Step::Drop | Step::Reject => Some(TC_ACT_OK),
    }
}

/// Sends a packet from TC to a neighbour that is known.
#[inline(always)]
pub(crate) fn send_skb(skb: &Skb, next_hop: &NextHop) -> Option<i32> {
    write_link(skb, next_hop)?;
    // SAFETY: takes integers.
    Some(unsafe { bpf_redirect(next_hop.ifindex, 0) as i32 })
}

/// Sends a packet from TC to a neighbour that the kernel must find.
#[inline(always)]
pub(crate) fn send_skb_unresolved(next_hop: &NextHop) -> Option<i32> {
    // SAFETY: no parameters: the kernel asks the routing table itself.
    Some(unsafe { bpf_redirect_neigh(next_hop.ifindex, ptr::null_mut(), 0, 0) as i32 })
}

/// Sends a packet from TC to a neighbour that the kernel must find, whatever the packet's own
/// destination is.
#[inline(always)]
pub(crate) fn send_skb_to(next_hop: &NextHop, neighbour: &Address) -> Option<i32> {
    const SIZE: i32 = {
        assert!(size_of::<bpf_redir_neigh>() == 20);
        20
    };
    // SAFETY: integers.
    let mut to: bpf_redir_neigh = unsafe { core::mem::zeroed() };
    match neighbour.family() {
        Family::V4 => {
            to.nh_family = AF_INET.into();
            to.__bindgen_anon_1.ipv4_nh = neighbour.words()[3];
        }
        Family::V6 => {
            to.nh_family = AF_INET6.into();
            to.__bindgen_anon_1.ipv6_nh = *neighbour.words();
        }
    }
    // SAFETY: the parameters are as large as said.
    Some(unsafe { bpf_redirect_neigh(next_hop.ifindex, &raw mut to, SIZE, 0) as i32 })
}

#[inline(always)]
fn write_link<P: PacketBuf>(packet: &P, next_hop: &NextHop) -> Option<()> {
    let addresses: *mut [u32; 3] = packet.at(0)?;
    // One by one: for the array the compiler calls a function that copies bytes.
    for (i, word) in next_hop.link.words().iter().enumerate() {
        // SAFETY: `at` checked the bounds.
        unsafe { addresses.cast::<u32>().add(i).write_unaligned(*word) };
    }
    Some(())
}

/// Takes the VLAN tags off a packet that leaves by another interface than it came by, and notes
/// where its headers are then.
#[inline(always)]
pub(crate) fn untag(skb: &mut Skb, packet: &mut Packet) -> Option<()> {
    if packet.vlan_tags == 0 && !skb.has_vlan_tag() {
        return Some(());
    }
    for _ in 0..MAX_POPS {
        // SAFETY: the context is valid. Without a tag left the helper does nothing.
        if unsafe { bpf_skb_vlan_pop(skb.raw()) } != 0 {
            return None;
        }
    }
    packet.transport -= packet.network - ETHERNET_LEN;
    packet.network = ETHERNET_LEN;
    packet.vlan_tags = 0;
    Some(())
}
