//! The programs load, within what the verifier allows.

use anyhow::{Result, ensure};
use redirector::dataplane::pins::Hook;
use redirector_tests::program::{Programs, Size, functions};

/// The verifier walks at most a million instructions. What is far below today stays far below
/// when the programs grow.
const VERIFIED_BUDGET: u32 = 250_000;

#[test]
fn every_program_loads() -> Result<()> {
    let sizes = Programs::load()?.sizes()?;
    for hook in Hook::ALL {
        for function in functions(hook) {
            ensure!(sizes.contains_key(*function), "{function} is not among {sizes:?}");
        }
    }
    for (name, Size { verified, machine_code }) in sizes {
        println!("{name}: {verified} instructions verified, {machine_code} bytes of machine code");
        ensure!((1..VERIFIED_BUDGET).contains(&verified), "{name}: {verified} instructions");
    }
    Ok(())
}
