//! Builds the eBPF programs, which the library embeds.

fn main() {
    bpf_toolchain::embed(
        bpf_toolchain::PROGRAMS,
        &["Cargo.lock", "Cargo.toml", "redirector-common", "redirector-ebpf"],
    );
}
