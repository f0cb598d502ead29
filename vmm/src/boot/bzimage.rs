//! bzImage: the Linux/x86 boot protocol, version 2.12 and later (Documentation/arch/x86/boot.rst in Linux).
//!
//! The protected-mode part is copied as it is and decompresses itself in the guest. Decompressing it here instead would
//! start from `payload_offset` and `payload_length`, which [`load`] has at hand, and end in
//! [`elf::load`](super::elf::load).

use linux_loader::bootparam::setup_header;
use vm_memory::ByteValued;

use super::error::KernelError;
use super::image::Image;
use super::kernel::{Kernel, Protocol, in_kernel_memory};
use crate::memory::{GuestMemory, Layout, address};

const MIB: u64 = 1 << 20;
/// Where the setup header begins in the file.
const HEADER_OFFSET: usize = 0x1f1;
/// Where its magic number is.
const MAGIC_OFFSET: usize = 0x202;
/// The header ends here, plus the byte just before the magic number.
const HEADER_END_BASE: usize = 0x202;
const MAGIC: &[u8] = b"HdrS";
/// First version with `xloadflags`.
const FIRST_VERSION: u16 = 0x020c;
/// `loadflags`: the protected-mode part belongs above 1 MiB (a bzImage, not a zImage).
const LOADED_HIGH: u8 = 1;
/// `xloadflags`: there is a 64-bit entry point.
const XLF_KERNEL_64: u16 = 1;
/// The 64-bit entry point, from the start of the protected-mode part.
const ENTRY_64: u64 = 0x200;
const SECTOR: u64 = 512;

/// The file begins as a kernel with a setup header does.
pub(super) fn is_one(head: &[u8]) -> bool {
    head.get(MAGIC_OFFSET..).is_some_and(|rest| rest.starts_with(MAGIC))
}

/// Loads the protected-mode part at the address that it prefers, where it need not move itself.
pub(super) fn load(memory: &GuestMemory, layout: &Layout, image: &Image, head: &[u8]) -> Result<Kernel, KernelError> {
    let header = read_header(head)?;
    if header.version < FIRST_VERSION || header.xloadflags & XLF_KERNEL_64 == 0 || header.loadflags & LOADED_HIGH == 0 {
        return Err(KernelError::Only32Bit);
    }
    let setup_sectors = match header.setup_sects {
        0 => 4,
        count => u64::from(count),
    };
    let setup = (setup_sectors + 1) * SECTOR;
    let length = u64::from(header.syssize) * 16;
    let file = image.size()?;
    if file < setup + length {
        return Err(KernelError::Truncated {
            what: "the kernel",
            needed: setup + length,
            actual: file,
        });
    }
    if length <= ENTRY_64 {
        return Err(KernelError::BadHeader("no code (syssize)"));
    }

    let start = header.pref_address.max(address::HIGH_MEMORY);
    let end = start
        .checked_add(u64::from(header.init_size).max(length))
        .ok_or(KernelError::BadHeader("pref_address"))?;
    if !in_kernel_memory(layout, start, end) {
        return Err(KernelError::MemoryTooSmall {
            needed_mib: end.div_ceil(MIB),
            available_mib: layout.low_end() / MIB,
        });
    }
    image.load(memory, start, setup, length as usize)?;
    Ok(Kernel {
        // Below `end`, which is no more than 4 GiB.
        protocol: Protocol::Linux64 {
            rip: start + ENTRY_64,
            header: setup_header {
                code32_start: start as u32,
                ..header
            },
        },
        end,
        initrd_last: u64::from(header.initrd_addr_max),
        command_line_limit: u64::from(header.cmdline_size),
    })
}

