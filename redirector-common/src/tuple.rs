//! What tells one exchange of packets from another.

use crate::{Address, Port, Protocol, words};

/// Addresses, ports and protocol of a packet, in the direction that it travels. Aligned, so that
/// it is copied and compared by long words.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialOrd, Ord)]
pub struct Tuple {
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// Source port.
    pub source_port: Port,
    /// Destination port.
    pub destination_port: Port,
    /// IANA protocol number; a whole word, so that the key has no padding.
    protocol: u32,
}

const _: () = assert!(size_of::<Tuple>() == 40);

impl Tuple {
    /// A tuple from its parts.
    #[inline(always)]
    #[must_use]
    pub const fn new(
        protocol: Protocol,
        source: (Address, Port),
        destination: (Address, Port),
    ) -> Self {
        Self {
            source: source.0,
            destination: destination.0,
            source_port: source.1,
            destination_port: destination.1,
            protocol: protocol.number() as u32,
        }
    }

    /// The protocol; a tuple that holds another number (a corrupt map) reads as UDP.
    #[inline(always)]
    #[must_use]
    pub const fn protocol(&self) -> Protocol {
        if self.protocol == Protocol::Tcp.number() as u32 { Protocol::Tcp } else { Protocol::Udp }
    }

    /// The whole tuple as long words, as loaded from memory.
    #[inline(always)]
    #[must_use]
    pub(crate) const fn long_words(&self) -> &[u64; 5] {
        // SAFETY: as large and aligned alike; made of integers, without padding.
        unsafe { &*core::ptr::from_ref(self).cast() }
    }

    /// Notes a packet's: addresses and ports as loaded from memory. By stores that are as wide as
    /// what is loaded later: a load that spans several stores would wait until they are done.
    #[inline(always)]
    pub(crate) fn set(
        &mut self,
        protocol: Protocol,
        source: [u64; 2],
        destination: [u64; 2],
        ports: u32,
    ) {
        let protocol = u64::from(protocol.number());
        let ports = u64::from(ports);
        let last = if cfg!(target_endian = "little") {
            ports | protocol << 32
        } else {
            ports << 32 | protocol
        };
        let [a, b] = source;
        let [c, d] = destination;
        words::set(self, [a, b, c, d, last]);
    }

    /// Both ports as they follow each other in a packet, as loaded from memory.
    #[inline(always)]
    #[must_use]
    pub(crate) const fn ports(&self) -> u32 {
        let [.., last] = *self.long_words();
        if cfg!(target_endian = "little") { last as u32 } else { (last >> 32) as u32 }
    }

    /// Whether this is `other` seen in the other direction.
    #[inline(always)]
    #[must_use]
    pub fn reverses(&self, other: &Self) -> bool {
        self.source == other.destination
            && self.destination == other.source
            && self.source_port == other.destination_port
            && self.destination_port == other.source_port
            && self.protocol == other.protocol
    }

    /// The same connection seen in the other direction.
    #[inline(always)]
    #[must_use]
    pub const fn reversed(&self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            protocol: self.protocol,
        }
    }
}

impl PartialEq for Tuple {
    /// By long words and without a branch for each.
    #[inline(always)]
    fn eq(&self, other: &Self) -> bool {
        let [a, b, c, d, e] = *self.long_words();
        let [f, g, h, i, j] = *other.long_words();
        (a ^ f) | (b ^ g) | (c ^ h) | (d ^ i) | (e ^ j) == 0
    }
}

impl Eq for Tuple {}

impl core::hash::Hash for Tuple {
    fn hash<H: core::hash::Hasher>(&self, state: &mut H) {
        self.long_words().hash(state);
    }
}

impl core::fmt::Debug for Tuple {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(
            f,
            "{} [{}]:{} -> [{}]:{}",
            self.protocol(),
            self.source,
            self.source_port,
            self.destination,
            self.destination_port
        )
    }
}
