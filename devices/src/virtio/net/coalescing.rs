//! When the transmit queue is looked at by the clock instead of at kicks.
//!
//! A thread that shares the only CPU with the guest is given that CPU at each kick, and finds the
//! one frame that the driver has just queued: a stream of small frames costs an exit and two changes
//! of thread for each of them. Once kicks have brought few frames many times in a row, with next to
//! nothing coming in, nobody waits for an answer to each of these frames; the driver is then asked
//! for no more kicks, and the queue is looked at after a while, until several looks in a row have
//! found next to nothing. QEMU has `tx=timer` for this, which delays all frames; here those that are
//! part of a conversation go at once, and so do those of a sender that waits until its frames have
//! gone.

#![forbid(unsafe_code)]

use std::time::Duration;

/// Frames at a kick, or a look, that should not wait.
const FEW: usize = 4;

/// Kicks in a row with few frames that make a stream, and frames that are sent for each one received.
const STREAM: usize = 16;
/// The same kicks, at most, for a sender that turned out to wait for its frames.
const LONGEST_STREAM: usize = 1024;

/// How long frames wait at first and at most. QEMU's `tx=timer` has 150 µs for all frames
/// (hw/net/virtio-net.c).
const LONGEST: Duration = Duration::from_micros(300);
const SHORTEST: Duration = Duration::from_micros(25);

/// Looks in a row with few frames that end it: their sender may be waiting until they have gone. It
/// is not one look, for the far end may have had the CPU before it.
const DISAPPOINTMENTS: usize = 3;
/// Frames that a look should find, from and to: enough for its price, and far from what fills a queue.
const ENOUGH: usize = 8;
const PLENTY: usize = 16;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Coalescing {
    /// Kicks in a row that brought few frames.
    thin: usize,
    /// Kicks in a row with few frames that make a stream, with this sender.
    stream: usize,
    /// Frames sent since the last one received.
    unanswered: usize,
    /// How long frames wait, while the queue is looked at by the clock.
    wait: Option<Duration>,
    /// Frames since the last look.
    frames: usize,
    /// Looks in a row that found few.
    disappointments: usize,
}

impl Default for Coalescing {
    fn default() -> Self {
        Self {
            thin: 0,
            stream: STREAM,
            unanswered: 0,
            wait: None,
            frames: 0,
            disappointments: 0,
        }
    }
}

impl Coalescing {
    /// Whether the queue is looked at by the clock, and kicks are not wanted.
    pub(super) fn is_on(&self) -> bool {
        self.wait.is_some()
    }

    /// The driver's frames, so many of them, were sent. Returns when to look for the first time, if
    /// that is how it goes on.
    pub(super) fn sent(&mut self, frames: usize) -> Option<Duration> {
        self.unanswered = self.unanswered.saturating_add(frames);
        if self.is_on() {
            self.frames = self.frames.saturating_add(frames);
            return None;
        }
        match frames {
            0 => {}
            1..=FEW => self.thin += 1,
            _ => self.thin = 0,
        }
        if self.thin < self.stream {
            return None;
        }
        (self.thin, self.frames, self.disappointments) = (0, 0, 0);
        self.wait = Some(LONGEST);
        self.wait
    }

    /// A look was taken. Returns when to take the next, unless kicks are wanted again.
    pub(super) fn looked(&mut self) -> Option<Duration> {
        let wait = self.wait.take()?;
        let found = std::mem::take(&mut self.frames);
        self.disappointments = if found > FEW { 0 } else { self.disappointments + 1 };
        if self.disappointments == DISAPPOINTMENTS {
            if found > 0 {
                self.stream = (self.stream * 2).min(LONGEST_STREAM);
            }
            return None;
        }
        self.wait = Some(match found {
            ..ENOUGH => (wait * 2).min(LONGEST),
            ENOUGH..PLENTY => wait,
            PLENTY.. => {
                self.stream = STREAM;
                (wait / 2).max(SHORTEST)
            }
        });
        self.wait
    }

    /// So many frames came in. If few were sent for each, what is sent next may be an answer, or ask
    /// for one.
    pub(super) fn received(&mut self, frames: usize) {
        if self.unanswered < frames.saturating_mul(STREAM) {
            *self = Self::default();
        }
        self.unanswered = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stream that has just begun.
    fn stream() -> Coalescing {
        let mut coalescing = Coalescing::default();
        begin(&mut coalescing, STREAM);
        coalescing
    }

    /// Kicks until the clock is asked, so many.
    fn begin(coalescing: &mut Coalescing, kicks: usize) {
        for _ in 1..kicks {
            assert_eq!(coalescing.sent(1), None);
        }
        assert_eq!(coalescing.sent(1), Some(LONGEST));
    }

    /// Microseconds until the next look after one that found so many frames.
    fn look(coalescing: &mut Coalescing, frames: usize) -> Option<u128> {
        coalescing.sent(frames / 2);
        coalescing.sent(frames - frames / 2);
        coalescing.looked().map(|wait| wait.as_micros())
    }

    #[test]
    fn looks_that_find_nothing_are_the_last() {
        let mut coalescing = stream();
        assert!(coalescing.is_on());
        let waits = [0, 0, 8, 0, 1, 0].map(|frames| look(&mut coalescing, frames));
        assert_eq!(
            waits,
            [300, 300, 300, 300, 300, 0].map(|wait| (wait > 0).then_some(wait))
        );
        assert!(!coalescing.is_on());
        assert_eq!(coalescing.looked(), None, "a look that comes late");
        begin(&mut coalescing, STREAM);
    }

    #[test]
    fn waits_shrink_and_grow_with_what_they_bring() {
        let mut coalescing = stream();
        let waits = [16, 20, 256, 256, 256, 15].map(|frames| look(&mut coalescing, frames));
        assert_eq!(waits, [150, 75, 37, 25, 25, 25].map(Some));
        let waits = [7, 7, 3, 3].map(|frames| look(&mut coalescing, frames));
        assert_eq!(waits, [50, 100, 200, 300].map(Some));
    }

    #[test]
    fn a_sender_that_waits_for_its_frames_is_soon_left_alone() {
        let mut coalescing = stream();
        let mut kicks = STREAM;
        for _ in 0..10 {
            let waits = [4; 3].map(|frames| look(&mut coalescing, frames));
            assert_eq!(waits, [Some(300), Some(300), None]);
            kicks = (kicks * 2).min(LONGEST_STREAM);
            begin(&mut coalescing, kicks);
        }
        assert_eq!(kicks, LONGEST_STREAM);
        assert!(look(&mut coalescing, 20).is_some(), "it waits no longer");
        while look(&mut coalescing, 0).is_some() {}
        begin(&mut coalescing, STREAM);
    }

    #[test]
    fn frames_that_are_answered_or_come_in_number_are_no_stream() {
        let mut coalescing = Coalescing::default();
        for _ in 0..100 {
            assert_eq!(coalescing.sent(1), None);
            coalescing.received(1);
        }
        for kick in 0..100 {
            let frames = if kick % 8 == 0 { FEW + 1 } else { 1 };
            assert_eq!(coalescing.sent(frames), None);
        }
        let mut coalescing = stream();
        coalescing.received(1);
        assert!(coalescing.is_on(), "it acknowledges a stream");
        coalescing.sent(32);
        coalescing.received(32);
        assert!(!coalescing.is_on(), "32 questions and their answers");
    }

    #[test]
    fn a_far_end_that_takes_nothing_makes_no_stream() {
        let mut coalescing = Coalescing::default();
        for _ in 0..100 {
            assert_eq!(coalescing.sent(0), None);
        }
    }
}
