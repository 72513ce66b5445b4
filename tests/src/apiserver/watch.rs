//! Watches: what there is, then every change.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::{
    sync::{broadcast, watch},
    time::{Instant, Interval, interval_at, sleep_until},
};

use super::{
    answer::{Left, Sender},
    error::ApiError,
    faults::{Faults, Order},
    list::show,
    object::{Key, at_revision},
    request::{Objects, Options},
    resource::Resource,
    selector::Selector,
    store::{Change, Store},
};

/// Says that all that there was at first has been sent.
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

/// A watch that never times out ends some time after this.
const LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// A watch that has been accepted.
#[derive(Debug)]
pub(super) struct Watch {
    store: Arc<Store>,
    faults: Arc<Faults>,
    resource: &'static Resource,
    namespace: Option<String>,
    name: Option<String>,
    selector: Selector,
    options: Options,
    begin: Begin,
    orders: broadcast::Receiver<(Order, Option<&'static str>)>,
    revisions: watch::Receiver<u64>,
}

/// What a watch begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Begin {
    /// All that there is, then a bookmark.
    StreamingList,
    /// All that there is.
    State,
    /// What happened after a revision; `None`: after now.
    After(Option<u64>),
}

/// Why a watch ends.
enum End {
    Left,
    Error(ApiError),
    Cut,
    Over,
}

impl From<Left> for End {
    fn from(Left: Left) -> Self {
        Self::Left
    }
}

impl From<ApiError> for End {
    fn from(error: ApiError) -> Self {
        Self::Error(error)
    }
}

impl Watch {
    pub(super) fn open(
        store: &Arc<Store>,
        faults: &Arc<Faults>,
        wanted: &Objects,
        options: Options,
    ) -> Result<Self, ApiError> {
        let begin = Begin::of(&options, faults.has_streaming_lists())?;
        Ok(Self {
            selector: options.selector(wanted.resource)?,
            orders: faults.orders(),
            revisions: store.subscribe(),
            store: store.clone(),
            faults: faults.clone(),
            resource: wanted.resource,
            namespace: wanted.namespace.clone(),
            name: wanted.name.clone(),
            options,
            begin,
        })
    }

    /// Sends events until the watch ends.
    pub(super) async fn run(mut self, client: Sender) {
        match self.follow(&client).await {
            End::Error(error) => {
                let line = line("ERROR", &error.status());
                // It may be gone: then there is nobody to tell.
                let _ = client.send(line, self.faults.pace()).await;
            }
            End::Cut => {
                // Half a line.
                let _ = client.send(b"{\"type\":\"MODI".to_vec(), None).await;
                client.cut().await;
            }
            End::Left | End::Over => {}
        }
    }

    async fn follow(&mut self, client: &Sender) -> End {
        let seconds = self.options.timeout_seconds.map_or(LIFETIME, Duration::from_secs);
        let deadline = Instant::now() + seconds;
        let mut seen = match self.begin(client).await {
            Ok(seen) => seen,
            Err(end) => return end,
        };
        let mut bookmarks = self.bookmarks();
        loop {
            seen = match self.send_changes(client, seen).await {
                Ok(seen) => seen,
                Err(end) => return end,
            };
            let step = tokio::select! {
                biased;
                Ok(order) = self.orders.recv() => self.obey(order),
                changed = self.revisions.changed() => match changed {
                    Ok(()) => Ok(false),
                    Err(_) => Err(End::Over),
                },
                _ = bookmarks.tick() => Ok(self.options.bookmarks),
                () = sleep_until(deadline) => Err(End::Over),
                () = client.left() => Err(End::Left),
            };
            match step {
                Ok(false) => {}
                Ok(true) => {
                    if let Err(Left) = self.send_bookmark(client, seen, false).await {
                        return End::Left;
                    }
                }
                Err(end) => return end,
            }
        }
    }

    fn bookmarks(&self) -> Interval {
        let every = self.faults.bookmarks();
        interval_at(Instant::now() + every, every)
    }

