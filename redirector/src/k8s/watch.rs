//! Watches: what keeps the index in step with the API server, whatever happens to either.
//!
//! The steps of listing, watching and resuming are those of `kube`'s watcher. Here stands what is
//! left: objects become records at once, a malformed one is skipped, errors are waited out, a
//! server that does not know streaming lists is asked for pages, and credentials that are refused
//! are read again.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::pin::pin;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::client::Access;
use super::cluster::Cluster;
use super::lease::{LABEL, LeaseRecord};
use super::lenient::Lenient;
use super::node::NodeRecord;
use super::object::ObjectName;
use super::pause::{Pause, REFUSED, spread};
use super::pod::PodRecord;
use super::record::{Kind, Record};
use super::service::ServiceRecord;
use super::slice::SliceRecord;

/// How long a streaming list may be silent before pages are asked for instead. A server that is
/// too old for streaming lists sends all objects and never says that these were all.
const SILENCE: Duration = Duration::from_secs(20);
/// How long a page may take.
const PAGE_PATIENCE: Duration = Duration::from_secs(60);
/// Objects of a page.
const PAGE: u32 = 500;

/// Starts all watches. They end only with the runtime, or where the credentials cannot even be
/// read at the start.
pub fn start(
    tasks: &mut JoinSet<anyhow::Result<()>>,
    access: &Access,
    cluster: &Cluster,
    node: &str,
) {
    let only = |field: &str| watcher::Config::default().fields(&format!("{field}={node}"));
    let everything = watcher::Config::default();
    follow::<Service>(tasks, access, cluster, Kind::Service, Api::all, &everything, |object| {
        ServiceRecord::read(object).map(Record::Service)
    });
    follow::<EndpointSlice>(tasks, access, cluster, Kind::Slice, Api::all, &everything, |object| {
        SliceRecord::read(object).map(Record::Slice)
    });
    follow::<Node>(tasks, access, cluster, Kind::Node, Api::all, &everything, |object| {
        NodeRecord::read(object).map(Record::Node)
    });
    follow::<Pod>(tasks, access, cluster, Kind::Pod, Api::all, &only("spec.nodeName"), |object| {
        PodRecord::read(object).map(Record::Pod)
    });
    let agents = watcher::Config::default().labels(LABEL);
    let own = Api::default_namespaced;
    follow::<Lease>(tasks, access, cluster, Kind::Lease, own, &agents, |object| {
        LeaseRecord::read(object).map(Record::Lease)
    });
}

fn follow<K>(
    tasks: &mut JoinSet<anyhow::Result<()>>,
    access: &Access,
    cluster: &Cluster,
    kind: Kind,
    api: fn(Client) -> Api<Lenient<K>>,
    config: &watcher::Config,
    read: fn(K) -> Result<Record, String>,
) where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug + Send + Sync + 'static,
{
    let mut watch = Watch {
        access: access.clone(),
        cluster: cluster.clone(),
        kind,
        api,
        config: config.clone().page_size(PAGE),
        read,
        streams: true,
        pause: Pause::default(),
    };
    tasks.spawn(async move {
        loop {
            match watch.access.connect().await {
                Ok(client) => watch.run(client).await,
                Err(error) => watch.cluster.lost(&error.to_string()),
            }
            watch.pause.wait().await;
        }
    });
}

struct Watch<K> {
    access: Access,
    cluster: Cluster,
    kind: Kind,
    api: fn(Client) -> Api<Lenient<K>>,
    config: watcher::Config,
    read: fn(K) -> Result<Record, String>,
    /// Whether the server is believed to know streaming lists.
    streams: bool,
    pause: Pause,
}

/// A full list on its way.
#[derive(Default)]
struct List {
    records: Vec<Record>,
    unreadable: BTreeSet<ObjectName>,
}

/// What an error means for the watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cure {
    /// It goes on by itself.
    Wait,
    /// It has to begin anew.
    Restart,
    /// The server refuses streaming lists.
    Page,
    /// The server refuses the kind, or does not know it, and it can be done without.
    DoWithout,
}

