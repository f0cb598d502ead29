//! The one error type of the project's commands.

use std::io;
use std::path::PathBuf;

/// What a fallible step of the project's commands returns.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a command of the project stopped. Every message says what failed and, where there is something to do
/// about it, what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or process could not be handled.
    #[error("{action}: {source}")]
    Io {
        /// What was being done, with the name of the file.
        action: String,
        /// What the operating system answered.
        source: io::Error,
    },
    /// An external program failed.
    #[error("`{command}` failed ({status}){}{stderr}", if stderr.is_empty() { "" } else { ":\n" })]
    Tool {
        /// The command line.
        command: String,
        /// Its exit status, in words.
        status: String,
        /// What it printed to its standard error, when that was captured.
        stderr: String,
    },
    /// Debian packages are missing and only root may install them.
    #[error("Debian packages are missing, needed to {purpose}. Run this and try again:\n\n    {command}\n")]
    PackagesMissing {
        /// What the packages are for, as the end of "needed to ...".
        purpose: String,
        /// The exact command that installs them.
        command: String,
    },
    /// apt does not know a package.
    #[error("Debian package {0} is unknown to apt; run `apt-get update`, and check that this is a Debian system")]
    UnknownPackage(String),
    /// A kernel image is not what it should be.
    #[error("kernel {}: {why}", path.display())]
    Kernel {
        /// The image.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A program cannot be packed, because the host lacks one of its shared libraries.
    #[error("{}: shared library {library} is missing on this host", program.display())]
    LibraryMissing {
        /// The program.
        program: PathBuf,
        /// The library's name, as the dynamic linker knows it.
        library: String,
    },
    /// A kernel module was asked for that this kernel does not have.
    #[error("kernel module {name} is not below {}", root.display())]
    ModuleMissing {
        /// The module's name.
        name: String,
        /// The folder that was searched.
        root: PathBuf,
    },
    /// The lab did not come to a result for a reason that is not the job's.
    #[error("lab: {0}")]
    Lab(String),
    /// Anything else, as a whole sentence.
    #[error("{0}")]
    Other(String),
}

/// Adds to an [`io::Error`] what was being done when it happened.
pub trait During<T> {
    /// Names the action, with the file: `reading /etc/hosts`.
    ///
    /// # Errors
    /// The error that it is called on, named.
    fn during<S: Into<String>>(self, action: impl FnOnce() -> S) -> Result<T>;
}

impl<T> During<T> for io::Result<T> {
    fn during<S: Into<String>>(self, action: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|source| Error::Io {
            action: action().into(),
            source,
        })
    }
}
