//! The index, as the watches fill it and the agent reads it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;

use super::index::Index;

/// Handle to the index. Clones share it.
#[derive(Clone, Debug)]
pub struct Cluster {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    index: Index,
    contact: Contact,
}

/// Whether the API server answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contact {
    /// When it last did.
    pub last: Option<Instant>,
    /// Since when it does not, and what was found instead.
    pub lost: Option<(Instant, String)>,
}

impl Cluster {
    /// A handle to this index.
    #[must_use]
    pub fn new(index: Index) -> Self {
        let state = State { index, contact: Contact::default() };
        Self { inner: Arc::new(Inner { state: Mutex::new(state), changed: Notify::new() }) }
    }

    /// Reads or changes the index, without telling anyone.
    pub fn with<T>(&self, act: impl FnOnce(&mut Index) -> T) -> T {
        act(&mut self.lock().index)
    }

    /// Changes the index, and tells whoever waits for it.
    pub fn change(&self, change: impl FnOnce(&mut Index)) {
        change(&mut self.lock().index);
        self.inner.changed.notify_one();
    }

    /// Waits for a change since the last time that this ended. Many changes may be one.
    pub async fn changed(&self) {
        self.inner.changed.notified().await;
    }

    /// Whether the API server answers.
    #[must_use]
    pub fn contact(&self) -> Contact {
        self.lock().contact.clone()
    }

    /// Notes that the API server answered.
    pub(super) fn heard(&self) {
        let mut state = self.lock();
        state.contact.last = Some(Instant::now());
        if let Some((since, _)) = state.contact.lost.take() {
            tracing::info!("the API server answers again, after {:?}", since.elapsed());
        }
    }

    /// Notes that it did not; the first time is logged.
    pub(super) fn lost(&self, error: &str) {
        let mut state = self.lock();
        if state.contact.lost.is_none() {
            tracing::warn!("the API server does not answer, the data path stays as it is: {error}");
            state.contact.lost = Some((Instant::now(), error.to_owned()));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while it was held left a record in or out, and the next list mends that.
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
