//! The agent, and a laboratory around it.

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::{
        resource::{Resource, getrlimit, setrlimit},
        signal::{Signal, kill},
    },
    unistd::Pid,
};
use tempfile::TempDir;

use crate::{
    bpffs::Bpffs,
    cli::{Cli, NO_LOCAL_CLIENTS},
    client,
    namespace::{Namespace, prefix},
    topology::Topology,
    wait,
};

/// Where agents serve their state, on their own loopback device.
pub const ADMIN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9961);

/// How long an agent may take to load its programs on a busy machine, or an emulated one.
const START: Duration = Duration::from_secs(120);

/// Files that a test may have open.
const FILES: u64 = 20_000;

/// Hosts, a bpffs and an agent on node 1: what most tests need.
#[derive(Debug)]
pub struct Lab {
    agent: Option<Child>,
    files: TempDir,
    /// The bpffs of node 1.
    pub bpffs: Bpffs,
    pins: PathBuf,
    /// The hosts.
    pub net: Topology,
}

impl Lab {
    /// Hosts with a bpffs, and no agent yet.
    ///
    /// # Errors
    ///
    /// If something can't be made: this needs root.
    pub fn new() -> Result<Self> {
        // A thousand connections have two ends, and each end a reader and a writer.
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, hard.max(FILES), hard.max(FILES))?;
        let bpffs = Bpffs::new()?;
        Ok(Self {
            agent: None,
            files: tempfile::Builder::new().prefix(&(prefix() + "lab-")).tempdir()?,
            pins: bpffs.pins(),
            bpffs,
            net: Topology::new()?,
        })
    }

    /// Runs a test in a new laboratory. Where it fails, prints why, the agent's log, its
    /// counters and flows.
    ///
    /// # Errors
    ///
    /// The test's own.
    pub fn run(test: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let mut lab = Self::new()?;
        let result = test(&mut lab);
        if let Err(error) = &result {
            // What is printed of the state is long: whoever sees but a part sees the reason.
            eprintln!("{error:#}");
            lab.print_state();
        }
        result
    }

    /// As [`Self::run`], with an agent already running.
    ///
    /// # Errors
    ///
    /// The test's own, or that the agent does not start.
    pub fn run_with(config: &str, test: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        Self::run_with_options(config, &[], test)
    }

    /// As [`Self::run_with`], with options of the agent.
    ///
    /// # Errors
    ///
    /// As [`Self::run_with`].
    pub fn run_with_options(
        config: &str,
        options: &[&str],
        test: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<()> {
        Self::run(|lab| {
            lab.write_config(config)?;
            lab.start(options)?;
            test(lab)
        })
    }

    /// The agent's file.
    #[must_use]
    pub fn config_path(&self) -> PathBuf {
        self.files.path().join("redirector.yaml")
    }

    /// The agent's log so far.
    #[must_use]
    pub fn log(&self) -> String {
        let log = fs::read(self.files.path().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// The commands, on node 1.
    #[must_use]
    pub fn cli(&self) -> Cli<'_> {
        Cli::new(&self.net.node1, &self.pins)
    }

    /// Whether the directory of the pins is there, as opposed to never made or removed again.
    #[must_use]
    pub fn has_pins(&self) -> bool {
        self.pins.exists()
    }

    /// Replaces the agent's file in one step, as careful editors and Kubernetes do.
    ///
    /// # Errors
    ///
    /// If it can't be written.
    pub fn write_config(&self, text: &str) -> Result<()> {
        let path = self.config_path();
        let new = path.with_extension("new");
        fs::write(&new, text)?;
        Ok(fs::rename(new, path)?)
    }

    /// Starts the agent on both of node 1's interfaces, and waits until it is ready.
    ///
    /// # Errors
    ///
    /// If it does not become ready: the message holds its log.
    pub fn start(&mut self, options: &[&str]) -> Result<()> {
        self.start_without_waiting(options)?;
        self.wait_ready()
    }

    /// Starts the agent on both of node 1's interfaces.
    ///
    /// # Errors
    ///
    /// If it can't be started.
    pub fn start_without_waiting(&mut self, options: &[&str]) -> Result<()> {
        let mut command = self.run_command()?;
        if !options.contains(&"--interface") {
            command.args(["--interface", "eth0", "--interface", "eth1"]);
        }
        if options.contains(&"--cgroup") {
            command.env_remove(NO_LOCAL_CLIENTS);
        }
        command.args(options);
        self.start_command(command)
    }

    /// Starts an agent by a command of the test's own, which becomes the agent.
    ///
    /// # Errors
    ///
    /// If it can't be started.
    pub fn start_command(&mut self, mut command: Command) -> Result<()> {
        ensure!(self.agent.is_none(), "an agent runs already");
        let log = File::options().create(true).append(true).open(self.files.path().join("log"))?;
        command.stdout(log.try_clone()?).stderr(log);
        self.agent = Some(command.spawn().with_context(|| format!("starting {command:?}"))?);
        Ok(())
    }

    /// Waits until the agent is ready.
    ///
    /// # Errors
    ///
    /// If it ends or does not become ready.
    pub fn wait_ready(&mut self) -> Result<()> {
        let ready = wait::until_true("the agent to be ready", START, || {
            let agent = self.agent.as_mut().context("no agent was started")?;
            if let Some(status) = agent.try_wait()? {
                self.agent = None;
                bail!("the agent ended: {status}");
            }
            Ok(get(&self.net.node1, ADMIN, "/readyz").is_ok_and(|(status, _)| status == 200))
        });
        ready.with_context(|| format!("its log:\n{}", self.log()))
    }

    /// Runs an agent that must not start, to its end.
    ///
    /// # Errors
    ///
    /// If it is still running after a while.
    pub fn refused(&self, options: &[&str]) -> Result<Output> {
        let mut command = self.run_command()?;
        command.args(options);
        finish_soon(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?)
    }

    /// `redirector run` with this laboratory's file and pins.
    ///
    /// # Errors
    ///
    /// If there is no program.
    pub fn run_command(&self) -> Result<Command> {
        let mut command = self.cli().command(&["run"])?;
        command.arg("--config").arg(self.config_path());
        Ok(command)
    }

    /// The agent's process id, if it runs.
    #[must_use]
    pub fn agent_id(&self) -> Option<u32> {
        self.agent.as_ref().map(Child::id)
    }

    /// Sends the agent a signal.
    ///
    /// # Errors
    ///
    /// If there is no agent.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let agent = self.agent.as_ref().context("no agent runs")?;
        Ok(kill(Pid::from_raw(i32::try_from(agent.id())?), signal)?)
    }

    /// Kills the agent without warning.
    ///
    /// # Errors
    ///
    /// If there is no agent.
    pub fn kill(&mut self) -> Result<()> {
        let mut agent = self.agent.take().context("no agent runs")?;
        agent.kill()?;
        agent.wait()?;
        Ok(())
    }

    /// Asks the agent to end and waits until it has.
    ///
    /// # Errors
    ///
    /// If it does not end.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        let mut agent = self.agent.take().context("no agent runs")?;
        let stopped = wait::until("the agent to end", START, || Ok(agent.try_wait()?));
        if stopped.is_err() {
            agent.kill()?;
        }
        stopped.with_context(|| format!("its log:\n{}", self.log()))
    }

    /// The value of a metric: `name{labels}` as it is printed.
    ///
    /// # Errors
    ///
    /// If there is no agent.
    pub fn metric(&self, name: &str) -> Result<Option<f64>> {
        let (status, text) = get(&self.net.node1, ADMIN, "/metrics")?;
        ensure!(status == 200, "/metrics answers {status}: {text}");
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map(|value| value.trim().parse().with_context(|| format!("{name} is {value}")))
            .transpose()
    }

    /// Prints what is known of the hosts and the agent, for whoever reads why a test failed.
    pub fn print_state(&self) {
        self.print_device_counters();
        eprintln!("--- the agent's log:\n{}", self.log());
        for command in
            [["status"].as_slice(), &["service", "list"], &["flow", "list"], &["counters"]]
        {
            match self.cli().text(command) {
                Ok(text) => eprintln!("--- redirector {}:\n{text}", command.join(" ")),
                Err(error) => eprintln!("--- {error:#}"),
            }
        }
    }
}

