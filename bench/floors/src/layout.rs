//! What the benchmark and its programs share. Included by both.

/// Bytes of an IPv4 frame.
pub const V4_FRAME: usize = 64;
/// Bytes of an IPv6 frame.
pub const V6_FRAME: usize = 80;
/// Port of the first service.
pub const FIRST_PORT: u16 = 10_000;

/// How the packets of a sample differ from each other: value of the `PLAN` array.
///
/// Flow `i` has source address `source + (i & source_mask)`, source port
/// `source_port + (i >> source_port_shift)`, destination port
/// `destination_port + (i >> destination_port_shift) + i % services`.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub struct Plan {
    /// The frame, whose varying fields are written over.
    pub frame: [u64; V6_FRAME / 8],
    /// Length of the frame in bytes: [`V4_FRAME`] or [`V6_FRAME`].
    pub len: u32,
    /// State of the generator: each packet takes the next flow, in an order without pattern.
    pub state: u32,
    /// Flows less one; flows are a power of two.
    pub flow_mask: u32,
    /// Low half of the first source address.
    pub source: u32,
    /// See above.
    pub source_mask: u32,
    /// First source port.
    pub source_port: u32,
    /// See above.
    pub source_port_shift: u32,
    /// First destination port.
    pub destination_port: u32,
    /// See above.
    pub destination_port_shift: u32,
    /// See above.
    pub services: u32,
    /// Whether the transport is UDP.
    pub udp: u32,
    /// Reserved, zero.
    pub reserved: u32,
}

/// What floors translate packets to: value of the `TARGET` array.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub struct Target {
    /// As it stands in the packet.
    pub source: u32,
    /// As it stands in the packet.
    pub destination: u32,
    /// Both, as they stand in the packet.
    pub ports: u32,
    /// Interface to send packets out of.
    pub ifindex: u32,
}

/// A listening socket's address: value of the `LISTENER` array.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub struct Listener {
    /// As it stands in the packet.
    pub address: u32,
    /// As it stands in the packet.
    pub port: u16,
    /// Reserved, zero.
    pub reserved: u16,
}

/// Fields of the `TALLY` array.
pub const MISSES: u32 = 0;

/// What a packet that arrives at one end is to look like: value of the `ENDS` array.
#[repr(C, align(8))]
#[derive(Clone, Copy, Default)]
pub struct End {
    /// An address as it stands in the packet, IPv4's in the last word.
    pub address: [u32; 4],
    /// The bits of it that count.
    pub mask: [u32; 4],
    /// The least port, as a number.
    pub first_port: u32,
    /// How many ports are right.
    pub ports: u32,
    /// Whether these are the packet's source, and not its destination.
    pub at_source: u32,
    /// [`ECHO`], [`CAPTURE`].
    pub flags: u32,
}

/// Send the packet back.
pub const ECHO: u32 = 1;
/// Keep its bytes.
pub const CAPTURE: u32 = 2;

/// What has arrived at one end: value of the `SEEN` array.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub struct Seen {
    /// Packets as expected, by the last byte of the address.
    pub right: [u64; 256],
    /// UDP packets that were not.
    pub wrong: u64,
    /// Length of the packet that was kept.
    pub len: u64,
    /// The packet that was kept.
    pub frame: [u64; V6_FRAME / 8],
}

/// How plain forwarding sends on what comes in by an interface: value of the `WAYS` map.
#[repr(C, align(4))]
#[derive(Clone, Copy)]
pub struct Way {
    /// Hardware addresses to write: destination, source.
    pub link: [u32; 3],
    /// The interface's own hardware address.
    pub own: [u16; 3],
    /// Reserved, zero.
    pub reserved: u16,
    /// Index in the map of devices.
    pub slot: u32,
}
