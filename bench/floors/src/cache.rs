//! A flow cache: buckets of two flows, each bucket a cache line of an array.

use crate::frame::Key;
use crate::layout::Target;
use crate::lookup::miss;
use crate::maps::{CACHE, TARGET};

/// Buckets less one.
const MASK: u32 = 262_144 - 1;

#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub(crate) struct Slot {
    key: Key,
    target: Target,
}

#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub(crate) struct Bucket {
    slots: [Slot; 2],
}

/// What the flow is translated to. One that is not there takes the place of the older of the two:
/// where a whole data path would look into its flow table, this counts and goes on.
#[inline(always)]
pub(crate) fn find(key: &Key) -> Option<&'static Target> {
    let bucket = CACHE.get_ptr_mut(key.hash() & MASK)?;
    // SAFETY: a map's element, used on one CPU.
    let [first, second] = unsafe { &mut (*bucket).slots };
    if first.key == *key {
        return Some(&first.target);
    }
    if second.key == *key {
        return Some(&second.target);
    }
    miss();
    *second = *first;
    *first = Slot { key: *key, target: *TARGET.get(0)? };
    Some(&first.target)
}
