//! Lists and watches, one after the other: what comes of each.
//!
//! `kube`'s own watcher does not fit: it leaves out what is deleted while a streaming list comes, may
//! begin with a state older than the one before, and asks again at once, for ever, where watches
//! end as soon as they begin.

use std::fmt::Debug;
use std::vec;

use futures::StreamExt;
use futures::stream::BoxStream;
use kube::api::{Api, ListParams, WatchEvent, WatchParams};
use kube::{Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::time::{Duration, Instant};

use super::fault::Fault;

/// Objects of a page.
const PAGE: u32 = 500;
/// A watch that ends earlier, without an event, was not ended for its age.
const SHORT: Duration = Duration::from_secs(1);
/// Annotation of the bookmark that ends a streaming list.
const END_OF_LIST: &str = "k8s.io/initial-events-end";
/// As new as can be. "0" would be whatever that server has, be it older than what was seen already.
const NEWEST: &str = "";

/// Which objects.
#[derive(Clone, Debug, Default)]
pub(super) struct Selection {
    pub(super) labels: Option<String>,
    pub(super) fields: Option<String>,
}

/// What happens.
#[derive(Debug)]
pub(super) enum Event<K> {
    /// All objects follow.
    Begin,
    /// An object is so now.
    Apply(K),
    /// An object is gone.
    Delete(K),
    /// These were all.
    Listed,
    /// Nothing.
    Alive,
}

/// Objects of one kind, and what becomes of them.
pub(super) struct Feed<K> {
    api: Api<K>,
    selection: Selection,
    /// Whether lists are asked for as streams.
    streams: bool,
    state: State<K>,
}

type Events<K> = BoxStream<'static, kube::Result<WatchEvent<K>>>;

enum State<K> {
    /// Nothing is known that could be gone on from.
    Empty,
    /// Objects of a page, the next page, and what they are as new as.
    Pages { page: vec::IntoIter<K>, next: Option<String>, version: Option<String> },
    /// A list comes as a stream, if it has begun.
    Stream(Option<Events<K>>),
    /// All that there was up to this version has come.
    Listed { version: String },
    /// So it has, and more will come by itself.
    Watching { version: String, events: Events<K>, began: Instant, is_quiet: bool },
}

impl<K> Feed<K>
where
    K: Resource + DeserializeOwned + Clone + Debug + Send + 'static,
{
    pub(super) const fn new(api: Api<K>, selection: Selection, streams: bool) -> Self {
        Self { api, selection, streams, state: State::Empty }
    }

    /// Whether a list that was asked for as a stream has begun to come.
    pub(super) const fn is_streaming(&self) -> bool {
        matches!(self.state, State::Stream(Some(_)))
    }

    /// What happens next. After a fault it goes on, from where it was where that can be.
    pub(super) async fn next(&mut self) -> Result<Event<K>, Fault> {
        loop {
            let found = match &mut self.state {
                State::Empty => Ok(Some(self.begin())),
                State::Pages { page, .. } => match page.next() {
                    Some(object) => Ok(Some(Event::Apply(object))),
                    None => self.turn_page().await,
                },
                State::Stream(None) => self.open_stream().await,
                State::Stream(Some(events)) => {
                    let event = events.next().await;
                    self.take_listed(event)
                }
                State::Listed { .. } => self.open_watch().await,
                State::Watching { events, .. } => {
                    let event = events.next().await;
                    self.take_watched(event)
                }
            };
            if let Some(event) = found? {
                return Ok(event);
            }
        }
    }

    fn begin(&mut self) -> Event<K> {
        self.state = if self.streams {
            State::Stream(None)
        } else {
            State::Pages { page: Vec::new().into_iter(), next: None, version: None }
        };
        Event::Begin
    }

    /// Asks for the next page, if there is one.
    async fn turn_page(&mut self) -> Result<Option<Event<K>>, Fault> {
        let State::Pages { next, version, .. } = &mut self.state else {
            return Ok(None);
        };
        if next.is_none()
            && let Some(version) = version.take()
        {
            self.state = State::Listed { version };
            return Ok(Some(Event::Listed));
        }
        let params = ListParams {
            label_selector: self.selection.labels.clone(),
            field_selector: self.selection.fields.clone(),
            limit: Some(PAGE),
            continue_token: next.clone(),
            ..ListParams::default()
        };
        let list = match self.api.list(&params).await.map_err(Fault::List) {
            Ok(list) => list,
            Err(fault) => {
                if fault.is_lasting() {
                    self.state = State::Empty;
                }
                return Err(fault);
            }
        };
        let some = |text: Option<String>| text.filter(|text| !text.is_empty());
        let (next, version) = (some(list.metadata.continue_), some(list.metadata.resource_version));
        if next.is_none() && version.is_none() {
            self.state = State::Empty;
            return Err(Fault::NoVersion);
        }
        self.state = State::Pages { page: list.items.into_iter(), next, version };
        Ok(None)
    }

    async fn open_stream(&mut self) -> Result<Option<Event<K>>, Fault> {
        let events = self.api.watch(&self.selection.watch(true), NEWEST).await;
        self.state = State::Stream(Some(events.map_err(Fault::Stream)?.boxed()));
        Ok(None)
    }

    async fn open_watch(&mut self) -> Result<Option<Event<K>>, Fault> {
        let State::Listed { version } = &self.state else {
            return Ok(None);
        };
        match self.api.watch(&self.selection.watch(false), version).await {
            Ok(events) => {
                let (version, events) = (version.clone(), events.boxed());
                self.state = State::watching(version, events);
                Ok(None)
            }
            Err(error) => Err(self.break_off(Fault::Watch(error))),
        }
    }

    /// Takes what comes of a list that comes as a stream.
    fn take_listed(
        &mut self,
        event: Option<kube::Result<WatchEvent<K>>>,
    ) -> Result<Option<Event<K>>, Fault> {
        let found = match event {
            None => Err(Fault::Short),
            Some(Ok(WatchEvent::Bookmark(mark))) => {
                if mark.metadata.annotations.contains_key(END_OF_LIST)
                    && let State::Stream(events) = &mut self.state
                    && let Some(events) = events.take()
                {
                    self.state = State::watching(mark.metadata.resource_version, events);
                    Ok(Some(Event::Listed))
                } else {
                    Ok(None)
                }
            }
            // Things also happen while what there was is on its way.
            Some(event) => read(event).map(|(event, _)| event),
        };
        found.map_err(|fault| self.break_off(fault))
    }

    fn take_watched(
        &mut self,
        event: Option<kube::Result<WatchEvent<K>>>,
    ) -> Result<Option<Event<K>>, Fault> {
        let State::Watching { version, began, is_quiet, .. } = &mut self.state else {
            return Ok(None);
        };
        match event {
            None if *is_quiet && began.elapsed() < SHORT => Err(self.break_off(Fault::Short)),
            None => {
                let version = std::mem::take(version);
                self.state = State::Listed { version };
                Ok(None)
            }
            Some(event) => match read(event) {
                Ok((event, newer)) => {
                    *version = newer;
                    *is_quiet = false;
                    Ok(Some(event.unwrap_or(Event::Alive)))
                }
                Err(fault) => Err(self.break_off(fault)),
            },
        }
    }

    /// Goes back to where it can go on from after a fault.
    fn break_off(&mut self, fault: Fault) -> Fault {
        self.state = match std::mem::replace(&mut self.state, State::Empty) {
            State::Listed { version } | State::Watching { version, .. } if !fault.is_lasting() => {
                State::Listed { version }
            }
            State::Empty
            | State::Pages { .. }
            | State::Stream(_)
            | State::Listed { .. }
            | State::Watching { .. } => State::Empty,
        };
        fault
    }
}

impl<K> State<K> {
    fn watching(version: String, events: Events<K>) -> Self {
        Self::Watching { version, events, began: Instant::now(), is_quiet: true }
    }
}

impl Selection {
    fn watch(&self, send_initial_events: bool) -> WatchParams {
        WatchParams {
            label_selector: self.labels.clone(),
            field_selector: self.fields.clone(),
            send_initial_events,
            ..WatchParams::default()
        }
    }
}

/// What an event of a watch says, and from which version on the next watch has to be.
fn read<K: Resource>(
    event: kube::Result<WatchEvent<K>>,
) -> Result<(Option<Event<K>>, String), Fault> {
    let version = |object: &K| {
        object.resource_version().filter(|version| !version.is_empty()).ok_or(Fault::NoVersion)
    };
    match event.map_err(Fault::Watch)? {
        WatchEvent::Added(object) | WatchEvent::Modified(object) => {
            let version = version(&object)?;
            Ok((Some(Event::Apply(object)), version))
        }
        WatchEvent::Deleted(object) => {
            let version = version(&object)?;
            Ok((Some(Event::Delete(object)), version))
        }
        WatchEvent::Bookmark(mark) => Ok((None, mark.metadata.resource_version)),
        WatchEvent::Error(status) => Err(Fault::Watch(kube::Error::Api(status))),
    }
}
