//! A control group of the test's own, and clients in it.

use std::{
    fs,
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, Result, ensure};
use redirector::dataplane::attach::find_root;

use crate::{
    namespace::{Namespace, prefix},
    wait,
};

/// A control group, gone when dropped. What runs in it must have ended by then.
#[derive(Debug)]
pub struct Cgroup {
    dir: PathBuf,
}

impl Cgroup {
    /// Makes one below the root of the mounted hierarchy.
    ///
    /// # Errors
    ///
    /// If it can't be made: this needs root and a cgroup2 mount.
    pub fn new() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = find_root()?.join(format!("{}{number}-cgroup", prefix()));
        fs::create_dir(&dir).with_context(|| format!("making {}", dir.display()))?;
        Ok(Self { dir })
    }

    /// Its directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// How many programs for sockets are attached here, by the kernel's word.
    ///
    /// # Errors
    ///
    /// If the kernel does not tell.
    pub fn programs(&self) -> Result<u32> {
        const BPF_PROG_QUERY: libc::c_int = 16;
        /// The beginning of `union bpf_attr` for it.
        #[repr(C)]
        #[derive(Default)]
        struct Query {
            target: i32,
            attach_type: u32,
            flags: u32,
            attach_flags: u32,
            ids: u64,
            count: u32,
            reserved: u32,
        }
        // bind, connect, sendmsg, recvmsg, getpeername, getsockname; both families.
        const KINDS: [u32; 12] = [8, 9, 10, 11, 14, 15, 19, 20, 29, 30, 31, 32];
        let dir = fs::File::open(&self.dir)?;
        let mut total = 0;
        for attach_type in KINDS {
            let target = dir.as_raw_fd();
            let mut query = Query { target, attach_type, ..Query::default() };
            // SAFETY: the attributes are as long as we say, and ask for a number only.
            let answer = unsafe {
                libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, &raw mut query, size_of::<Query>())
            };
            ensure!(answer == 0, "asking for programs: {}", std::io::Error::last_os_error());
            total += query.count;
        }
        Ok(total)
    }

    /// A command in here, on a host.
    #[must_use]
    pub fn command(&self, host: &Namespace, program: &Path) -> Command {
        // A shell moves itself, and becomes the program.
        let mut command = host.command("sh");
        command.args(["-c", "echo 0 > \"$0\" && exec \"$@\""]);
        command.arg(self.dir.join("cgroup.procs")).arg(program);
        command
    }

    /// Runs a program in here, on a host, and returns what it printed.
    ///
    /// # Errors
    ///
    /// If it can't be started or fails: the message holds what it printed.
    pub fn run(&self, host: &Namespace, program: &Path, arguments: &[&str]) -> Result<String> {
        let output = self.command(host, program).args(arguments).output()?;
        ensure!(
            output.status.success(),
            "{} {}: {}{}",
            program.display(),
            arguments.join(" "),
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Ended processes leave it a moment later than they are waited for.
        let removed = wait::until_true("the control group to be empty", wait::SOON, || {
            Ok(fs::remove_dir(&self.dir).is_ok())
        });
        if let Err(error) = removed {
            eprintln!("cleaning up {}: {error:#}", self.dir.display());
        }
    }
}
