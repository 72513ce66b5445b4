//! The agent's watch over itself: a program that takes the node's own way to the API server away
//! must not stay on the node.

use std::time::Duration;

use tokio::sync::mpsc::Sender;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::Shared;
use super::events::Event;
use crate::k8s::client::Access;

/// How long the API server may be out of reach after attaching.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long it may take to answer once the programs are off again, if it was they.
pub(super) const PROOF: Duration = Duration::from_secs(10);
/// How often it is tried.
const PAUSE: Duration = Duration::from_secs(1);

/// Tries to reach the API server over new connections until it answers though all that it asks for
/// was done, or reports that the node is locked out. To be called when programs have been attached,
/// where it could be reached before.
pub(super) fn watch(
    tasks: &mut JoinSet<anyhow::Result<()>>,
    sender: &Sender<Event>,
    access: Access,
    shared: Shared,
) {
    let sender = sender.clone();
    tasks.spawn(async move {
        loop {
            // Asked before, so that the answer comes after it.
            let is_complete = shared.snapshot().waiting_for.is_empty();
            if !answers_within(&access, PATIENCE).await {
                sender.send(Event::LockedOut).await?;
                break;
            }
            if is_complete {
                tracing::info!("the API server can be reached with the programs in place");
                break;
            }
            sleep(PAUSE).await;
        }
        // What comes later has other reasons.
        std::future::pending().await
    });
}

/// Whether the API server answers within some time.
pub(super) async fn answers_within(access: &Access, patience: Duration) -> bool {
    let began = Instant::now();
    loop {
        match access.reach().await {
            Ok(()) => return true,
            Err(error) if began.elapsed() >= patience => {
                tracing::warn!("the API server cannot be reached: {error}");
                return false;
            }
            Err(_) => sleep(PAUSE).await,
        }
    }
}
