//! The programs load, within what the verifier allows.

use anyhow::{Result, ensure};
use redirector::dataplane::pins::Hook;
use redirector_tests::program::Programs;

/// The verifier walks at most a million instructions. What is far below today stays far below
/// when the programs grow.
const VERIFIED_BUDGET: u32 = 250_000;

#[test]
fn every_program_loads() -> Result<()> {
    let programs = Programs::load()?;
    for hook in Hook::ALL {
        let size = programs.size(hook)?;
        println!(
            "{}: {} instructions verified, {} bytes of machine code",
            hook.name(),
            size.verified,
            size.machine_code
        );
        ensure!(size.verified > 0 && size.verified < VERIFIED_BUDGET, "{}: {size:?}", hook.name());
    }
    Ok(())
}
