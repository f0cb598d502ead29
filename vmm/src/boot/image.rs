//! A file that is loaded into guest memory, kept open so that a reboot loads the same bytes even when its name has
//! gone.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::error::{BootError, InitrdError, KernelError};
use crate::memory::GuestMemory;

/// A kernel or an initrd.
#[derive(Debug)]
pub struct Image {
    path: PathBuf,
    file: File,
}

impl Image {
    /// Opens a kernel.
    pub fn kernel(path: impl Into<PathBuf>) -> Result<Self, BootError> {
        Self::open(path.into()).map_err(|(path, error)| BootError::Kernel {
            path,
            problem: KernelError::Read(error),
        })
    }

    /// Opens an initrd.
    pub fn initrd(path: impl Into<PathBuf>) -> Result<Self, BootError> {
        Self::open(path.into()).map_err(|(path, error)| BootError::Initrd {
            path,
            problem: InitrdError::Read(error),
        })
    }

    /// A file that is open already; `path` is its name in messages.
    pub fn from_file(path: impl Into<PathBuf>, file: File) -> Self {
        Self {
            path: path.into(),
            file,
        }
    }

    fn open(path: PathBuf) -> Result<Self, (PathBuf, io::Error)> {
        match File::open(&path) {
            Ok(file) => Ok(Self { path, file }),
            Err(error) => Err((path, error)),
        }
    }

    /// Its name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of the file now (block devices included).
    pub(super) fn size(&self) -> io::Result<u64> {
        (&self.file).seek(SeekFrom::End(0))
    }

    /// Up to `limit` bytes from `offset` on; fewer at the end of the file.
    pub(super) fn read_at(&self, offset: u64, limit: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; limit];
        let mut filled = 0;
        while filled < limit {
            match self
                .file
                .read_at(&mut bytes[filled..], offset.saturating_add(filled as u64))
            {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        bytes.truncate(filled);
        Ok(bytes)
    }

    /// Reads exactly `length` bytes from `offset` on straight into guest memory at `address`.
    pub(super) fn load(
        &self,
        memory: &GuestMemory,
        address: u64,
        offset: u64,
        length: usize,
    ) -> Result<(), GuestMemoryError> {
        let mut file = &self.file;
        file.seek(SeekFrom::Start(offset)).map_err(GuestMemoryError::IOError)?;
        memory.read_exact_volatile_from(GuestAddress(address), &mut file, length)
    }
}
