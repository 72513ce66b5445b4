//! How many errors may be sent.

/// Errors that are sent in a second by each CPU, like the kernel's own
/// `net.ipv4.icmp_msgs_per_sec`.
pub const PER_SECOND: u64 = 1000;
/// Errors that are sent at once, after a time without.
pub const BURST: u64 = 100;

const COST: u64 = 1_000_000_000 / PER_SECOND;
const FULL: u64 = BURST * COST;

/// A bucket that fills with time, and from which every error takes: one for each CPU, so that a
/// flood does not make CPUs wait for each other.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ErrorBudget {
    /// What is in the bucket, in nanoseconds in which it filled.
    filled: u64,
    /// When that was, `CLOCK_MONOTONIC` nanoseconds.
    since: u64,
}

impl ErrorBudget {
    /// Takes the cost of one error, if that much is there at `now`.
    #[inline(always)]
    pub const fn take(&mut self, now: u64) -> bool {
        let mut filled = self.filled.saturating_add(now.saturating_sub(self.since));
        if filled > FULL {
            filled = FULL;
        }
        self.since = now;
        if filled < COST {
            self.filled = filled;
            return false;
        }
        self.filled = filled - COST;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn sent(budget: &mut ErrorBudget, at: u64, wanted: u32) -> u32 {
        (0..wanted).map(|_| u32::from(budget.take(at))).sum()
    }

    #[test]
    fn a_burst_is_sent_and_then_so_many_a_second() {
        let mut budget = ErrorBudget::default();
        assert_eq!(sent(&mut budget, 100 * SECOND, 500), 100);
        assert_eq!(sent(&mut budget, 100 * SECOND + COST, 500), 1);
        let tenths = (1..=100).map(|tenth| 100 * SECOND + COST + tenth * SECOND / 10);
        let later: u32 = tenths.map(|at| sent(&mut budget, at, 500)).sum();
        assert_eq!(later, 10_000);
    }

    #[test]
    fn what_is_too_little_is_kept() {
        let mut budget = ErrorBudget::default();
        sent(&mut budget, SECOND, 500);
        let halves: u32 = (1..=10).map(|n| sent(&mut budget, SECOND + n * COST / 2, 1)).sum();
        assert_eq!(halves, 5);
    }

    #[test]
    fn a_clock_that_goes_back_gives_nothing() {
        let mut budget = ErrorBudget::default();
        sent(&mut budget, SECOND, 500);
        assert!(!budget.take(SECOND - 1));
    }
}
