//! Packets as the kernel hands them over: the only pointer arithmetic.

use core::arch::asm;

use aya_ebpf::bindings::{__sk_buff, xdp_md};
use aya_ebpf::helpers::generated::{
    bpf_check_mtu, bpf_csum_update, bpf_l4_csum_replace, bpf_skb_pull_data,
};
use aya_ebpf::programs::{TcContext, XdpContext};
use redirector_common::packet::{Delta, Header, Packet, PacketBuf};

/// Offsets beyond this are refused; the verifier wants a bound, and no header lies further in.
const MAX_OFFSET: usize = 0x3fff;

/// Header bytes that are made directly accessible: Ethernet, two VLAN tags, the longest IPv4
/// header or IPv6 with some extension headers, the longest TCP header.
const PULLED: u32 = 14 + 8 + 60 + 60;

/// A pointer to a `T` at `offset` between `start` and `end`, if it lies there entirely.
#[inline(always)]
fn within<T>(start: usize, end: usize, offset: usize) -> Option<*mut T> {
    let offset = opaque(offset);
    if offset > MAX_OFFSET {
        return None;
    }
    let pointer = opaque(start + offset);
    if pointer + size_of::<T>() > end {
        return None;
    }
    Some(pointer as *mut T)
}

/// The same value, of whose making the compiler knows nothing: the verifier remembers a check by
/// the register that was compared, so what is then used must not be a second computation.
#[inline(always)]
pub(crate) fn opaque(mut value: usize) -> usize {
    // SAFETY: moves a register to itself (no instruction at all would leave two source lines at
    // one address, which the kernel refuses).
    unsafe {
        asm!("{0} = {0}", inout(reg) value, options(pure, nomem, nostack, preserves_flags));
    }
    value
}

/// From here on the compiler takes into account that others may have changed this.
#[inline(always)]
pub(crate) fn exposed<T>(value: &mut T) {
    let pointer = core::ptr::from_mut(value);
    // SAFETY: moves a register to itself; what it points to is not touched.
    unsafe { asm!("{0} = {0}", inout(reg) pointer => _, options(nostack, preserves_flags)) };
}

/// A frame in an XDP program.
pub(crate) struct Frame {
    ctx: *mut xdp_md,
}

impl Frame {
    #[inline(always)]
    pub(crate) fn new(ctx: &XdpContext) -> Self {
        Self { ctx: ctx.ctx }
    }

    #[inline(always)]
    pub(crate) const fn from_raw(ctx: *mut xdp_md) -> Self {
        Self { ctx }
    }

    /// The raw context, for helpers.
    #[inline(always)]
    pub(crate) const fn raw(&self) -> *mut xdp_md {
        self.ctx
    }

    /// Index of the interface that it came in by.
    #[inline(always)]
    pub(crate) fn ifindex(&self) -> u32 {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.ctx).ingress_ifindex }
    }
}

impl PacketBuf for Frame {
    #[inline(always)]
    fn at<T: Header>(&self, offset: usize) -> Option<*mut T> {
        // SAFETY: the context is valid while the program runs.
        let (start, end) = unsafe { ((*self.ctx).data as usize, (*self.ctx).data_end as usize) };
        within(start, end, offset)
    }

    /// Of a frame in several buffers, the first one's: such a frame looks truncated and is left
    /// to TC ingress, where it is one again.
    #[inline(always)]
    fn size(&self) -> usize {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.ctx).data_end as usize - (*self.ctx).data as usize }
    }
}

/// A socket buffer in a TC program.
pub(crate) struct Skb {
    skb: *mut __sk_buff,
    /// Whether the packet's bounds are asked for anew at each access.
    reloads: bool,
}

impl Skb {
    #[inline(always)]
    pub(crate) fn new(ctx: &TcContext) -> Self {
        Self { skb: ctx.skb.skb, reloads: false }
    }

    /// Where speed does not matter: between accesses the compiler might keep the packet's bounds,
    /// which are 32 bits wide to it, as such, and so make numbers of them.
    #[inline(always)]
    pub(crate) const fn from_raw(skb: *mut __sk_buff) -> Self {
        Self { skb, reloads: true }
    }

    /// The raw context, for helpers.
    #[inline(always)]
    pub(crate) const fn raw(&self) -> *mut __sk_buff {
        self.skb
    }

