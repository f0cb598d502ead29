//! What is measured, and the lines by which the measuring process reports it.

use std::collections::BTreeMap;

/// One thing that is measured.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Metric {
    /// System calls from exec to the first KVM_RUN of a CPU's own thread, all threads.
    Calls,
    /// Microseconds from exec to the first KVM_RUN, whoever makes it.
    FirstRun,
    /// Microseconds from exec to the first KVM_RUN of a CPU's own thread: not that of a probe before it.
    FirstEntry,
    /// Microseconds from exec to the first act of the guest's init.
    Init,
    /// KiB resident at that time, guest memory left out.
    Memory,
    /// KiB of it that belong to no file.
    Anonymous,
    /// Exits from the guest by then, as KVM counts them.
    Exits,
    /// Those for ports.
    PortExits,
    /// Those for memory-mapped registers.
    MmioExits,
    /// Interrupts that KVM injected by then.
    Injections,
    /// Exits that reached the program, as `innkeeper run --stats` counts them.
    ProgramExits,
}

/// How the figures of a metric are shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unit {
    /// A number of things.
    Count,
    /// Kept in microseconds, shown in milliseconds.
    Time,
    /// Kept in KiB, shown in MiB.
    Memory,
}

impl Metric {
    /// All, in the order of the rows: name among the samples, title, unit.
    pub const ALL: [(Self, &'static str, &'static str, Unit); 11] = [
        (Self::Calls, "calls", "system calls to the first entry", Unit::Count),
        (Self::FirstRun, "first-run", "first KVM_RUN, ms", Unit::Time),
        (
            Self::FirstEntry,
            "first-entry",
            "first entry of a CPU's thread, ms",
            Unit::Time,
        ),
        (Self::Init, "init", "the guest's init, ms", Unit::Time),
        (Self::Memory, "memory", "own resident memory, MiB", Unit::Memory),
        (Self::Anonymous, "anonymous", "  of it anonymous, MiB", Unit::Memory),
        (Self::Exits, "exits", "exits to init, counted by KVM", Unit::Count),
        (Self::PortExits, "port-exits", "  for ports", Unit::Count),
        (Self::MmioExits, "mmio-exits", "  for MMIO", Unit::Count),
        (Self::Injections, "injections", "interrupts injected", Unit::Count),
        (
            Self::ProgramExits,
            "program-exits",
            "exits to the program (--stats)",
            Unit::Count,
        ),
    ];

    fn key(self) -> &'static str {
        Self::ALL
            .iter()
            .find(|(metric, ..)| *metric == self)
            .map_or("", |(_, key, ..)| key)
    }
}

/// The line that reports one figure.
pub fn line(machine: &str, metric: Metric, value: u64) -> String {
    format!("sample {machine} {} {value}", metric.key())
}

/// All figures of one run of the benchmark.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Samples(BTreeMap<(String, Metric), Vec<u64>>);

impl Samples {
    /// Takes a line in. False when it is no sample.
    pub fn take(&mut self, line: &str) -> bool {
        let words: Vec<&str> = line.split_whitespace().collect();
        let ["sample", machine, key, value] = words.as_slice() else {
            return false;
        };
        let metric = Metric::ALL.iter().find(|(_, name, ..)| name == key);
        let (Some((metric, ..)), Ok(value)) = (metric, value.parse()) else {
            return false;
        };
        self.0.entry(((*machine).into(), *metric)).or_default().push(value);
        true
    }

    /// The middle one of the figures; of an even number the lower of the two.
    pub fn median(&self, machine: &str, metric: Metric) -> Option<u64> {
        let mut figures = self.0.get(&(machine.to_owned(), metric))?.clone();
        figures.sort_unstable();
        figures.get((figures.len().saturating_sub(1)) / 2).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_reported_is_read_back_and_the_median_taken() {
        let mut samples = Samples::default();
        for value in [9, 1, 5] {
            assert!(samples.take(&line("pc", Metric::Init, value)));
        }
        assert_eq!(samples.median("pc", Metric::Init), Some(5));
        assert_eq!(samples.median("pc", Metric::Exits), None);
    }

    #[test]
    fn other_lines_are_no_samples() {
        for line in ["", "sample pc init", "sample pc unknown 3", "sample pc init x", "hello"] {
            assert!(!Samples::default().take(line), "{line}");
        }
    }
}
