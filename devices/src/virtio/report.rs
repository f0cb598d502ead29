//! Lines to the user about a device that fails or a driver that errs, few enough to be read.

#![forbid(unsafe_code)]

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lines that may come at once.
const BURST: u32 = 10;
/// How long until the next burst.
const INTERVAL: Duration = Duration::from_secs(5);

/// Lets through a few lines at a time and counts the others.
#[derive(Debug, Default)]
pub struct Reporter(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    since: Option<Instant>,
    lines: u32,
    suppressed: u64,
}

impl Reporter {
    /// Prints `line`, unless there were too many lately.
    pub fn warn(&self, line: fmt::Arguments<'_>) {
        match self.admit(Instant::now()) {
            Some(0) => tracing::warn!("{line}"),
            Some(suppressed) => tracing::warn!("{line} ({suppressed} more since the last line)"),
            None => {}
        }
    }

    /// Whether a line may be printed now, and how many were not since the last one.
    fn admit(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state
            .since
            .is_none_or(|since| now.saturating_duration_since(since) >= INTERVAL)
        {
            state.since = Some(now);
            state.lines = 0;
        }
        if state.lines >= BURST {
            state.suppressed += 1;
            return None;
        }
        state.lines += 1;
        Some(std::mem::take(&mut state.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_and_counted() {
        let reporter = Reporter::default();
        let start = Instant::now();
        let admitted = (0..100).filter_map(|_| reporter.admit(start)).count();
        assert_eq!(admitted, BURST as usize);
        assert_eq!(reporter.admit(start + INTERVAL), Some(100 - u64::from(BURST)));
        assert_eq!(reporter.admit(start + INTERVAL), Some(0));
    }
}
