//! A machine that is measured, as a process.

use std::io::Read;
use std::process::{Child, ChildStdout, Command};

use xtask::error::During;
use xtask::{Error, Result};

/// A child that is killed when nobody wants it any more.
pub struct Guest(Child);

/// Starts a machine.
///
/// # Errors
/// It cannot be started.
pub fn spawn(command: &mut Command) -> Result<Guest> {
    Ok(Guest(command.spawn().during(|| "starting a machine")?))
}

impl Guest {
    /// Its process.
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Its standard output, once.
    pub fn output(&mut self) -> Option<ChildStdout> {
        self.0.stdout.take()
    }

    /// Whether it has ended by itself.
    ///
    /// # Errors
    /// The host does not say.
    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.0.try_wait().during(|| "waiting for a machine")?.is_some())
    }

    /// Ends it as a user does, and returns what it says.
    ///
    /// # Errors
    /// Its words cannot be read.
    pub fn end(&mut self) -> Result<String> {
        let id = libc::pid_t::try_from(self.id()).map_err(|_| Error::Other("no process id".into()))?;
        // SAFETY: a signal to a child that has not been waited for, whose id therefore is nobody else's.
        unsafe { libc::kill(id, libc::SIGTERM) };
        let mut words = String::new();
        if let Some(mut errors) = self.0.stderr.take() {
            errors
                .read_to_string(&mut words)
                .during(|| "reading a machine's messages")?;
        }
        Ok(words)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
