//! Timers of devices, on the clock of their machine: the host's, or one that a test moves.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use vmm_sys_util::timerfd::TimerFd;

/// Where devices get their timers from. The default is the host's clock.
#[derive(Clone, Default)]
pub struct Timers(Option<Arc<ManualClock>>);

impl Timers {
    /// Timers on a clock that somebody moves.
    pub fn on(clock: &Arc<ManualClock>) -> Self {
        Self(Some(Arc::clone(clock)))
    }

    /// A timer that does not run yet.
    ///
    /// # Errors
    /// The host gives no more descriptors.
    pub fn timer(&self) -> io::Result<Timer> {
        Ok(Timer(match &self.0 {
            None => Kind::Host(TimerFd::new()?),
            Some(clock) => Kind::Manual {
                clock: Arc::clone(clock),
                event: Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?),
            },
        }))
    }
}

/// Runs out once. Its descriptor becomes readable then, anew each time (EPOLLET): nobody needs to read it.
pub struct Timer(Kind);

enum Kind {
    Host(TimerFd),
    Manual {
        clock: Arc<ManualClock>,
        event: Arc<EventFd>,
    },
}

impl Timer {
    /// It runs out after `time` from now, whatever it was told before; at once if that is nothing.
    ///
    /// # Errors
    /// The host refuses such a time.
    pub fn start(&mut self, time: Duration) -> io::Result<()> {
        match &mut self.0 {
            // No time at all would stop it.
            Kind::Host(timer) => Ok(timer.reset(time.max(Duration::from_nanos(1)), None)?),
            Kind::Manual { clock, event } => {
                clock.start(event, time);
                Ok(())
            }
        }
    }

    /// It does not run out any more.
    ///
    /// # Errors
    /// The host refuses.
    pub fn stop(&mut self) -> io::Result<()> {
        match &mut self.0 {
            Kind::Host(timer) => Ok(timer.clear()?),
            Kind::Manual { clock, event } => {
                clock.stop(event);
                Ok(())
            }
        }
    }

    /// Whether it will run out.
    ///
    /// # Errors
    /// The host does not say.
    #[cfg(test)]
    pub fn is_running(&self) -> io::Result<bool> {
        match &self.0 {
            Kind::Host(timer) => Ok(timer.is_armed()?),
            Kind::Manual { clock, event } => Ok(clock.state().running.contains_key(&event.as_raw_fd())),
        }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        if let Kind::Manual { clock, event } = &self.0 {
            clock.stop(event);
        }
    }
}

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        match &self.0 {
            Kind::Host(timer) => timer.as_raw_fd(),
            Kind::Manual { event, .. } => event.as_raw_fd(),
        }
    }
}

/// A clock that stands still until somebody moves it, and never goes back.
#[derive(Debug, Default)]
pub struct ManualClock(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Nanoseconds since the clock was made.
    now: u64,
    /// When timers run out, by their descriptors.
    running: BTreeMap<RawFd, (u64, Arc<EventFd>)>,
}

impl ManualClock {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it shows, in nanoseconds.
    pub fn now(&self) -> u64 {
        self.state().now
    }

    /// When the next timer runs out, in nanoseconds.
    pub fn next(&self) -> Option<u64> {
        self.state().running.values().map(|(end, _)| *end).min()
    }

    /// Moves it on to `now`, unless it is there already; timers run out on the way. Returns what it shows then.
    pub fn set(&self, now: u64) -> u64 {
        let mut state = self.state();
        state.now = state.now.max(now);
        let now = state.now;
        state.running.retain(|_, (end, event)| {
            let runs = *end > now;
            if !runs {
                signal(event);
            }
            runs
        });
        now
    }

    fn start(&self, event: &Arc<EventFd>, time: Duration) {
        let mut state = self.state();
        let time = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        if time == 0 {
            state.running.remove(&event.as_raw_fd());
            signal(event);
        } else {
            let end = state.now.saturating_add(time);
            state.running.insert(event.as_raw_fd(), (end, Arc::clone(event)));
        }
    }

    fn stop(&self, event: &EventFd) {
        self.state().running.remove(&event.as_raw_fd());
    }
}

fn signal(event: &EventFd) {
    // It fails only when the counter is at its end, and then it is readable.
    let _ = event.write(1);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn timers_run_out_when_their_clock_is_moved() {
        const SECOND: u64 = 1_000_000_000;
        let clock = Arc::new(ManualClock::default());
        let mut timer = Timers::on(&clock).timer().unwrap();
        let Kind::Manual { event, .. } = &timer.0 else {
            unreachable!()
        };
        let event = Arc::clone(event);
        timer.start(Duration::from_secs(2)).unwrap();
        assert_eq!((clock.next(), timer.is_running().unwrap()), (Some(2 * SECOND), true));
        assert_eq!(clock.set(2 * SECOND - 1), 2 * SECOND - 1);
        assert!(event.read().is_err());
        clock.set(5 * SECOND);
        assert_eq!((event.read().unwrap(), timer.is_running().unwrap()), (1, false));
        assert_eq!(clock.set(SECOND), 5 * SECOND);
        timer.start(Duration::ZERO).unwrap();
        assert_eq!(event.read().unwrap(), 1);
        timer.start(Duration::from_nanos(1)).unwrap();
        timer.stop().unwrap();
        assert_eq!(clock.next(), None);
        timer.start(Duration::from_nanos(1)).unwrap();
        drop(timer);
        assert_eq!(clock.next(), None);
    }
}
