//! qcow2 images, by way of the `imago` library.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use imago::file::File as Storage;
use imago::format::PreallocateMode;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{FormatAccess, StorageOpenOptions};
use vm_memory::VolatileSlice;

use super::{Access, Image, Lock, lock, open_file};
use crate::virtio::block::request::{HEADER_BYTES, Op, Range};
use crate::virtio::block::transfer::{Transfer, zeroes};
use crate::virtio::virtq::Chain;

/// The most images on top of each other. A chain that is longer is one that bites its tail.
const MAX_CHAIN: usize = 64;

/// An image and, below it, the images it builds on. Those are open for reading only.
#[derive(Debug)]
pub struct Qcow2Image {
    /// Discarding wants it alone; everything else goes on side by side.
    image: RwLock<FormatAccess<Storage>>,
    path: PathBuf,
    /// One for each file. They go when the image has been closed, because fields are dropped in
    /// order.
    _locks: Vec<Lock>,
}

impl Qcow2Image {
    /// Opens the image in `file`, which was locked, and opened at `path` in the way that `write`
    /// and `direct` say, and all images below it. The formats of those are never guessed.
    ///
    /// # Errors
    /// It is no image that we can read, or one below it is not.
    pub fn open(file: File, lock: Lock, path: &Path, write: bool, direct: bool) -> io::Result<Self> {
        let mut chain = Opening {
            direct,
            locks: vec![lock],
        };
        let image = chain.open_layer(file, path, write)?;
        Ok(Self {
            image: RwLock::new(image),
            path: path.to_owned(),
            _locks: chain.locks,
        })
    }

    fn shared(&self) -> RwLockReadGuard<'_, FormatAccess<Storage>> {
        self.image.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn alone(&self) -> RwLockWriteGuard<'_, FormatAccess<Storage>> {
        self.image.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, range: Range, chain: &Chain) -> io::Result<()> {
        let mut pieces: Vec<VolatileSlice<'_>> = Vec::new();
        chain
            .writer()
            .for_each_slice(range.len as usize, |piece| pieces.push(piece));
        let (buffers, _mapped) = IoVectorMut::from_volatile_slice(&pieces);
        self.shared().readv(buffers, range.offset)
    }

    fn write(&self, range: Range, chain: &Chain) -> io::Result<()> {
        let mut pieces: Vec<VolatileSlice<'_>> = Vec::new();
        let mut reader = chain.reader();
        // The header was read from the same chain, so it is there.
        let _ = reader.skip(HEADER_BYTES);
        reader.for_each_slice(range.len as usize, |piece| pieces.push(piece));
        let (buffers, _mapped) = IoVector::from_volatile_slice(&pieces);
        self.shared().writev(buffers, range.offset)
    }

    fn discard(&self, range: Range) -> io::Result<()> {
        let result = self.alone().discard_to_any(range.offset, range.len);
        // Version 2 has no clusters that read as zeroes. A discard is a hint.
        ignore_unsupported(result).map(|_| ())
    }

    fn write_zeroes(&self, range: Range, unmap: bool) -> io::Result<()> {
        let Range { offset, len } = range;
        if unmap && ignore_unsupported(self.alone().discard_to_zero(offset, len))? {
            return Ok(());
        }
        let image = self.shared();
        if ignore_unsupported(image.write_zeroes(offset, len))? {
            return Ok(());
        }
        let mut done = 0;
        while done < len {
            let chunk = zeroes(usize::try_from(len - done).unwrap_or(usize::MAX));
            image.write(chunk, offset + done)?;
            done += chunk.len() as u64;
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        let image = self.shared();
        image.flush()?;
        image.sync()
    }

    fn perform(&self, transfer: &Transfer) -> io::Result<()> {
        let op = transfer.op();
        for (range, chain) in transfer.requests() {
            match op {
                Op::Read => self.read(range, chain)?,
                Op::Write => self.write(range, chain)?,
                Op::Flush => self.flush()?,
                Op::Discard => self.discard(range)?,
                Op::WriteZeroes { unmap } => self.write_zeroes(range, unmap)?,
            }
        }
        if transfer.is_write_through() {
            self.flush()
        } else {
            Ok(())
        }
    }
}

