//! What may go wrong with a server and the way to it, on demand.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::broadcast;

use super::error::ApiError;

/// What happens to a request instead of its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// 410: what is asked for is gone.
    Gone,
    /// 401.
    Unauthorized,
    /// 403.
    Forbidden,
    /// 404: such objects are not served.
    NotServed,
    /// 429.
    TooMany,
    /// 503.
    Unavailable,
    /// The connection ends before the answer.
    Cut,
    /// The connection ends in the middle of the answer.
    CutHalfway,
    /// No answer ever comes.
    Hang,
}

/// Which requests are meant.
#[derive(Clone, Copy, Debug)]
pub struct Requests {
    /// Verb; `None`: any.
    pub verb: Option<&'static str>,
    /// Kind of objects, as in a path; `None`: any.
    pub plural: Option<&'static str>,
}

impl Requests {
    /// All about objects.
    pub const ALL: Self = Self { verb: None, plural: None };
    /// All lists.
    pub const LISTS: Self = Self { verb: Some("list"), plural: None };
    /// All new watches.
    pub const WATCHES: Self = Self { verb: Some("watch"), plural: None };

    /// Those about one kind.
    #[must_use]
    pub const fn of(self, plural: &'static str) -> Self {
        Self { plural: Some(plural), ..self }
    }

    fn include(self, verb: &str, plural: &str) -> bool {
        self.verb.is_none_or(|wanted| wanted == verb)
            && self.plural.is_none_or(|wanted| wanted == plural)
    }
}

/// What open watches are told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Send an ERROR event that says 410, and end.
    Expire,
    /// Break the connection in the middle of a line.
    Cut,
    /// End in an orderly way, as after a time-out.
    End,
    /// Send a bookmark.
    Bookmark,
}

/// How an answer trickles.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Bytes at a time.
    pub bytes: usize,
    /// Between two pieces.
    pub pause: Duration,
}

/// All that goes wrong at present.
#[derive(Debug)]
pub struct Faults {
    state: Mutex<State>,
    orders: broadcast::Sender<(Order, Option<&'static str>)>,
}

#[derive(Debug)]
struct State {
    failures: Vec<(Requests, Failure, usize)>,
    pace: Option<Pace>,
    streaming_lists: bool,
    bookmarks: Duration,
}

impl Default for Faults {
    fn default() -> Self {
        let state = State {
            failures: Vec::new(),
            pace: None,
            streaming_lists: true,
            // A real server takes a minute; tests have less time.
            bookmarks: Duration::from_secs(1),
        };
        Self { state: Mutex::new(state), orders: broadcast::Sender::new(64) }
    }
}

impl Faults {
    /// The next so many of these requests fail.
    pub fn fail(&self, requests: Requests, failure: Failure, times: usize) {
        self.lock().failures.push((requests, failure, times));
    }

    /// All of these requests fail, until [`Self::heal`].
    pub fn fail_always(&self, requests: Requests, failure: Failure) {
        self.fail(requests, failure, usize::MAX);
    }

    /// No request fails any more, and answers come at once.
    pub fn heal(&self) {
        let mut state = self.lock();
        state.failures.clear();
        state.pace = None;
    }

    /// Whether requests that were told to fail have all been seen.
    #[must_use]
    pub fn all_seen(&self) -> bool {
        self.lock().failures.is_empty()
    }

    /// Answers, and events of watches, trickle.
    pub fn slow(&self, pace: Pace) {
        self.lock().pace = Some(pace);
    }

    /// Whether there are streaming lists; an older server refuses them.
    pub fn set_streaming_lists(&self, there_are: bool) {
        self.lock().streaming_lists = there_are;
    }

    /// How often watches that want bookmarks get one.
    pub fn set_bookmarks(&self, interval: Duration) {
        self.lock().bookmarks = interval;
    }

    /// Tells open watches of one kind of objects, or all.
    pub fn order(&self, order: Order, plural: Option<&'static str>) {
        // Nobody may be watching.
        let _ = self.orders.send((order, plural));
    }

    /// What happens to this request, if not the usual.
    pub(super) fn take(&self, verb: &str, plural: &str) -> Option<Failure> {
        let mut state = self.lock();
        let mut all = state.failures.iter_mut();
        let (_, failure, times) = all.find(|(meant, _, _)| meant.include(verb, plural))?;
        let failure = *failure;
        if *times != usize::MAX {
            *times -= 1;
        }
        state.failures.retain(|(_, _, times)| *times > 0);
        Some(failure)
    }

    pub(super) fn pace(&self) -> Option<Pace> {
        self.lock().pace
    }

    pub(super) fn has_streaming_lists(&self) -> bool {
        self.lock().streaming_lists
    }

    pub(super) fn bookmarks(&self) -> Duration {
        self.lock().bookmarks
    }

    pub(super) fn orders(&self) -> broadcast::Receiver<(Order, Option<&'static str>)> {
        self.orders.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Failure {
    /// The refusal, if it is one that has words.
    pub(super) fn error(self) -> Option<ApiError> {
        match self {
            Self::Gone => Some(ApiError::expired(0, 0)),
            Self::Unauthorized => Some(ApiError::unauthorized()),
            Self::Forbidden => Some(ApiError::forbidden("forbidden: told to".into())),
            Self::NotServed => Some(ApiError::no_such_path()),
            Self::TooMany => Some(ApiError::too_many()),
            Self::Unavailable => Some(ApiError::unavailable()),
            Self::Cut | Self::CutHalfway | Self::Hang => None,
        }
    }
}
