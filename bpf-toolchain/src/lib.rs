//! Finds a compiler for BPF and builds the eBPF object with it.
