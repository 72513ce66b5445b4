//! redirector.
fn main() {}
