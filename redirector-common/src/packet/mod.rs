//! The pure packet code: the same functions run in the kernel's XDP and TC hooks, in
//! `redirector explain` and in host tests.
//!
//! [`parse()`] finds the headers, [`decide()`] says what becomes of the packet, [`rewrite()`] does
//! it.
//! What they need of their surroundings they ask of two traits: [`PacketBuf`], the bytes, and
//! [`Environment`], the maps and the routing table.

pub mod cached;
pub mod checksum;
pub mod decide;
pub mod environment;
mod extensions;
pub mod flow_entry;
pub mod fragment;
pub mod handover;
pub mod icmp;
pub mod limit;
pub mod memory;
pub mod mss;
pub mod new_flow;
pub mod next_hop;
pub mod parse;
pub mod pressure;
pub mod quoted;
pub mod related;
pub mod renewal;
pub mod rewrite;
pub mod select;
pub mod steer;
pub mod track;
pub mod transport;
pub mod tunnel;

pub use checksum::Delta;
pub use decide::{Decision, Hook, IcmpError, Outcome, Step, decide, decide_claimed, decide_reply};
pub use environment::{Environment, Scratch};
pub use flow_entry::FlowEntry;
pub use memory::Memory;
pub use next_hop::{LinkAddresses, NextHop, Route};
pub use parse::{Packet, parse, parse_claimed};
pub use quoted::Quoted;
pub use related::Kind;
pub use rewrite::rewrite;
pub use steer::Socket;
pub use transport::TcpFlags;

/// Types that may be read from and written to packet bytes.
///
/// # Safety
///
/// The type has no padding and every bit pattern is a value of it. Accesses are unaligned.
pub unsafe trait Header: Copy {}

// SAFETY: a `repr(C)` header made of bytes and byte arrays.
unsafe impl Header for network_types::ip::Ipv4Hdr {}
// SAFETY: as above.
unsafe impl Header for network_types::ip::Ipv6Hdr {}
// SAFETY: integers and byte arrays.
unsafe impl Header for u16 {}
// SAFETY: integers and byte arrays.
unsafe impl Header for u32 {}
// SAFETY: integers and byte arrays.
unsafe impl<T: Header, const N: usize> Header for [T; N] {}
// SAFETY: integers and byte arrays.
unsafe impl Header for u8 {}

/// Bytes of a packet, from its Ethernet header on.
pub trait PacketBuf {
    /// A pointer to a `T` at `offset`, valid for reads and writes until the next call that takes
    /// `&mut self`; `None` if the packet ends before it does. The pointer is unaligned.
    fn at<T: Header>(&self, offset: usize) -> Option<*mut T>;

    /// Length of the packet in bytes.
    fn size(&self) -> usize;

    /// Length of the IP packet that would go out at most, where this buffer is a super-packet
    /// that will be cut into segments; `None` where it will be sent as it is.
    fn segment_payload(&self) -> Option<u16> {
        None
    }

    /// Updates the transport checksum at `offset` after a change of addresses and ports.
    ///
    /// `None`: it could not be done, and the packet must not be used.
    fn update_transport_checksum(
        &mut self,
        offset: usize,
        addresses: Delta,
        ports: Delta,
        udp: bool,
    ) -> Option<()> {
        let field: *mut u16 = self.at(offset)?;
        // SAFETY: `at` checked the bounds; the access is unaligned.
        let old = unsafe { field.read_unaligned() };
        if udp && old == 0 {
            // RFC 768: zero means that the sender computed none.
            return Some(());
        }
        let mut new = addresses.plus(ports).apply(old);
        if udp && new == 0 {
            // RFC 768: a computed zero is sent as all ones.
            new = 0xffff;
        }
        // SAFETY: as above.
        unsafe { field.write_unaligned(new) };
        Some(())
    }

    /// Adds a change of bytes that no checksum of the packet's makes up for to the sum of it that
    /// a network card may have computed.
    fn add_to_sum(&mut self, change: Delta) {
        let _ = change;
    }

    /// Reads a `T` at `offset`.
    #[inline(always)]
    fn read<T: Header>(&self, offset: usize) -> Option<T> {
        let pointer: *mut T = self.at(offset)?;
        // SAFETY: `at` checked the bounds; `Header` allows every bit pattern.
        Some(unsafe { pointer.read_unaligned() })
    }
}

/// A packet in ordinary memory, for user space.
#[derive(Debug)]
pub struct Bytes<'a> {
    start: *mut u8,
    len: usize,
    lifetime: core::marker::PhantomData<&'a mut [u8]>,
}

impl<'a> Bytes<'a> {
    /// Borrows `bytes` as a packet.
    pub fn new(bytes: &'a mut [u8]) -> Self {
        Self { start: bytes.as_mut_ptr(), len: bytes.len(), lifetime: core::marker::PhantomData }
    }
}

impl PacketBuf for Bytes<'_> {
    fn at<T: Header>(&self, offset: usize) -> Option<*mut T> {
        let end = offset.checked_add(size_of::<T>())?;
        if end > self.len {
            return None;
        }
        // SAFETY: within the borrowed slice, as checked.
        Some(unsafe { self.start.add(offset) }.cast())
    }

    fn size(&self) -> usize {
        self.len
    }
}
