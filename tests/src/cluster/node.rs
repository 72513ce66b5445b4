//! A node's agent.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    agent::{ADMIN, get},
    bpffs::Bpffs,
    cli::{Cli, NO_LOCAL_CLIENTS},
    deployed,
    namespace::Namespace,
    wait,
};

/// How long an agent may take to load its programs while others do so too.
const START: Duration = Duration::from_secs(120);

/// What a node has besides its network: pins, and an agent.
#[derive(Debug)]
pub struct Node {
    name: String,
    agent: Option<Child>,
    bpffs: Bpffs,
    kubeconfig: PathBuf,
    log: PathBuf,
}

impl Node {
    pub(super) fn new(name: String, kubeconfig: PathBuf, files: &Path) -> Result<Self> {
        let log = files.join(format!("{name}.log"));
        Ok(Self { name, agent: None, bpffs: Bpffs::new()?, kubeconfig, log })
    }

    /// Its name in the API.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The agent's log so far.
    #[must_use]
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// The file through which the agent finds the API server.
    #[must_use]
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Where the agent's maps are pinned.
    #[must_use]
    pub fn pins(&self) -> PathBuf {
        self.bpffs.pins()
    }

    /// `redirector run`, as on a node of a cluster.
    fn command(&self, host: &Namespace, options: &[&str]) -> Result<Command> {
        let pins = self.pins();
        let mut command = Cli::new(host, &pins).command(&["run", "--kubernetes"])?;
        command.arg("--kubeconfig").arg(&self.kubeconfig);
        command.args(["--namespace", deployed::NAMESPACE]);
        command.args(["--node-name", &self.name, "--interface", "eth0"]).args(options);
        if options.contains(&"--cgroup") {
            command.env_remove(NO_LOCAL_CLIENTS);
        }
        Ok(command)
    }

    /// Starts an agent, but does not wait for it.
    pub(super) fn start(&mut self, host: &Namespace, options: &[&str]) -> Result<()> {
        ensure!(self.agent.is_none(), "an agent runs already");
        let log = File::options().create(true).append(true).open(&self.log)?;
        let mut command = self.command(host, options)?;
        command.stdout(log.try_clone()?).stderr(log);
        let cgroup = options.iter().skip_while(|option| **option != "--cgroup").nth(1);
        if cgroup.is_some() {
            command.env_remove(NO_LOCAL_CLIENTS);
        }
        let agent = command.spawn().with_context(|| format!("starting {command:?}"))?;
        if let Some(cgroup) = cgroup {
            // It is a client of its own node itself.
            fs::write(Path::new(cgroup).join("cgroup.procs"), agent.id().to_string())?;
        }
        self.agent = Some(agent);
        Ok(())
    }

    /// Waits until the agent has brought the maps in step for the first time.
    pub(super) fn await_ready(&mut self, host: &Namespace) -> Result<()> {
        let ready = wait::until_true("the agent to be ready", START, || {
            let agent = self.agent.as_mut().context("no agent was started")?;
            if let Some(status) = agent.try_wait()? {
                self.agent = None;
                bail!("the agent ended: {status}");
            }
            Ok(get(host, ADMIN, "/readyz").is_ok_and(|(status, _)| status == 200))
        });
        ready.with_context(|| format!("the log of {}:\n{}", self.name, self.log()))
    }

    /// Kills the agent without warning; its data path goes on.
    ///
    /// # Errors
    ///
    /// If there is none.
    pub fn kill(&mut self) -> Result<()> {
        let mut agent = self.agent.take().context("no agent runs")?;
        agent.kill()?;
        agent.wait()?;
        Ok(())
    }

    /// Ends the agent as an operator does, and waits for that.
    ///
    /// # Errors
    ///
    /// If there is none, or it does not end well.
    pub fn stop(&mut self) -> Result<()> {
        let mut agent = self.agent.take().context("no agent runs")?;
        kill(Pid::from_raw(agent.id().try_into()?), Signal::SIGTERM)?;
        let ended = wait::until("the agent to end", wait::SOON, || Ok(agent.try_wait()?));
        if ended.is_err() {
            agent.kill()?;
        }
        let status = ended.with_context(|| format!("its log:\n{}", self.log()))?;
        ensure!(status.success(), "the agent ended: {status}; its log:\n{}", self.log());
        Ok(())
    }

    pub(super) fn print_state(&self, host: &Namespace) {
        eprintln!("--- the log of {}:\n{}", self.name, self.log());
        let pins = self.pins();
        let cli = Cli::new(host, &pins);
        for command in [["service", "list"].as_slice(), &["flow", "list"], &["counters"]] {
            match cli.text(command) {
                Ok(text) => {
                    eprintln!("--- {}: redirector {}:\n{text}", self.name, command.join(" "));
                }
                Err(error) => eprintln!("--- {}: {error:#}", self.name),
            }
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.agent.is_some()
            && let Err(error) = self.kill()
        {
            eprintln!("ending the agent of {}: {error:#}", self.name);
        }
    }
}
