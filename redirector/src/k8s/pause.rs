//! Pauses after errors.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use tokio::time::sleep;

/// The first pause after an error.
const FIRST: Duration = Duration::from_millis(200);
/// The longest one.
const LAST: Duration = Duration::from_secs(10);

/// How long what was refused, and can be done without, is left. An operator may grant it at any
/// time; until then every agent asks in vain.
pub(super) const REFUSED: Duration = Duration::from_secs(60);

/// Pauses that double, each a little other than those of other nodes.
#[derive(Debug)]
pub(super) struct Pause {
    next: Duration,
}

impl Default for Pause {
    fn default() -> Self {
        Self { next: FIRST }
    }
}

impl Pause {
    pub(super) async fn wait(&mut self) {
        sleep(self.take()).await;
    }

    /// How long the next one is.
    pub(super) fn take(&mut self) -> Duration {
        let next = self.next;
        self.next = (self.next * 2).min(LAST);
        spread(next)
    }

    pub(super) fn is_long(&self) -> bool {
        self.next >= LAST
    }
}

/// About as long, by half of it at most: other nodes do the same at other times.
pub(super) fn spread(duration: Duration) -> Duration {
    let random = RandomState::new().hash_one(0) % 1000;
    let factor = 0.5 + f64::from(u32::try_from(random).unwrap_or_default()) / 1000.0;
    duration.mul_f64(factor)
}
