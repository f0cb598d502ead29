//! What a run cost: exits by kind, interrupts, and when things happened.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use devices::virtio::balloon::GivenBack;

/// Why a CPU left the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub enum ExitKind {
    /// An IN instruction.
    PortRead,
    /// An OUT instruction.
    PortWrite,
    /// A load from an address without memory.
    MmioRead,
    /// A store to an address without memory.
    MmioWrite,
    /// A signal for the thread.
    Interrupted,
    /// Anything else.
    Other,
}

impl ExitKind {
    const ALL: [(Self, &'static str); 6] = [
        (Self::PortRead, "port reads"),
        (Self::PortWrite, "port writes"),
        (Self::MmioRead, "MMIO reads"),
        (Self::MmioWrite, "MMIO writes"),
        (Self::Interrupted, "interrupted by a signal"),
        (Self::Other, "other"),
    ];
}

/// Exits of one CPU. Written by its thread alone, read by any.
#[derive(Default, Debug)]
pub struct ExitCounters([AtomicU64; ExitKind::ALL.len()]);

impl ExitCounters {
    /// Counts one exit.
    pub fn count(&self, kind: ExitKind) {
        let counter = &self.0[kind as usize];
        // One writer: no read-modify-write instruction is needed.
        counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }
}

/// The figures of a machine, so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    exits: [u64; ExitKind::ALL.len()],
    /// Port and memory accesses by device, in the order of addresses: name and count.
    pub devices: Vec<(String, u64)>,
    /// Times that a level-triggered interrupt line was raised.
    pub interrupts: u64,
    /// MSI-X messages that devices sent.
    pub messages: u64,
    /// From the start of the process's work on this machine to the first entry into the guest.
    pub first_run: Option<Duration>,
    /// From there to the first byte on the serial port.
    pub first_console_byte: Option<Duration>,
    /// From there to now, or to the end of the machine.
    pub running: Duration,
    /// Resets of the machine.
    pub resets: u64,
    /// Guest memory that went back to the host, by balloon.
    pub given_back: Vec<(String, GivenBack)>,
}

impl Stats {
    pub(super) fn add_exits(&mut self, counters: &ExitCounters) {
        for (sum, counter) in self.exits.iter_mut().zip(&counters.0) {
            *sum += counter.load(Ordering::Relaxed);
        }
    }

    /// Exits of one kind, all CPUs.
    pub fn exits(&self, kind: ExitKind) -> u64 {
        self.exits[kind as usize]
    }

    /// Exits to this program, all kinds and CPUs.
    pub fn total_exits(&self) -> u64 {
        self.exits.iter().sum()
    }
}

/// As `--stats` prints it.
impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = |time: Option<Duration>| time.map_or_else(|| "never".into(), |time| format!("{time:.1?}"));
        writeln!(f, "first entry into the guest: {} after start", time(self.first_run))?;
        writeln!(f, "first console byte: {} later", time(self.first_console_byte))?;
        writeln!(f, "ran for: {:.1?}, resets: {}", self.running, self.resets)?;
        writeln!(f, "exits: {}", self.total_exits())?;
        for (kind, name) in ExitKind::ALL {
            writeln!(f, "  {name}: {}", self.exits(kind))?;
        }
        writeln!(f, "accesses by device:")?;
        for (name, count) in self.devices.iter().filter(|(_, count)| *count > 0) {
            writeln!(f, "  {name}: {count}")?;
        }
        for (name, given_back) in &self.given_back {
            writeln!(f, "memory given back by {name}: {given_back}")?;
        }
        write!(
            f,
            "interrupt lines raised: {}, messages sent: {}",
            self.interrupts, self.messages
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_add_up_over_cpus() {
        let (a, b) = (ExitCounters::default(), ExitCounters::default());
        a.count(ExitKind::PortWrite);
        b.count(ExitKind::PortWrite);
        b.count(ExitKind::MmioRead);
        let mut stats = Stats::default();
        stats.add_exits(&a);
        stats.add_exits(&b);
        assert_eq!((stats.exits(ExitKind::PortWrite), stats.total_exits()), (2, 3));
    }

    #[test]
    fn kinds_are_listed_in_the_order_of_their_counters() {
        for (index, (kind, _)) in ExitKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, index);
        }
    }
}
