//! The exit statuses of the process, in one place.

use std::io;
use std::process::ExitCode;

use crate::machine::{Outcome, StartError};

/// The text under `--help`.
pub const HELP: &str = "\
Exit status:
  0        the guest powered off, or you ended it with Ctrl-A x or quit
  1        something on this host failed
  2        the command line or the configuration is wrong
  3        the guest reset itself (reboot, or a panic with panic=-1), with --no-reboot
  4        the guest ended in a triple fault
  128 + N  signal N ended the process
  odd      (value << 1) | 1 after a write to the port of --debug-exit";

const HOST_FAILURE: u8 = 1;
const USAGE: u8 = 2;
const RESET: u8 = 3;
const TRIPLE_FAULT: u8 = 4;

/// Why there is no guest, or no longer.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The user's part
    #[error("{0}")]
    Usage(String),
    /// The host's part
    #[error("{0}")]
    Host(String),
}

impl Failure {
    /// The process's exit status.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Usage(_) => USAGE,
            Self::Host(_) => HOST_FAILURE,
        })
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        if error.is_users() {
            Self::Usage(error.to_string())
        } else {
            Self::Host(error.to_string())
        }
    }
}

/// What failed on the host, and why.
pub fn host(what: &'static str) -> impl FnOnce(io::Error) -> Failure {
    move |error| Failure::Host(format!("{what}: {error}"))
}

/// The exit status of a process that signal `signal` ended.
pub fn of_signal(signal: i32) -> u8 {
    128u8.wrapping_add(signal as u8)
}

/// The exit status for a guest that ended so.
pub fn status(outcome: &Outcome) -> ExitCode {
    ExitCode::from(match outcome {
        Outcome::PowerOff | Outcome::Quit => 0,
        Outcome::Reset => RESET,
        Outcome::TripleFault => TRIPLE_FAULT,
        Outcome::DebugExit(value) => ((value << 1) | 1) as u8,
        Outcome::Failed(_) => HOST_FAILURE,
    })
}
