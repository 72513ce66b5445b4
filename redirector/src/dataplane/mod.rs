//! Programs and maps in the kernel, and their synchronisation with the desired state.

pub mod batch;
pub mod info;
pub mod lock;
pub mod pinned;
pub mod pins;
pub mod prerequisites;
mod syscall;
pub mod sysctl;
pub mod table;
