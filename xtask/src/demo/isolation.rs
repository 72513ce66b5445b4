//! Namespaces that take everything with them.
//!
//! The demo runs in a mount namespace and a process namespace of its own. Network namespaces and
//! pinned eBPF programs are held by mounts in the former; whatever runs is in the latter, whose
//! first process takes all others with it. So there is nothing to clean up by hand, however the
//! demo ends: at its end, by Ctrl-C, by a panic, by SIGKILL.

use std::process::{Child, Command, ExitCode, Stdio};

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};

/// Exit code of a program that was interrupted, as shells have it.
const INTERRUPTED: u8 = 130;

/// Runs this program once more, as the first process of new namespaces, and waits for it.
/// A signal that asks us to end ends it.
pub(super) fn run_isolated(arguments: &[&str]) -> Result<ExitCode> {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID)
        .context("cannot make namespaces: this needs root with CAP_SYS_ADMIN")?;
    let program = std::env::current_exe().context("cannot tell which program this is")?;
    let mut first = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .spawn()
        .context("cannot start a process in the new namespaces")?;
    let end = wait(&mut first);
    if end.is_err() {
        first.kill().ok();
        first.wait().ok();
    }
    end
}

fn wait(first: &mut Child) -> Result<ExitCode> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM] {
        signals.add(signal);
    }
    // After the start, so that nothing we start has them blocked. One that came before has ended
    // us, and the first process with us.
    signals.thread_block().context("cannot block signals")?;
    loop {
        if let Some(status) = first.try_wait().context("cannot wait for the demo")? {
            let code = status.code().and_then(|code| u8::try_from(code).ok());
            return Ok(code.map_or(ExitCode::FAILURE, ExitCode::from));
        }
        let signal = signals.wait().context("cannot wait for signals")?;
        if signal != Signal::SIGCHLD {
            first.kill().context("cannot end the demo")?;
            first.wait().context("cannot wait for the demo")?;
            eprintln!("\ninterrupted ({signal})");
            return Ok(ExitCode::from(INTERRUPTED));
        }
    }
}

/// Makes the new namespaces a place to live in. Called by the first process in them.
pub(super) fn settle() -> Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL).context("cannot ask to end with the parent process")?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .context("cannot make mounts private")?;
    for (kind, place) in [
        // Processes of the new namespace, under their numbers in it.
        ("proc", "/proc"),
        // `ip netns` keeps network namespaces in /run/netns; the rest of our files are there too.
        ("tmpfs", "/run"),
        // Where redirector keeps its maps and programs.
        ("bpf", "/sys/fs/bpf"),
    ] {
        mount(Some(kind), place, Some(kind), MsFlags::empty(), none)
            .with_context(|| format!("cannot mount a {kind} on {place}"))?;
    }
    Ok(())
}
