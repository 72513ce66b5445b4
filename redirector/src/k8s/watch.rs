//! Watches: what keeps the index in step with the API server, whatever happens to either.
//!
//! The steps of listing, watching and resuming are those of `feed`. Here stands what is left:
//! objects become records at once, a malformed one is skipped, errors are waited out, a server that
//! does not know streaming lists is asked for pages, and credentials that are refused are read
//! again.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
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
use fault::{Cure, Fault};
use feed::{Event, Feed, Selection};

mod fault;
mod feed;

/// How long a streaming list may be silent before pages are asked for instead. A server that is
/// too old for streaming lists sends all objects and never says that these were all.
const SILENCE: Duration = Duration::from_secs(20);
/// How long a page may take.
const PAGE_PATIENCE: Duration = Duration::from_secs(60);

/// Starts all watches. They end only with the runtime, or where the credentials cannot even be
/// read at the start.
pub fn start(
    tasks: &mut JoinSet<anyhow::Result<()>>,
    access: &Access,
    cluster: &Cluster,
    node: &str,
) {
    let only =
        |field| Selection { fields: Some(format!("{field}={node}")), ..Selection::default() };
    let everything = Selection::default();
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
    let agents = Selection { labels: Some(LABEL.to_owned()), ..Selection::default() };
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
    selection: &Selection,
    read: fn(K) -> Result<Record, String>,
) where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug + Send + Sync + 'static,
{
    let mut watch = Watch {
        access: access.clone(),
        cluster: cluster.clone(),
        kind,
        api,
        selection: selection.clone(),
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
    selection: Selection,
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

impl<K> Watch<K>
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug + Send + Sync + 'static,
{
    /// Watches until it is better to begin anew, with another client.
    async fn run(&mut self, client: Client) {
        let mut feed = Feed::new((self.api)(client), self.selection.clone(), self.streams);
        // Until the first list is over, which pages of a slow server may make long.
        let mut list = Some(List::default());
        loop {
            let patience = if self.streams { SILENCE } else { PAGE_PATIENCE };
            let event = match list {
                None => feed.next().await,
                Some(_) => match timeout(patience, feed.next()).await {
                    Ok(event) => event,
                    Err(_) if feed.is_streaming() => {
                        tracing::info!("{}: no streaming list came to its end", self.kind.name());
                        self.streams = false;
                        return;
                    }
                    Err(_) => {
                        self.cluster.lost(&format!("no list of {} came", self.kind.name()));
                        return;
                    }
                },
            };
            match event {
                Ok(event) => self.take(event, &mut list),
                Err(fault) => {
                    match fault.cure(self.kind) {
                        Cure::Wait => {}
                        Cure::DoWithout => {
                            self.do_without(&fault);
                            return sleep(spread(REFUSED)).await;
                        }
                        Cure::Restart => return,
                        Cure::Page => {
                            self.streams = false;
                            return;
                        }
                    }
                    self.report(&fault).await;
                    self.pause.wait().await;
                    // The address or the credentials may be others by now.
                    if self.pause.is_long() {
                        return;
                    }
                }
            }
        }
    }

    fn take(&mut self, event: Event<Lenient<K>>, list: &mut Option<List>) {
        // Nobody was asked yet.
        if matches!(event, Event::Begin) {
            *list = Some(List::default());
            return;
        }
        self.cluster.heard();
        match (event, list.as_mut()) {
            (Event::Apply(object), Some(list)) => match self.read(object) {
                Ok(record) => list.records.push(record),
                Err(name) => list.unreadable.extend(name),
            },
            (Event::Delete(object), Some(list)) => {
                if let Some(name) = ObjectName::of(object.meta()) {
                    list.records.retain(|record| *record.name() != name);
                    list.unreadable.remove(&name);
                }
            }
            (Event::Apply(object), None) => {
                if let Ok(record) = self.read(object) {
                    self.cluster.change(|index| index.apply(record));
                }
            }
            (Event::Delete(object), None) => {
                if let Some(name) = ObjectName::of(object.meta()) {
                    self.cluster.change(|index| index.delete(self.kind, &name));
                }
            }
            (Event::Listed, _) => {
                let List { records, unreadable } = list.take().unwrap_or_default();
                tracing::debug!(count = records.len(), "{} listed", self.kind.name());
                self.cluster.change(|index| index.reset(self.kind, records, &unreadable));
            }
            (Event::Begin | Event::Alive, _) => {}
        }
        // A list that does not come to its end is begun ever more seldom.
        if list.is_none() {
            self.pause = Pause::default();
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
    fn do_without(&self, fault: &Fault) {
        self.cluster.heard();
        let text = fault.describe();
        if self.cluster.with(|index| index.refused(self.kind).is_none()) {
            tracing::warn!("{}: {text}", self.kind.name());
        }
        self.cluster.change(|index| index.refuse(self.kind, text));
    }

    async fn report(&self, fault: &Fault) {
        let text = fault.describe();
        if fault.is_answer() {
            self.cluster.heard();
            if fault.is_too_old() {
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

#[cfg(test)]
mod tests;
