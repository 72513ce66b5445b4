//! The way to the API server.

use std::io;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use kube::config::{InferConfigError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(10);

/// How long a connection may be silent while something is awaited. Watches get a bookmark every
/// minute, where nothing else happens: two that are missing mean that the server is gone, though
/// nobody closed the connection. A watch that begins anew goes on where it was.
const SILENCE: Duration = Duration::from_secs(130);
/// How long a small question may take.
const ANSWER: Duration = Duration::from_secs(5);
/// How long it may take with all that has to be done before it can be asked.
const REACH: Duration = Duration::from_secs(15);

/// There is no way to the API server.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The file is of no use.
    #[error("kubeconfig {}: {source}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: KubeconfigError,
    },
    /// There is neither.
    #[error(
        "no API server is known: run in a cluster, with a service account, or name a kubeconfig \
         with --kubeconfig ({0})"
    )]
    Nowhere(InferConfigError),
    /// The credentials, certificates or address are of no use.
    #[error("the API server's address or credentials cannot be used: {0}")]
    Client(#[from] kube::Error),
    /// Others say what the credentials are, and did not.
    #[error(
        "the program that the kubeconfig names for credentials, {program:?}, gave none within \
         {patience:?}: run it by hand to see what keeps it"
    )]
    Program {
        /// Which.
        program: String,
        /// How long it was waited for.
        patience: Duration,
    },
    /// Nor could they be waited for.
    #[error("no thread can be started to wait for credentials: {0}")]
    Thread(#[source] io::Error),
}

/// Where the API server's address and credentials come from. They are read again whenever they
/// are refused, since others renew them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    kubeconfig: Option<PathBuf>,
    namespace: Option<String>,
    silence: Duration,
}

impl Default for Access {
    fn default() -> Self {
        Self::new(None)
    }
}

impl Access {
    /// By a kubeconfig; `None`: by the pod's service account, or the user's own kubeconfig.
    #[must_use]
    pub const fn new(kubeconfig: Option<PathBuf>) -> Self {
        Self { kubeconfig, namespace: None, silence: SILENCE }
    }

    /// With what is the agents' own in this namespace; `None`: in the pod's, or in that of the
    /// kubeconfig's context.
    #[must_use]
    pub fn in_namespace(self, namespace: Option<String>) -> Self {
        Self { namespace, ..self }
    }

    /// With another patience for connections that are silent.
    #[cfg(test)]
    pub(super) fn with_silence(self, silence: Duration) -> Self {
        Self { silence, ..self }
    }

    /// A client with the address and credentials as they are now. Nothing is sent yet.
    ///
    /// # Errors
    ///
    /// They cannot be read or used.
    pub async fn connect(&self) -> Result<Client, AccessError> {
        let mut config = match &self.kubeconfig {
            Some(path) => read_kubeconfig(path)
                .await
                .map_err(|source| AccessError::Kubeconfig { path: path.clone(), source })?,
            None => Config::infer().await.map_err(AccessError::Nowhere)?,
        };
        if let Some(namespace) = &self.namespace {
            config.default_namespace.clone_from(namespace);
        }
        config.connect_timeout = Some(CONNECT);
        config.read_timeout = Some(self.silence);
        // The time that a connection waited to be used again does not count.
        config.reset_reader_on_write = true;
        match config.auth_info.exec.as_ref().map(|exec| exec.command.clone().unwrap_or_default()) {
            None => Ok(Client::try_from(config)?),
            Some(program) => self.wait_for(program, config).await,
        }
    }

    /// The library waits for the program on the spot. One that hangs, maybe for the network that we
    /// are to look after, must not keep the agent from its other work.
    async fn wait_for(&self, program: String, config: Config) -> Result<Client, AccessError> {
        let (sender, client) = oneshot::channel();
        let runtime = Handle::current();
        let wait = move || {
            let _context = runtime.enter();
            // Whoever asked may have given up.
            let _ = sender.send(Client::try_from(config));
        };
        thread::Builder::new()
            .name("credentials".to_owned())
            .spawn(wait)
            .map_err(AccessError::Thread)?;
        match timeout(self.silence, client).await {
            Ok(Ok(client)) => Ok(client?),
            Ok(Err(_)) | Err(_) => Err(AccessError::Program { program, patience: self.silence }),
        }
    }

    /// Asks the API server something small, over a new connection. Any answer will do.
    ///
    /// # Errors
    ///
    /// It does not answer.
    pub async fn reach(&self) -> Result<(), String> {
        let reached = timeout(REACH, self.ask()).await;
        reached.unwrap_or_else(|_| Err(format!("no answer within {REACH:?}")))
    }

    async fn ask(&self) -> Result<(), String> {
        let client = self.connect().await.map_err(|error| error.to_string())?;
        match timeout(ANSWER, client.apiserver_version()).await {
            Ok(Ok(_) | Err(kube::Error::Api(_) | kube::Error::SerdeError(_))) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {ANSWER:?}")),
        }
    }
}

async fn read_kubeconfig(path: &PathBuf) -> Result<Config, KubeconfigError> {
    let file = Kubeconfig::read_from(path)?;
    Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tokio::time::{Instant, sleep};

    use super::*;

    /// A program that says what the credentials are, and hangs: nothing else waits for it.
    #[tokio::test]
    async fn a_program_that_hangs_is_given_up() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let kubeconfig = "{apiVersion: v1, kind: Config, current-context: here,
             contexts: [{name: here, context: {cluster: here, user: here}}],
             clusters: [{name: here, cluster: {server: 'http://127.0.0.1:1'}}],
             users: [{name: here, user: {exec: {
                 apiVersion: client.authentication.k8s.io/v1, command: sleep, args: ['3'],
                 interactiveMode: Never}}}]}";
        fs::write(file.path(), kubeconfig).expect("written");
        let access = Access::new(Some(file.path().to_owned()));
        let access = access.with_silence(Duration::from_millis(500));
        let began = Instant::now();
        let other = async {
            sleep(Duration::from_millis(100)).await;
            began.elapsed()
        };
        let (connected, other) = tokio::join!(access.connect(), other);
        let error = connected.err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains("\"sleep\", gave none within 500ms"), "{error}");
        assert!(other < Duration::from_millis(2500), "{other:?}");
    }
}
