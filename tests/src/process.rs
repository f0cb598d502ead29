//! A guest in a process of its own, started with a command line of QEMU and managed over QMP: as other programs use us.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::Error;
use crate::guest::{Line, tail};
use crate::qmp::Client;
use crate::resources::{self, Extras};

/// A process that has not opened its monitor, or not ended, after so long never will.
const PATIENCE: Duration = Duration::from_secs(60);

/// A guest whose serial line is the standard input and output of its process. Dropping it kills it.
pub struct Process {
    child: Child,
    /// Its serial line.
    pub line: Line,
}

impl Process {
    /// Starts `command` with a terminal's place taken by the test.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(mut command: Command) -> Result<Self, Error> {
        let (ours, theirs) = UnixStream::pair()?;
        let input = theirs.try_clone()?;
        command.stdin(OwnedFd::from(input)).stdout(OwnedFd::from(theirs));
        let child = command.stderr(Stdio::inherit()).spawn()?;
        let line = Line::new(ours)?;
        Ok(Self { child, line })
    }

    /// The client of the monitor that the process opens at `path`.
    ///
    /// # Errors
    /// It opens none.
    pub fn monitor(&mut self, path: &Path) -> Result<Client, Error> {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Err(format!("ended with {status} before its monitor was there").into());
            }
            match Client::connect(path) {
                Err(error) if Instant::now() > end => return Err(format!("{}: {error}", path.display()).into()),
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
                connected => return connected,
            }
        }
    }

    /// Bytes of memory that the process, its guest's among them, takes on the host.
    ///
    /// # Errors
    /// It has ended.
    pub fn resident(&self) -> Result<u64, Error> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        Ok(kib.ok_or("it has ended")? << 10)
    }

    /// Listens until the guest ends, and returns the status of its process and all that it said.
    ///
    /// # Errors
    /// It fell silent.
    pub fn end(mut self) -> Result<(ExitStatus, String), Error> {
        while self.line.next()?.is_some() {}
        let said = self.line.said().to_owned();
        let status = self.child.wait()?;
        if let Some(signal) = status.signal() {
            return Err(format!("ended by signal {signal}; the guest's last words:\n{}", tail(&said)).into());
        }
        Ok((status, said))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail when it has ended and was waited for, which is as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Under which name the program is called.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Name {
    /// `innkeeper qemu -- ...`
    Innkeeper,
    /// `qemu-system-x86_64 ...`, a link to it.
    Qemu,
}

/// The program, to be given a command line of QEMU.
///
/// # Errors
/// The environment does not name it, or the link cannot be made.
pub fn program(name: Name) -> Result<Command, Error> {
    let innkeeper = resources::program()?;
    Ok(match name {
        Name::Innkeeper => {
            let mut command = Command::new(innkeeper);
            command.args(["qemu", "--"]);
            command
        }
        Name::Qemu => Command::new(linked(&innkeeper)?),
    })
}

/// The link that has QEMU's name. Several tests may make it at once.
fn linked(innkeeper: &Path) -> Result<PathBuf, Error> {
    let folder = std::env::temp_dir().join("called-qemu");
    std::fs::create_dir_all(&folder)?;
    let link = folder.join("qemu-system-x86_64");
    match std::os::unix::fs::symlink(innkeeper, &link) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(error.into()),
        _ => Ok(link),
    }
}

/// `-kernel`, `-initrd` and `-append` of a guest that reports about itself, with tools and jobs.
///
/// # Errors
/// A part of it is missing.
pub fn kernel(kernel: &str, extras: Extras, words: &str) -> Result<Vec<OsString>, Error> {
    Ok(vec![
        "-kernel".into(),
        resources::kernel(kernel)?.into(),
        "-initrd".into(),
        resources::initrd(&std::env::temp_dir(), kernel, extras)?.into(),
        "-append".into(),
        format!("console=ttyS0 {words}").into(),
    ])
}
