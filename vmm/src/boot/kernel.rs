//! Loads a kernel: tells what it is and puts it where it wants to be.
//!
//! * A **bzImage** is entered at its 64-bit entry point and decompresses itself.
//! * An **ELF file with a PVH note** is entered there, in 32-bit protected mode. The note says that the file promises
//!   to understand it, whatever system it is; an ELF file cannot say so of the Linux boot protocol.
//! * Any other **64-bit ELF file** is taken for a vmlinux, whose ELF entry is the 64-bit entry point of the Linux boot
//!   protocol.

use super::error::KernelError;
use super::image::Image;
use super::{bzimage, elf};
use crate::memory::{GuestMemory, Layout};
use linux_loader::bootparam::setup_header;

/// How a loaded kernel is entered.
#[derive(Clone, Copy, Debug)]
pub(super) enum Protocol {
    /// 64-bit entry of the Linux boot protocol.
    Linux64 {
        /// Guest physical address of the first instruction.
        rip: u64,
        /// Setup header, of the file or (vmlinux has none) with what a boot loader must fill in.
        header: setup_header,
    },
    /// PVH entry.
    Pvh {
        /// Guest physical address of the first instruction.
        rip: u32,
    },
}

/// A kernel in guest memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kernel {
    pub protocol: Protocol,
    /// First address that the kernel does not use before it has read the memory map.
    pub end: u64,
    /// Highest address that the last byte of the initrd may have.
    pub initrd_last: u64,
    /// Bytes of command line that it takes, without the NUL at the end.
    pub command_line_limit: u64,
}

/// Bytes at the head of the file that tell its kind; enough for every header that is read here.
const HEAD: usize = 4096;

/// Loads `image` into `memory`.
pub(super) fn load(memory: &GuestMemory, layout: &Layout, image: &Image) -> Result<Kernel, KernelError> {
    let head = image.read_at(0, HEAD)?;
    if head.starts_with(&elf::MAGIC) {
        elf::load(memory, layout, image, &head)
    } else if bzimage::is_one(&head) {
        bzimage::load(memory, layout, image, &head)
    } else {
        Err(KernelError::NotAKernel)
    }
}

/// `[start, end)` lies in the RAM where kernels are put: from 1 MiB to the end of low RAM.
pub(super) fn in_kernel_memory(layout: &Layout, start: u64, end: u64) -> bool {
    crate::memory::address::HIGH_MEMORY <= start && start <= end && end <= layout.low_end()
}
