//! Programs and maps in the kernel, and their synchronisation with the desired state.

pub mod attach;
pub mod attached;
pub mod batch;
pub mod contents;
pub mod delta;
pub mod detach;
pub mod direct;
pub mod encode;
pub mod epochs;
pub mod ethtool;
pub mod gc;
pub mod ids;
pub mod info;
pub mod kube_proxy;
pub mod layout;
pub mod loader;
pub mod lock;
pub mod maps;
pub mod memory;
pub mod neighbours;
pub mod netdev;
pub mod netlink;
mod netlink_raw;
pub mod pinned;
pub mod pins;
pub mod ports;
pub mod prerequisites;
mod regions;
pub mod routes;
pub mod sizes;
pub mod status;
pub mod sync;
pub(crate) mod syscall;
pub mod sysctl;
pub mod table;

pub use detach::detach;
