//! Where measuring processes run: on this host, or in the lab.

use std::ffi::OsString;
use std::fs::File;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use xtask::error::During;
use xtask::lab::{Failure, Job, Lab, process};
use xtask::{Error, Result};

use crate::lab_command::{exit_status, quoted};

/// Takes a line of the process in; false when it is no sample.
pub type Take<'a> = &'a mut dyn FnMut(&str) -> bool;

/// This program, which measures too.
///
/// # Errors
/// The host does not say where it is.
pub fn this_program() -> Result<PathBuf> {
    std::env::current_exe().during(|| "finding this program")
}

/// Runs this program with `arguments` on the host, with the files `inherited`, and returns its exit status.
///
/// # Errors
/// It cannot be started, or does not end in time.
pub fn on_host(arguments: &[OsString], inherited: &[&File], limit: Duration, take: Take<'_>) -> Result<u8> {
    let mut command = Command::new(this_program()?);
    command.args(arguments);
    match process::watch(&mut command, inherited, limit, &mut |line| pass(line, take))? {
        process::Ended::TimedOut => Err(timed_out(limit)),
        process::Ended::Exited(status) => Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)),
    }
}

/// Runs `prelude`, then this program with `arguments`, in `lab`, and returns its exit status.
///
/// # Errors
/// The lab fails, or the program does not end in time.
pub fn in_lab(mut lab: Lab, prelude: &str, arguments: &[OsString], take: Take<'_>) -> Result<u8> {
    lab.contents.program(&this_program()?, "/bin/xtask")?;
    let script = arguments.iter().fold(format!("{prelude}exec xtask"), |line, word| {
        line + " " + &quoted(&word.to_string_lossy())
    });
    let name = "bench".into();
    let outcome = lab.run(&[Job { name, script }], &mut |line| pass(line, take))?;
    match outcome.failure {
        Some(Failure::TimedOut(limit)) => Err(timed_out(limit)),
        Some(Failure::Died(words)) => Err(Error::Lab(words)),
        None => Ok(exit_status(&outcome)),
    }
}

/// Passes on what is no sample.
fn pass(line: &[u8], take: Take<'_>) {
    let text = String::from_utf8_lossy(line);
    if !take(&text) {
        eprint!("{text}");
    }
}

fn timed_out(limit: Duration) -> Error {
    Error::Other(format!("the benchmark did not end within {} s", limit.as_secs()))
}
