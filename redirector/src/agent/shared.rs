//! What the agent shows of itself while it runs: to the admin server, and through `STATUS` to
//! the commands.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::dataplane::status::Status;

/// Handle to the agent's account of itself. Clones share it.
#[derive(Clone, Debug)]
pub struct Shared {
    state: Arc<Mutex<Snapshot>>,
}

/// The account at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// What also stands in `STATUS`.
    pub status: Status,
    /// Whether programs are attached and the first sync is done.
    pub ready: bool,
    /// What was not read yet, without which nothing is complete.
    pub waiting_for: Vec<&'static str>,
    /// Syncs so far.
    pub syncs: Syncs,
    /// How long endpoints took from their own change to the maps.
    pub programming: Programming,
    /// Halves of flows at the last collection, by two: flows.
    pub flows: u64,
}

/// Syncs since the agent started.
#[derive(Clone, Debug, Default)]
pub struct Syncs {
    /// Upper bounds of `buckets`, in seconds, are [`Self::BOUNDS`]; each counts the syncs that
    /// took no longer, and more than the bound before it. The last counts the rest.
    pub buckets: [u64; Self::BOUNDS.len() + 1],
    /// Syncs that succeeded.
    pub count: u64,
    /// How long they took together.
    pub total: Duration,
    /// Syncs that failed.
    pub errors: u64,
}

/// How long changes of endpoints took, from the moment at which the cluster saw them.
#[derive(Clone, Debug, Default)]
pub struct Programming {
    /// As [`Syncs::buckets`], for [`Self::BOUNDS`].
    pub buckets: [u64; Self::BOUNDS.len() + 1],
    /// Changes.
    pub count: u64,
    /// How long they took together.
    pub total: Duration,
}

impl Programming {
    /// Bounds of the buckets of durations, in seconds.
    pub const BOUNDS: [f64; 14] =
        [0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0];

    /// Counts a change.
    pub fn record(&mut self, took: Duration) {
        count(&mut self.buckets, &Self::BOUNDS, took);
        self.count += 1;
        self.total += took;
    }
}

fn count(buckets: &mut [u64], bounds: &[f64], took: Duration) {
    let seconds = took.as_secs_f64();
    let bucket = bounds.iter().position(|bound| seconds <= *bound);
    if let Some(count) = buckets.get_mut(bucket.unwrap_or(bounds.len())) {
        *count += 1;
    }
}

impl Syncs {
    /// Bounds of the buckets of durations, in seconds.
    pub const BOUNDS: [f64; 9] = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0];

    /// Counts one that succeeded.
    pub fn record(&mut self, took: Duration) {
        count(&mut self.buckets, &Self::BOUNDS, took);
        self.count += 1;
        self.total += took;
    }
}

impl Shared {
    /// A handle to an account that begins with `status`.
    #[must_use]
    pub fn new(status: Status) -> Self {
        Self {
            state: Arc::new(Mutex::new(Snapshot {
                status,
                ready: false,
                waiting_for: Vec::new(),
                syncs: Syncs::default(),
                programming: Programming::default(),
                flows: 0,
            })),
        }
    }

    /// The account now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.lock().clone()
    }

    /// Whether programs are attached and the first sync is done.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.lock().ready
    }

    /// Changes the account.
    pub fn update(&self, change: impl FnOnce(&mut Snapshot)) {
        change(&mut self.lock());
    }

    fn lock(&self) -> MutexGuard<'_, Snapshot> {
        // A panic while it was held left at worst an old value.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_fall_into_their_buckets() {
        let mut syncs = Syncs::default();
        for millis in [0, 1, 2, 60_000] {
            syncs.record(Duration::from_millis(millis));
        }
        assert_eq!(syncs.buckets, [2, 1, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(syncs.count, 4);
    }
}
