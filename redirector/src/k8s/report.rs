//! Events: what is wrong with an object is said on the object.
//!
//! An Event's name follows from what it says, so that of all nodes that find the same thing wrong
//! one makes it. What stays wrong is said again after `AGAIN`, since the API server forgets.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::{Instant, sleep, timeout};

use super::client::Access;
use super::object::ObjectName;
use super::record::Kind;

/// How long the API server is believed to remember an Event.
const AGAIN: Duration = Duration::from_secs(3600);
/// Events that may be made at once.
const BURST: u32 = 20;
/// How long it takes until one more may be made.
const REFILL: Duration = Duration::from_secs(2);
/// How long the API server may take for one.
const PATIENCE: Duration = Duration::from_secs(10);
/// Notes that may wait. More are left out: they come again.
const WAITING: usize = 1000;
/// Longest note that the API takes, in bytes.
const NOTE: usize = 1024;
/// Longest name of who says it that the API takes, in bytes. Nodes may have longer ones.
const INSTANCE: usize = 128;

/// What an Event is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Subject {
    /// Kind.
    pub kind: Kind,
    /// Which.
    pub name: ObjectName,
    /// Which of all that ever had the name.
    pub uid: String,
}

/// Why something is said, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Cause {
    /// What the object asks for is not understood, or not allowed.
    Refused,
    /// An older object has what this one asks for.
    Conflict,
    /// A port declared is discarded in the host's network.
    Discarded,
    /// A health check cannot be answered.
    HealthCheck,
    /// The agent took itself off the node.
    Detached,
    /// Nodes do not know which others take flows.
    Unknown,
}

impl Cause {
    /// The word in the Event.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Refused => "Refused",
            Self::Conflict => "PortConflict",
            Self::Discarded => "PortDiscarded",
            Self::HealthCheck => "FailedToStartServiceHealthcheck",
            Self::Detached => "RedirectorDetached",
            Self::Unknown => "DirectReturnUnavailable",
        }
    }
}

/// Something to be said.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Note {
    /// About what.
    pub subject: Subject,
    /// Why.
    pub cause: Cause,
    /// What is wrong, and what to do.
    pub text: String,
}

/// Says each note once, and again when it was forgotten.
#[derive(Debug)]
pub struct Reporter {
    notes: Sender<Note>,
    said: BTreeMap<Note, Instant>,
}

impl Reporter {
    /// One, and what has to be [run](Mouth::run) for it.
    #[must_use]
    pub fn new(access: Access, node: &str) -> (Self, Mouth) {
        let (notes, queue) = channel(WAITING);
        let mouth = Mouth { access, node: node.to_owned(), queue };
        (Self { notes, said: BTreeMap::new() }, mouth)
    }

    /// Takes all that is wrong now. What is new is said, and logged.
    pub fn report(&mut self, wrong: BTreeSet<Note>, now: Instant) {
        self.said.retain(|note, _| wrong.contains(note));
        for note in wrong {
            let is_old = match self.said.get(&note) {
                Some(said) if now.duration_since(*said) < AGAIN => continue,
                Some(_) => true,
                None => false,
            };
            // Without room it comes again, and is logged then.
            if self.notes.try_send(note.clone()).is_err() {
                continue;
            }
            if !is_old {
                let Subject { kind, name, .. } = &note.subject;
                tracing::warn!("{} {name}: {}", kind.name(), note.text);
            }
            self.said.insert(note, now);
        }
    }
}

/// What makes Events of notes.
#[derive(Debug)]
pub struct Mouth {
    access: Access,
    node: String,
    queue: Receiver<Note>,
}

impl Mouth {
    /// Makes Events, slowly. An Event that cannot be made is given up: it is logged anyway.
    pub async fn run(mut self) {
        let mut tokens = BURST;
        let mut filled = Instant::now();
        let mut client = None;
        while let Some(note) = self.queue.recv().await {
            let gained = filled.elapsed().as_secs() / REFILL.as_secs();
            if gained > 0 {
                tokens = tokens.saturating_add(u32::try_from(gained).unwrap_or(BURST)).min(BURST);
                filled = Instant::now();
            }
            if tokens == 0 {
                sleep(REFILL).await;
                // The one that was waited for is this one.
                filled = Instant::now();
            } else {
                tokens -= 1;
            }
            if let Err(error) = self.say(&mut client, &note).await {
                tracing::debug!("an Event could not be made: {error:#}");
                // The credentials may be others by now.
                client = None;
            }
        }
    }

