//! `cargo xtask lab`: one command in the lab.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use xtask::Result;
use xtask::lab::{self, Failure, Job, Lab, Outcome};

/// The exit status when the time is up, as of `timeout`.
const TIMED_OUT: u8 = 124;
/// The exit status when L1 itself failed.
pub const LAB_FAILED: u8 = 125;
/// The exit status when the command was not found, as of a shell.
const NOT_FOUND: u8 = 127;

/// Runs a command in an emulated Linux whose /dev/kvm is a real one.
///
/// A COMMAND that is a program of this host is packed with its shared libraries, at its own path. What it leaves in
/// /out is brought back with --out. The exit status is the command's; 124 when the time was up, 125 when the lab itself
/// failed, 127 when there is no such command.
#[derive(Args, Debug)]
pub struct LabArgs {
    /// Memory of the emulated machine in MiB.
    #[arg(long, value_name = "MB", default_value_t = 4096)]
    memory: u32,
    /// CPUs of the emulated machine. With more than one, guests lock up now and then.
    #[arg(long, value_name = "N", default_value_t = 1)]
    cpus: u32,
    /// Wall-clock limit in seconds.
    #[arg(long, value_name = "SECS", default_value_t = 300)]
    timeout: u64,
    /// Put what the command leaves in /out into this folder.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Pack a file, program (with its libraries) or folder. Without DST it appears at its own absolute path.
    #[arg(long = "file", value_name = "SRC[:DST]")]
    files: Vec<String>,
    /// Load a kernel module, with those that it depends on.
    #[arg(long = "module", value_name = "NAME")]
    modules: Vec<String>,
    /// Add a word to the emulated kernel's command line.
    #[arg(long = "kernel-arg", value_name = "WORD")]
    kernel_args: Vec<String>,
    /// Count time in instructions, so that it repeats.
    #[arg(long)]
    icount: bool,
    /// Build the cured emulator first when it is not there (about five minutes).
    #[arg(long)]
    cured: bool,
    /// The command and its arguments.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Runs it and returns the exit status for the process.
///
/// # Errors
/// When the lab cannot be put together.
pub fn lab(args: LabArgs) -> Result<u8> {
    let mut words = args.command;
    let Some(program) = words.first_mut() else {
        return Ok(NOT_FOUND);
    };
    let packed = match lab::locate(program) {
        Ok(packed) => packed,
        Err(error) => {
            eprintln!("{error}");
            return Ok(NOT_FOUND);
        }
    };
    let mut lab = if args.cured { Lab::cured()? } else { Lab::new()? };
    if let Some(path) = packed {
        *program = path.to_string_lossy().into_owned();
        lab.contents.program(&path, program)?;
    }
    for file in &args.files {
        let (source, destination) = file.split_once(':').unwrap_or((file, ""));
        let source = std::path::absolute(source).unwrap_or_else(|_| source.into());
        let own = source.to_string_lossy().into_owned();
        lab.contents
            .program(&source, if destination.is_empty() { &own } else { destination })?;
    }
    lab.memory_mib = args.memory;
    lab.cpus = args.cpus;
    lab.limit = Duration::from_secs(args.timeout);
    lab.icount = args.icount;
    lab.modules = args.modules;
    lab.kernel_arguments = args.kernel_args;
    lab.out = args.out;
    let job = Job {
        name: words.join(" "),
        script: words.iter().map(|word| quoted(word) + " ").collect(),
    };
    let outcome = lab.run(&[job], &mut to_standard_output)?;
    match outcome.failure {
        Some(Failure::TimedOut(limit)) => {
            eprintln!("lab: timed out after {} s", limit.as_secs());
            Ok(TIMED_OUT)
        }
        Some(Failure::Died(words)) => {
            eprintln!("lab: ended without a result: {words}");
            Ok(LAB_FAILED)
        }
        None => {
            let status = outcome.statuses.first().copied().flatten();
            Ok(status
                .and_then(|status| u8::try_from(status).ok())
                .unwrap_or(LAB_FAILED))
        }
    }
}

/// The status of the first job, as the status of a process.
pub fn exit_status(outcome: &Outcome) -> u8 {
    let status = outcome.statuses.first().copied().flatten();
    status
        .and_then(|status| u8::try_from(status).ok())
        .unwrap_or(LAB_FAILED)
}

/// Passes a line on at once. A reader that went away is no reason to stop the job.
pub fn to_standard_output(line: &[u8]) {
    let mut stdout = std::io::stdout().lock();
    let _ = stdout.write_all(line).and_then(|()| stdout.flush());
}

/// A word as a POSIX shell reads it back unchanged.
pub fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_the_shell() {
        assert_eq!(quoted("it's $HOME"), r"'it'\''s $HOME'");
    }
}
