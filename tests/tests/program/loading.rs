//! The programs load, within what the verifier allows.

use anyhow::{Context as _, Result, ensure};
use redirector::dataplane::pins::{ClientHook, Hook, Pins};
use redirector::dataplane::prerequisites::make_dirs;
use redirector::dataplane::{loader, sizes::Sizes};
use redirector_tests::bpffs::Bpffs;
use redirector_tests::program::{Programs, Size, functions};

/// The verifier walks at most a million instructions. 6.1, which knows least of what it has walked
/// already, needs 464 000 for TC ingress.
const VERIFIED_BUDGET: u32 = 600_000;

#[test]
fn every_program_loads() -> Result<()> {
    let sizes = Programs::load()?.sizes()?;
    for hook in Hook::ALL {
        for function in functions(hook) {
            ensure!(sizes.contains_key(*function), "{function} is not among {sizes:?}");
        }
    }
    for hook in ClientHook::ALL {
        ensure!(sizes.contains_key(hook.program()), "{} is not among {sizes:?}", hook.program());
    }
    for (name, Size { verified, machine_code }) in sizes {
        println!("{name}: {verified} instructions verified, {machine_code} bytes of machine code");
        ensure!((1..VERIFIED_BUDGET).contains(&verified), "{name}: {verified} instructions");
    }
    Ok(())
}

/// The message names the map, its size, the kernel's reason and what to do.
#[test]
fn a_map_that_cannot_be_made_is_named() -> Result<()> {
    let bpffs = Bpffs::new()?;
    let pins = Pins::new(bpffs.pins());
    make_dirs(&pins)?;
    let sizes = Sizes { flows: u32::MAX, ..Sizes::default() };
    let error = loader::Programs::load(&pins, &sizes).err().context("the kernel made it")?;
    let message = error.to_string();
    // The flow table, or its ring, whichever is made first.
    for part in ["FLOW", " entries", "memory"] {
        ensure!(message.contains(part), "{part} is not in: {message}");
    }
    Ok(())
}
