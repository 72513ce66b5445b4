//! Programs and maps in the kernel, and their synchronisation with the desired state.

pub mod info;
pub mod pins;
