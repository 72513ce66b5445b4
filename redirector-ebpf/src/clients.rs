//! Programs for sockets of a control group: clients on this machine, whose packets come in by no
//! interface.
//!
//! They run in the context of the process that makes the call, where a packet may come in between:
//! nothing here touches `WORKSPACE`.

use core::mem::MaybeUninit;
use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::helpers::generated::{
    bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_ktime_get_coarse_ns, bpf_set_retval,
};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use redirector_common::packet::select::Tables;
use redirector_common::socket::{Client, Directory, exchange};
use redirector_common::{
    Address, Affinity, AffinityKey, Backend, BackendId, Endpoint, Frontend, FrontendKey, Port,
    PortFlags, Protocol, Service, ServiceId, SocketKey, Taker, TakerKey, Verdict,
};

use crate::maps::{AFFINITY, BACKENDS, FRONTENDS, NODE, SERVICES, SOCKETS, TAKERS};
use crate::{counters, maps};

/// The call goes on.
const ALLOW: i32 = 1;
/// The call fails, with the error that was set.
const REFUSE: i32 = 0;

const ECONNREFUSED: i32 = 111;

/// `connect` of an IPv4 socket, or of an IPv6 one with an IPv4 address.
#[cgroup_sock_addr(connect4)]
pub fn rd_connect4(ctx: SockAddrContext) -> i32 {
    ask(&V4(ctx.sock_addr))
}

/// `connect` of an IPv6 socket, to an IPv4-mapped address too.
#[cgroup_sock_addr(connect6)]
pub fn rd_connect6(ctx: SockAddrContext) -> i32 {
    ask(&V6(ctx.sock_addr))
}

/// A datagram of a UDP socket that is not connected.
#[cgroup_sock_addr(sendmsg4)]
pub fn rd_sendmsg4(ctx: SockAddrContext) -> i32 {
    ask(&V4(ctx.sock_addr))
}

/// The same for IPv6; to an IPv4-mapped address, the kernel asks the one above.
#[cgroup_sock_addr(sendmsg6)]
pub fn rd_sendmsg6(ctx: SockAddrContext) -> i32 {
    ask(&V6(ctx.sock_addr))
}

/// Whom a datagram came from.
#[cgroup_sock_addr(recvmsg4)]
pub fn rd_recvmsg4(ctx: SockAddrContext) -> i32 {
    tell(&V4(ctx.sock_addr))
}

/// The same for IPv6.
#[cgroup_sock_addr(recvmsg6)]
pub fn rd_recvmsg6(ctx: SockAddrContext) -> i32 {
    tell(&V6(ctx.sock_addr))
}

/// Whom a socket is connected to.
#[cgroup_sock_addr(getpeername4)]
pub fn rd_getpeername4(ctx: SockAddrContext) -> i32 {
    tell(&V4(ctx.sock_addr))
}

/// The same for IPv6.
#[cgroup_sock_addr(getpeername6)]
pub fn rd_getpeername6(ctx: SockAddrContext) -> i32 {
    tell(&V6(ctx.sock_addr))
}

/// Exchanges what a program asks for, and remembers it.
#[inline(always)]
fn ask(socket: &impl Socket) -> i32 {
    let Some(protocol) = socket.protocol() else {
        return ALLOW;
    };
    let asked = socket.endpoint();
    let client = Client { protocol, cookie: socket.cookie(), netns_cookie: socket.netns_cookie() };
    let mut to = asked;
    let reason = exchange(&Maps, &client, &asked, &mut to);
    match reason.verdict() {
        Verdict::Pass => ALLOW,
        Verdict::Deliver | Verdict::Forward => {
            remember(SocketKey::new(client.cookie, to), &asked);
            socket.set_endpoint(&to);
            counters::count_event(reason);
            ALLOW
        }
        Verdict::Drop => {
            // SAFETY: takes a number, touches nothing else.
            unsafe { bpf_set_retval(-ECONNREFUSED) };
            counters::count_event(reason);
            REFUSE
        }
    }
}

/// Notes what a socket asked for, unless it is noted already: each datagram comes by here.
#[inline(always)]
fn remember(key: SocketKey, asked: &Endpoint) {
    if key.peer == *asked {
        return;
    }
    // SAFETY: compared at once.
    if unsafe { SOCKETS.get(key) }.is_some_and(|known| known == asked) {
        return;
    }
    // Full it never is: the oldest go. Where the kernel has no memory, the program is told of the
    // backend instead.
    let _ = SOCKETS.insert(key, asked, 0);
}

/// Tells a program what it asked for where the kernel would tell it what it got.
#[inline(always)]
fn tell(socket: &impl Socket) -> i32 {
    let key = SocketKey::new(socket.cookie(), socket.endpoint());
    // SAFETY: copied at once.
    if let Some(asked) = unsafe { SOCKETS.get(key) }.copied() {
        socket.set_endpoint(&asked);
    }
    ALLOW
}

/// The address that a call is about, in the kernel's `struct bpf_sock_addr`. Each field is read
/// and written whole and by itself: the verifier allows nothing else.
trait Socket {
    fn ctx(&self) -> *mut bpf_sock_addr;
    fn address(&self) -> Address;
    fn set_address(&self, address: &Address);

    #[inline(always)]
    fn endpoint(&self) -> Endpoint {
        // SAFETY: the kernel's context, valid for the whole program. The port stands in the first
        // two bytes.
        let port = unsafe { read_volatile(&raw const (*self.ctx()).user_port) };
        let [high, low, ..] = port.to_ne_bytes();
        Endpoint::new(self.address(), Port::from_bytes([high, low]))
    }

