//! Level-triggered inputs of the interrupt controllers. A line is high while any of its sources asserts it (wired OR).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pci::InterruptLine;

/// Global system interrupt: the number of an IOAPIC pin; the first 16 reach the PIC too.
pub type Gsi = u32;

/// Pins of the IOAPIC.
const GSIS: usize = 24;
/// PIRQ A to D of the PIIX3 bridge.
const PIRQS: usize = 4;

/// What takes the level of an interrupt controller's input: KVM, or a recorder in tests.
pub trait GsiSink: Send + Sync {
    /// Drives input `gsi`.
    fn set_gsi(&self, gsi: Gsi, high: bool);
}

impl GsiSink for kvm_ioctls::VmFd {
    fn set_gsi(&self, gsi: Gsi, high: bool) {
        if let Err(error) = self.set_irq_line(gsi, high) {
            tracing::warn!(gsi, high, %error, "KVM refused to drive an interrupt line");
        }
    }
}

/// Where a source is wired to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Input {
    /// Straight to an IOAPIC pin, as the SCI.
    Gsi(Gsi),
    /// To PIRQ A to D (0 to 3), which the ISA bridge routes.
    Pirq(u8),
}

/// All level-triggered lines of one machine.
pub struct Lines {
    sink: Arc<dyn GsiSink>,
    wiring: Mutex<Wiring>,
    raised: AtomicU64,
}

#[derive(Default)]
struct Wiring {
    /// Sources that assert each pin directly.
    direct: [u32; GSIS],
    /// Sources that assert each PIRQ.
    pirq: [u32; PIRQS],
    route: [Option<u8>; PIRQS],
    level: [bool; GSIS],
}

impl Wiring {
    fn is_high(&self, gsi: usize) -> bool {
        self.direct[gsi] > 0
            || self
                .route
                .iter()
                .zip(self.pirq)
                .any(|(irq, sources)| sources > 0 && *irq == Some(gsi as u8))
    }
}

impl Lines {
    /// Lines that end at `sink`, all low, no PIRQ routed.
    pub fn new(sink: Arc<dyn GsiSink>) -> Arc<Self> {
        Arc::new(Self {
            sink,
            wiring: Mutex::default(),
            raised: AtomicU64::new(0),
        })
    }

    /// A new source that drives `input`, low at first. `None` when there is no such input.
    pub fn source(self: &Arc<Self>, input: Input) -> Option<Arc<dyn InterruptLine>> {
        let known = match input {
            Input::Gsi(gsi) => (gsi as usize) < GSIS,
            Input::Pirq(pirq) => usize::from(pirq) < PIRQS,
        };
        known.then(|| {
            let source = Source {
                lines: Arc::clone(self),
                input,
                asserted: AtomicBool::new(false),
            };
            Arc::new(source) as Arc<dyn InterruptLine>
        })
    }

    /// Routes PIRQ A to D (0 to 3) to an ISA interrupt, or to none. A level that is asserted moves along.
    pub fn route_pirq(&self, pirq: u8, irq: Option<u8>) {
        let mut wiring = self.wiring();
        if let Some(route) = wiring.route.get_mut(usize::from(pirq)) {
            *route = irq.filter(|&irq| irq < 16);
            self.settle(&mut wiring);
        }
    }

    /// How often a line went from low to high.
    pub fn raised(&self) -> u64 {
        self.raised.load(Ordering::Relaxed)
    }

    fn wiring(&self) -> MutexGuard<'_, Wiring> {
        self.wiring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn drive(&self, input: Input, asserted: bool) {
        let mut wiring = self.wiring();
        let sources = match input {
            Input::Gsi(gsi) => wiring.direct.get_mut(gsi as usize),
            Input::Pirq(pirq) => wiring.pirq.get_mut(usize::from(pirq)),
        };
        if let Some(sources) = sources {
            *sources = if asserted {
                sources.saturating_add(1)
            } else {
                sources.saturating_sub(1)
            };
        }
        self.settle(&mut wiring);
    }

    /// Brings every pin to the level that its sources want. Under the lock, so that two sources cannot overtake each other.
    fn settle(&self, wiring: &mut Wiring) {
        for gsi in 0..GSIS {
            let high = wiring.is_high(gsi);
            if high != wiring.level[gsi] {
                wiring.level[gsi] = high;
                self.sink.set_gsi(gsi as Gsi, high);
                self.raised.fetch_add(u64::from(high), Ordering::Relaxed);
            }
        }
    }
}

struct Source {
    lines: Arc<Lines>,
    input: Input,
    asserted: AtomicBool,
}

impl InterruptLine for Source {
    fn set_level(&self, asserted: bool) {
        if self.asserted.swap(asserted, Ordering::AcqRel) != asserted {
            self.lines.drive(self.input, asserted);
        }
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.set_level(false);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[derive(Default)]
    struct Recorder(Mutex<Vec<(Gsi, bool)>>);

    impl GsiSink for Recorder {
        fn set_gsi(&self, gsi: Gsi, high: bool) {
            self.0.lock().unwrap().push((gsi, high));
        }
    }

    fn lines() -> (Arc<Lines>, Arc<Recorder>) {
        let recorder = Arc::new(Recorder::default());
        (Lines::new(recorder.clone()), recorder)
    }

    #[test]
    fn a_shared_line_stays_high_until_the_last_source_lets_go() {
        let (lines, recorder) = lines();
        lines.route_pirq(0, Some(10));
        lines.route_pirq(1, Some(10));
        let (a, b) = (
            lines.source(Input::Pirq(0)).unwrap(),
            lines.source(Input::Pirq(1)).unwrap(),
        );
        a.set_level(true);
        b.set_level(true);
        a.set_level(false);
        assert_eq!(*recorder.0.lock().unwrap(), [(10, true)]);
        b.set_level(false);
        assert_eq!(*recorder.0.lock().unwrap(), [(10, true), (10, false)]);
        assert_eq!(lines.raised(), 1);
    }

    #[test]
    fn an_asserted_level_moves_with_its_route() {
        let (lines, recorder) = lines();
        let source = lines.source(Input::Pirq(2)).unwrap();
        source.set_level(true);
        assert!(
            recorder.0.lock().unwrap().is_empty(),
            "an unrouted PIRQ reaches nothing"
        );
        lines.route_pirq(2, Some(11));
        lines.route_pirq(2, Some(5));
        assert_eq!(*recorder.0.lock().unwrap(), [(11, true), (5, true), (11, false)]);
    }

    #[test]
    fn repeating_a_level_does_nothing() {
        let (lines, recorder) = lines();
        let sci = lines.source(Input::Gsi(9)).unwrap();
        sci.set_level(true);
        sci.set_level(true);
        assert_eq!(recorder.0.lock().unwrap().len(), 1);
    }

    #[test]
    fn a_source_that_goes_away_lets_go_of_its_line() {
        let (lines, recorder) = lines();
        let sci = lines.source(Input::Gsi(9)).unwrap();
        sci.set_level(true);
        drop(sci);
        assert_eq!(*recorder.0.lock().unwrap(), [(9, true), (9, false)]);
    }

    #[test]
    fn inputs_that_do_not_exist_are_refused() {
        let (lines, _) = lines();
        assert!(lines.source(Input::Gsi(24)).is_none());
        assert!(lines.source(Input::Pirq(4)).is_none());
        lines.route_pirq(9, Some(3));
    }
}
