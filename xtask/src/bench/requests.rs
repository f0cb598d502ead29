//! The figures of a phase of a guest's load, the line that carries them, and the table: what a request to a device costs.

use std::collections::BTreeMap;
use std::fmt;

use super::counters::Counts;

/// Who runs the guest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Program {
    /// We do.
    Innkeeper,
    /// QEMU's `pc`.
    Qemu,
}

impl Program {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Innkeeper, Self::Qemu];
}

impl fmt::Display for Program {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Innkeeper => "innkeeper",
            Self::Qemu => "qemu",
        })
    }
}

/// One phase of the load on one program.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sample {
    program: Program,
    phase: String,
    figures: Figures,
}

/// What was counted in a phase.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Figures {
    requests: u64,
    nanoseconds: u64,
    interrupts: u64,
    counts: Counts,
}

impl Sample {
    /// From the guest's words (requests, nanoseconds, interrupts) and what was counted outside.
    pub fn new(program: Program, phase: &str, words: &[&str], counts: Counts) -> Option<Self> {
        let [requests, nanoseconds, interrupts] = words else {
            return None;
        };
        let figures = Figures {
            requests: requests.parse().ok().filter(|count| *count > 0)?,
            nanoseconds: nanoseconds.parse().ok()?,
            interrupts: interrupts.parse().ok()?,
            counts,
        };
        let phase = phase.to_owned();
        Some(Self {
            program,
            phase,
            figures,
        })
    }

    /// Reads what [`fmt::Display`] wrote.
    pub fn parse(line: &str) -> Option<Self> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [
            "sample",
            program,
            phase,
            figures @ ..,
            exits,
            kicks,
            calls,
            advice,
            time,
        ] = words.as_slice()
        else {
            return None;
        };
        let program = Program::ALL.into_iter().find(|known| known.to_string() == *program)?;
        let counts = Counts {
            exits: exits.parse().ok()?,
            kicks: kicks.parse().ok()?,
            calls: calls.parse().ok()?,
            advice: advice.parse().ok()?,
            time: time.parse().ok()?,
        };
        Self::new(program, phase, figures, counts)
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Figures {
            requests,
            nanoseconds,
            interrupts,
            counts,
        } = self.figures;
        let Counts {
            exits,
            kicks,
            calls,
            advice,
            time,
        } = counts;
        let (program, phase) = (self.program, &self.phase);
        write!(
            formatter,
            "sample {program} {phase} {requests} {nanoseconds} {interrupts} {exits} {kicks} {calls} {advice} {time}"
        )
    }
}

/// A figure per request, by name.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    title: &'static str,
    of: fn(&Figures) -> f64,
}

const fn column(title: &'static str, of: fn(&Figures) -> f64) -> Column {
    Column { title, of }
}

/// Time.
pub const TIME: Column = column("µs", |figures| figures.nanoseconds as f64 / 1000.0);
/// Calls that say what becomes of memory.
pub const ADVICE: Column = column("advice", |figures| figures.counts.advice as f64);

/// Those of every table.
const COLUMNS: [Column; 6] = [
    TIME,
    column("own µs", |figures| figures.counts.time as f64 / 1000.0),
    column("exits", |figures| figures.counts.exits as f64),
    column("kicks", |figures| figures.counts.kicks as f64),
    column("irqs", |figures| figures.interrupts as f64),
    column("calls", |figures| figures.counts.calls as f64),
];

impl Column {
    fn per_request(&self, figures: &Figures) -> f64 {
        (self.of)(figures) / figures.requests as f64
    }
}

/// All samples, in the order of the phases.
#[derive(Debug)]
pub struct Table {
    /// The head of the column with the phases.
    title: &'static str,
    columns: Vec<Column>,
    phases: Vec<String>,
    samples: BTreeMap<(Program, String), Vec<Figures>>,
}

impl Table {
    /// An empty one whose first column has this head.
    pub fn new(title: &'static str) -> Self {
        Self {
            title,
            columns: COLUMNS.to_vec(),
            phases: Vec::new(),
            samples: BTreeMap::new(),
        }
    }

    /// The same with one more column.
    #[must_use]
    pub fn with(mut self, column: Column) -> Self {
        self.columns.push(column);
        self
    }

    /// Takes a line in. False when it is no sample.
    pub fn take(&mut self, line: &str) -> bool {
        let Some(Sample {
            program,
            phase,
            figures,
        }) = Sample::parse(line)
        else {
            return false;
        };
        if !self.phases.contains(&phase) {
            self.phases.push(phase.clone());
        }
        self.samples.entry((program, phase)).or_default().push(figures);
        true
    }

    /// The middle one of the figures of a column; of an even number the lower of the two.
    pub fn median(&self, program: Program, phase: &str, column: Column) -> Option<f64> {
        let samples = self.samples.get(&(program, phase.to_owned()))?;
        let mut figures: Vec<f64> = samples.iter().map(|sample| column.per_request(sample)).collect();
        figures.sort_by(f64::total_cmp);
        figures.get(figures.len().saturating_sub(1) / 2).copied()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let titles = self.phases.iter().map(String::len).chain([self.title.len()]);
        let width = titles.max().unwrap_or_default() + 2;
        write!(formatter, "{:<width$}{:<10}{:>10}", self.title, "on", "rate/QEMU")?;
        for Column { title, .. } in &self.columns {
            write!(formatter, "{title:>10}")?;
        }
        writeln!(formatter)?;
        for phase in &self.phases {
            for program in Program::ALL {
                let ours = self.median(program, phase, TIME);
                let ratio = self
                    .median(Program::Qemu, phase, TIME)
                    .zip(ours)
                    .map(|(theirs, ours)| theirs / ours);
                let ratio = ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}"));
                write!(formatter, "{phase:<width$}{:<10}{ratio:>10}", program.to_string())?;
                for &column in &self.columns {
                    let figure = self.median(program, phase, column);
                    let figure = figure.map_or("-".to_owned(), |figure| format!("{figure:.2}"));
                    write!(formatter, "{figure:>10}")?;
                }
                writeln!(formatter)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const COUNTS: Counts = Counts {
        exits: 30,
        kicks: 20,
        calls: 10,
        advice: 0,
        time: 1000,
    };

    #[test]
    fn a_sample_is_read_back() {
        let sample = Sample::new(Program::Qemu, "read-4k-1", &["10", "2000", "5"], COUNTS).unwrap();
        assert_eq!(Sample::parse(&sample.to_string()), Some(sample));
        assert_eq!(Sample::new(Program::Qemu, "x", &["0", "1", "1"], COUNTS), None);
        assert_eq!(Sample::parse("sample other x 1 1 1 1 1 1 1 1"), None);
    }

    #[test]
    fn the_table_shows_rates_beside_qemus() {
        let mut table = Table::new("a request of");
        for (program, time) in [(Program::Innkeeper, "5000"), (Program::Qemu, "10000")] {
            let sample = Sample::new(program, "read-4k-1", &["10", time, "5"], COUNTS).unwrap();
            assert!(table.take(&sample.to_string()));
        }
        let text = table.to_string();
        assert!(
            text.contains("innkeeper       2.00      0.50      0.10      3.00      2.00      0.50      1.00"),
            "{text}"
        );
    }
}
