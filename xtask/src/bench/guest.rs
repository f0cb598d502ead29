//! A guest that puts a load on a device and says how it goes, started and watched.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use xtask::error::During;
use xtask::{Error, Result, packages};

use super::child::spawn;
use super::counters::Counter;
use super::machines::Files;
use super::requests::{Program, Sample};
use super::trace::{Record, Trace};

/// Guest memory that is enough for most loads, in MiB.
pub const MEMORY_MIB: u32 = 512;

/// What the guest's init says at its end.
pub const ENDED: &str = "load ended";

/// Debian's own QEMU: it has io_uring, which the lab's emulator is built without.
///
/// # Errors
/// It is not there and cannot be installed.
pub fn debian_qemu() -> Result<PathBuf> {
    packages::program("qemu-system-x86_64", "qemu-system-x86", "compare with QEMU")
}

/// The command line of a machine with one CPU, so many MiB of memory and no devices yet; `append` is the kernel's, behind the console.
pub fn command_line(program: Program, files: &Files, memory: u32, append: &str) -> Vec<OsString> {
    let mut words: Vec<OsString> = Vec::new();
    let mut add = |more: &[&str]| words.extend(more.iter().map(OsString::from));
    let text = |path: &Path| path.display().to_string();
    let (kernel, initrd) = (text(&files.kernels.join("vmlinuz")), text(&files.initrd));
    let append = format!("console=ttyS0 quiet panic=-1 {append}");
    let memory = format!("{memory}M");
    match program {
        Program::Innkeeper => {
            add(&[&text(&files.innkeeper), "run", &kernel, "--initrd", &initrd]);
            add(&["--append", append.trim_end(), "--no-reboot", "--memory", &memory]);
        }
        Program::Qemu => {
            add(&[&text(&files.qemu), "-L", &text(&files.firmware), "-M", "pc"]);
            add(&["-accel", "kvm", "-cpu", "host", "-nodefaults", "-no-user-config"]);
            add(&["-no-reboot", "-display", "none", "-monitor", "none"]);
            // Its threads have names then.
            add(&["-name", "bench,debug-threads=on"]);
            add(&[
                "-serial", "stdio", "-m", &memory, "-kernel", &kernel, "-initrd", &initrd,
            ]);
            add(&["-append", append.trim_end()]);
        }
    }
    words
}

/// Runs a machine until its load has ended, counts around each phase, and reports a line each; the phases' names get `prefix` in
/// front. What else the guest says goes to `hear`.
///
/// # Errors
/// It cannot be started or watched, or ends too soon.
pub fn run(program: Program, command_line: &[OsString], prefix: &str, hear: &mut dyn FnMut(&str)) -> Result<()> {
    let trace = Trace::new(Record::ExecOnly)?;
    let counter = Counter::new()?;
    let mut command = trace.command(command_line);
    let mut child = spawn(command.stdout(Stdio::piped()).stderr(Stdio::inherit()))?;
    let output = child.output().ok_or_else(|| Error::Other("no console".into()))?;
    let mut before = None;
    for line in BufReader::new(output).lines() {
        let line = line.during(|| "reading a console")?;
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["phase", _, "ready"] => before = Some(counter.read(child.id())?),
            ["phase", name, "done", figures @ ..] => {
                let counts = counter.read(child.id())? - before.take().unwrap_or_default();
                let sample = Sample::new(program, &format!("{prefix}{name}"), figures, counts);
                let sample = sample.ok_or_else(|| Error::Other(format!("the guest's words are no figures: {line}")))?;
                println!("{sample}");
                eprintln!("{program}: {prefix}{name} is measured");
            }
            _ if line.trim_end() == ENDED => return Ok(()),
            _ => hear(&line),
        }
    }
    Err(Error::Other("the guest ended before its load did".into()))
}
