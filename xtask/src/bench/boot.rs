//! `cargo xtask bench boot`: from exec to the guest's init, beside QEMU's `pc` and `microvm`.

use std::ffi::OsString;
use std::fs::File;
use std::path::Path;
use std::time::Duration;

use clap::Args;
use xtask::initramfs::Initramfs;
use xtask::kernel::Flavour;
use xtask::lab::{self, Emulator, Lab, ensure_cured, scratch};
use xtask::{Result, resources};

use super::machines::{Files, MACHINES, MEMORY_MIB};
use super::measure::MARKER;
use super::place;
use super::samples::{Metric, Samples, Unit};
use super::table::{show, table};
use super::trace::Trace;
use crate::cargo;
use crate::way::{self, Way};

/// For each round of all machines, on a busy host in the lab.
const LIMIT_OF_A_RUN: Duration = Duration::from_secs(240);

/// Takes the figures of a start: system calls and time to the first KVM_RUN, own memory, time and exits to the guest's init.
#[derive(Args, Debug)]
pub struct BootArgs {
    /// How often each figure is taken; medians are shown.
    #[arg(long, default_value_t = 3)]
    runs: u32,
    /// Use the lab even where this host's KVM could run the guests.
    #[arg(long)]
    lab: bool,
    /// Use the lab and count its time in instructions (1 ns each), so that figures repeat whatever else the host does.
    #[arg(long)]
    icount: bool,
}

/// Runs it and returns the exit status for the process.
///
/// # Errors
/// When something of it cannot be built, fetched or measured.
pub fn boot(args: &BootArgs) -> Result<u8> {
    let innkeeper = cargo::build(&["build", "--release", "-p", "vmm", "--bin", "innkeeper"], "innkeeper")?;
    let resources = resources::gather()?;
    let emulator = ensure_cured()?;
    let way = way::decide(&innkeeper, args.lab || args.icount)?;
    let kernels = resources.join("kernels").join(Flavour::Cloud.name());
    let initrd = scratch::unlinked_file("initrd")?;
    guest()?.write_to(&mut &initrd)?;
    let files = Files {
        innkeeper,
        qemu: emulator.program.clone(),
        firmware: resources.join("firmware"),
        kernels,
        initrd: scratch::inherited_path(&initrd).into(),
    };
    let clock = if args.icount {
        ", time counted in instructions"
    } else {
        ""
    };
    println!(
        "{MEMORY_MIB} MiB, 1 CPU, Debian's cloud kernel; medians of {} runs, in parentheses their ratio to QEMU pc",
        args.runs
    );
    println!("with the same kernel file; {way}{clock}\n");
    let (samples, status) = match way {
        Way::Host => on_host(&files, &initrd, args.runs, false)?,
        Way::Lab(_) => in_lab(&files, emulator, args)?,
    };
    println!("{}", table(&samples));
    println!("{}", targets(&samples, &way));
    if let Way::Lab(_) = way
        && Path::new("/dev/kvm").exists()
        && Trace::is_possible()
    {
        let (samples, _) = on_host(&files, &initrd, args.runs, true)?;
        println!("On this host itself, up to where its KVM would have to run kernel code:\n");
        println!("{}", table(&samples));
    }
    Ok(status)
}

/// A guest whose init says so and then waits to be ended.
fn guest() -> Result<Initramfs> {
    let mut contents = Initramfs::new();
    contents
        .busybox(&lab::busybox()?)?
        .script("/init", &format!("echo '{MARKER}'\nwhile :; do sleep 1000; done\n"));
    Ok(contents)
}

/// The measuring process's arguments, without the program.
fn arguments(files: &Files, runs: u32, start_only: bool) -> Vec<OsString> {
    let runs = runs.to_string();
    let mut words: Vec<OsString> = ["bench", "measure", "--runs", &runs].map(OsString::from).into();
    words.extend(start_only.then(|| "--start-only".into()));
    words.extend(files.arguments());
    words
}

