//! What came of the tests, as a table: a row a test, a column a variant.

use std::collections::BTreeMap;
use std::fmt;

use super::case::Verdict;
use super::suite::Test;
use super::variant::Variant;

const WIDTH: usize = 14;

/// The verdicts so far. A failure is also told when it comes.
#[derive(Default)]
pub struct Table {
    rows: Vec<Row>,
}

struct Row {
    title: String,
    verdicts: BTreeMap<Variant, Verdict>,
}

impl Table {
    /// Takes the next verdict; those of one test come one after the other.
    pub fn add(&mut self, test: &Test, variant: Variant, verdict: Verdict, verbose: bool) {
        if let Verdict::Failed { reason, output } = &verdict {
            eprintln!("FAILED {} ({}): {reason}", test.title(), variant.name());
            if verbose {
                output.lines().for_each(|line| eprintln!("    {line}"));
            }
        }
        match self.rows.last_mut().filter(|row| row.title == test.title()) {
            Some(row) => {
                row.verdicts.insert(variant, verdict);
            }
            None => self.rows.push(Row {
                title: test.title().to_owned(),
                verdicts: [(variant, verdict)].into(),
            }),
        }
    }

    /// Whether there was no test at all.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Whether a test failed.
    pub fn failed(&self) -> bool {
        self.verdicts().any(|verdict| matches!(verdict, Verdict::Failed { .. }))
    }

    fn verdicts(&self) -> impl Iterator<Item = &Verdict> {
        self.rows.iter().flat_map(|row| row.verdicts.values())
    }

    fn count(&self, wanted: impl Fn(&Verdict) -> bool) -> usize {
        self.verdicts().filter(|verdict| wanted(verdict)).count()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.rows.iter().map(|row| row.title.len()).max().unwrap_or_default();
        write!(formatter, "{:<width$}", "")?;
        for variant in Variant::ALL {
            write!(formatter, "{:>WIDTH$}", variant.name())?;
        }
        writeln!(formatter)?;
        for row in &self.rows {
            write!(formatter, "{:<width$}", row.title)?;
            for variant in Variant::ALL {
                let cell = row.verdicts.get(&variant).map_or_else(String::new, cell);
                write!(formatter, "{cell:>WIDTH$}")?;
            }
            let why = row.verdicts.values().find_map(why).unwrap_or_default();
            writeln!(formatter, "  {why}")?;
        }
        writeln!(
            formatter,
            "{} passed, {} failed, {} skipped, {} known not to work",
            self.count(|verdict| matches!(verdict, Verdict::Passed(_))),
            self.count(|verdict| matches!(verdict, Verdict::Failed { .. })),
            self.count(|verdict| matches!(verdict, Verdict::Skipped(_))),
            self.count(|verdict| matches!(verdict, Verdict::Known(_))),
        )
    }
}

fn cell(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Passed(took) => format!("{:.2} s", took.as_secs_f64()),
        Verdict::Skipped(_) => "skipped".into(),
        Verdict::Failed { .. } => "FAILED".into(),
        Verdict::Known(_) => "-".into(),
    }
}

/// Why a test did not pass.
fn why(verdict: &Verdict) -> Option<&str> {
    match verdict {
        Verdict::Passed(_) => None,
        Verdict::Skipped(reason) | Verdict::Failed { reason, .. } => Some(reason),
        Verdict::Known(reason) => Some(reason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_row_has_all_variants_and_the_first_reason() {
        let test = Test::new("/x86_64/a/nop");
        let mut table = Table::default();
        table.add(
            &test,
            Variant::Transitional,
            Verdict::Passed(Duration::from_millis(250)),
            false,
        );
        assert!(!table.failed());
        let failed = Verdict::Failed {
            reason: "no interrupt".into(),
            output: String::new(),
        };
        table.add(&test, Variant::Legacy, failed, false);
        assert!(table.failed());
        let text = table.to_string();
        let row = text
            .lines()
            .nth(1)
            .map(|line| line.split_whitespace().collect::<Vec<_>>());
        let expected = ["a/nop", "0.25", "s", "FAILED", "no", "interrupt"];
        assert_eq!(row.as_deref(), Some(&expected[..]), "{text}");
        assert!(
            text.ends_with("1 passed, 1 failed, 0 skipped, 0 known not to work\n"),
            "{text}"
        );
    }
}
