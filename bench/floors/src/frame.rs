//! Frames: parsing, sending back, translation, each as cheap as it can be.

use core::arch::asm;

use aya_ebpf::bindings::{xdp_action, xdp_md};
use aya_ebpf::programs::XdpContext;

use crate::layout::{Target, V6_FRAME};

const ETHER_TYPE_IPV4: u16 = 0x0800_u16.to_be();
const ETHER_TYPE_IPV6: u16 = 0x86dd_u16.to_be();
const TCP: u8 = 6;
const UDP: u8 = 17;

/// Where things stand in an IPv4 frame without options.
const V4_TTL: usize = 22;
const V4_CHECK: usize = 24;
const V4_SOURCE: usize = 26;
const V4_DESTINATION: usize = 30;
const V4_PORTS: usize = 34;
const V4_TCP_CHECK: usize = 50;
const V4_END: usize = 54;

pub(crate) struct Frame {
    start: usize,
    end: usize,
}

/// What identifies a flow, as it stands in the packet.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) source: u32,
    pub(crate) destination: u32,
    pub(crate) ports: u32,
    pub(crate) protocol: u32,
}

impl Key {
    /// Multiply and fold, as cheap as a good enough hash can be.
    #[inline(always)]
    pub(crate) fn hash(&self) -> u32 {
        const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
        let a = u64::from(self.source) << 32 | u64::from(self.destination);
        let b = u64::from(self.ports) << 32 | u64::from(self.protocol);
        let hash = a.wrapping_mul(MULTIPLIER);
        let hash = (hash ^ (hash >> 32) ^ b).wrapping_mul(MULTIPLIER);
        ((hash ^ (hash >> 32)).wrapping_mul(MULTIPLIER) >> 32) as u32
    }

    /// The destination port as a number.
    #[inline(always)]
    pub(crate) fn destination_port(&self) -> u32 {
        u32::from(u16::from_be((self.ports >> 16) as u16))
    }
}

impl Frame {
    #[inline(always)]
    pub(crate) fn new(ctx: &XdpContext) -> Self {
        Self::of(ctx.ctx)
    }

    #[inline(always)]
    pub(crate) fn of(ctx: *mut xdp_md) -> Self {
        // SAFETY: the context is valid while the program runs.
        unsafe { Self { start: (*ctx).data as usize, end: (*ctx).data_end as usize } }
    }

    #[inline(always)]
    pub(crate) fn bounds(start: usize, end: usize) -> Self {
        Self { start, end }
    }

    #[inline(always)]
    fn holds(&self, len: usize) -> bool {
        self.start + len <= self.end
    }

    /// # Safety
    ///
    /// The frame holds a `T` at `offset`.
    #[inline(always)]
    unsafe fn get<T: Copy>(&self, offset: usize) -> T {
        // SAFETY: the caller's promise; the read is unaligned.
        unsafe { ((self.start + offset) as *const T).read_unaligned() }
    }

    /// # Safety
    ///
    /// The frame holds a `T` at `offset`.
    #[inline(always)]
    unsafe fn set<T: Copy>(&self, offset: usize, value: T) {
        // SAFETY: the caller's promise; the write is unaligned.
        unsafe { ((self.start + offset) as *mut T).write_unaligned(value) }
    }

    /// The ports of a TCP or UDP packet of either family.
    #[inline(always)]
    pub(crate) fn parse_any(&self) -> Option<u32> {
        if !self.holds(V4_END) {
            return None;
        }
        // SAFETY: as checked, here and below.
        unsafe {
            match self.get::<u16>(12) {
                ETHER_TYPE_IPV4 => {
                    let protocol: u8 = self.get(23);
                    let plain = self.get::<u8>(14) == 0x45 && self.get::<u16>(20) & 0xff3f == 0;
                    (plain && (protocol == TCP || protocol == UDP)).then(|| self.get(V4_PORTS))
                }
                ETHER_TYPE_IPV6 => {
                    if !self.holds(74) {
                        return None;
                    }
                    let protocol: u8 = self.get(20);
                    let six = self.get::<u8>(14) >> 4 == 6;
                    (six && (protocol == TCP || protocol == UDP)).then(|| self.get(54))
                }
                _ => None,
            }
        }
    }

    /// The flow of an IPv4 packet.
    #[inline(always)]
    pub(crate) fn parse_v4(&self) -> Option<Key> {
        if !self.holds(V4_END) {
            return None;
        }
        // SAFETY: as checked.
        unsafe {
            let protocol: u8 = self.get(23);
            let plain = self.get::<u16>(12) == ETHER_TYPE_IPV4
                && self.get::<u8>(14) == 0x45
                && self.get::<u16>(20) & 0xff3f == 0;
            if !plain || (protocol != TCP && protocol != UDP) {
                return None;
            }
            Some(Key {
                source: self.get(V4_SOURCE),
                destination: self.get(V4_DESTINATION),
                ports: apart(self.get(V4_PORTS)),
                protocol: protocol.into(),
            })
        }
    }

    /// Source and destination of an IPv6 packet.
    #[inline(always)]
    pub(crate) fn v6_addresses(&self) -> Option<[[u32; 4]; 2]> {
        if !self.holds(74) {
            return None;
        }
        // SAFETY: as checked.
        unsafe { (self.get::<u16>(12) == ETHER_TYPE_IPV6).then(|| [self.get(22), self.get(38)]) }
    }