    #[inline(always)]
    fn set_endpoint(&self, endpoint: &Endpoint) {
        let [high, low] = endpoint.port.bytes();
        let port = u32::from_ne_bytes([high, low, 0, 0]);
        // SAFETY: as above.
        unsafe { write_volatile(&raw mut (*self.ctx()).user_port, port) };
        self.set_address(&endpoint.address);
    }

    #[inline(always)]
    fn protocol(&self) -> Option<Protocol> {
        // SAFETY: as above.
        match unsafe { read_volatile(&raw const (*self.ctx()).protocol) } {
            6 => Some(Protocol::Tcp),
            17 => Some(Protocol::Udp),
            _ => None,
        }
    }

    #[inline(always)]
    fn cookie(&self) -> u64 {
        // SAFETY: the context of this program.
        unsafe { bpf_get_socket_cookie(self.ctx().cast()) }
    }

    #[inline(always)]
    fn netns_cookie(&self) -> u64 {
        // SAFETY: the context of this program.
        unsafe { bpf_get_netns_cookie(self.ctx().cast()) }
    }
}

/// A call with an IPv4 address.
struct V4(*mut bpf_sock_addr);

impl Socket for V4 {
    #[inline(always)]
    fn ctx(&self) -> *mut bpf_sock_addr {
        self.0
    }

    #[inline(always)]
    fn address(&self) -> Address {
        // SAFETY: the kernel's context, valid for the whole program.
        Address::from_v4_word(unsafe { read_volatile(&raw const (*self.0).user_ip4) })
    }

    #[inline(always)]
    fn set_address(&self, address: &Address) {
        let [.., word] = *address.words();
        // SAFETY: as above.
        unsafe { write_volatile(&raw mut (*self.0).user_ip4, word) };
    }
}

/// A call with an IPv6 address, which may be an IPv4-mapped one.
struct V6(*mut bpf_sock_addr);

impl Socket for V6 {
    #[inline(always)]
    fn ctx(&self) -> *mut bpf_sock_addr {
        self.0
    }

    #[inline(always)]
    fn address(&self) -> Address {
        // SAFETY: the kernel's context, valid for the whole program.
        unsafe {
            Address::from_words([
                read_volatile(&raw const (*self.0).user_ip6[0]),
                read_volatile(&raw const (*self.0).user_ip6[1]),
                read_volatile(&raw const (*self.0).user_ip6[2]),
                read_volatile(&raw const (*self.0).user_ip6[3]),
            ])
        }
    }

    #[inline(always)]
    fn set_address(&self, address: &Address) {
        let [a, b, c, d] = *address.words();
        // SAFETY: as above.
        unsafe {
            write_volatile(&raw mut (*self.0).user_ip6[0], a);
            write_volatile(&raw mut (*self.0).user_ip6[1], b);
            write_volatile(&raw mut (*self.0).user_ip6[2], c);
            write_volatile(&raw mut (*self.0).user_ip6[3], d);
        }
    }
}

/// The maps, without a packet.
struct Maps;

/// A key on the stack, where the compiler writes words of eight bytes which the verifier wants
/// aligned.
#[repr(align(8))]
struct OnStack<T>(T);

/// Puts a key on the stack word by word. Its address stands at an odd word, where the compiler
/// would still write eight bytes at once.
#[inline(always)]
fn place_by_words<'a>(
    place: &'a mut MaybeUninit<AffinityKey>,
    key: &AffinityKey,
) -> &'a AffinityKey {
    let to: *mut u32 = place.as_mut_ptr().cast();
    let [a, b, c, d] = *key.client.words();
    // SAFETY: five words, as the type asserts, in the order of its fields; initialised then.
    unsafe {
        write_volatile(to, key.group);
        write_volatile(to.add(1), a);
        write_volatile(to.add(2), b);
        write_volatile(to.add(3), c);
        write_volatile(to.add(4), d);
        place.assume_init_ref()
    }
}

impl Tables for Maps {
    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: takes nothing, touches nothing.
        unsafe { bpf_ktime_get_coarse_ns() }
    }

    #[inline(always)]
    fn salt(&self) -> u32 {
        // A socket has the same backend for as long as it lasts, and is part of the tuple.
        0
    }

    #[inline(always)]
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        let mut place = MaybeUninit::uninit();
        // SAFETY: copied at once.
        unsafe { AFFINITY.get(place_by_words(&mut place, key)) }.copied()
    }

    #[inline(always)]
    fn set_affinity(&self, key: &AffinityKey, affinity: &Affinity) {
        let mut place = MaybeUninit::uninit();
        let key = place_by_words(&mut place, key);
        // The map makes room for itself; where it can't, the client is only not remembered.
        let _ = AFFINITY.insert(key, affinity, 0);
    }

    #[inline(always)]
    fn taker(&self, key: &TakerKey) -> Taker {
        // SAFETY: copied at once.
        unsafe { TAKERS.get(key) }.copied().unwrap_or_default()
    }

    #[inline(always)]
    fn table_entry(&self, index: u32) -> Option<BackendId> {
        maps::table_entry(index)
    }
}

impl Directory for Maps {
    #[inline(always)]
    fn port_flags(&self, protocol: Protocol, port: Port) -> PortFlags {
        maps::port_flags(protocol, port)
    }

    #[inline(always)]
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        let key = OnStack(*key);
        // SAFETY: copied at once.
        unsafe { FRONTENDS.get(key.0) }.copied()
    }

    #[inline(always)]
    fn service(&self, id: ServiceId) -> Option<Service> {
        SERVICES.get(id).copied()
    }

    #[inline(always)]
    fn backend(&self, id: BackendId) -> Option<Backend> {
        BACKENDS.get(id).copied()
    }

    #[inline(always)]
    fn netns_cookie(&self) -> u64 {
        NODE.get(0).map_or(0, |node| node.netns_cookie)
    }
}
