//! The lab: a Linux with a real, hardware-type `/dev/kvm` on any host.
//!
//! QEMU's software emulation includes AMD's SVM with nested paging, so a Linux that it runs (*L1*) has a complete KVM.
//! A guest in L1 runs as slowly as L1 itself, but everything in it, from interrupts to dirty logging, is the real thing.
//!
//! [`Lab::run`] packs programs and files into an initramfs, starts L1 with it, runs jobs one after another, passes
//! their output on as it comes, and brings their exit statuses and files back.

mod cured;
mod emulator;
mod guest;
pub mod process;
pub mod scratch;

use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use cured::CuredQemu;
pub use emulator::Emulator;

use crate::error::{During, Error, Result};
use crate::initramfs::Initramfs;
use crate::kernel::{DebianKernel, Flavour};
use crate::modules::ModuleTree;
use crate::packages;
use guest::Report;
use process::Ended;

/// A shell script to be run in L1, by busybox's shell, with `/` as its folder and nothing as its standard input.
#[derive(Clone, Debug)]
pub struct Job {
    /// What messages call it.
    pub name: String,
    /// The script. Its last exit status is the job's.
    pub script: String,
}

/// An L1 that is yet to be started. Make it with [`Lab::new`], fill in what differs, and [`run`](Lab::run) it.
#[derive(Clone, Debug)]
pub struct Lab {
    /// Who emulates.
    pub emulator: Emulator,
    /// L1's memory in MiB; 4096 by default.
    pub memory_mib: u32,
    /// L1's CPUs. One by default: with more, guests lock up now and then.
    pub cpus: u32,
    /// Whether time in L1 is counted in instructions, so that it repeats.
    pub icount: bool,
    /// The wall-clock time for all jobs and the start of L1; five minutes by default.
    pub limit: Duration,
    /// Words added to the command line of L1's kernel.
    pub kernel_arguments: Vec<String>,
    /// Modules to load in L1 beside the usual ones.
    pub modules: Vec<String>,
    /// The files of L1, beside busybox and what the lab itself needs. Jobs find `/out`, `/tmp` and `/run` empty.
    pub contents: Initramfs,
    /// Where what the jobs left in `/out` is put.
    pub out: Option<PathBuf>,
}

/// How the jobs of a lab ended.
#[derive(Debug)]
pub struct Outcome {
    /// For each job its exit status, in the order of the jobs; `None` for those that did not end.
    pub statuses: Vec<Option<i32>>,
    /// Why not all of them ended, when they did not.
    pub failure: Option<Failure>,
    /// From the start of the emulator to the first job.
    pub start_time: Duration,
    /// From the start of the emulator to its end.
    pub total_time: Duration,
}

/// Why a lab ended before its jobs.
#[derive(Debug)]
pub enum Failure {
    /// The time was up; the emulator has been killed.
    TimedOut(Duration),
    /// L1 ended without finishing; these are the last words of its kernel.
    Died(String),
}

impl Lab {
    /// A lab with the cured emulator when it has been built, else with Debian's own.
    ///
    /// # Errors
    /// When a package is missing and cannot be fetched or installed.
    pub fn new() -> Result<Self> {
        Ok(Self::with(Emulator::find()?))
    }

    /// A lab with the cured emulator, which is built when it is not there yet.
    ///
    /// # Errors
    /// As [`ensure_cured`].
    pub fn cured() -> Result<Self> {
        Ok(Self::with(ensure_cured()?))
    }

    /// A lab with this emulator.
    #[must_use]
    pub fn with(emulator: Emulator) -> Self {
        Self {
            emulator,
            memory_mib: 4096,
            cpus: 1,
            icount: false,
            limit: Duration::from_secs(300),
            kernel_arguments: Vec::new(),
            modules: Vec::new(),
            contents: Initramfs::new(),
            out: None,
        }
    }

