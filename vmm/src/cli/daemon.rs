//! QEMU's `-daemonize` and `-pidfile`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Who goes on after a fork.
pub enum Fork {
    /// The process that the user started. It waits for the other; `true` when that is ready.
    Parent(Waiting),
    /// The process in the background.
    Child(Ready),
}

/// The end that hears of the background process.
pub struct Waiting(io::PipeReader);

/// The end that tells the foreground process.
pub struct Ready(io::PipeWriter);

/// Makes a process in the background, in a session of its own. To be called before there are threads.
///
/// # Errors
/// The host gives no pipe or no process.
pub fn fork() -> io::Result<Fork> {
    let (reader, writer) = io::pipe()?;
    // SAFETY: this process has one thread, so nothing is half done in the child.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            drop(reader);
            // SAFETY: no memory is passed. A process that was just forked leads no group, so it can lead a session.
            unsafe { libc::setsid() };
            Ok(Fork::Child(Ready(writer)))
        }
        _ => Ok(Fork::Parent(Waiting(reader))),
    }
}

impl Waiting {
    /// Waits for the background process: `true` when it is ready, `false` when it has ended.
    pub fn wait(mut self) -> bool {
        self.0.read_exact(&mut [0]).is_ok()
    }
}

impl Ready {
    /// Lets the foreground process end, and the terminal and the current folder go.
    ///
    /// # Errors
    /// There is no /dev/null.
    pub fn detach(mut self) -> io::Result<()> {
        let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
        std::env::set_current_dir("/")?;
        for standard in [libc::STDIN_FILENO, libc::STDOUT_FILENO, libc::STDERR_FILENO] {
            // SAFETY: no memory is passed; the standard descriptors belong to nobody who would miss them.
            if unsafe { libc::dup2(null.as_raw_fd(), standard) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        self.0.write_all(&[1])
    }
}

/// A file with the number of this process. It goes when the process ends in good order.
pub struct PidFile(PathBuf);

impl PidFile {
    /// Writes it.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let mut file: File = options.write(true).create(true).truncate(true).mode(0o600).open(path)?;
        writeln!(file, "{}", std::process::id())?;
        // The process may leave the folder it is in.
        Ok(Self(fs::canonicalize(path)?))
    }

    /// Removes it before its time.
    pub fn remove(&self) {
        // Whoever removed it before was right too.
        let _ = fs::remove_file(&self.0);
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        self.remove();
    }
}
