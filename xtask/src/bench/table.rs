//! The figures as a table: a row a metric, a column a machine.

use super::machines::{MACHINES, Machine};
use super::samples::{Metric, Samples, Unit};

const TITLE_WIDTH: usize = 34;
const WIDTH: usize = 17;

/// Medians, and in parentheses their ratio to QEMU's `-M pc` with the same kernel file.
pub fn table(samples: &Samples) -> String {
    let mut text = String::new();
    for head in 0..2 {
        let titles = MACHINES.map(|machine| machine.title[head].to_owned());
        text.push_str(&row("", &titles));
    }
    for (metric, _, title, unit) in Metric::ALL {
        let cells = MACHINES.map(|machine| cell(samples, &machine, metric, unit));
        if cells.iter().any(|cell| cell != NOTHING) {
            text.push_str(&row(title, &cells));
        }
    }
    text
}

const NOTHING: &str = "-";

fn row(title: &str, cells: &[String]) -> String {
    let mut text = format!("{title:<TITLE_WIDTH$}");
    for cell in cells {
        text.push_str(&format!("{cell:>WIDTH$}"));
    }
    text + "\n"
}

fn cell(samples: &Samples, machine: &Machine, metric: Metric, unit: Unit) -> String {
    let Some(value) = samples.median(machine.key, metric) else {
        return NOTHING.into();
    };
    let reference = machine.reference().filter(|reference| reference.key != machine.key);
    let ratio = reference
        .and_then(|reference| samples.median(reference.key, metric))
        .filter(|reference| *reference > 0)
        .map_or(String::new(), |reference| {
            format!(" ({:.2})", value as f64 / reference as f64)
        });
    show(value, unit) + &ratio
}

/// A figure in the unit of its row.
pub fn show(value: u64, unit: Unit) -> String {
    match unit {
        Unit::Count => value.to_string(),
        Unit::Time if value < 100_000 => format!("{:.2}", value as f64 / 1000.0),
        Unit::Time => format!("{:.0}", value as f64 / 1000.0),
        Unit::Memory => format!("{:.2}", value as f64 / 1024.0),
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::line;
    use super::*;

    #[test]
    fn a_row_shows_the_figure_and_its_ratio_and_rows_without_figures_are_left_out() {
        let mut samples = Samples::default();
        samples.take(&line("pc-elf", Metric::Init, 2_000_000));
        samples.take(&line("innkeeper-elf", Metric::Init, 1_500_000));
        let table = table(&samples);
        assert!(table.contains("1500 (0.75)") && table.contains(" 2000"), "{table}");
        assert_eq!(table.lines().count(), 3, "{table}");
    }
}