    async fn say(&self, client: &mut Option<Client>, note: &Note) -> anyhow::Result<()> {
        let client = match client {
            Some(client) => client,
            none => none.insert(self.access.connect().await?),
        };
        // Events of Nodes, which have no namespace, are in this one.
        let namespace = match note.subject.name.namespace.as_str() {
            "" => "default",
            namespace => namespace,
        };
        let events: Api<Event> = Api::namespaced(client.clone(), namespace);
        let event = event(note, &self.node, namespace, Timestamp::now());
        match timeout(PATIENCE, events.create(&PostParams::default(), &event)).await? {
            // Another node has said it.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            made => Ok(made.map(drop)?),
        }
    }
}

fn event(note: &Note, node: &str, namespace: &str, now: Timestamp) -> Event {
    let Subject { kind, name, uid } = &note.subject;
    let cut = |text: &str, limit| text[..text.floor_char_boundary(limit)].to_owned();
    Event {
        metadata: ObjectMeta {
            name: Some(event_name(note)),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some(object_kind(*kind).to_owned()),
            name: Some(name.name.clone()),
            namespace: Some(name.namespace.clone()).filter(|namespace| !namespace.is_empty()),
            uid: Some(uid.clone()).filter(|uid| !uid.is_empty()),
            ..ObjectReference::default()
        },
        type_: Some("Warning".to_owned()),
        reason: Some(note.cause.reason().to_owned()),
        message: Some(cut(&note.text, NOTE)),
        action: Some("Publish".to_owned()),
        source: Some(EventSource {
            component: Some("redirector".to_owned()),
            host: Some(node.to_owned()),
        }),
        reporting_component: Some("redirector".to_owned()),
        reporting_instance: Some(cut(node, INSTANCE)),
        event_time: Some(MicroTime(now)),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        count: Some(1),
        ..Event::default()
    }
}

/// The same for the same note on every node.
fn event_name(note: &Note) -> String {
    let mut hasher = DefaultHasher::new();
    note.hash(&mut hasher);
    let suffix = format!(".redirector.{:016x}", hasher.finish());
    let mut name = note.subject.name.name.clone();
    name.truncate(name.floor_char_boundary(253 - suffix.len()));
    name + &suffix
}

const fn object_kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Service => "Service",
        Kind::Slice => "EndpointSlice",
        Kind::Node => "Node",
        Kind::Pod => "Pod",
        Kind::Lease => "Lease",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(text: &str) -> Note {
        let subject =
            Subject { kind: Kind::Service, name: ObjectName::new("a", "web"), uid: "u".into() };
        Note { subject, cause: Cause::Refused, text: text.to_owned() }
    }

    #[test]
    fn each_note_is_said_once_until_it_is_forgotten() {
        let (mut reporter, mut mouth) = Reporter::new(Access::default(), "here");
        let said = |mouth: &mut Mouth| {
            let mut all = Vec::new();
            while let Ok(note) = mouth.queue.try_recv() {
                all.push(note.text);
            }
            all
        };
        let both = || BTreeSet::from([note("one"), note("two")]);
        let now = Instant::now();
        reporter.report(BTreeSet::from([note("one")]), now);
        reporter.report(both(), now);
        reporter.report(both(), now);
        assert_eq!(said(&mut mouth), ["one", "two"]);
        // It went, and came again.
        reporter.report(BTreeSet::from([note("two")]), now);
        reporter.report(both(), now);
        assert_eq!(said(&mut mouth), ["one"]);
        reporter.report(both(), now + AGAIN);
        assert_eq!(said(&mut mouth), ["one", "two"]);
    }

    #[test]
    fn the_name_of_an_event_follows_from_what_it_says() {
        assert_eq!(event_name(&note("one")), event_name(&note("one")));
        assert_ne!(event_name(&note("one")), event_name(&note("two")));
        let node = "n".repeat(253);
        let event = event(&note(&"é".repeat(1000)), &node, "a", Timestamp::UNIX_EPOCH);
        assert!(event.message.is_some_and(|message| message.len() <= NOTE));
        assert!(event.reporting_instance.is_some_and(|node| node.len() <= INSTANCE));
        assert_eq!(event.involved_object.kind.as_deref(), Some("Service"));
    }
}
