//! How long to look for work before going to sleep.

use std::time::Duration;

use crate::threads;

/// Adaptive polling: a thread whose sleeps turn out short had better not slept. The rule is QEMU's
/// (util/aio-posix.c, `aio_poll`), and so are the defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PollPolicy {
    /// Never look for longer than this; zero switches polling off. QEMU's `poll-max-ns`.
    pub max: Duration,
    /// What the time is multiplied by when more might have helped. QEMU's `poll-grow`.
    pub grow: u32,
    /// What the time is divided by when it was wasted; 0 starts over from nothing. QEMU's
    /// `poll-shrink`.
    pub shrink: u32,
}

impl PollPolicy {
    /// Sleep at once.
    pub const OFF: Self = Self {
        max: Duration::ZERO,
        ..Self::DEFAULT
    };

    const DEFAULT: Self = Self {
        max: Duration::from_nanos(32_768),
        grow: 2,
        shrink: 0,
    };

    /// What suits this host: where there is one CPU, nobody makes work while we look for it.
    pub fn for_this_host() -> Self {
        if threads::share_one_cpu() {
            Self::OFF
        } else {
            Self::DEFAULT
        }
    }
}

impl Default for PollPolicy {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// Where polling begins when it begins to grow.
const FIRST: Duration = Duration::from_micros(4);

/// The present time to poll for.
#[derive(Debug)]
pub(super) struct Pacer {
    policy: PollPolicy,
    budget: Duration,
}

impl Pacer {
    pub(super) fn new(policy: PollPolicy) -> Self {
        Self {
            policy,
            budget: Duration::ZERO,
        }
    }

    /// Whether polling happens at all.
    pub(super) fn is_on(&self) -> bool {
        !self.policy.max.is_zero()
    }

    /// How long to look for work now.
    pub(super) fn budget(&self) -> Duration {
        self.budget
    }

    /// Learns from one wait, polling and sleep together.
    pub(super) fn waited(&mut self, time: Duration) {
        let PollPolicy { max, grow, shrink } = self.policy;
        if time <= self.budget {
            // Polling caught it, or would have.
        } else if time > max {
            self.budget = self.budget.checked_div(shrink).unwrap_or_default();
        } else if self.budget < max {
            let grown = if self.budget.is_zero() {
                FIRST
            } else {
                self.budget.saturating_mul(grow)
            };
            self.budget = grown.min(max);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MICROSECOND: Duration = Duration::from_micros(1);

    #[test]
    fn short_waits_lengthen_polling_up_to_the_maximum() {
        let mut pacer = Pacer::new(PollPolicy::default());
        assert_eq!(pacer.budget(), Duration::ZERO);
        let mut budgets = Vec::new();
        for _ in 0..6 {
            pacer.waited(30 * MICROSECOND);
            budgets.push(pacer.budget().as_nanos());
        }
        assert_eq!(budgets, [4_000, 8_000, 16_000, 32_000, 32_000, 32_000]);
        pacer.waited(Duration::from_nanos(32_500));
        assert_eq!(pacer.budget(), Duration::from_nanos(32_768));
    }

    #[test]
    fn a_long_sleep_starts_over() {
        let mut pacer = Pacer::new(PollPolicy::default());
        pacer.waited(20 * MICROSECOND);
        pacer.waited(1_000 * MICROSECOND);
        assert_eq!(pacer.budget(), Duration::ZERO);
    }

    #[test]
    fn shrinking_divides_where_it_is_asked_for() {
        let mut pacer = Pacer::new(PollPolicy {
            shrink: 2,
            ..PollPolicy::default()
        });
        pacer.waited(20 * MICROSECOND);
        pacer.waited(1_000 * MICROSECOND);
        assert_eq!(pacer.budget(), 2 * MICROSECOND);
    }

    #[test]
    fn polling_that_is_off_stays_off() {
        let mut pacer = Pacer::new(PollPolicy::OFF);
        for wait in [1, 10, 1_000] {
            pacer.waited(wait * MICROSECOND);
            assert_eq!(pacer.budget(), Duration::ZERO);
        }
        assert!(!pacer.is_on());
    }
}
