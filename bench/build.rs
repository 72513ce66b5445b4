//! Builds the programs that ours are measured against.

fn main() {
    bpf_toolchain::embed(bpf_toolchain::FLOORS, &["Cargo.lock", "Cargo.toml", "bench/floors"]);
}
