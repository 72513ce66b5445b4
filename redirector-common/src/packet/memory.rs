//! Memory that an environment in user space lends to the packet code; the kernel's stands in a map.

use core::cell::UnsafeCell;
use core::ptr::NonNull;

use super::{Packet, Scratch};
use crate::{Address, Direction, Flow, Tuple};

/// What one packet needs at a time.
#[derive(Debug)]
pub struct Memory {
    scratch: UnsafeCell<Scratch>,
    held: UnsafeCell<Tuple>,
}

impl Default for Memory {
    fn default() -> Self {
        let flow = Flow::new(Direction::Forward, Packet::EMPTY.tuple, 0, 0, false, 0);
        Self {
            scratch: UnsafeCell::new(Scratch {
                forward: flow,
                reply: flow,
                reply_key: Packet::EMPTY.tuple,
                affinity_group: 0,
                wanted: 0,
                outgoing: 0,
                source: Address::UNSPECIFIED,
            }),
            held: UnsafeCell::new(Packet::EMPTY.tuple),
        }
    }
}

impl Memory {
    /// For [`Environment::scratch`](super::Environment::scratch).
    #[must_use]
    pub fn scratch(&self) -> Option<NonNull<Scratch>> {
        NonNull::new(self.scratch.get())
    }

    /// For [`Environment::hold`](super::Environment::hold).
    ///
    /// # Safety
    ///
    /// No other key is held, as the packet code promises.
    #[must_use]
    pub unsafe fn hold(&self, key: &Tuple) -> &Tuple {
        // SAFETY: nobody refers to it, by the promise made to this function.
        let held = unsafe { &mut *self.held.get() };
        *held = *key;
        held
    }
}
