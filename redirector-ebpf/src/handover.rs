//! Handing packets over to other nodes: as they are, or in a packet of this host's own.
//!
//! TC's part stands in functions of its own; see [`related`](crate::related).

use aya_ebpf::bindings::bpf_adj_room_mode::BPF_ADJ_ROOM_MAC;
use aya_ebpf::bindings::{
    __sk_buff, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6,
    BPF_F_ADJ_ROOM_FIXED_GSO, TC_ACT_SHOT, xdp_md,
};
use aya_ebpf::helpers::generated::{bpf_skb_adjust_room, bpf_skb_store_bytes, bpf_xdp_adjust_head};
use redirector_common::packet::tunnel::{header_len, take_hop, write_header};
use redirector_common::packet::{Environment, Outcome, Packet, PacketBuf, rewrite};
use redirector_common::{Family, Interface, Manner, words};

use crate::context::{Frame, Skb};
use crate::environment::Kernel;
use crate::redirect;

const ETHERNET_LEN: u32 = 14;

/// Makes a frame in XDP what is to be sent, but for its Ethernet addresses.
#[inline(always)]
pub(crate) fn prepare(frame: &mut Frame, packet: &Packet, outcome: &mut Outcome) -> Option<()> {
    if matches!(outcome.manner, Manner::Layer2) {
        return Some(());
    }
    keep_tuple(packet, outcome);
    rewrite(frame, packet, &outcome.translated, true)?;
    if matches!(outcome.manner, Manner::Tunnel) && handover_cover(frame.raw()) == 0 {
        return None;
    }
    Some(())
}

/// Sees to it that a packet which is handed over is not translated.
#[inline(always)]
pub(crate) fn keep_tuple(packet: &Packet, outcome: &mut Outcome) {
    if outcome.manner.hands_over() {
        outcome.backend = outcome.translated.destination;
        words::copy(&packet.tuple, &mut outcome.translated);
    }
}

/// Puts a header of this host's own before the packet in XDP. 0: it could not be done.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn handover_cover(ctx: *mut xdp_md) -> u32 {
    let frame = Frame::from_raw(ctx);
    let Some((environment, packet, outcome)) = Kernel::new(ctx.cast()) else {
        return 0;
    };
    u32::from(cover_frame(&frame, &environment, packet, outcome).is_some())
}

#[inline(always)]
fn cover_frame(
    frame: &Frame,
    environment: &Kernel,
    packet: &Packet,
    outcome: &Outcome,
) -> Option<()> {
    let header = fill_header(environment, packet, outcome)?;
    let len = header_len(packet.family());
    // The addresses will be new ones.
    let ether_type: u16 = frame.read(12)?;
    // SAFETY: the context is valid.
    if unsafe { bpf_xdp_adjust_head(frame.raw(), -i32::from(len)) } != 0 {
        return None;
    }
    let at: *mut u16 = frame.at(12)?;
    // SAFETY: `at` checked the bounds.
    unsafe { at.write_unaligned(ether_type) };
    match packet.family() {
        Family::V4 => write_words::<5>(frame, header),
        Family::V6 => write_words::<10>(frame, header),
    }
}

#[inline(always)]
fn write_words<const N: usize>(frame: &Frame, header: &[u32; 10]) -> Option<()> {
    let at: *mut [u32; N] = frame.at(ETHERNET_LEN as usize)?;
    for (i, word) in header.iter().enumerate().take(N) {
        // SAFETY: `at` checked the bounds.
        unsafe { at.cast::<u32>().add(i).write_unaligned(*word) };
    }
    Some(())
}

/// The header around the packet, from the address that this host has on the way.
#[inline(always)]
fn fill_header(
    environment: &Kernel,
    packet: &Packet,
    outcome: &Outcome,
) -> Option<&'static [u32; 10]> {
    let source = environment
        .interface(outcome.next_hop.ifindex)
        .map(|interface: Interface| interface.source(packet.family()))
        .filter(|source| !source.is_unspecified())?;
    let header = environment.header();
    write_header(header, packet, &source, &outcome.backend);
    Some(header)
}

/// Prepares a later fragment or an ICMP error for being sent at TC. 0: that failed.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn handover_related(ctx: *mut __sk_buff) -> u32 {
    let mut skb = Skb::from_raw(ctx);
    let Some((_, packet, outcome)) = Kernel::new(ctx.cast()) else {
        return 0;
    };
    outcome.backend = outcome.translated.destination;
    let is_ready = matches!(outcome.manner, Manner::Layer2) || take_hop(&mut skb, packet).is_some();
    u32::from(is_ready)
}

/// Sends a packet at TC, of which everything but its TTL is as it came.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn handover_send(ctx: *mut __sk_buff, unresolved: u32) -> i32 {
    let skb = Skb::from_raw(ctx);
    let Some((environment, packet, outcome)) = Kernel::new(ctx.cast()) else {
        return TC_ACT_SHOT;
    };
    let tunnel = matches!(outcome.manner, Manner::Tunnel);
    if tunnel && cover_skb(&skb, &environment, packet, outcome).is_none() {
        return -1;
    }
    let sent = if unresolved == 0 {
        redirect::send_skb(&skb, &outcome.next_hop)
    } else if tunnel {
        redirect::send_skb_unresolved(&outcome.next_hop)
    } else {
        redirect::send_skb_to(&outcome.next_hop, &environment.gateway())
    };
    sent.unwrap_or(-1)
}

/// Puts a header of this host's own before the packet, and tells the kernel so: where this is to be
/// cut into segments, each gets one.
#[inline(always)]
fn cover_skb(skb: &Skb, environment: &Kernel, packet: &Packet, outcome: &Outcome) -> Option<()> {
    let header = fill_header(environment, packet, outcome)?;
    let len = header_len(packet.family());
    let family = match packet.family() {
        Family::V4 => BPF_F_ADJ_ROOM_ENCAP_L3_IPV4,
        Family::V6 => BPF_F_ADJ_ROOM_ENCAP_L3_IPV6,
    };
    // Segments keep their size: that they fit is known.
    let flags = u64::from(family | BPF_F_ADJ_ROOM_FIXED_GSO);
    // SAFETY: the context is valid; helpers check offsets and lengths, and the header has as many
    // bytes in either family.
    let done = unsafe {
        bpf_skb_adjust_room(skb.raw(), i32::from(len), BPF_ADJ_ROOM_MAC, flags) == 0
            && bpf_skb_store_bytes(
                skb.raw(),
                ETHERNET_LEN,
                header.as_ptr().cast(),
                u32::from(len),
                0,
            ) == 0
    };
    done.then_some(())
}
