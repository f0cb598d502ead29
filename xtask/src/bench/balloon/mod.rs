//! `cargo xtask bench balloon`: what it costs to take a GiB of memory from a guest and to give it back, beside QEMU.

pub mod measure;

use std::time::Duration;

use xtask::Result;

use super::load::{Load, LoadArgs};
use super::requests::{ADVICE, Column, Program, TIME, Table};

/// Memory that the balloon takes, in MiB.
const TAKEN_MIB: u64 = 1024;
/// Pages of a MiB.
const PAGES: f64 = 256.0;

const LOAD: Load<'_> = Load {
    program: "memory-load",
    modules: &["virtio_pci", "virtio_balloon"],
    start: "memory-load 1024",
    measure: "measure-balloon",
    limit: Duration::from_secs(3600),
    lab_memory: 4096,
    image: None,
};

/// How much faster than QEMU it is to be.
const RATE: f64 = 3.0;
/// So few calls that give memory back it is to take for a GiB.
const CALLS: f64 = 2000.0;

/// Runs it and returns the exit status for the process.
///
/// # Errors
/// When something of it cannot be built, fetched or measured.
pub fn balloon(args: &LoadArgs) -> Result<u8> {
    let title =
        "A guest with one CPU, whose balloon takes 1 GiB that it has used, and gives it back; figures for each MiB";
    let mut table = Table::new("a MiB of").with(ADVICE);
    let status = LOAD.run(args, &[], title, &mut table)?;
    println!("{}", targets(&table));
    Ok(status)
}

/// What the figures ought to be, beside what they are, of both guests.
fn targets(table: &Table) -> String {
    let of_both = measure::GUESTS
        .iter()
        .filter_map(|(_, prefix)| target(table, &format!("{prefix}inflate")));
    format!("Targets\n{}", of_both.collect::<String>())
}

fn target(table: &Table, phase: &str) -> Option<String> {
    let inflating = |program, column: Column| table.median(program, phase, column);
    let ours = inflating(Program::Innkeeper, TIME)?;
    let theirs = inflating(Program::Qemu, TIME)?;
    let calls = inflating(Program::Innkeeper, ADVICE)? * TAKEN_MIB as f64;
    let verdict = |met: bool| if met { "met" } else { "MISSED" };
    let rate = |microseconds: f64| PAGES / microseconds * 1e6;
    let ratio = theirs / ours;
    Some(format!(
        "  {phase} at {RATE} times QEMU's rate: {:.0} pages a second beside {:.0}, {ratio:.2} times, {}\n  \
         {phase} with fewer than {CALLS} calls that give memory back for 1 GiB: {calls:.0}, {}\n",
        rate(ours),
        rate(theirs),
        verdict(ratio >= RATE),
        verdict(calls < CALLS)
    ))
}
