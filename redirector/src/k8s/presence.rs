//! This node's own Lease, by which agents of other nodes know that it takes flows.
//!
//! It stays when the agent ends, since packets do not need the agent: a restart changes nothing for
//! other nodes. Where the agent does not come back, it runs out.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::client::{Access, AccessError};
use super::lease::{lease, lease_name};
use super::pause::{Pause, REFUSED, spread};

/// How often the Lease is renewed. Seldom: every agent watches the Leases of all, so that n nodes
/// make n² messages of each round; with 5000 of them it is 7000 a second at one round an hour, each
/// of a few hundred bytes, and would be 2.5 million at one in ten seconds.
const RENEWAL: Duration = Duration::from_secs(3600);
/// How long the API server may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long it may take when the agent ends.
const LEAVE: Duration = Duration::from_secs(3);

/// Who wrote the fields of the Lease.
const MANAGER: &str = "redirector";

/// What is to become of the Lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Nothing yet: one of an earlier agent stays as it is.
    Wait,
    /// It is kept.
    Keep {
        /// Uid of the Node.
        owner: String,
        /// How often somebody else has removed it.
        losses: u64,
    },
    /// It goes.
    Leave,
}

/// Where it is said what is to become of the Lease.
#[derive(Debug)]
pub struct Presence {
    wish: watch::Sender<Wish>,
    refused: watch::Receiver<Option<String>>,
}

impl Presence {
    /// One, and what has to be [run](Keeper::run) for it.
    #[must_use]
    pub fn new(access: Access, node: &str, at_first: Wish) -> (Self, Keeper) {
        let (wish, wishes) = watch::channel(at_first);
        let (refusal, refused) = watch::channel(None);
        (Self { wish, refused }, Keeper { access, node: node.to_owned(), wishes, refusal })
    }

    /// Says it.
    pub fn wish(&self, wish: Wish) {
        self.wish.send_if_modified(|before| {
            let is_new = *before != wish;
            *before = wish;
            is_new
        });
    }

    /// Why the API server refuses the Lease, if it does.
    #[must_use]
    pub fn refused(&self) -> Option<String> {
        self.refused.borrow().clone()
    }
}

/// What keeps the Lease.
#[derive(Debug)]
pub struct Keeper {
    access: Access,
    node: String,
    wishes: watch::Receiver<Wish>,
    refusal: watch::Sender<Option<String>>,
}

/// A Lease could not be written or removed.
#[derive(Debug, thiserror::Error)]
enum LeaseError {
    #[error(transparent)]
    Access(#[from] AccessError),
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Failed(kube::Error),
    #[error("no answer within {0:?}")]
    Silent(Duration),
}

impl From<kube::Error> for LeaseError {
    fn from(error: kube::Error) -> Self {
        // The rest passes: credentials are read again, an overload ends.
        if let kube::Error::Api(status) = &error
            && [400, 403, 404, 422].contains(&status.code)
        {
            return Self::Refused(status.message.clone());
        }
        Self::Failed(error)
    }
}

impl Keeper {
    /// Does what is wished, again when it fails, until nobody can wish anything any more.
    pub async fn run(mut self) {
        let mut pause = Pause::default();
        loop {
            let wish = self.wishes.borrow_and_update().clone();
            let done = match &wish {
                Wish::Wait => Ok(()),
                Wish::Keep { owner, .. } => self.renew(owner).await,
                Wish::Leave => remove(&self.access, &self.node, PATIENCE).await,
            };
            let next = match done {
                Ok(()) => {
                    pause = Pause::default();
                    self.refusal.send_replace(None);
                    spread(RENEWAL)
                }
                Err(LeaseError::Refused(message)) => {
                    self.note(message);
                    spread(REFUSED)
                }
                Err(error) => {
                    tracing::debug!("the node's Lease: {error}");
                    pause.take()
                }
            };
            tokio::select! {
                () = sleep(next) => {}
                changed = self.wishes.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// Made where it is not there. What others have written to it is not kept.
    async fn renew(&self, owner: &str) -> Result<(), LeaseError> {
        let lease = lease(&self.node, owner, Timestamp::now());
        let params = PatchParams::apply(MANAGER).force();
        let (name, patch) = (lease_name(&self.node), Patch::Apply(&lease));
        let renew = async {
            leases(&self.access).await?.patch(&name, &params, &patch).await?;
            Ok(())
        };
        timeout(PATIENCE, renew).await.unwrap_or(Err(LeaseError::Silent(PATIENCE)))
    }

    fn note(&self, message: String) {
        self.refusal.send_if_modified(|before| {
            let is_new = before.as_ref() != Some(&message);
            if is_new {
                tracing::warn!("the node's Lease is refused: {message}");
                *before = Some(message);
            }
            is_new
        });
    }
}

/// Removes the Lease of a node that is about to take no more flows.
pub async fn leave(access: &Access, node: &str) {
    if let Err(error) = remove(access, node, LEAVE).await {
        tracing::warn!("the node's Lease stays until it runs out: {error}");
    }
}

async fn remove(access: &Access, node: &str, patience: Duration) -> Result<(), LeaseError> {
    let (name, params) = (lease_name(node), DeleteParams::default());
    let remove = async {
        match leases(access).await?.delete(&name, &params).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            removed => Ok(removed.map(drop)?),
        }
    };
    timeout(patience, remove).await.unwrap_or(Err(LeaseError::Silent(patience)))
}

async fn leases(access: &Access) -> Result<Api<Lease>, AccessError> {
    Ok(Api::default_namespaced(access.connect().await?))
}
