//! A child process that cannot outlive us, whose output is passed on line by line, and that is killed at a deadline.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{During, Result};

/// How a watched process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// By itself, with this status.
    Exited(ExitStatus),
    /// Killed by us when its time was up.
    TimedOut,
}

/// Runs a command, in a process group of its own, to its end and passes each line of its standard output, with the newline, to `line`. The files are
/// inherited under the descriptor numbers that they have here.
///
/// The child dies with the calling thread, whatever ends that. At the deadline its whole group does.
///
/// # Errors
/// When the command cannot be started or waited for.
pub fn watch(
    command: &mut Command,
    inherited: &[&File],
    limit: Duration,
    line: &mut dyn FnMut(&[u8]),
) -> Result<Ended> {
    let deadline = Instant::now() + limit;
    let name = command.get_program().to_string_lossy().into_owned();
    tie_to_us(command, inherited.iter().map(|file| file.as_raw_fd()).collect());
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()
        .during(|| format!("starting {name}"))?;
    let (sender, receiver) = mpsc::channel::<Vec<u8>>();
    let output = child.stdout.take();
    // The thread ends at the end of the output, which the death of the child brings about.
    let reader = thread::spawn(move || {
        let Some(mut output) = output else { return };
        let mut chunk = [0; 16384];
        while let Ok(length @ 1..) = output.read(&mut chunk) {
            if sender.send(chunk.get(..length).unwrap_or_default().to_vec()).is_err() {
                break;
            }
        }
    });
    let mut lines = Lines::default();
    let mut timed_out = false;
    loop {
        match receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(chunk) => lines.push(&chunk, line),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                timed_out = true;
                kill_group(&child).during(|| format!("killing {name}"))?;
                break;
            }
        }
    }
    let status = child.wait().during(|| format!("waiting for {name}"))?;
    for chunk in receiver {
        lines.push(&chunk, line);
    }
    lines.finish(line);
    // A reader that panicked has delivered all it could.
    let _ = reader.join();
    Ok(if timed_out {
        Ended::TimedOut
    } else {
        Ended::Exited(status)
    })
}

/// Kills a child that leads a process group, and the group with it.
fn kill_group(child: &Child) -> io::Result<()> {
    let group = i32::try_from(child.id()).map_err(io::Error::other)?;
    // SAFETY: the call takes numbers and touches no memory. The child was not waited for, so its number is still its own.
    match unsafe { libc::kill(-group, libc::SIGKILL) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Lets the child inherit the descriptors, and die when the thread that starts it dies.
fn tie_to_us(command: &mut Command, inherited: Vec<RawFd>) {
    let parent = std::process::id();
    let prepare = move || {
        // SAFETY: prctl(PR_SET_PDEATHSIG) only sets an attribute of the calling process and is safe after fork.
        if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: getppid takes nothing, cannot fail and is safe after fork.
        if unsafe { libc::getppid() }.unsigned_abs() != parent {
            return Err(io::Error::other("the parent died first"));
        }
        for fd in &inherited {
            // SAFETY: F_SETFD changes a flag of a descriptor that the parent keeps open during the fork.
            if unsafe { libc::fcntl(*fd, libc::F_SETFD, 0) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: `prepare` makes system calls only; it allocates nothing and takes no lock between fork and exec.
    unsafe {
        command.pre_exec(prepare);
    }
}

/// Cuts a stream into lines. Carriage returns before a newline, which terminals of guests within guests add, go.
#[derive(Default)]
struct Lines(Vec<u8>);

impl Lines {
    fn push(&mut self, chunk: &[u8], line: &mut dyn FnMut(&[u8])) {
        for part in chunk.split_inclusive(|byte| *byte == b'\n') {
            self.0.extend_from_slice(part);
            if self.0.pop_if(|last| *last == b'\n').is_some() {
                while self.0.pop_if(|last| *last == b'\r').is_some() {}
                self.0.push(b'\n');
                line(&self.0);
                self.0.clear();
            }
        }
    }

    fn finish(&mut self, line: &mut dyn FnMut(&[u8])) {
        if !self.0.is_empty() {
            self.0.push(b'\n');
            line(&self.0);
            self.0.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const LONG: Duration = Duration::from_secs(600);

    fn sh(script: &str, limit: Duration) -> (Ended, Vec<String>) {
        let mut seen = Vec::new();
        let ended = watch(Command::new("sh").args(["-c", script]), &[], limit, &mut |line| {
            seen.push(String::from_utf8_lossy(line).into_owned());
        });
        (ended.unwrap(), seen)
    }

    #[test]
    fn lines_lose_their_carriage_returns_and_the_last_need_not_be_ended() {
        let (ended, seen) = sh(r"printf 'one\r\r\ntwo\n50%%\r100%%\nlast'; exit 3", LONG);
        assert_eq!(seen, ["one\n", "two\n", "50%\r100%\n", "last\n"]);
        assert!(matches!(ended, Ended::Exited(status) if status.code() == Some(3)));
    }

    #[test]
    fn at_the_deadline_the_child_is_killed_and_its_output_kept() {
        let (ended, seen) = sh("echo started; exec sleep 1000", Duration::from_millis(300));
        assert_eq!(ended, Ended::TimedOut);
        assert!(seen.is_empty() || seen == ["started\n"]);
    }

    #[test]
    fn the_child_sees_the_inherited_file_under_its_number() {
        let file = super::super::scratch::unlinked_file("inherit").unwrap();
        file.set_len(5).unwrap();
        let script = format!("wc -c < {}", super::super::scratch::inherited_path(&file));
        let mut seen = Vec::new();
        watch(Command::new("sh").args(["-c", &script]), &[&file], LONG, &mut |line| {
            seen.extend_from_slice(line)
        })
        .unwrap();
        assert_eq!(seen, b"5\n");
    }
}
