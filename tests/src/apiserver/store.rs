//! Objects, their revisions, and what happened to them lately.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde_json::Value;
use tokio::sync::watch;

use super::{
    error::ApiError,
    object::{Key, at_revision, metadata},
    resource::Resource,
};

/// Changes that are remembered, unless they are forgotten on demand.
const WINDOW: usize = 20_000;

/// All objects. Every change has a revision of its own; the newest changes are remembered, which
/// is what watches and continued lists live on.
#[derive(Debug)]
pub struct Store {
    state: Mutex<State>,
    /// The newest revision, for those who wait for another.
    newest: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    revision: u64,
    /// Nothing is known of how things were before this revision.
    oldest: u64,
    objects: BTreeMap<(&'static str, Key), Arc<Value>>,
    history: VecDeque<Change>,
}

/// One change of one object.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) revision: u64,
    storage: &'static str,
    key: Key,
    pub(super) old: Option<Arc<Value>>,
    /// With the revision in it; `None`: deleted.
    pub(super) new: Option<Arc<Value>>,
}

impl Change {
    /// Whose.
    pub(super) fn key(&self) -> &Key {
        &self.key
    }
}

/// Objects of a kind at some revision, in order.
pub(super) type Objects = BTreeMap<Key, Arc<Value>>;

impl Default for Store {
    fn default() -> Self {
        // As if there had been a cluster before: 0 and 1 are never revisions of objects.
        let state = State { revision: 1000, oldest: 1000, ..State::default() };
        Self { newest: watch::Sender::new(state.revision), state: Mutex::new(state) }
    }
}

impl Store {
    /// The newest revision.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.lock().revision
    }

    /// Forgets the history: who asks for what was before is told that it is gone.
    pub fn compact(&self) {
        let mut state = self.lock();
        state.oldest = state.revision;
        state.history.clear();
    }

    /// Makes revisions go by, as changes of objects do that nobody here watches.
    pub fn skip(&self, revisions: u64) {
        let revision = {
            let mut state = self.lock();
            state.revision += revisions;
            state.revision
        };
        self.newest.send_replace(revision);
    }

    /// One object.
    #[must_use]
    pub fn get(&self, resource: &Resource, key: &Key) -> Option<Arc<Value>> {
        self.lock().objects.get(&(resource.storage(), key.clone())).cloned()
    }

    /// Replaces an object by what `change` makes of it (`None`: there is none), in one step.
    ///
    /// # Errors
    ///
    /// Those of `change`.
    pub fn modify(
        &self,
        resource: &Resource,
        key: &Key,
        change: impl FnOnce(Option<&Arc<Value>>) -> Result<Option<Value>, ApiError>,
    ) -> Result<Arc<Value>, ApiError> {
        let mut state = self.lock();
        let place = (resource.storage(), key.clone());
        let old = state.objects.get(&place).cloned();
        let new = change(old.as_ref())?;
        match (old, new) {
            (Some(old), Some(new)) if *old == new => Ok(old),
            (old, Some(mut new)) => {
                state.revision += 1;
                let revision = state.revision.to_string();
                metadata(&mut new).insert("resourceVersion".into(), revision.into());
                let new = Arc::new(new);
                state.objects.insert(place, new.clone());
                state.remember(resource, key, old, Some(new.clone()));
                self.newest.send_replace(state.revision);
                Ok(new)
            }
            (Some(old), None) => {
                state.revision += 1;
                state.objects.remove(&place);
                let last = at_revision(&old, state.revision);
                state.remember(resource, key, Some(old), None);
                self.newest.send_replace(state.revision);
                Ok(last)
            }
            (None, None) => Err(ApiError::not_found(resource, key)),
        }
    }

    /// All objects of a kind as they are, or as they were, with that revision.
    pub(super) fn list(
        &self,
        resource: &Resource,
        at: Option<u64>,
    ) -> Result<(Objects, u64), ApiError> {
        let state = self.lock();
        let storage = resource.storage();
        let from = (storage, Key::default());
        let mut objects: Objects = state
            .objects
            .range(from..)
            .take_while(|((kind, _), _)| *kind == storage)
            .map(|((_, key), object)| (key.clone(), object.clone()))
            .collect();
        let Some(at) = at else {
            return Ok((objects, state.revision));
        };
        state.check(at)?;
        let later = state.history.iter().rev().take_while(|change| change.revision > at);
        for change in later.filter(|change| change.storage == storage) {
            match &change.old {
                Some(old) => objects.insert(change.key.clone(), old.clone()),
                None => objects.remove(&change.key),
            };
        }
        Ok((objects, at))
    }

    /// What happened to objects of a kind after a revision, and the revision up to which this is.
    pub(super) fn changes(
        &self,
        resource: &Resource,
        after: u64,
    ) -> Result<(Vec<Change>, u64), ApiError> {
        let state = self.lock();
        state.check(after)?;
        let later = state.history.iter().rev().take_while(|change| change.revision > after);
        let ours = later.filter(|change| change.storage == resource.storage());
        let mut changes: Vec<Change> = ours.cloned().collect();
        changes.reverse();
        Ok((changes, state.revision))
    }

    /// Tells of every new revision.
    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic is done half way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn remember(
        &mut self,
        resource: &Resource,
        key: &Key,
        old: Option<Arc<Value>>,
        new: Option<Arc<Value>>,
    ) {
        let (revision, storage) = (self.revision, resource.storage());
        self.history.push_back(Change { revision, storage, key: key.clone(), old, new });
        if self.history.len() > WINDOW
            && let Some(forgotten) = self.history.pop_front()
        {
            self.oldest = forgotten.revision;
        }
    }

    fn check(&self, revision: u64) -> Result<(), ApiError> {
        if revision < self.oldest {
            return Err(ApiError::expired(revision, self.oldest));
        }
        if revision > self.revision {
            return Err(ApiError::too_large(revision, self.revision));
        }
        Ok(())
    }
}
