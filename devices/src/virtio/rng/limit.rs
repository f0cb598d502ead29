//! How many bytes the guest gets in what time, as QEMU counts them (hw/virtio/virtio-rng.c).

#![forbid(unsafe_code)]

use std::io;
use std::time::Duration;

use crate::timer::Timer;

/// So many bytes in each period. A period begins with the first request after the one before, and
/// what is left of its bytes does not carry over.
pub(super) struct RateLimit {
    max: u64,
    period: Duration,
    left: u64,
    /// Runs out at the end of the period.
    timer: Timer,
    /// A period has begun.
    running: bool,
}

impl RateLimit {
    /// At most `max` bytes in each `period`; i64::MAX and more is no limit.
    pub(super) fn new(max: u64, period: Duration, timer: Timer) -> Self {
        Self {
            max,
            period,
            left: max,
            timer,
            running: false,
        }
    }

    /// Readable at the end of a period.
    pub(super) fn timer(&self) -> &Timer {
        &self.timer
    }

    /// Bytes that may be given now. Somebody asks, so a period begins if none is running.
    pub(super) fn request(&mut self) -> io::Result<usize> {
        if self.is_on() && !self.running {
            self.timer.start(self.period)?;
            self.running = true;
        }
        Ok(usize::try_from(self.left).unwrap_or(usize::MAX))
    }

    /// Whether bytes may be given now.
    pub(super) fn is_exhausted(&self) -> bool {
        self.left == 0
    }

    /// `bytes` were given.
    pub(super) fn take(&mut self, bytes: usize) {
        if self.is_on() {
            self.left = self.left.saturating_sub(bytes as u64);
        }
    }

    /// The timer has run out.
    pub(super) fn period_ended(&mut self) {
        self.left = self.max;
        self.running = false;
    }

    fn is_on(&self) -> bool {
        self.max < i64::MAX as u64
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::timer::Timers;

    fn limit(max: u64, period: Duration) -> RateLimit {
        RateLimit::new(max, period, Timers::default().timer().unwrap())
    }

    #[test]
    fn a_period_begins_when_somebody_asks_and_has_its_own_bytes() {
        let mut limit = limit(100, Duration::from_secs(3600));
        assert!(!limit.timer().is_running().unwrap());
        assert_eq!(limit.request().unwrap(), 100);
        assert!(limit.timer().is_running().unwrap());
        limit.take(60);
        assert_eq!(limit.request().unwrap(), 40);
        limit.take(60);
        assert!(limit.is_exhausted());
        limit.period_ended();
        assert_eq!(limit.request().unwrap(), 100);
    }

    #[test]
    fn without_a_limit_nothing_is_counted_and_no_timer_runs() {
        let mut limit = limit(i64::MAX as u64, Duration::from_millis(1));
        assert!(limit.request().unwrap() > 1 << 40);
        limit.take(usize::MAX);
        assert!(!limit.is_exhausted() && !limit.timer().is_running().unwrap());
    }
}