impl<K> Watch<K>
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug + Send + Sync + 'static,
{
    /// Watches until it is better to begin anew, with another client.
    async fn run(&mut self, client: Client) {
        let config =
            if self.streams { self.config.clone().streaming_lists() } else { self.config.clone() };
        let mut events = pin!(watcher::watcher((self.api)(client), config));
        // Until the first list is over, which pages of a slow server may make long.
        let mut list = Some(List::default());
        loop {
            let event = match (&list, self.streams) {
                (None, _) => events.next().await,
                (Some(_), true) => match timeout(SILENCE, events.next()).await {
                    Ok(event) => event,
                    Err(_) => {
                        tracing::info!("{}: no streaming list came to its end", self.kind.name());
                        self.streams = false;
                        return;
                    }
                },
                (Some(_), false) => match timeout(PAGE_PATIENCE, events.next()).await {
                    Ok(event) => event,
                    Err(_) => {
                        self.cluster.lost(&format!("no list of {} came", self.kind.name()));
                        return;
                    }
                },
            };
            match event {
                Some(Ok(event)) => {
                    self.cluster.heard();
                    self.pause = Pause::default();
                    self.take(event, &mut list);
                }
                Some(Err(error)) => {
                    match cure(&error, self.kind) {
                        Cure::Wait => {}
                        Cure::DoWithout => {
                            self.do_without(&error);
                            return sleep(spread(REFUSED)).await;
                        }
                        Cure::Restart => return,
                        Cure::Page if self.streams => {
                            self.streams = false;
                            return;
                        }
                        Cure::Page => {}
                    }
                    self.report(&error).await;
                    self.pause.wait().await;
                    // The address or the credentials may be others by now.
                    if self.pause.is_long() {
                        return;
                    }
                }
                None => return,
            }
        }
    }

    fn take(&self, event: Event<Lenient<K>>, list: &mut Option<List>) {
        match event {
            Event::Init => *list = Some(List::default()),
            Event::InitApply(object) => {
                let list = list.get_or_insert_default();
                match self.read(object) {
                    Ok(record) => list.records.push(record),
                    Err(name) => list.unreadable.extend(name),
                }
            }
            Event::InitDone => {
                let List { records, unreadable } = list.take().unwrap_or_default();
                tracing::debug!(count = records.len(), "{} listed", self.kind.name());
                self.cluster.change(|index| index.reset(self.kind, records, &unreadable));
            }
            Event::Apply(object) => {
                if let Ok(record) = self.read(object) {
                    self.cluster.change(|index| index.apply(record));
                }
            }
            Event::Delete(object) => {
                if let Some(name) = ObjectName::of(object.meta()) {
                    self.cluster.change(|index| index.delete(self.kind, &name));
                }
            }
        }
    }

    /// The record, or the name of an object that cannot be read, as far as it has one. What was
    /// known of it before stays.
    fn read(&self, object: Lenient<K>) -> Result<Record, Option<ObjectName>> {
        let name = ObjectName::of(object.meta());
        object.object.and_then(self.read).map_err(|error| {
            let shown =
                name.as_ref().map_or_else(|| "without a name".to_owned(), ObjectName::to_string);
            tracing::warn!(object = shown, error, "{}: malformed, left out", self.kind.name());
            name
        })
    }

    /// Goes on with what is known of the kind, which may be nothing.
    fn do_without(&self, error: &watcher::Error) {
        self.cluster.heard();
        let text = describe(error);
        if self.cluster.with(|index| index.refused(self.kind).is_none()) {
            tracing::warn!("{}: {text}", self.kind.name());
        }
        self.cluster.change(|index| index.refuse(self.kind, text));
    }

    async fn report(&self, error: &watcher::Error) {
        let text = describe(error);
        if is_answer(error) {
            self.cluster.heard();
            if is_too_old(error) {
                tracing::info!("{}: listed anew: {text}", self.kind.name());
            } else {
                tracing::warn!("{}: the API server refuses: {text}", self.kind.name());
            }
            return;
        }
        tracing::debug!("{}: {text}", self.kind.name());
        // One connection that ended, or that nobody was at the other end of, says little.
        match self.access.reach().await {
            Ok(()) => self.cluster.heard(),
            Err(_) => self.cluster.lost(&text),
        }
    }
}

/// The status that the server answered with, if it answered at all.
fn status(error: &watcher::Error) -> Option<&kube::core::Status> {
    match error {
        watcher::Error::WatchError(status) => Some(status),
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status)) => Some(status),
        watcher::Error::InitialListFailed(_)
        | watcher::Error::WatchStartFailed(_)
        | watcher::Error::WatchFailed(_)
        | watcher::Error::NoResourceVersion => None,
    }
}

/// Whether what was seen last is gone from the server's memory, as happens to everyone.
fn is_too_old(error: &watcher::Error) -> bool {
    status(error).is_some_and(|status| status.code == 410)
}

/// What the server says, else what came between.
fn describe(error: &watcher::Error) -> String {
    match status(error) {
        Some(status) if status.message.is_empty() => format!("{} {}", status.code, status.reason),
        Some(status) => status.message.clone(),
        None => chain(error),
    }
}

/// Whether the server answered, be it with an error of its own.
fn is_answer(error: &watcher::Error) -> bool {
    status(error).is_some() || matches!(error, watcher::Error::NoResourceVersion)
}

fn cure(error: &watcher::Error, kind: Kind) -> Cure {
    let Some(status) = status(error) else {
        return Cure::Wait;
    };
    let started = matches!(error, watcher::Error::WatchStartFailed(_));
    match status.code {
        // The watcher takes this only from within a watch, and would ask again for ever.
        410 if started => Cure::Restart,
        401 => Cure::Restart,
        400 | 422 if started => Cure::Page,
        403 | 404 if kind.is_optional() => Cure::DoWithout,
        _ => Cure::Wait,
    }
}

/// An error and its causes, each said once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests;
