//! Network namespaces as hosts.

use std::{
    env,
    ffi::OsStr,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{self, Command, Stdio},
    sync::{
        Once,
        atomic::{AtomicU32, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use nix::{
    mount::{MntFlags, umount2},
    sched::{CloneFlags, setns},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// A host: a network namespace of its own, gone when dropped, with the processes in it.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

/// Names begin with this and the id of the process that made them.
const PREFIX: &str = "rdt";

/// What the names of all that this process makes begin with.
pub(crate) fn prefix() -> String {
    format!("{PREFIX}-{}-", process::id())
}

impl Namespace {
    /// A new namespace with only a loopback device, which is up.
    ///
    /// # Errors
    ///
    /// If it can't be made: this needs root and `ip`.
    pub fn new(role: &str) -> Result<Self> {
        static SWEEP: Once = Once::new();
        static NEXT: AtomicU32 = AtomicU32::new(0);
        SWEEP.call_once(remove_abandoned);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}{number}-{role}", prefix());
        run("ip", ["netns", "add", &name])?;
        let namespace = Self { name };
        // Addresses would otherwise stay tentative, and so unusable, for a second or two.
        for scope in ["all", "default"] {
            namespace.set_sysctl(&format!("net/ipv6/conf/{scope}/accept_dad"), "0")?;
        }
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// Its name, as `ip netns` shows it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that `setns` and `nsenter` take.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// A command that runs in here. Mounts stay those of the test: `ip netns exec` would hide
    /// the bpffs.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut net = std::ffi::OsString::from("--net=");
        net.push(self.path());
        let mut command = Command::new("nsenter");
        command.arg(net).arg("--").arg(program);
        command.stdin(Stdio::null());
        command
    }

    /// Runs a program in here and returns what it printed.
    ///
    /// # Errors
    ///
    /// If it can't be started or fails: the message holds what it printed.
    pub fn run<S: AsRef<OsStr>>(
        &self,
        program: &str,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<String> {
        finish(self.command(program).args(arguments))
    }

    /// Runs `ip` in here; the arguments as one would type them, one command a line.
    ///
    /// # Errors
    ///
    /// If any of the commands fails.
    pub fn ip(&self, commands: &str) -> Result<String> {
        let mut output = String::new();
        for line in commands.lines().map(str::trim).filter(|l| !l.is_empty()) {
            let arguments = ["-n", &self.name].into_iter().chain(line.split_whitespace());
            output += &run("ip", arguments)?;
        }
        Ok(output)
    }

    /// Turns offloads of an interface on or off: `ethtool -K`.
    ///
    /// # Errors
    ///
    /// If the interface refuses.
    pub fn set_offloads(&self, interface: &str, settings: &str) -> Result<()> {
        let arguments = ["-K", interface].into_iter().chain(settings.split_whitespace());
        self.run("ethtool", arguments).map(drop)
    }

    /// Reads a setting below `/proc/sys`.
    ///
    /// # Errors
    ///
    /// If there is no such setting.
    pub fn sysctl(&self, name: &str) -> Result<String> {
        let path = Path::new("/proc/sys").join(name);
        self.enter(move || {
            let value = fs::read_to_string(&path).with_context(|| format!("reading {path:?}"))?;
            Ok(value.trim_end().to_owned())
        })
    }

    /// Writes a setting below `/proc/sys`.
    ///
    /// # Errors
    ///
    /// If there is no such setting or it refuses the value.
    pub fn set_sysctl(&self, name: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys").join(name);
        let value = value.to_owned();
        self.enter(move || fs::write(&path, value).with_context(|| format!("writing {path:?}")))
    }

    /// Runs a function on a thread in here and returns what it returned.
    ///
    /// # Errors
    ///
    /// What the function returned, or that it panicked.
    pub fn enter<T: Send>(&self, function: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let path = self.path();
        thread::scope(|scope| {
            let thread = thread::Builder::new().name(self.name.clone());
            let thread = thread.spawn_scoped(scope, || enter_path(&path).and_then(|()| function()));
            thread?.join().map_err(|_| anyhow!("a thread in {} panicked", self.name))?
        })
    }

    /// Starts a function on a thread in here. A thread, because a namespace is a property of a
    /// thread: whatever ran on it next would be in here too.
    ///
    /// # Errors
    ///
    /// If there can be no thread.
    pub fn spawn<T: Send + 'static>(
        &self,
        function: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<JoinHandle<Result<T>>> {
        let path = self.path();
        let thread = thread::Builder::new().name(self.name.clone());
        Ok(thread.spawn(move || enter_path(&path).and_then(|()| function()))?)
    }

    /// The index of an interface.
    ///
    /// # Errors
    ///
    /// If there is no such interface.
    pub fn ifindex(&self, interface: &str) -> Result<u32> {
        let name = interface.to_owned();
        self.enter(move || {
            nix::net::if_::if_nametoindex(name.as_str()).with_context(|| format!("index of {name}"))
        })
    }

    /// The hardware address of an interface.
    ///
    /// # Errors
    ///
    /// If there is no such interface.
    pub fn mac(&self, interface: &str) -> Result<[u8; 6]> {
        let shown = self.ip(&format!("-j link show dev {interface}"))?;
        let shown: serde_json::Value = serde_json::from_str(&shown)?;
        let text = shown[0]["address"].as_str().context("no hardware address")?;
        let mut mac = [0; 6];
        for (byte, digits) in mac.iter_mut().zip(text.split(':')) {
            *byte = u8::from_str_radix(digits, 16)?;
        }
        Ok(mac)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// Moves this thread.
fn enter_path(path: &Path) -> Result<()> {
    let file = File::open(path).with_context(|| format!("opening {path:?}"))?;
    setns(file, CloneFlags::CLONE_NEWNET).context("entering the network namespace")
}

/// What a thread returned.
///
/// # Errors
///
/// What it returned, or that it panicked.
pub fn join<T>(thread: JoinHandle<Result<T>>) -> Result<T> {
    let name = thread.thread().name().unwrap_or_default().to_owned();
    thread.join().map_err(|_| anyhow!("a thread in {name} panicked"))?
}

/// Runs a program in the test's own namespace and returns what it printed.
///
/// # Errors
///
/// If it can't be started or fails: the message holds what it printed.
pub fn run<S: AsRef<OsStr>>(
    program: &str,
    arguments: impl IntoIterator<Item = S>,
) -> Result<String> {
    finish(Command::new(program).args(arguments).stdin(Stdio::null()))
}

fn finish(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("starting {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}: {}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

fn remove(name: &str) {
    let result = end_processes(name).and_then(|()| run("ip", ["netns", "delete", name]).map(drop));
    if let Err(error) = result {
        eprintln!("cleaning up {name}: {error:#}");
    }
}

/// Ends what still runs in the namespace: only what was started by the test that made it.
fn end_processes(name: &str) -> Result<()> {
    for id in run("ip", ["netns", "pids", name])?.split_whitespace() {
        let id: i32 = id.parse()?;
        if u32::try_from(id) == Ok(process::id()) {
            bail!("the test itself is in {name}");
        }
        // It may have ended in the meantime.
        let _ = kill(Pid::from_raw(id), Signal::SIGKILL);
    }
    Ok(())
}

/// Removes what a test run that was itself killed has left.
fn remove_abandoned() {
    for name in abandoned(Path::new("/run/netns")) {
        remove(&name);
    }
    if let Ok(cgroups) = redirector::dataplane::attach::find_root() {
        for name in abandoned(&cgroups) {
            // Processes that are still in it are not known to be ours.
            let _ = fs::remove_dir(cgroups.join(name));
        }
    }
    let temporary = env::temp_dir();
    for name in abandoned(&temporary) {
        let path = temporary.join(name);
        // A bpffs; of other directories this says that they are no mount point.
        let _ = umount2(&path, MntFlags::MNT_DETACH);
        if let Err(error) = fs::remove_dir_all(&path) {
            eprintln!("cleaning up {}: {error}", path.display());
        }
    }
}

/// Names in a directory that belong to a process which is no more.
fn abandoned(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    names
        .filter(|name| {
            let mut parts = name.split('-');
            let ours = parts.next() == Some(PREFIX);
            let id = parts.next().filter(|id| id.parse::<u32>().is_ok());
            ours && id.is_some_and(|id| !Path::new("/proc").join(id).exists())
        })
        .collect()
}
