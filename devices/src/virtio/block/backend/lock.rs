//! Locks on image files, so that two machines never write one disk.
//!
//! They are QEMU's (block/file-posix.c, `raw_apply_lock_bytes` and `raw_check_lock_bytes`), so
//! QEMU, qemu-img and we see each other: of the bytes 100 and up, one is locked for each thing that
//! is done with the file, of the bytes 200 and up for each that nobody else may do; all locks are
//! shared ones, and whoever comes second finds the bytes of the first. They belong to the open
//! file, not to the process (F_OFD_SETLK), and go when it is closed.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// First byte of what is done.
const HELD: i64 = 100;
/// First byte of what others may not do.
const REFUSED: i64 = 200;

/// Reads data and relies on it (BLK_PERM_CONSISTENT_READ is bit 0).
const READ: i64 = 0;
/// Writes data (BLK_PERM_WRITE is bit 1).
const WRITE: i64 = 1;
/// Changes the size (BLK_PERM_RESIZE is bit 3).
const RESIZE: i64 = 3;

/// What is done with an image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// It is only read, and nobody may write it.
    Read,
    /// It is read and written, and nobody else may write it.
    Write,
}

/// Who is in the way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Holder {
    /// A process with a lock of the older kind.
    Process(i32),
    /// An open file; the kernel does not tell whose.
    Unknown,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process(pid) => write!(f, "another process (pid {pid})"),
            Self::Unknown => f.write_str("another process, or by another disk of this one"),
        }
    }
}

/// The locks on a file, until this is dropped.
///
/// They are taken away by hand, because others may keep the file open for a while: the kernel, for
/// an io_uring that is being taken down, or a process that was forked off and is not another
/// program yet.
#[derive(Debug, Default)]
pub struct Lock(Option<File>);

impl Drop for Lock {
    fn drop(&mut self) {
        let Some(file) = &self.0 else { return };
        for byte in [HELD + READ, HELD + WRITE, REFUSED + WRITE, REFUSED + RESIZE] {
            // If it does not work, the locks go with the file.
            let _ = control(file, libc::F_OFD_SETLK, libc::F_UNLCK, byte);
        }
    }
}

/// Locks `file`. File systems without locks are let pass.
///
/// # Errors
/// Somebody holds a lock that does not go with it.
pub fn lock(file: &File, access: Access) -> Result<Lock, Holder> {
    let lock = Lock(file.try_clone().ok());
    let held: &[i64] = match access {
        Access::Read => &[READ],
        Access::Write => &[READ, WRITE],
    };
    let refused = [WRITE, RESIZE];
    let ours = held
        .iter()
        .map(|bit| HELD + bit)
        .chain(refused.iter().map(|bit| REFUSED + bit));
    for byte in ours {
        match control(file, libc::F_OFD_SETLK, libc::F_RDLCK, byte) {
            Ok(_) => {}
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
                return Err(holder_of(file, libc::F_RDLCK, byte).unwrap_or(Holder::Unknown));
            }
            Err(error) => {
                tracing::warn!("image files cannot be locked here: {error}");
                return Ok(lock);
            }
        }
    }
    // Only after ours are in place: of two that come at once, at least one sees the other.
    let theirs = held
        .iter()
        .map(|bit| REFUSED + bit)
        .chain(refused.iter().map(|bit| HELD + bit));
    for byte in theirs {
        if let Some(holder) = holder_of(file, libc::F_WRLCK, byte) {
            return Err(holder);
        }
    }
    Ok(lock)
}

/// Who would keep us from locking a byte in this way.
fn holder_of(file: &File, kind: libc::c_int, byte: i64) -> Option<Holder> {
    let found = control(file, libc::F_OFD_GETLK, kind, byte).ok()?;
    if libc::c_int::from(found.l_type) == libc::F_UNLCK {
        return None;
    }
    Some(if found.l_pid > 0 {
        Holder::Process(found.l_pid)
    } else {
        Holder::Unknown
    })
}

fn control(file: &File, command: libc::c_int, kind: libc::c_int, byte: i64) -> io::Result<libc::flock> {
    let mut lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    };
    // SAFETY: the descriptor is open, and the kernel reads and writes one `flock`, which lives
    // until the call returns.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) };
    if result == 0 {
        Ok(lock)
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use vmm_sys_util::tempfile::TempFile;

    use super::*;

    fn open(file: &TempFile) -> File {
        File::options().read(true).write(true).open(file.as_path()).unwrap()
    }

    #[test]
    fn one_writer_or_many_readers() {
        let image = TempFile::new().unwrap();
        let take = |access| lock(&open(&image), access);
        let writer = take(Access::Write).unwrap();
        assert_eq!(take(Access::Write).unwrap_err(), Holder::Unknown);
        assert_eq!(take(Access::Read).unwrap_err(), Holder::Unknown);
        drop(writer);

        let readers = [take(Access::Read).unwrap(), take(Access::Read).unwrap()];
        assert_eq!(take(Access::Write).unwrap_err(), Holder::Unknown);
        drop(readers);
        take(Access::Write).unwrap();
    }

    #[test]
    fn a_lock_goes_though_the_file_stays_open() {
        let image = TempFile::new().unwrap();
        let file = open(&image);
        drop(lock(&file, Access::Write).unwrap());
        lock(&open(&image), Access::Write).unwrap();
        drop(file);
    }

    #[test]
    fn a_lock_of_the_older_kind_names_its_process() {
        let image = TempFile::new().unwrap();
        let other = open(&image);
        let mut whole = libc::flock {
            l_type: libc::F_WRLCK as libc::c_short,
            l_whence: 0,
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        // SAFETY: the descriptor is open and `whole` outlives the call.
        let result = unsafe { libc::fcntl(other.as_raw_fd(), libc::F_SETLK, &raw mut whole) };
        assert_eq!(result, 0);
        // A lock of the process itself is no obstacle to F_SETLK, but it is to an open file's.
        let result = lock(&open(&image), Access::Read);
        assert_eq!(result.unwrap_err(), Holder::Process(std::process::id().cast_signed()));
    }
}