fn on_host(files: &Files, initrd: &File, runs: u32, start_only: bool) -> Result<(Samples, u8)> {
    let mut samples = Samples::default();
    let arguments = arguments(files, runs, start_only);
    let take = &mut |line: &str| samples.take(line);
    let status = place::on_host(&arguments, &[initrd], LIMIT_OF_A_RUN * runs, take)?;
    Ok((samples, status))
}

fn in_lab(files: &Files, emulator: Emulator, args: &BootArgs) -> Result<(Samples, u8)> {
    let inside = Files {
        innkeeper: "/bin/innkeeper".into(),
        qemu: "/bin/qemu-system-x86_64".into(),
        firmware: "/firmware".into(),
        kernels: "/kernels".into(),
        initrd: "/initrd".into(),
    };
    let mut lab = Lab::with(emulator);
    lab.limit = LIMIT_OF_A_RUN * args.runs;
    lab.icount = args.icount;
    lab.contents
        .program(&files.innkeeper, "/bin/innkeeper")?
        .program(&files.qemu, "/bin/qemu-system-x86_64")?
        .copy(&files.firmware, "/firmware")?
        .copy(&files.kernels.join("vmlinuz"), "/kernels/vmlinuz")?
        .copy(&files.kernels.join("vmlinux"), "/kernels/vmlinux")?
        .bytes("/initrd", guest()?.to_bytes()?);
    let mut samples = Samples::default();
    let arguments = arguments(&inside, args.runs, false);
    let status = place::in_lab(lab, "", &arguments, &mut |line| samples.take(line))?;
    Ok((samples, status))
}

/// What the figures ought to be, beside what they are.
fn targets(samples: &Samples, way: &Way) -> String {
    const FIRST_ENTRY_MICROSECONDS: u64 = 10_000;
    const OWN_MEMORY_KIB: u64 = 5 << 10;
    let verdict = |met: bool| if met { "met" } else { "MISSED" };
    let mut text = String::from("Targets\n");
    for machine in MACHINES.iter().filter(|machine| machine.is_ours()) {
        let name = machine.title.join(" ");
        if let Some(entry) = samples.median(machine.key, Metric::FirstEntry) {
            let verdict = match way {
                Way::Host => verdict(entry < FIRST_ENTRY_MICROSECONDS),
                Way::Lab(_) => "not comparable: the lab is emulated",
            };
            let entry = show(entry, Unit::Time);
            text.push_str(&format!(
                "  {name}: first entry within 10 ms on an idle core: {entry} ms, {verdict}\n"
            ));
        }
        if let Some(memory) = samples.median(machine.key, Metric::Memory) {
            let (shown, verdict) = (show(memory, Unit::Memory), verdict(memory < OWN_MEMORY_KIB));
            text.push_str(&format!("  {name}: own memory below 5 MiB: {shown} MiB, {verdict}\n"));
        }
        let Some(init) = samples.median(machine.key, Metric::Init) else {
            continue;
        };
        for other in MACHINES.iter().filter(|other| !other.is_ours()) {
            if let Some(theirs) = samples.median(other.key, Metric::Init) {
                let ratio = init as f64 / theirs as f64;
                let other = other.title.join(" ");
                text.push_str(&format!(
                    "  {name}: init not after {other}'s: ratio {ratio:.2}, {}\n",
                    verdict(init <= theirs)
                ));
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::samples::line;
    use super::*;

    #[test]
    fn a_missed_target_is_called_missed() {
        let mut samples = Samples::default();
        samples.take(&line("innkeeper-elf", Metric::Memory, 6 << 10));
        samples.take(&line("innkeeper-elf", Metric::FirstEntry, 9_000));
        let text = targets(&samples, &Way::Host);
        assert!(
            text.contains("6.00 MiB, MISSED") && text.contains("9.00 ms, met"),
            "{text}"
        );
    }
}