/// The header of the file; what lies beyond its own end (newer fields than the kernel knows) is zero.
fn read_header(head: &[u8]) -> Result<setup_header, KernelError> {
    let size = size_of::<setup_header>();
    let truncated = KernelError::Truncated {
        what: "the setup header",
        needed: (HEADER_OFFSET + size) as u64,
        actual: head.len() as u64,
    };
    let Some(mut bytes) = head.get(HEADER_OFFSET..HEADER_OFFSET + size).map(<[u8]>::to_vec) else {
        return Err(truncated);
    };
    let end = HEADER_END_BASE + usize::from(head[MAGIC_OFFSET - 1]);
    bytes[(end - HEADER_OFFSET).min(size)..].fill(0);
    setup_header::from_slice(&bytes).copied().ok_or(truncated)
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use crate::boot::testing::{guest, image};
    use vm_memory::{Bytes, GuestAddress};

    /// A bzImage that wants 16 MiB to 24 MiB, its code the bytes 0, 1, 2, ...
    pub(in crate::boot) fn small_kernel() -> Vec<u8> {
        let header = setup_header {
            setup_sects: 3,
            syssize: 0x100,
            boot_flag: 0xaa55,
            jump: 0x6aeb,
            header: u32::from_le_bytes(*b"HdrS"),
            version: 0x020f,
            loadflags: LOADED_HIGH,
            initrd_addr_max: 0x7fff_ffff,
            kernel_alignment: 0x20_0000,
            relocatable_kernel: 1,
            xloadflags: XLF_KERNEL_64,
            cmdline_size: 2047,
            pref_address: 0x100_0000,
            init_size: 0x80_0000,
            ..setup_header::default()
        };
        let mut file = vec![0; 4 * 512];
        file[HEADER_OFFSET..HEADER_OFFSET + size_of::<setup_header>()].copy_from_slice(header.as_slice());
        file.extend((0..0x1000_u32).map(|at| at as u8));
        file
    }

    fn load_bytes(mib: u64, bytes: &[u8]) -> Result<Kernel, KernelError> {
        let (layout, ram) = guest(mib);
        crate::boot::kernel::load(ram.memory(), &layout, &image(bytes))
    }

    #[test]
    fn kernel_is_loaded_where_it_prefers_and_entered_at_0x200() {
        let (layout, ram) = guest(32);
        let kernel = crate::boot::kernel::load(ram.memory(), &layout, &image(&small_kernel())).unwrap();
        let Protocol::Linux64 { rip, header } = kernel.protocol else {
            panic!("not the 64-bit entry")
        };
        assert_eq!(rip, 0x100_0200);
        assert_eq!({ header.code32_start }, 0x100_0000);
        assert_eq!(kernel.end, 0x180_0000);
        assert_eq!(
            ram.memory().read_obj::<u32>(GuestAddress(0x100_0004)).unwrap(),
            0x0706_0504
        );
    }

    #[test]
    fn fields_beyond_the_end_of_the_header_are_zero() {
        let mut file = small_kernel();
        // The header ends before init_size (0x260): no bytes of code may pass for it.
        file[0x201] = 0x5e;
        file[0x260..0x264].fill(0xff);
        assert_eq!({ read_header(&file).unwrap().init_size }, 0);
    }

    #[test]
    fn kernel_without_a_64_bit_entry_is_named_as_such() {
        let mut file = small_kernel();
        file[0x236] = 0;
        assert!(matches!(load_bytes(32, &file), Err(KernelError::Only32Bit)));
        let mut file = small_kernel();
        file[0x206..0x208].copy_from_slice(&0x0203_u16.to_le_bytes());
        assert!(matches!(load_bytes(32, &file), Err(KernelError::Only32Bit)));
    }

    #[test]
    fn memory_below_what_the_kernel_needs_is_refused_with_the_figure() {
        let mut file = small_kernel();
        file[0x260..0x264].copy_from_slice(&0x180_0000_u32.to_le_bytes());
        let error = load_bytes(32, &file).unwrap_err();
        assert!(
            matches!(
                error,
                KernelError::MemoryTooSmall {
                    needed_mib: 40,
                    available_mib: 32
                }
            ),
            "{error}"
        );
        assert!(load_bytes(40, &file).is_ok());
    }

    #[test]
    fn truncation_anywhere_is_an_error() {
        let file = small_kernel();
        for length in 0..file.len() {
            assert!(load_bytes(32, &file[..length]).is_err(), "{length}");
        }
        assert!(matches!(
            load_bytes(32, &file[..file.len() - 1]),
            Err(KernelError::Truncated { .. })
        ));
    }

    #[test]
    fn appended_signature_is_not_loaded() {
        let (layout, ram) = guest(32);
        let mut file = small_kernel();
        file.extend([0xee; 64]);
        crate::boot::kernel::load(ram.memory(), &layout, &image(&file)).unwrap();
        assert_eq!(ram.memory().read_obj::<u8>(GuestAddress(0x100_1000)).unwrap(), 0);
    }

    proptest::proptest! {
        #[test]
        fn damaged_header_never_panics(at in 0x1f1_usize..0x270, value: u8, second in 0x1f1_usize..0x270, other: u8) {
            let mut file = small_kernel();
            file[at] = value;
            file[second] = other;
            let _ = load_bytes(32, &file);
        }
    }
}
