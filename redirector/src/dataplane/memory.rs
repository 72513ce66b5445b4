//! Memory of the agent.

/// Gives back what was needed for a moment and the allocator would keep.
pub fn release() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no pointers are passed.
    unsafe {
        libc::malloc_trim(0);
    }
}
