//! Telling a packet's sender why it was not delivered.

use aya_ebpf::bindings::{TC_ACT_SHOT, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC};
use aya_ebpf::helpers::generated::{
    bpf_redirect, bpf_skb_adjust_room, bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_store_bytes,
};
use redirector_common::Family;
use redirector_common::packet::icmp::{
    self, MAX_QUOTED_WORDS, Message, V4_HEADER_LEN, V6_HEADER_LEN,
};
use redirector_common::packet::{LinkAddresses, Outcome, Packet, PacketBuf};

use crate::context::{Skb, opaque};

const ETHERNET_LEN: u32 = 14;

/// Turns the packet into an ICMP error and sends it back by the interface that it came in by. A
/// packet that cannot be turned is dropped without an answer.
#[inline(always)]
pub(crate) fn answer(
    skb: &mut Skb,
    packet: &Packet,
    message: &mut Message,
    outcome: &Outcome,
) -> i32 {
    turn(skb, packet, message, outcome).unwrap_or(TC_ACT_SHOT)
}

#[inline(always)]
fn turn(skb: &mut Skb, packet: &Packet, message: &mut Message, outcome: &Outcome) -> Option<i32> {
    if packet.vlan_tags != 0 {
        return None;
    }
    let quoted = quote(skb, packet, message)?;
    icmp::write(message, packet, outcome.error, outcome.next_hop.mtu as u16, quoted);
    let [to, from]: [[u16; 3]; 2] = skb.read(0)?;
    let link = LinkAddresses::from_halves(from, to);
    let grow = match packet.family() {
        Family::V4 => V4_HEADER_LEN,
        Family::V6 => V6_HEADER_LEN,
    };
    // SAFETY: the context is valid; helpers check offsets and lengths.
    unsafe {
        let done = bpf_skb_change_tail(skb.raw(), ETHERNET_LEN + u32::from(quoted), 0);
        if done != 0 {
            return None;
        }
        if bpf_skb_adjust_room(skb.raw(), i32::try_from(grow).ok()?, BPF_ADJ_ROOM_MAC, 0) != 0 {
            return None;
        }
    }
    let addresses: *mut [u32; 3] = skb.at(0)?;
    // SAFETY: `at` checked the bounds.
    unsafe { addresses.write_unaligned(*link.words()) };
    // SAFETY: as above; the header is as long as said in either family.
    let done = unsafe {
        bpf_skb_store_bytes(skb.raw(), ETHERNET_LEN, message.header.as_ptr().cast(), grow as u32, 0)
    };
    if done != 0 {
        return None;
    }
    // SAFETY: takes integers.
    Some(unsafe { bpf_redirect(skb.ifindex(), 0) as i32 })
}

/// Copies what is to be quoted, and says how much it is.
#[inline(always)]
fn quote(skb: &Skb, packet: &Packet, message: &mut Message) -> Option<u16> {
    message.quotation = [0; MAX_QUOTED_WORDS];
    let quoted = opaque(icmp::quoted(packet)?.into());
    // Known already, but not to the verifier.
    if quoted < V4_HEADER_LEN || quoted > size_of_val(&message.quotation) {
        return None;
    }
    // SAFETY: the context is valid, the destination as large as checked; the helper checks the
    // packet's end.
    let done = unsafe {
        bpf_skb_load_bytes(
            skb.raw().cast(),
            packet.network.into(),
            message.quotation.as_mut_ptr().cast(),
            quoted as u32,
        )
    };
    (done == 0).then_some(quoted as u16)
}
