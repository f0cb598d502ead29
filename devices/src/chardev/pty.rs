//! Pseudo-terminals.

#![forbid(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::OFlags;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

/// A new pseudo-terminal: our side, and the file of the other. It passes bytes as they are, until whoever opens it wants otherwise.
///
/// # Errors
/// The host has no more of them.
pub fn new_terminal() -> io::Result<(OwnedFd, String)> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let name = ptsname(&master, Vec::new())?.to_string_lossy().into_owned();
    // Without this the terminal would echo to the guest what the guest itself has said.
    let mut settings = tcgetattr(&master)?;
    settings.make_raw();
    tcsetattr(&master, OptionalActions::Now, &settings)?;
    Ok((master, name))
}

/// A new one that knows that nobody is there yet.
pub(super) fn open() -> io::Result<(OwnedFd, String)> {
    let (master, name) = new_terminal()?;
    // Opened and closed once, it says that nobody is there; before, it does not.
    drop(super::ends::open(Path::new(&name), OFlags::RDWR)?);
    Ok((master, name))
}
