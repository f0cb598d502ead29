//! A balloon as management sees it.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use super::shared::{Shared, hint};
use super::stats::GuestStats;
use crate::memory::Discarded;

/// Changes to a balloon from outside: the mechanism of QMP's `balloon` and `query-balloon`, and of
/// the properties `guest-stats` and `guest-stats-polling-interval`. All calls return at once; what
/// they ask of the guest it does in its own time.
#[derive(Clone)]
pub struct BalloonControl(Arc<Shared>);

/// Guest memory that went back to the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GivenBack {
    /// Pages that went into the balloon.
    pub inflated: Discarded,
    /// Pages that the guest reported free.
    pub reported: Discarded,
}

impl fmt::Display for GivenBack {
    /// A line for the user.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = |f: &mut fmt::Formatter<'_>, name, sum: Discarded| {
            write!(
                f,
                "{name} {:.1} MiB in {} calls",
                sum.bytes as f64 / f64::from(1 << 20),
                sum.calls
            )
        };
        part(f, "balloon", self.inflated)?;
        part(f, ", free pages", self.reported)
    }
}

impl BalloonControl {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }

    /// Bytes of guest memory, those in the balloon included.
    pub fn ram(&self) -> u64 {
        self.0.ram()
    }

    /// Asks the guest to keep `bytes` of memory, or all of it if there is less, and give up the
    /// rest.
    ///
    /// # Errors
    /// A guest cannot do without any memory.
    pub fn set_target(&self, bytes: u64) -> io::Result<()> {
        if bytes == 0 {
            return Err(io::Error::other("a guest needs memory; give it at least a few MiB"));
        }
        self.0.set_target(bytes);
        Ok(())
    }

    /// Bytes of memory that the guest was asked to keep.
    pub fn target(&self) -> u64 {
        self.0.target()
    }

    /// Bytes of memory that the guest says it has.
    pub fn actual(&self) -> u64 {
        self.0.actual()
    }

    /// A descriptor that becomes readable whenever [`actual`](Self::actual) changes (QMP's event
    /// `BALLOON_CHANGE`), and stays so until it is read.
    ///
    /// # Errors
    /// The host gives no descriptor.
    pub fn subscribe(&self) -> io::Result<EventFd> {
        self.0.watch()
    }

    /// What the guest said of itself last.
    pub fn stats(&self) -> GuestStats {
        self.0.stats()
    }

    /// Asks the guest for statistics at once, and again so long after each answer; zero is never.
    ///
    /// # Errors
    /// The host has no such timer.
    pub fn set_polling_interval(&self, interval: Duration) -> io::Result<()> {
        self.0.set_polling(interval)
    }

    /// How long after an answer the guest is asked again; zero is never.
    pub fn polling_interval(&self) -> Duration {
        self.0.polling().interval()
    }

    /// What went back to the host so far.
    pub fn given_back(&self) -> GivenBack {
        self.0.given_back()
    }

    /// Bytes in the balloon by what the driver put there and took out again, page by page.
    pub fn held(&self) -> u64 {
        self.0.in_balloon().len() as u64 * super::PAGE
    }

    /// Asks the guest for a round of hints at free pages, if it agreed on FREE_PAGE_HINT.
    ///
    /// Hints are counted, not acted on: a driver may use a page again before the device has seen
    /// the hint (virtio 1.3, 5.5.6.5.1), so a page can be left out of a copy that is compared with
    /// later writes, and never be thrown away.
    pub fn start_hints(&self) {
        self.0.start_hints();
    }

    /// Tells the guest that hints are no longer wanted, so that it uses those pages again.
    pub fn end_hints(&self) {
        self.0.end_hints(hint::DONE);
    }

    /// Whether a round was asked for and the guest has not come to its end.
    pub fn is_hinting(&self) -> bool {
        self.0.hint_command() > hint::DONE
    }

    /// Bytes hinted at in the last round.
    pub fn hinted(&self) -> u64 {
        self.0.hinted()
    }

    /// Rules that the driver broke, by number, and how often.
    pub fn broken_rules(&self) -> BTreeMap<&'static str, u64> {
        self.0.broken_rules()
    }
}
