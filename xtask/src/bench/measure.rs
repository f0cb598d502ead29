//! The measuring process. It runs where the guests run, in the lab or on the host, and reports each figure in a line.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use xtask::error::During;
use xtask::{Error, Result};

use super::child::{Guest, spawn};
use super::counters::Exits;
use super::machines::{Files, MACHINES, MEMORY_MIB, Machine};
use super::samples::{Metric, line};
use super::trace::{Record, Trace};

/// What the guest's init says first.
pub const MARKER: &str = "this is init";

/// A program takes less until it enters its guest, even where the whole host is emulated.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How often the end of the start is looked for.
const PACE: Duration = Duration::from_millis(20);

/// Measures; started by the other benchmarks.
#[derive(Args, Debug)]
pub struct MeasureArgs {
    #[command(flatten)]
    files: Files,
    /// How often each figure is taken.
    #[arg(long)]
    runs: u32,
    /// Only what comes before the guest runs.
    #[arg(long)]
    start_only: bool,
    /// Only these machines.
    #[arg(long = "machine")]
    machines: Vec<String>,
}

/// Prints the samples. A machine that fails is reported on standard error and fails the command in the end.
///
/// # Errors
/// Nothing can be measured here.
pub fn measure(args: &MeasureArgs) -> Result<u8> {
    let mut failed = false;
    for _ in 0..args.runs {
        let wanted =
            |machine: &&Machine| args.machines.is_empty() || args.machines.iter().any(|key| key == machine.key);
        for machine in MACHINES.iter().filter(wanted) {
            let result = start(machine, &args.files).and_then(|()| match args.start_only {
                true => Ok(()),
                false => boot(machine, &args.files),
            });
            if let Err(error) = result {
                eprintln!("{}: {error}", machine.key);
                failed = true;
            }
        }
    }
    Ok(failed.into())
}

/// Figures of the time before the guest runs. The two recordings are apart, because the second takes its time.
fn start(machine: &Machine, files: &Files) -> Result<()> {
    for record in [Record::Runs, Record::Calls] {
        let trace = Trace::new(record)?;
        let mut command = trace.command(&machine.command_line(files));
        let child = spawn(command.stdout(Stdio::null()).stderr(Stdio::null()))?;
        let deadline = Instant::now() + START_LIMIT;
        let mut child = child;
        // A program that does not get as far has perhaps reached its first KVM_RUN all the same.
        while !trace.has_ended() && !child.has_ended()? {
            if Instant::now() > deadline {
                return Err(Error::Other("has not entered its guest in time".into()));
            }
            thread::sleep(PACE);
        }
        drop(child);
        let recorded = trace.read()?;
        if record == Record::Runs {
            report(machine, Metric::FirstRun, recorded.first_run);
            report(machine, Metric::FirstEntry, recorded.first_entry);
        } else if recorded.first_entry.is_some() {
            report(machine, Metric::Calls, Some(recorded.calls));
        }
    }
    Ok(())
}

/// Figures of the time until the guest's init.
fn boot(machine: &Machine, files: &Files) -> Result<()> {
    let trace = Trace::new(Record::ExecOnly)?;
    let mut command = trace.command(&machine.command_line(files));
    let mut child = spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped()))?;
    let console = wait_for_marker(&mut child)?;
    trace.mark()?;
    let exits = Exits::of(child.id())?;
    let memory = OwnMemory::of(child.id())?;
    report(machine, Metric::Init, trace.read()?.mark);
    report(machine, Metric::Memory, Some(memory.resident));
    report(machine, Metric::Anonymous, Some(memory.anonymous));
    for (metric, value) in [
        (Metric::Exits, exits.all),
        (Metric::PortExits, exits.port),
        (Metric::MmioExits, exits.mmio),
        (Metric::Injections, exits.injections),
    ] {
        report(machine, metric, Some(value));
    }
    if machine.is_ours() {
        let last_words = child.end()?;
        report(machine, Metric::ProgramExits, program_exits(&last_words));
    }
    drop(console);
    Ok(())
}

fn report(machine: &Machine, metric: Metric, value: Option<u64>) {
    if let Some(value) = value {
        println!("{}", line(machine.key, metric, value));
    }
}

/// Reads the serial port up to the marker. The rest stays to be read, so that the guest does not find it closed.
fn wait_for_marker(child: &mut Guest) -> Result<impl Read + use<>> {
    let output = child.output();
    let mut console = BufReader::new(output.ok_or_else(|| Error::Other("no console".into()))?);
    let mut seen = Vec::new();
    loop {
        let before = seen.len();
        let length = console.read_until(b'\n', &mut seen).during(|| "reading a console")?;
        if String::from_utf8_lossy(seen.get(before..).unwrap_or_default()).contains(MARKER) {
            return Ok(console);
        }
        if length == 0 {
            let mut words = String::from_utf8_lossy(&seen).into_owned();
            words.push_str(&child.end()?);
            return Err(Error::Other(format!("the guest has not reached its init:\n{words}")));
        }
    }
}

/// Resident memory of a process without its guest's, in KiB.
#[derive(Debug, Default, PartialEq, Eq)]
struct OwnMemory {
    resident: u64,
    anonymous: u64,
}

impl OwnMemory {
    fn of(process: u32) -> Result<Self> {
        let path = format!("/proc/{process}/smaps");
        let text = fs::read_to_string(&path).during(|| format!("reading {path}"))?;
        Ok(Self::parse(&text))
    }

    /// Adds up the mappings that are too small to be the guest's memory.
    fn parse(smaps: &str) -> Self {
        let mut sum = Self::default();
        let mut is_guest = false;
        for text in smaps.lines() {
            let mut words = text.split_whitespace();
            let (Some(name), value) = (words.next(), words.next().and_then(|word| word.parse::<u64>().ok())) else {
                continue;
            };
            match (name, value) {
                ("Size:", Some(kib)) => is_guest = kib >= MEMORY_MIB << 10,
                ("Rss:", Some(kib)) if !is_guest => sum.resident += kib,
                ("Anonymous:", Some(kib)) if !is_guest => sum.anonymous += kib,
                _ => {}
            }
        }
        sum
    }
}

/// Finds `exits: N` in what `--stats` prints.
fn program_exits(stats: &str) -> Option<u64> {
    stats
        .lines()
        .find_map(|line| line.strip_prefix("exits: "))
        .and_then(|value| value.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
55d0-55d1 r-xp 00000000 00:02 5 /bin/innkeeper
Size:               1200 kB
KernelPageSize:        4 kB
Rss:                 900 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me
7f00-7f01 rw-s 00000000 00:01 9 /memfd:innkeeper-ram (deleted)
Size:             524288 kB
Rss:              100000 kB
Anonymous:             0 kB
7f02-7f03 rw-p 00000000 00:00 0 [heap]
Size:                200 kB
Rss:                  80 kB
Anonymous:            80 kB
";

    #[test]
    fn guest_memory_is_left_out_of_the_sum() {
        assert_eq!(
            OwnMemory::parse(SMAPS),
            OwnMemory {
                resident: 980,
                anonymous: 80
            }
        );
    }

    #[test]
    fn the_exits_are_found_in_the_statistics() {
        assert_eq!(program_exits("ran for: 1s\nexits: 1234\n  port reads: 5\n"), Some(1234));
        assert_eq!(program_exits(""), None);
    }
}