    /// Index of the interface whose hook this is.
    #[inline(always)]
    pub(crate) fn ifindex(&self) -> u32 {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.skb).ifindex }
    }

    /// Index of the interface that it was received by; 0 if a socket of this host made it.
    #[inline(always)]
    pub(crate) fn ingress_ifindex(&self) -> u32 {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.skb).ingress_ifindex }
    }

    /// Whether the network card or driver took a VLAN tag out of the frame.
    #[inline(always)]
    pub(crate) fn has_vlan_tag(&self) -> bool {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.skb).vlan_present != 0 }
    }

    /// MTU of the interface whose hook this is; `None`: the kernel does not say.
    #[inline(always)]
    pub(crate) fn mtu(&self) -> Option<u32> {
        let mut mtu = 0;
        // SAFETY: the context is valid; the number is the kernel's to fill in.
        let code = unsafe { bpf_check_mtu(self.skb.cast(), 0, &raw mut mtu, 0, 0) };
        (code >= 0).then_some(mtu)
    }

    /// Makes the headers directly accessible where they lie in other pages.
    #[inline(always)]
    pub(crate) fn pull_headers(&mut self) {
        self.pull(PULLED);
    }

    /// Makes so many bytes directly accessible, or as many as there are.
    #[inline(always)]
    pub(crate) fn pull(&mut self, wanted: u32) {
        // SAFETY: the context is valid while the program runs.
        let (linear, len) = unsafe { ((*self.skb).data_end - (*self.skb).data, (*self.skb).len) };
        if linear < len && linear < wanted {
            // Failure shows as a packet that ends too early, which is left alone.
            // SAFETY: as above.
            let _ = unsafe { bpf_skb_pull_data(self.skb, len.min(wanted)) };
        }
    }

    /// Length of the largest IP packet that this will be sent as.
    #[inline(always)]
    pub(crate) fn segment_len(&self, packet: &Packet) -> u16 {
        match self.segment_payload() {
            None => packet.ip_len,
            Some(payload) => {
                packet.transport - packet.network + packet.transport_header_len + payload
            }
        }
    }
}

impl PacketBuf for Skb {
    #[inline(always)]
    fn at<T: Header>(&self, offset: usize) -> Option<*mut T> {
        let skb = if self.reloads { opaque(self.skb as usize) as *mut __sk_buff } else { self.skb };
        // SAFETY: the context is valid while the program runs.
        let (start, end) = unsafe { ((*skb).data as usize, (*skb).data_end as usize) };
        within(start, end, offset)
    }

    #[inline(always)]
    fn size(&self) -> usize {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.skb).len as usize }
    }

    #[inline(always)]
    fn segment_payload(&self) -> Option<u16> {
        // SAFETY: the context is valid while the program runs.
        match unsafe { (*self.skb).gso_size } {
            0 => None,
            size => Some(size as u16),
        }
    }

    /// By the kernel's helpers, which know what a field holds whose computation is left to the
    /// network card (only the pseudo-header's sum), and keep the card's own sum in step.
    #[inline(always)]
    fn update_transport_checksum(
        &mut self,
        offset: usize,
        addresses: Delta,
        ports: Delta,
        udp: bool,
    ) -> Option<()> {
        const PSEUDO_HEADER: u64 = 1 << 4;
        const MANGLED_ZERO: u64 = 1 << 5;
        let flags = if udp { MANGLED_ZERO } else { 0 };
        let replace = |difference: Delta, flags: u64| {
            // SAFETY: the context is valid; the helper checks the offset.
            let done = unsafe {
                bpf_l4_csum_replace(self.skb, offset as u32, 0, difference.to_u32().into(), flags)
            };
            (done == 0).then_some(())
        };
        if !ports.is_none() {
            replace(ports, flags)?;
        }
        if !addresses.is_none() {
            replace(addresses, flags | PSEUDO_HEADER)?;
            if self.is_ipv6() {
                // In IPv6 the changed addresses lie in what the card summed, so that sum does not
                // change; the helper assumes IPv4, where they are balanced by the header's own
                // checksum. Undo that.
                self.add_to_sum(addresses);
            }
        }
        Some(())
    }

    /// Where there is no card's sum, this does nothing.
    #[inline(always)]
    fn add_to_sum(&mut self, change: Delta) {
        // SAFETY: the context is valid.
        unsafe { bpf_csum_update(self.skb, change.to_u32()) };
    }
}

impl Skb {
    #[inline(always)]
    fn is_ipv6(&self) -> bool {
        const ETHER_TYPE_IPV6: u32 = 0x86dd_u16.to_be() as u32;
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.skb).protocol == ETHER_TYPE_IPV6 }
    }
}