    /// Whether to send a bookmark.
    fn obey(&self, (order, plural): (Order, Option<&'static str>)) -> Result<bool, End> {
        if plural.is_some_and(|plural| plural != self.resource.plural) {
            return Ok(false);
        }
        match order {
            Order::Expire => Err(ApiError::expired(0, self.store.revision()).into()),
            Order::Cut => Err(End::Cut),
            Order::End => Err(End::Over),
            Order::Bookmark => Ok(self.options.bookmarks),
        }
    }

    /// Sends what comes first; returns the revision that it stands for.
    async fn begin(&self, client: &Sender) -> Result<u64, End> {
        if let Begin::After(after) = self.begin {
            return Ok(after.unwrap_or_else(|| self.store.revision()));
        }
        let (objects, revision) = self.store.list(self.resource, None)?;
        for (key, object) in objects {
            if self.is_ours(&key, &object) {
                self.send(client, "ADDED", &object).await?;
            }
        }
        if self.begin == Begin::State {
            return Ok(revision);
        }
        // A real server begins with what its memory holds, and what has happened since comes before
        // the bookmark, deletions too.
        let seen = self.send_changes(client, revision).await?;
        if self.options.bookmarks {
            self.send_bookmark(client, seen, true).await?;
        }
        Ok(seen)
    }

    async fn send_changes(&self, client: &Sender, seen: u64) -> Result<u64, End> {
        let (changes, revision) = self.store.changes(self.resource, seen)?;
        for change in changes {
            if let Some((what, object)) = self.see(&change) {
                self.send(client, what, &object).await?;
            }
        }
        Ok(revision)
    }

    /// What this watch sees of a change: an object that is no longer selected is gone for it.
    fn see(&self, change: &Change) -> Option<(&'static str, Arc<Value>)> {
        let ours = |object: &&Arc<Value>| self.is_ours(change.key(), object);
        let (old, new) = (change.old.as_ref().filter(ours), change.new.as_ref().filter(ours));
        match (old, new) {
            (None, None) => None,
            (None, Some(new)) => Some(("ADDED", new.clone())),
            (Some(_), Some(new)) => Some(("MODIFIED", new.clone())),
            (Some(old), None) => Some(("DELETED", at_revision(old, change.revision))),
        }
    }

    fn is_ours(&self, key: &Key, object: &Value) -> bool {
        self.namespace.as_ref().is_none_or(|namespace| *namespace == key.namespace)
            && self.name.as_ref().is_none_or(|name| *name == key.name)
            && self.selector.matches(object)
    }

    async fn send(&self, client: &Sender, what: &str, object: &Value) -> Result<(), Left> {
        client.send(line(what, &show(self.resource, object)), self.faults.pace()).await
    }

    async fn send_bookmark(&self, client: &Sender, seen: u64, initial: bool) -> Result<(), Left> {
        let mut metadata = json!({"resourceVersion": seen.to_string(), "creationTimestamp": null});
        if initial {
            metadata["annotations"] = json!({INITIAL_EVENTS_END: "true"});
        }
        let object = json!({
            "kind": self.resource.kind,
            "apiVersion": self.resource.api_version(),
            "metadata": metadata,
        });
        client.send(line("BOOKMARK", &object), self.faults.pace()).await
    }
}

impl Begin {
    fn of(options: &Options, has_streaming_lists: bool) -> Result<Self, ApiError> {
        let invalid = |field: &str, why: &str| Err(ApiError::invalid(field, why));
        let revision = options.revision.filter(|revision| *revision != 0);
        let Some(initial) = options.initial_events else {
            if !options.revision_match.is_empty() {
                return invalid(
                    "resourceVersionMatch",
                    "is forbidden for watch unless sendInitialEvents is provided",
                );
            }
            return Ok(revision.map_or(Self::State, |revision| Self::After(Some(revision))));
        };
        if !has_streaming_lists {
            return invalid(
                "sendInitialEvents",
                "is forbidden for watch unless the WatchList feature gate is enabled",
            );
        }
        if options.revision_match != "NotOlderThan" {
            return invalid(
                "resourceVersionMatch",
                "Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
            );
        }
        Ok(if initial { Self::StreamingList } else { Self::After(revision) })
    }
}

fn line(what: &str, object: &Value) -> Vec<u8> {
    let mut line = json!({"type": what, "object": object}).to_string().into_bytes();
    line.push(b'\n');
    line
}