impl Lab {
    /// What the devices themselves dropped, which is neither the agent's nor its programs' doing.
    fn print_device_counters(&self) {
        let Topology { client, node1, node2 } = &self.net;
        let ends = [(client, "eth0"), (node1, "eth0"), (node1, "eth1"), (node2, "eth0")];
        for (host, interface) in ends {
            let counters = host.run("ethtool", ["-S", interface]).unwrap_or_default();
            let lines = counters.lines().map(str::trim);
            let told: Vec<&str> = lines
                .filter(|line| line.contains("drop") || line.contains("err"))
                .filter(|line| !line.ends_with(": 0"))
                .collect();
            eprintln!("--- {} {interface}: {}", host.name(), told.join(", "));
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.agent.is_some()
            && let Err(error) = self.kill()
        {
            eprintln!("ending the agent: {error:#}");
        }
    }
}

/// Asks an HTTP server of a host; returns status and body.
///
/// # Errors
///
/// If it does not answer.
pub fn get(host: &Namespace, server: SocketAddr, path: &str) -> Result<(u16, String)> {
    let (status, _, body) = get_with_head(host, server, path)?;
    Ok((status, body))
}

/// Asks an HTTP server of a host; returns status, status line with headers, and body.
///
/// # Errors
///
/// If it does not answer.
pub fn get_with_head(
    host: &Namespace,
    server: SocketAddr,
    path: &str,
) -> Result<(u16, String, String)> {
    let mut stream = client::tcp(host, server)?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("not HTTP")?;
    let status = head.split(' ').nth(1).context("no status line")?.parse()?;
    Ok((status, head.to_owned(), body.to_owned()))
}

/// Waits for a process that should end by itself.
///
/// # Errors
///
/// If it does not.
pub fn finish_soon(mut child: Child) -> Result<Output> {
    let ended =
        wait::until_true("the program to end by itself", START, || Ok(child.try_wait()?.is_some()));
    if ended.is_err() {
        child.kill()?;
    }
    let output = child.wait_with_output()?;
    ended.with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    Ok(output)
}
