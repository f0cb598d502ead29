//! The clock of a machine that a test drives: it stands still until the test moves it.

use std::sync::Arc;
use std::time::Duration;

use devices::platform::Clock;
use devices::timer::{ManualClock, Timers};

/// Nanoseconds since the machine was made, as the test counts them. Clones show the same time.
#[derive(Clone, Default, Debug)]
pub struct VirtualClock(Arc<ManualClock>);

impl VirtualClock {
    /// What it shows, in nanoseconds.
    pub fn now(&self) -> u64 {
        self.0.now()
    }

    /// Lets it go on by `nanoseconds`, and returns what it shows then. It never goes back.
    pub fn step(&self, nanoseconds: i64) -> u64 {
        let step = u64::try_from(nanoseconds).unwrap_or(0);
        self.set(self.now().saturating_add(step))
    }

    /// Lets it go on to where the next timer runs out, if there is one, and returns what it shows then.
    pub fn step_to_next(&self) -> u64 {
        self.set(self.0.next().unwrap_or_default())
    }

    /// Lets it go on to `nanoseconds`, unless it is there already, and returns what it shows then.
    pub fn set(&self, nanoseconds: u64) -> u64 {
        // QEMU's clock is a signed number.
        self.0.set(nanoseconds.min(i64::MAX.unsigned_abs()))
    }

    /// The same time, for a device of the board.
    pub fn clock(&self) -> Clock {
        let clock = self.clone();
        Box::new(move || Duration::from_nanos(clock.now()))
    }

    /// Timers that run by it.
    pub fn timers(&self) -> Timers {
        Timers::on(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_never_goes_back() {
        let clock = VirtualClock::default();
        assert_eq!(clock.step(100), 100);
        assert_eq!(clock.step(-50), 100);
        assert_eq!(clock.set(50), 100);
        assert_eq!(clock.set(150), 150);
        assert_eq!((clock.clock())(), Duration::from_nanos(150));
    }

    #[test]
    fn the_end_of_time_is_survived() {
        let clock = VirtualClock::default();
        clock.set(u64::MAX);
        assert_eq!(clock.step(i64::MAX), i64::MAX.unsigned_abs());
    }
}
