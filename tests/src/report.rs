//! What a guest said of itself: the sections that its first program prints.

use std::collections::BTreeMap;

/// Marks the first line of a section on the console.
const MARK: &str = "=== ";

/// A guest's console, taken apart.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Everything before the first section: what the kernel said.
    pub kernel_log: String,
    sections: BTreeMap<String, Vec<String>>,
}

impl Report {
    /// Takes console output apart. Of a guest that reported twice, the later one counts.
    pub fn parse(console: &str) -> Self {
        let mut report = Self::default();
        let mut section: Option<String> = None;
        for line in console.lines().map(str::trim_end) {
            if let Some(name) = line.strip_prefix(MARK) {
                section = Some(name.to_owned());
                report.sections.insert(name.to_owned(), Vec::new());
            } else if let Some(lines) = section.as_ref().and_then(|name| report.sections.get_mut(name)) {
                lines.push(line.to_owned());
            } else {
                report.kernel_log.push_str(line);
                report.kernel_log.push('\n');
            }
        }
        report
    }

    /// Did the guest's first program get to its end?
    pub fn is_complete(&self) -> bool {
        self.sections.contains_key("end")
    }

    /// The lines of a section; none where there is no such section.
    pub fn section(&self, name: &str) -> &[String] {
        self.sections.get(name).map_or(&[], Vec::as_slice)
    }

    /// The first line of a section.
    pub fn line(&self, name: &str) -> &str {
        self.section(name).first().map_or("", String::as_str)
    }

    /// The configuration space of the function at `address`, as sysfs gives it.
    pub fn config(&self, address: &str) -> Vec<u8> {
        let lines = self.section(&format!("config 0000:{address}"));
        lines
            .iter()
            .flat_map(|line| line.split_whitespace())
            .filter_map(|byte| u8::from_str_radix(byte, 16).ok())
            .collect()
    }

    /// The same but for what differs from run to run: command, latency, and the base addresses.
    pub fn lasting_config(&self, address: &str) -> Vec<u8> {
        let mut config = self.config(address);
        for offset in (0x04..0x06).chain(0x0d..0x0e).chain(0x10..0x28) {
            if let Some(byte) = config.get_mut(offset) {
                *byte = 0;
            }
        }
        config
    }

    /// Fails unless the guest's job said each of these lines.
    ///
    /// # Panics
    /// It did not.
    pub fn assert_said(&self, lines: &[&str]) {
        let said = self.section("job");
        for line in lines {
            assert!(said.iter().any(|other| other == line), "no '{line}' in {said:#?}");
        }
    }

    /// How often the interrupt that /proc/interrupts names in its last column (or first, for `LOC:`) came, all CPUs.
    pub fn interrupts(&self, name: &str) -> u64 {
        let line = self.section("interrupts").iter().find(|line| {
            let mut words = line.split_whitespace();
            words.next() == Some(name) || words.next_back() == Some(name)
        });
        let counts = line.into_iter().flat_map(|line| line.split_whitespace().skip(1));
        counts.map_while(|word| word.parse::<u64>().ok()).sum()
    }

    /// Seconds that the guest says it has been up.
    pub fn uptime(&self) -> f64 {
        self.line("uptime")
            .split_whitespace()
            .next()
            .and_then(|seconds| seconds.parse().ok())
            .unwrap_or(0.0)
    }

    /// The ranges that /proc/iomem or /proc/ioports (`section`) gives the name `what`, in bytes inclusive.
    pub fn ranges(&self, section: &str, what: &str) -> Vec<(u64, u64)> {
        let parse = |line: &String| {
            let (range, name) = line.split_once(" : ")?;
            let (first, last) = range.trim().split_once('-')?;
            let number = |text| u64::from_str_radix(text, 16).ok();
            (name == what).then_some((number(first)?, number(last)?))
        };
        self.section(section).iter().filter_map(parse).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONSOLE: &str = "[    0.0] Linux version\r\n=== cpus\r\n0-3\r\n=== config 0000:00:01.0\r\n 86 80 00 70\r\n=== interrupts\r\n\
                           \x20         CPU0  CPU1\r\n  4:   10   5   IO-APIC   4-edge      ttyS0\r\nLOC:  7  8   Local timer interrupts\r\n\
                           === iomem\r\n00001000-0009fbff : System RAM\r\n=== end\r\n";

    #[test]
    fn sections_are_told_apart() {
        let report = Report::parse(CONSOLE);
        assert!(report.is_complete());
        assert_eq!(
            (report.kernel_log.as_str(), report.line("cpus")),
            ("[    0.0] Linux version\n", "0-3")
        );
        assert_eq!(report.config("00:01.0"), [0x86, 0x80, 0, 0x70]);
        assert_eq!(report.section("no such"), [""; 0]);
    }

    #[test]
    fn interrupts_are_added_up_over_cpus() {
        let report = Report::parse(CONSOLE);
        assert_eq!(
            (
                report.interrupts("ttyS0"),
                report.interrupts("LOC:"),
                report.interrupts("none")
            ),
            (15, 15, 0)
        );
    }

    #[test]
    fn ranges_have_their_names() {
        assert_eq!(
            Report::parse(CONSOLE).ranges("iomem", "System RAM"),
            [(0x1000, 0x9fbff)]
        );
    }
}
