//! The measuring process: boots a guest with a disk on each program, counts around each phase of its load, and reports a line each.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use clap::Args;
use xtask::error::During;
use xtask::{Error, Result};

use super::samples::{Program, Sample};
use crate::bench::child::spawn;
use crate::bench::counters::Counter;
use crate::bench::machines::Files;
use crate::bench::trace::{Record, Trace};

/// Guest memory, in MiB.
const MEMORY_MIB: u32 = 512;
/// The kernel's command line.
const COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1";

/// Measures; started by `bench block`.
#[derive(Args, Debug, Clone)]
pub struct MeasureBlockArgs {
    #[command(flatten)]
    files: Files,
    /// The disk's image: raw.
    #[arg(long)]
    image: PathBuf,
    /// How often each figure is taken.
    #[arg(long)]
    runs: u32,
}

/// Prints the samples. A machine that fails is reported on standard error and fails the command in the end.
///
/// # Errors
/// Nothing can be measured here.
pub fn measure(args: &MeasureBlockArgs) -> Result<u8> {
    let mut failed = false;
    for _ in 0..args.runs {
        for program in Program::ALL {
            if let Err(error) = guest(program, args) {
                eprintln!("{program}: {error}");
                failed = true;
            }
        }
    }
    Ok(failed.into())
}

fn guest(program: Program, args: &MeasureBlockArgs) -> Result<()> {
    let trace = Trace::new(Record::ExecOnly)?;
    let counter = Counter::new()?;
    let mut command = trace.command(&command_line(program, args));
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
                let sample = Sample::new(program, name, figures, counts);
                let sample = sample.ok_or_else(|| Error::Other(format!("the guest's words are no figures: {line}")))?;
                println!("{sample}");
            }
            ["load", "ended"] => return Ok(()),
            _ => eprintln!("{program}: {line}"),
        }
    }
    Err(Error::Other("the guest ended before its load did".into()))
}

fn command_line(program: Program, args: &MeasureBlockArgs) -> Vec<OsString> {
    let memory = format!("{MEMORY_MIB}M");
    let image = args.image.display();
    let mut words: Vec<OsString> = Vec::new();
    let mut add = |more: &[&str]| words.extend(more.iter().map(OsString::from));
    let files = &args.files;
    let text = |path: &Path| path.display().to_string();
    let kernel = text(&files.kernels.join("vmlinuz"));
    match program {
        Program::Innkeeper => {
            add(&[
                &text(&files.innkeeper),
                "run",
                &kernel,
                "--initrd",
                &text(&files.initrd),
            ]);
            add(&["--append", COMMAND_LINE, "--no-reboot", "--memory", &memory]);
            add(&["--disk", &format!("path={image},format=raw,aio=io_uring")]);
        }
        Program::Qemu => {
            add(&[
                &text(&files.qemu),
                "-L",
                &text(&files.firmware),
                "-M",
                "pc",
                "-accel",
                "kvm",
                "-cpu",
                "host",
            ]);
            add(&[
                "-nodefaults",
                "-no-user-config",
                "-no-reboot",
                "-display",
                "none",
                "-monitor",
                "none",
            ]);
            add(&["-serial", "stdio", "-m", &memory]);
            add(&[
                "-kernel",
                &kernel,
                "-initrd",
                &text(&files.initrd),
                "-append",
                COMMAND_LINE,
            ]);
            add(&["-object", "iothread,id=io0"]);
            add(&[
                "-drive",
                &format!("file={image},if=none,id=d0,format=raw,cache=writeback,aio=io_uring"),
            ]);
            add(&["-device", "virtio-blk-pci,drive=d0,iothread=io0"]);
        }
    }
    words
}