    /// Starts L1 and runs the jobs one after another, whatever the status of the one before. Each line of their output,
    /// with its newline, is passed to `output` as it comes.
    ///
    /// # Errors
    /// When L1 cannot be put together or the emulator cannot be started. What happens after that is in the [`Outcome`].
    pub fn run(&self, jobs: &[Job], output: &mut dyn FnMut(&[u8])) -> Result<Outcome> {
        let mut files = self.prepare(jobs)?;
        let shape = emulator::Shape {
            memory_mib: self.memory_mib,
            cpus: self.cpus,
            icount: self.icount,
            kernel_arguments: &self.kernel_arguments,
        };
        let mut command = emulator::command(&self.emulator, &shape, &files);
        let started = Instant::now();
        let mut start_time = None;
        let mut pass_on = |line: &[u8]| match start_time {
            None if line.starts_with(guest::GREETING) => start_time = Some(started.elapsed()),
            _ => output(line),
        };
        let inherited = [&files.initramfs, &files.results, &files.serial];
        let ended = process::watch(&mut command, &inherited, self.limit, &mut pass_on)?;
        let total_time = started.elapsed();
        let report = Report::read(&mut files.results, jobs.len())?;
        let failure = match ended {
            Ended::TimedOut => Some(Failure::TimedOut(self.limit)),
            Ended::Exited(status) if !report.finished => {
                Some(Failure::Died(format!("{status}\n{}", last_words(files.serial, 60))))
            }
            Ended::Exited(_) => None,
        };
        if let (Some(folder), true) = (&self.out, report.finished) {
            guest::unpack_results(&files.results, folder)?;
        }
        let start_time = start_time.unwrap_or(total_time);
        Ok(Outcome {
            statuses: report.statuses,
            failure,
            start_time,
            total_time,
        })
    }

    fn prepare(&self, jobs: &[Job]) -> Result<emulator::Files> {
        let kernel = DebianKernel::fetch(Flavour::Cloud)?;
        let modules = ModuleTree::open(&kernel.modules)?;
        let mut contents = self.contents.clone();
        guest::furnish(&mut contents, &busybox()?, &modules, &self.modules, jobs)?;
        let initramfs = scratch::unlinked_file("initramfs")?;
        let mut writer = io::BufWriter::with_capacity(1 << 20, &initramfs);
        contents.write_to(&mut writer)?;
        io::Write::flush(&mut writer).during(|| "writing an initramfs")?;
        drop(writer);
        let results = scratch::unlinked_file("results")?;
        results
            .set_len(guest::RESULTS_SIZE)
            .during(|| "making the disk for results")?;
        let serial = scratch::unlinked_file("serial")?;
        Ok(emulator::Files {
            kernel: kernel.vmlinux()?,
            initramfs,
            results,
            serial,
        })
    }
}

/// The cured emulator, built when it is not there yet: about five minutes, once.
///
/// # Errors
/// When packages are missing, cannot be fetched, or the build fails.
pub fn ensure_cured() -> Result<Emulator> {
    Emulator::cured()
}

/// Debian's static busybox, fetched into the cache.
///
/// # Errors
/// When it cannot be fetched.
pub fn busybox() -> Result<PathBuf> {
    let root = packages::fetch("busybox-static")?.root;
    ["usr/bin/busybox", "bin/busybox"]
        .map(|path| root.join(path))
        .into_iter()
        .find(|path| path.is_file())
        .ok_or_else(|| Error::Lab("package busybox-static holds no busybox".into()))
}

/// Finds the program behind a command's first word the way a shell in L1 would, were L1 this host: a path as it stands;
/// a bare name among busybox's commands first, then on the host's `PATH`. `None` when L1 has it anyway.
///
/// # Errors
/// When it is nowhere.
pub fn locate(word: &str) -> Result<Option<PathBuf>> {
    let missing = || {
        Error::Lab(format!(
            "{word}: no such program on this host, nor a command of busybox"
        ))
    };
    if word.contains('/') {
        let path = Path::new(word);
        let path = path.canonicalize().map_err(|_| missing())?;
        return Ok(Some(path));
    }
    let commands = crate::tool::text(crate::tool::command(&busybox()?.to_string_lossy()).arg("--list"))?;
    if commands.lines().any(|command| command == word) {
        return Ok(None);
    }
    crate::tool::find(word).map(Some).ok_or_else(missing)
}

fn last_words(mut serial: std::fs::File, lines: usize) -> String {
    let mut bytes = Vec::new();
    if serial.rewind().and_then(|()| serial.read_to_end(&mut bytes)).is_err() {
        return String::new();
    }
    let text = String::from_utf8_lossy(&bytes).replace('\r', "");
    let all: Vec<&str> = text.lines().collect();
    all.get(all.len().saturating_sub(lines)..)
        .unwrap_or_default()
        .join("\n")
}
