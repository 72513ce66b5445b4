//! The agent of node 2, to which packets are handed over as they are.

use std::{
    fs::File,
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use redirector_tests::{
    agent::{ADMIN, Lab, get},
    bpffs::Bpffs,
    cli::Cli,
    namespace::Namespace,
    wait,
};
use tempfile::NamedTempFile;

/// How long it may take to start on a busy machine.
const START: Duration = Duration::from_secs(120);

/// An agent with the same file as node 1's.
pub(super) struct Second {
    bpffs: Bpffs,
    log: NamedTempFile,
    agent: Child,
}

impl Second {
    pub(super) fn start(lab: &Lab, host: &Namespace) -> Result<Self> {
        let (bpffs, log) = (Bpffs::new()?, NamedTempFile::new()?);
        let pins = bpffs.pins();
        let mut command = Cli::new(host, &pins).command(&["run"])?;
        command.arg("--config").arg(lab.config_path()).args([
            "--interface",
            "eth0",
            "--interface",
            "eth1",
        ]);
        let output = File::options().append(true).open(log.path())?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let agent = command.spawn().context("starting the agent of node 2")?;
        let mut second = Self { bpffs, log, agent };
        let ready = wait::until_true("the agent of node 2 to be ready", START, || {
            ensure!(second.agent.try_wait()?.is_none(), "it ended");
            Ok(get(host, ADMIN, "/readyz").is_ok_and(|(status, _)| status == 200))
        });
        ready.with_context(|| second.log())?;
        Ok(second)
    }

    pub(super) fn log(&self) -> String {
        std::fs::read_to_string(self.log.path()).unwrap_or_default()
    }

    /// Runs a reading command there.
    pub(super) fn text(&self, host: &Namespace, arguments: &[&str]) -> Result<String> {
        let pins = self.bpffs.pins();
        Cli::new(host, &pins).text(arguments)
    }
}

impl Drop for Second {
    fn drop(&mut self) {
        let ended = self.agent.kill().and_then(|()| self.agent.wait());
        if let Err(error) = ended {
            eprintln!("ending the agent of node 2: {error}");
        }
    }
}
