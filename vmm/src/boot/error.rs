//! What can be wrong with a kernel or an initrd: the user's to correct, one line each.

use std::io;
use std::path::PathBuf;

use vm_memory::GuestMemoryError;

use super::tables::TablesError;

/// A guest cannot be started as asked.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The kernel file, or what is asked of it.
    #[error("kernel '{path}': {problem}", path = path.display())]
    Kernel {
        /// As the user gave it.
        path: PathBuf,
        /// What is wrong.
        problem: KernelError,
    },
    /// The initrd.
    #[error("initrd '{path}': {problem}", path = path.display())]
    Initrd {
        /// As the user gave it.
        path: PathBuf,
        /// What is wrong.
        problem: InitrdError,
    },
    /// The firmware tables.
    #[error(transparent)]
    Tables(#[from] TablesError),
    /// Guest memory that must be there is not.
    #[error("guest memory: {0}")]
    Memory(#[from] GuestMemoryError),
}

/// What can be wrong with a kernel.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Missing, not permitted, a directory, ...
    #[error("{0}; give the path of a bzImage or an uncompressed vmlinux that you may read")]
    Read(#[from] io::Error),
    /// Neither magic number is there.
    #[error("not a Linux kernel (neither a bzImage nor an ELF file); give a bzImage or an uncompressed vmlinux")]
    NotAKernel,
    /// An ELF file of another sort: a program, a library, an object file.
    #[error(
        "an ELF file, but not a kernel (not an executable linked at fixed addresses); \
         give a bzImage or an uncompressed vmlinux"
    )]
    NotAnExecutable,
    /// Another architecture.
    #[error("built for another architecture (ELF machine {0}); give a kernel for x86-64")]
    WrongMachine(u16),
    /// No 64-bit entry point, and no PVH entry point.
    #[error("a 32-bit kernel; give a 64-bit one (x86-64)")]
    Only32Bit,
    /// The file ends before what its header promises.
    #[error(
        "truncated: {what} reaches to byte {needed}, but the file ends at byte {actual}; copy or download it again"
    )]
    Truncated {
        /// The part that is cut off.
        what: &'static str,
        /// Bytes that the file should have at least.
        needed: u64,
        /// Bytes that it has.
        actual: u64,
    },
    /// A field of the header makes no sense.
    #[error("damaged header: {0}; copy or download it again")]
    BadHeader(&'static str),
    /// The kernel does not fit below the end of low memory.
    #[error(
        "needs memory up to {needed_mib} MiB, but the guest has {available_mib} MiB below 4 GiB; \
         give it more (--memory or -m {needed_mib}M)"
    )]
    MemoryTooSmall {
        /// Where the kernel's memory ends, in MiB.
        needed_mib: u64,
        /// What there is, in MiB.
        available_mib: u64,
    },
    /// An ELF segment belongs where there is no RAM for kernels.
    #[error(
        "a segment belongs at {start:#x} to {end:#x}, outside the guest's memory for kernels (from 0x100000); \
         link it elsewhere"
    )]
    SegmentOutsideMemory {
        /// First guest physical address.
        start: u64,
        /// Address after the last.
        end: u64,
    },
    /// The entry point is in no segment.
    #[error("damaged: the entry point {0:#x} is in no loaded segment")]
    EntryOutside(u64),
    /// The command line is longer than this kernel takes.
    #[error("the command line has {length} bytes, and this kernel takes {limit}; shorten it (--append)")]
    CommandLineTooLong {
        /// Bytes given.
        length: usize,
        /// Bytes that the kernel takes.
        limit: usize,
    },
    /// A NUL would end the command line early.
    #[error("the command line has a NUL byte at position {0}; remove it (--append)")]
    CommandLineNul(usize),
    /// Copying into guest memory failed: mostly a file that became shorter meanwhile.
    #[error("cannot be copied into guest memory: {0}")]
    Copy(#[from] GuestMemoryError),
}

/// What can be wrong with an initrd.
#[derive(Debug, thiserror::Error)]
pub enum InitrdError {
    /// Missing, not permitted, a directory, ...
    #[error("{0}; give the path of a file that you may read")]
    Read(#[from] io::Error),
    /// It does not fit between the kernel and the highest address that the kernel takes an initrd at.
    #[error(
        "has {size} bytes, and beside the kernel there is room for {room}; \
         give the guest more memory (--memory or -m) or a smaller initrd"
    )]
    TooLarge {
        /// Its size, in bytes.
        size: u64,
        /// Bytes free for it.
        room: u64,
    },
    /// Copying into guest memory failed: mostly a file that became shorter meanwhile.
    #[error("cannot be copied into guest memory: {0}")]
    Copy(#[from] GuestMemoryError),
}