    /// Exchanges the hardware addresses.
    #[inline(always)]
    pub(crate) fn swap_link(&self) -> Option<()> {
        if !self.holds(14) {
            return None;
        }
        // SAFETY: as checked.
        unsafe {
            let destination: [u16; 3] = self.get(0);
            let source: [u16; 3] = self.get(6);
            self.set(0, source);
            self.set(6, destination);
        }
        Some(())
    }

    /// The hardware address that the frame is for.
    #[inline(always)]
    pub(crate) fn link_destination(&self) -> Option<[u16; 3]> {
        // SAFETY: as checked.
        self.holds(14).then(|| unsafe { self.get(0) })
    }

    /// One end of a UDP packet of either family: address, with IPv4's in the last word, and port,
    /// both as they stand in the packet.
    #[inline(always)]
    pub(crate) fn udp_end(&self, source: bool) -> Option<([u32; 4], u16)> {
        if !self.holds(V4_END) {
            return None;
        }
        // SAFETY: as checked, here and below.
        unsafe {
            match self.get::<u16>(12) {
                ETHER_TYPE_IPV4 if self.get::<u8>(23) == UDP => {
                    let (address, port) = if source {
                        (self.get(V4_SOURCE), self.get(V4_PORTS))
                    } else {
                        (self.get(V4_DESTINATION), self.get(V4_PORTS + 2))
                    };
                    Some(([0, 0, 0, address], port))
                }
                ETHER_TYPE_IPV6 if self.holds(62) && self.get::<u8>(20) == UDP => Some(if source {
                    (self.get(22), self.get(54))
                } else {
                    (self.get(38), self.get(56))
                }),
                _ => None,
            }
        }
    }

    /// Exchanges source and destination, which leaves the checksums right.
    #[inline(always)]
    pub(crate) fn turn_round(&self) -> Option<()> {
        if !self.holds(V4_END) {
            return None;
        }
        // SAFETY: as checked, here and below.
        unsafe {
            match self.get::<u16>(12) {
                ETHER_TYPE_IPV4 => {
                    let (source, destination): (u32, u32) =
                        (self.get(V4_SOURCE), self.get(V4_DESTINATION));
                    self.set(V4_SOURCE, destination);
                    self.set(V4_DESTINATION, source);
                    let ports: u32 = self.get(V4_PORTS);
                    self.set(V4_PORTS, ports.rotate_left(16));
                }
                ETHER_TYPE_IPV6 if self.holds(58) => {
                    let (source, destination): ([u32; 4], [u32; 4]) = (self.get(22), self.get(38));
                    self.set(22, destination);
                    self.set(38, source);
                    let ports: u32 = self.get(54);
                    self.set(54, ports.rotate_left(16));
                }
                _ => return None,
            }
        }
        self.swap_link()
    }

    /// Copies the frame, as far as there is room.
    #[inline(always)]
    pub(crate) fn copy(&self, to: &mut [u64; V6_FRAME / 8], len: &mut u64) {
        *len = (self.end - self.start) as u64;
        for (i, word) in to.iter_mut().enumerate() {
            if self.holds(8 * i + 8) {
                // SAFETY: as checked.
                *word = unsafe { self.get(8 * i) };
            }
        }
    }

    /// Writes both hardware addresses.
    #[inline(always)]
    pub(crate) fn write_link(&self, addresses: [u32; 3]) -> Option<()> {
        if !self.holds(14) {
            return None;
        }
        // SAFETY: as checked.
        unsafe { self.set(0, addresses) };
        Some(())
    }

    #[inline(always)]
    pub(crate) fn send_back(&self) -> u32 {
        match self.swap_link() {
            Some(()) => xdp_action::XDP_TX,
            None => xdp_action::XDP_ABORTED,
        }
    }

    /// Translates an IPv4 TCP packet: addresses, ports, TTL, both checksums.
    #[inline(always)]
    pub(crate) fn translate(&self, key: &Key, to: &Target) -> Option<()> {
        if !self.holds(V4_END) {
            return None;
        }
        let addresses = changed(key.source, to.source) + changed(key.destination, to.destination);
        let ports = changed(key.ports, to.ports);
        // SAFETY: as checked.
        unsafe {
            let old: u16 = self.get(V4_TTL);
            let new = old.wrapping_sub(1);
            self.set(V4_TTL, new);
            let ttl = u64::from(!old) + u64::from(new);
            self.set(V4_CHECK, apply(self.get(V4_CHECK), addresses + ttl));
            self.set(V4_SOURCE, to.source);
            self.set(V4_DESTINATION, to.destination);
            self.set(V4_PORTS, to.ports);
            self.set(V4_TCP_CHECK, apply(self.get(V4_TCP_CHECK), addresses + ports));
        }
        Some(())
    }
}

/// The same value. The compiler would load and store it together with its neighbour, at an address
/// of the stack that the verifier refuses.
#[inline(always)]
fn apart(mut value: u32) -> u32 {
    // SAFETY: moves a register to itself.
    unsafe {
        asm!("{0} = {0}", inout(reg) value, options(pure, nomem, nostack, preserves_flags));
    }
    value
}

/// RFC 1624's `~m + m'`.
#[inline(always)]
fn changed(old: u32, new: u32) -> u64 {
    u64::from(!old) + u64::from(new)
}

#[inline(always)]
fn apply(checksum: u16, delta: u64) -> u16 {
    let sum = delta + u64::from(!checksum);
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}