impl Image for Qcow2Image {
    fn bytes(&self) -> io::Result<u64> {
        // Sectors are whole in a format that counts them in its header.
        Ok(self.shared().size() / crate::virtio::block::SECTOR * crate::virtio::block::SECTOR)
    }

    fn execute(&self, transfer: &mut Transfer) {
        let outcome = self.perform(transfer);
        transfer.finish(outcome);
    }

    fn resize(&self, bytes: u64) -> io::Result<()> {
        let mut image = self.alone();
        if bytes < image.size() {
            return image.resize_shrink(bytes);
        }
        let grown = image.resize_grow(bytes, PreallocateMode::Zero);
        if !ignore_unsupported(grown)? {
            image.resize_grow(bytes, PreallocateMode::None)?;
        }
        image.flush()
    }
}

impl Drop for Qcow2Image {
    fn drop(&mut self) {
        if let Err(error) = self.flush() {
            tracing::error!("disk '{}': the last changes are lost: {error}", self.path.display());
        }
    }
}

/// Whether it worked; an operation that the format does not have is no error.
fn ignore_unsupported(result: io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(false),
        Err(error) => Err(error),
    }
}

/// A chain of images that is being opened, from the top down.
struct Opening {
    direct: bool,
    /// One for each file so far.
    locks: Vec<Lock>,
}

impl Opening {
    fn open_layer(&mut self, file: File, path: &Path, write: bool) -> io::Result<FormatAccess<Storage>> {
        let mut image: Qcow2<Storage> = Qcow2::open_image(self.storage(file, path, write)?, write)?;
        if image.requires_external_data_file() {
            return Err(refuse(path, "has its data in another file, which is not supported"));
        }
        image.set_data_file(None);
        let format = image.implicit_backing_format().map(String::as_str);
        let backing = match image.implicit_backing_file() {
            None => None,
            Some(name) => Some(self.open_backing(path, name, format)?),
        };
        image.set_backing(backing);
        Ok(FormatAccess::new(image))
    }

    fn open_backing(&mut self, above: &Path, name: &str, format: Option<&str>) -> io::Result<FormatAccess<Storage>> {
        if self.locks.len() > MAX_CHAIN {
            return Err(refuse(above, "has too many images below it, or itself"));
        }
        // A relative name is relative to the image that has it.
        let name = name.strip_prefix("file:").unwrap_or(name);
        let path = above.parent().unwrap_or(Path::new("")).join(name);
        let file = open_file(&path, false, self.direct).map_err(|error| refuse(&path, error))?;
        let lock = lock(&file, Access::Read);
        self.locks
            .push(lock.map_err(|holder| refuse(&path, format_args!("is locked by {holder}")))?);
        match format {
            Some("qcow2") => self.open_layer(file, &path, false),
            Some("raw" | "file") => {
                let image = Raw::open_image(self.storage(file, &path, false)?, false)?;
                Ok(FormatAccess::new(image))
            }
            Some(other) => Err(refuse(
                &path,
                format_args!("has the format '{other}', which is not supported"),
            )),
            None => Err(refuse(
                above,
                format_args!(
                    "does not say the format of its backing file; say it with 'qemu-img rebase -u -b {name} -F FORMAT'"
                ),
            )),
        }
    }

    fn storage(&self, file: File, path: &Path, write: bool) -> io::Result<Storage> {
        let options = StorageOpenOptions::new()
            .filename(path)
            .write(write)
            .direct(self.direct);
        Storage::from_open_file(file, options)
    }
}

fn refuse(path: &Path, problem: impl std::fmt::Display) -> io::Error {
    io::Error::other(format!("'{}': {problem}", path.display()))
}
