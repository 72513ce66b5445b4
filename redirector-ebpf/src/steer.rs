//! This host's sockets, and handing packets to them.

use core::ffi::c_void;

use aya_ebpf::bindings::{
    BPF_F_CURRENT_NETNS, BPF_TCP_LISTEN, BPF_TCP_TIME_WAIT, bpf_sock, bpf_sock_tuple as SockTuple,
};
use aya_ebpf::helpers::generated::{
    bpf_sk_assign, bpf_sk_release, bpf_skb_load_bytes, bpf_skc_lookup_tcp, bpf_tcp_check_syncookie,
};
use redirector_common::packet::{Packet, Socket};
use redirector_common::{Address, Family, Port};

/// Of either family, without options: a cookie's check looks no further.
const IP_HEADER_LEN: usize = 40;
const TCP_HEADER_LEN: usize = 20;

/// What look-ups need memory for.
#[repr(C)]
pub(crate) struct Query {
    tuple: SockTuple,
    ip: [u8; IP_HEADER_LEN],
    tcp: [u8; TCP_HEADER_LEN],
}

/// What the stack has for a packet as it is.
#[inline(always)]
pub(crate) fn socket(ctx: *mut c_void, packet: &Packet, query: &mut Query) -> Socket {
    let tuple = &packet.tuple;
    let from = (tuple.source, tuple.source_port);
    let found = find(ctx, from, (tuple.destination, tuple.destination_port), query);
    if found.is_null() {
        return Socket::None;
    }
    // SAFETY: not null, and held until it is released.
    let state = unsafe { (*found).state };
    release(found);
    match state {
        BPF_TCP_LISTEN => Socket::None,
        BPF_TCP_TIME_WAIT => Socket::TimeWait,
        _ => Socket::Open,
    }
}

/// Hands the packet to the listener at this address and port; the kernel says no where the
/// listener shares its port with others and the kernel is older than 6.6, and in egress programs.
#[inline(always)]
pub(crate) fn assign(
    ctx: *mut c_void,
    packet: &Packet,
    to: (Address, Port),
    query: &mut Query,
) -> bool {
    // From port 0 there are no connections: one of the client's with the listener's own port would
    // hide the listener. Which of several listeners on one port it is does not matter: the
    // kernel chooses among them when it comes to the packet.
    let found = find(ctx, (packet.tuple.source, Port::ZERO), to, query);
    if found.is_null() {
        return false;
    }
    // SAFETY: not null, and held until it is released.
    let listens = unsafe { (*found).state } == BPF_TCP_LISTEN;
    let assigned = listens
        && (packet.flags.opens() || has_cookie(ctx, packet, found, query))
        // SAFETY: the context is valid, the socket held.
        && unsafe { bpf_sk_assign(ctx, found.cast(), 0) } == 0;
    release(found);
    assigned
}

/// Whether the packet answers a SYN cookie of this listener: its SYN was handed to it.
#[inline(always)]
fn has_cookie(
    ctx: *mut c_void,
    packet: &Packet,
    listener: *mut bpf_sock,
    query: &mut Query,
) -> bool {
    const IP_LEN: u32 = IP_HEADER_LEN as u32;
    const TCP_LEN: u32 = TCP_HEADER_LEN as u32;
    let (network, transport) = (packet.network.into(), packet.transport.into());
    let (ip, tcp) = (query.ip.as_mut_ptr(), query.tcp.as_mut_ptr());
    // SAFETY: the context is valid, the memory as long as said, the socket held; the helpers check
    // the packet's end. A TCP header follows any IP header, so that 40 bytes are there.
    unsafe {
        bpf_skb_load_bytes(ctx, network, ip.cast(), IP_LEN) == 0
            && bpf_skb_load_bytes(ctx, transport, tcp.cast(), TCP_LEN) == 0
            && bpf_tcp_check_syncookie(listener.cast(), ip.cast(), IP_LEN, tcp.cast(), TCP_LEN) == 0
    }
}

/// A connection or else a listener; to be released.
#[inline(always)]
fn find(
    ctx: *mut c_void,
    from: (Address, Port),
    to: (Address, Port),
    query: &mut Query,
) -> *mut bpf_sock {
    let len = match from.0.family() {
        Family::V4 => {
            // SAFETY: every bit pattern is a value.
            let tuple = unsafe { &mut query.tuple.__bindgen_anon_1.ipv4 };
            tuple.saddr = from.0.words()[3];
            tuple.daddr = to.0.words()[3];
            tuple.sport = from.1.raw();
            tuple.dport = to.1.raw();
            size_of_val(tuple)
        }
        Family::V6 => {
            // SAFETY: as above.
            let tuple = unsafe { &mut query.tuple.__bindgen_anon_1.ipv6 };
            tuple.saddr = *from.0.words();
            tuple.daddr = *to.0.words();
            tuple.sport = from.1.raw();
            tuple.dport = to.1.raw();
            size_of_val(tuple)
        }
    };
    let netns = i64::from(BPF_F_CURRENT_NETNS).cast_unsigned();
    // SAFETY: the context is valid, the tuple as long as said.
    unsafe { bpf_skc_lookup_tcp(ctx, &raw mut query.tuple, len as u32, netns, 0) }
}

#[inline(always)]
fn release(socket: *mut bpf_sock) {
    // SAFETY: from `find`, released once. Nothing can go wrong with a socket that is held.
    unsafe { bpf_sk_release(socket.cast()) };
}
