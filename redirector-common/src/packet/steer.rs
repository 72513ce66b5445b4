//! Steering: a TCP connection to a program of this host goes to the program's listening socket as
//! it is. The kernel keeps the connection from then on; there is no flow and nothing to translate.

use super::{Environment, Hook, Packet};
use crate::{PortFlags, Protocol, Tuple};

/// What this host's own stack has for a TCP packet.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Socket {
    /// Nothing, or a program that listens on the frontend's own port: the frontend has precedence.
    None,
    /// The rest of a connection that is over.
    TimeWait,
    /// A connection, or a handshake that has begun.
    Open,
}

impl Socket {
    /// Whether the packet is the socket's. A SYN that meets the rest of a connection is not: it
    /// opens the next one.
    #[inline(always)]
    #[must_use]
    pub const fn owns(self, packet: &Packet) -> bool {
        match self {
            Self::None => false,
            Self::TimeWait => !packet.flags.opens(),
            Self::Open => true,
        }
    }
}

/// The flags of a packet's port, and what they say of steering.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Steering {
    flags: PortFlags,
    possible: bool,
}

impl Steering {
    #[inline(always)]
    pub(super) fn of(packet: &Packet, flags: PortFlags) -> Self {
        Self {
            flags,
            // What another node handed over is for an address that this host does not have.
            possible: matches!(packet.tuple.protocol(), Protocol::Tcp)
                && !packet.is_tunnelled()
                && flags.intersects(PortFlags::STEER),
        }
    }

    /// The flags themselves.
    #[inline(always)]
    pub(super) const fn flags(self) -> PortFlags {
        self.flags
    }

    /// Whether a frontend with this port may steer.
    #[inline(always)]
    pub(super) const fn is_possible(self) -> bool {
        self.possible
    }

    /// As it is, given what the stack has for a packet that opens a connection. Where that is the
    /// rest of an earlier one, the kernel lets no other take its place (Linux 6.13), and itself
    /// looks for a listener on the frontend's own port only: the packet is translated.
    #[inline(always)]
    pub(super) const fn given(self, socket: Socket) -> Self {
        Self { possible: self.possible && !matches!(socket, Socket::TimeWait), ..self }
    }

    /// Whether sockets come before the flow table: where nothing goes elsewhere, packets of
    /// connections cost one socket look-up and nothing else. Where some flows do, the flow table
    /// has decided about each already, and a socket that an earlier connection has left here must
    /// not take their packets.
    #[inline(always)]
    pub(super) const fn comes_first(self) -> bool {
        self.possible && !self.flags.intersects(PortFlags::REMOTE.union(PortFlags::SNAT))
    }
}

/// Hands a packet that belongs to no socket to the listener at `to`. Not a fragment: the kernel
/// would forget the socket when it puts the packet together.
#[inline(always)]
pub(super) fn steer<E: Environment>(
    environment: &E,
    packet: &Packet,
    hook: Hook,
    to: &Tuple,
) -> bool {
    matches!(hook, Hook::Ingress) && !packet.is_first_fragment() && environment.assign(packet, to)
}
