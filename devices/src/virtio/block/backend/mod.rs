//! Where the data of a disk is.

mod format;
mod lock;
mod null;
mod qcow2;
mod raw;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use super::options::{BlockConfig, ImageFormat};
use super::transfer::Transfer;
use crate::virtio::options::ConfigError;

pub use format::{Found, identify};
pub use lock::{Access, Holder, Lock, lock};
pub use null::NullImage;
pub use qcow2::Qcow2Image;
pub use raw::RawImage;

/// The prefix of a disk without a file, as QEMU spells it.
pub const NULL_PREFIX: &str = "null-co://";

/// The storage behind a disk.
pub trait Image: Send + Sync {
    /// The size in bytes, asked for anew: the file may have grown. The last sector may be in part
    /// behind the end.
    ///
    /// # Errors
    /// The host does not tell.
    fn bytes(&self) -> io::Result<u64>;

    /// Carries out a transfer to its end and [finishes](Transfer::finish) it. May block. Called
    /// from several threads.
    fn execute(&self, transfer: &mut Transfer);

    /// A file that holds the disk byte for byte, for an engine that makes the calls itself.
    fn as_raw(&self) -> Option<&RawImage> {
        None
    }

    /// Whether [`Self::execute`] never waits for anything, so that no engine is needed.
    fn is_instant(&self) -> bool {
        false
    }

    /// Changes the size.
    ///
    /// # Errors
    /// The host or the format cannot.
    fn resize(&self, bytes: u64) -> io::Result<()>;
}

/// Opens what `config` names: detects the format if it is asked to, takes the lock, opens the
/// backing chain.
///
/// # Errors
/// What cannot be, with what to do about it.
pub fn open(config: &BlockConfig) -> Result<Arc<dyn Image>, ConfigError> {
    if config.path.to_str().is_some_and(|path| path.starts_with(NULL_PREFIX)) {
        return Ok(Arc::new(NullImage::new(config.null_size, config.null_read_zeroes)));
    }
    let subject = config.name();
    let direct = config.cache.is_direct();
    let file = open_file(&config.path, !config.readonly, direct).map_err(|error| {
        let remedy = match error.raw_os_error() {
            Some(libc::EINVAL) if direct => "its file system has no direct I/O: use cache=writeback",
            Some(libc::EACCES | libc::EPERM | libc::EROFS) if !config.readonly => {
                "check its permissions, or open it with readonly=on"
            }
            _ => "check path=",
        };
        ConfigError::refused(&subject, format!("cannot be opened: {error}"), remedy)
    })?;
    let access = if config.readonly { Access::Read } else { Access::Write };
    let lock = lock(&file, access).map_err(|holder| {
        let remedy = "close it there, or open the image with readonly=on on both sides";
        ConfigError::refused(&subject, format!("locked by {holder}"), remedy)
    })?;
    let host = |error: io::Error| ConfigError::refused(&subject, error, "check the image with 'qemu-img check'");
    let is_qcow2 = match config.format {
        ImageFormat::Raw => false,
        ImageFormat::Qcow2 => true,
        ImageFormat::Auto => detect(&subject, &config.path)?,
    };
    if is_qcow2 {
        let image = Qcow2Image::open(file, lock, &config.path, !config.readonly, direct).map_err(host)?;
        return Ok(Arc::new(image));
    }
    Ok(Arc::new(RawImage::new(file, lock, direct).map_err(host)?))
}

/// Whether a file of unknown format is qcow2. A raw disk is never guessed, and neither is a qcow2
/// image that refers to other files: both may be what a guest has written on a raw disk to get at
/// something else.
fn detect(subject: &str, path: &Path) -> Result<bool, ConfigError> {
    let found = identify(path)
        .map_err(|error| ConfigError::refused(subject, format!("cannot be read: {error}"), "check path="))?;
    match found {
        Found::Qcow2 { refers_to_files: false } => Ok(true),
        Found::Qcow2 { refers_to_files: true } => Err(ConfigError::refused(
            subject,
            "looks like a qcow2 image on top of other files, and a guest could have written that",
            "say format=qcow2 or format=raw",
        )),
        Found::Unknown => Err(ConfigError::refused(
            subject,
            "has no format of its own, and a guest could write one",
            "say format=raw (or format=qcow2)",
        )),
    }
}

fn open_file(path: &Path, write: bool, direct: bool) -> io::Result<File> {
    let flags = libc::O_CLOEXEC | if direct { libc::O_DIRECT } else { 0 };
    OpenOptions::new()
        .read(true)
        .write(write)
        .custom_flags(flags)
        .open(path)
}
